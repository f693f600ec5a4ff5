"""The exponential moving average of the weights: what is sampled and exported."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An average of ``network``, updated as m <- d_n m + (1 - d_n) w with d_n = min(decay, (1 + n) / (10 + n)).

    The warm-up d_n lets the average follow the weights while they still move fast; n counts updates.
    """
    return AveragedModel(network, multi_avg_fn=_warmed(decay), use_buffers=True)


def _warmed(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(means: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        d = min(decay, (1 + n) / (10 + n))
        real = [(m, w) for m, w in zip(means, weights, strict=True) if m.is_floating_point()]
        torch._foreach_lerp_([m for m, _ in real], [w for _, w in real], 1 - d)
        for mean, weight in zip(means, weights, strict=True):
            if not mean.is_floating_point():  # counters and masks have no average
                mean.copy_(weight)

    return update
