"""Matching that looks at images: 2-Rectified Flow++ (Lee et al. 2024, arXiv 2405.20320).

    loss = t H(v, u) + P(x1_hat, x1)              (their configuration E)
    loss = t H(v, u) + P(x1_hat, x1) / (1 - t)    (F)

H is the run's loss on the velocity, P a distance in the features of a classifier, x1_hat the data the network predicts.
P in place of LPIPS, whose VGG knows photographs of 64 pixels and more: a classifier of the data's own classes, as the
metrics have, and another one than theirs, so that no figure is measured in what was trained on.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from flowcore.data import Batch, everything
from flowcore.losses import matching_loss
from flowcore.objectives import posed
from flowcore.plugin.contracts import Data, Objective, Parts
from flowcore.seeds import derive
from flowplat_images import features
from flowplat_images.reference import CHUNK


def perceptual(parts: Parts, over_noise: bool = True, floor: Annotated[float, Field(gt=0, le=1)] = 0.01) -> Objective:
    """t H(v, u) + P(x1_hat, x1) / (1 - t), or plus P alone without ``over_noise``.

    1 - t counts as ``floor`` where it is less, or the few times near t = 1 would drown the others. The classifier is
    trained when the first loss is computed, in seconds, and is the same whenever the run's seed and data are.
    """

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        field, pairs, t = posed(parts, network, batch, generator)
        looks, now = judge(parts.data, parts.seed, parts.device), t.float()

        def early(prediction: Tensor, target: Tensor) -> Tensor:
            return now * parts.loss(prediction, target)

        def seen(made: Tensor, real: Tensor, _: Tensor) -> Tensor:
            distance = looks.apart(made, real)
            return distance / (1 - now).clamp(min=floor) if over_noise else distance

        return matching_loss(
            field, pairs, now, early, weight=parts.times.weights(t), perceptual=seen, compares="velocity"
        )

    return loss


class Judge(NamedTuple):
    """A classifier, and the mean square of what each of its layers says of the training images."""

    network: features.Classifier
    squares: tuple[float, ...]

    def apart(self, one: Tensor, other: Tensor) -> Tensor:
        """sum over layers of |f(one) - f(other)|^2 / E |f|^2, averaged over places where there are any: (B,).

        The layers f are those after each ReLU. LPIPS (Zhang et al. 2018, arXiv 1801.03924) has features of length 1
        instead, which over a single place, as an MLP has, would say nothing of how bright an image is.
        """
        with torch.no_grad():
            wanted = list(_layers(self.network.body, other))
        total = one.new_zeros(len(one))
        for a, b, square in zip(_layers(self.network.body, one), wanted, self.squares, strict=True):
            total = total + (a - b).square().flatten(1).mean(1) / square
        return total


def _layers(body: nn.Sequential, x: Tensor) -> Iterator[Tensor]:
    for layer in body:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            yield x


@lru_cache(maxsize=1)
def judge(data: Data, seed: int, device: torch.device) -> Judge:
    """What P looks through: a classifier of another seed than that of the run's metrics."""
    training = everything(data.train())
    with torch.inference_mode(False), torch.enable_grad():
        network = features.fit(training, None, derive(seed, "perceptual"), None, device).network.requires_grad_(False)
    some = training.x1[:: math.ceil(len(training) / CHUNK)].to(device)
    return Judge(network, tuple(f.square().mean().item() for f in _layers(network.body, some)))
