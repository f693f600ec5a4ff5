"""Matching that looks at images: 2-Rectified Flow++ (Lee et al. 2024, arXiv 2405.20320).

    loss = t H(v, u) + P(x1_hat, x1)              (their configuration E)
    loss = t H(v, u) + P(x1_hat, x1) / (1 - t)    (F)

H is the run's loss on the velocity, P a distance in the features of a classifier, x1_hat the data the network predicts.
P in place of LPIPS, whose VGG knows photographs of 64 pixels and more: a classifier of the data's own classes, as the
metrics have, and another one than theirs, so that no figure is measured in what was trained on.
"""

from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from flowcore.data import Batch, everything
from flowcore.losses import matching_loss
from flowcore.objectives import posed
from flowcore.plugin.contracts import Data, Objective, Parts
from flowcore.seeds import derive
from flowplat_images import features


def perceptual(parts: Parts, over_noise: bool = True, floor: Annotated[float, Field(gt=0, le=1)] = 0.01) -> Objective:
    """t H(v, u) + P(x1_hat, x1) / (1 - t), or plus P alone without ``over_noise``.

    1 - t counts as ``floor`` where it is less, or the few times near t = 1 would drown the others. The classifier is
    trained when the first loss is computed, in seconds, and is the same whenever the run's seed and data are.
    """

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        field, pairs, t = posed(parts, network, batch, generator)
        body, now = classifier(parts.data, parts.seed, parts.device).body, t.float()

        def early(prediction: Tensor, target: Tensor) -> Tensor:
            return now * parts.loss(prediction, target)

        def seen(made: Tensor, real: Tensor, _: Tensor) -> Tensor:
            distance = apart(body, made, real)
            return distance / (1 - now).clamp(min=floor) if over_noise else distance

        return matching_loss(
            field, pairs, now, early, weight=parts.times.weights(t), perceptual=seen, compares="velocity"
        )

    return loss


def apart(body: nn.Sequential, one: Tensor, other: Tensor) -> Tensor:
    """sum over layers of |f(one) - f(other)|^2, averaged over places, for features f of length 1 at each: (B,).

    The layers are those after each ReLU. As LPIPS without its learnt weights (Zhang et al. 2018, arXiv 1801.03924).
    """
    total = one.new_zeros(len(one))
    with torch.no_grad():
        wanted = list(_layers(body, other))
    for a, b in zip(_layers(body, one), wanted, strict=True):
        total = total + (a - b).square().sum(1).flatten(1).mean(1)
    return total


def _layers(body: nn.Sequential, x: Tensor) -> Any:
    for layer in body:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found = x if x.ndim > 2 else x[:, :, None]
            yield found / (found.square().sum(1, keepdim=True) + 1e-10).sqrt()


@lru_cache(maxsize=1)
def classifier(data: Data, seed: int, device: torch.device) -> features.Classifier:
    """The classifier that P looks through: of another seed than that of the run's metrics."""
    training = everything(data.train())
    with torch.inference_mode(False), torch.enable_grad():
        fitted = features.fit(training, None, derive(seed, "perceptual"), None, device)
    return fitted.network.requires_grad_(False)
