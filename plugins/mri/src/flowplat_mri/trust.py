"""How far a prior is to be trusted beside histogram matching, learnt on the target's own images in other guises.

With T the truth, H its guise matched to the target's histogram and P what the prior makes of it, the estimate
w P + (1 - w) H errs least where

    w = <T - H, P - H> / <P - H, P - H>.

Both products are gathered while the prior trains, apart for each size d of the disagreement |P - H|: where the two
agree to within the prior's own error there is nothing to be gained from it, and w falls. No scan of another scanner is
needed."""

import torch
from torch import Tensor

SIZES = torch.logspace(-2, 0.5, 11)
"""Sizes of the disagreement, in standard deviations of the target's intensities, that are kept apart."""
DECAY = 0.995


def empty() -> Tensor:
    """(2, 11): both products at each size; nothing known."""
    return torch.zeros(2, len(SIZES))


@torch.no_grad()
def learn(known: Tensor, prior: Tensor, matched: Tensor, truth: Tensor, inside: Tensor) -> None:
    """Take images (B, ...) into ``known``, in place: a decaying sum over steps. All on the standardized scale."""
    apart = ((prior - matched) * inside).flatten(1).float()
    wanted = ((truth - matched) * inside).flatten(1).float()
    count = inside.flatten(1).sum(1).clamp(min=1)
    size = (apart.square().sum(1) / count).sqrt()
    scale = SIZES.to(size.device)
    place = (size[:, None].clamp(min=1e-6).log() - scale.log()).abs().argmin(1)
    sums = torch.stack([(wanted * apart).sum(1), apart.square().sum(1)]).to(known)
    known.mul_(DECAY).index_add_(1, place, sums)


def weight(known: Tensor, size: float) -> float:
    """w in [0, 1] at a disagreement of ``size``, linear in its log between the sizes that were met; 1/2 where nothing
    has been learnt."""
    import numpy as np

    products, denominators = known.double().cpu().numpy()
    met = denominators > 0
    if not met.any():
        return 0.5
    there = np.clip(products[met] / denominators[met], 0, 1)
    return float(np.interp(np.log(max(size, 1e-6)), np.log(SIZES.numpy()[met]), there))
