"""How good samples are: Frechet distance, whether they are copies, whether they are of the class that was asked for."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from flowcore.data import Batch, everything
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import generator
from flowplat_images.data import Images
from flowplat_images.reference import CHUNK, device, gaussian_fit, held_out, reference, simpler

PROBES = 2048  # images whose distance to the others says what is near


def frechet(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Frechet distance |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) between features of samples and of the training set.

    Floor: one half of the training set against the other. Baselines: a Gaussian with the pixels' mean and covariance,
    and pure noise, on as many samples. It falls with the number of samples, so compare equal counts only, and only
    figures with the same feature network. A model's distance is to the full training set, so a very good one, or one
    that memorises, can fall below the floor: read it with ``copies`` (Heusel et al. 2017, arXiv 1706.08500).
    """
    found = reference(measured)
    figure = Figure(
        found.distance(samples.x1),
        floor=found.floor,
        baselines=_baselines(measured, len(samples)),
        note=f"{found.fitted.note}; floor: one half of the training images against the other",
    )
    return {"frechet": figure}


def nearest(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Euclidean distance to the nearest training image, and the share of samples that are copies of one.

    A copy is nearer to a training image than 99 of 100 training images are to their nearest other; a model that has
    memorised its data has distance 0 and copies 1. Floors: what held-out images score, or training images among the
    others where none are held out. Baseline: a Gaussian with the pixels' mean and covariance. Where training mirrors
    images, a mirrored training image is one too.
    """
    found = _neighbours(measured)
    drawn = found.distances(samples.x1)
    gaussian = found.distances(gaussian_fit(found.training, len(samples), generator(measured.seed, "gaussian")))

    def copies(distances: Tensor) -> float:
        return (distances <= found.threshold).double().mean().item()

    return {
        "nearest_distance": Figure(
            drawn.mean().item(),
            better="neither",
            floor=found.real.mean().item(),
            baselines={"gaussian": gaussian.mean().item()},
            note=f"mean distance to the nearest training image; floor: of {found.real_name}",
        ),
        "copies": Figure(
            copies(drawn),
            floor=copies(found.real),
            baselines={"gaussian": copies(gaussian)},
            note=f"share of samples within {found.threshold:.4g} of a training image, as 1 % of training images are of "
            f"another; floor: of {found.real_name}",
        ),
    }


def class_accuracy(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Share of conditional samples that the feature classifier gives the class they were asked to be of, or that their
    caption names; captions that name no class, or more than one, do not count.

    Floor: its accuracy on held-out images, or on the training images where none are held out; strong guidance can
    exceed it, at the price of variety. Baseline: chance. Raises ``UsageError`` for unconditional samples.
    """
    if samples.condition is None:
        raise UsageError("class_accuracy measures conditional samples: set data.conditional=true, or leave it out")
    asked = cast(Images, measured.data).asked(samples.condition).cpu()
    known = asked >= 0
    if not bool(known.any()):
        raise UsageError("class_accuracy needs captions that name one class each; leave it out of eval.metrics")
    found = reference(measured)
    if not found.fitted.labelled:
        raise UsageError("class_accuracy needs two classes or more; leave it out of eval.metrics")
    held = held_out(measured)
    real = found.training if held is None else held
    network = found.fitted.network
    uncounted = "" if bool(known.all()) else f"; {int((~known).sum())} captions name no class, or several"

    def share(x: Tensor, asked: Tensor) -> float:
        return (network.classify(x.clamp(-1, 1)) == asked).double().mean().item()

    figure = Figure(
        share(samples.x1[known], asked[known]),
        better="higher",
        floor=share(real.x1, real.extra["labels"]),
        baselines={"chance": 1 / network.head.out_features},
        note=f"{found.fitted.note}; floor: on {'training' if held is None else 'held-out'} images{uncounted}",
    )
    return {"class_accuracy": figure}


@lru_cache(maxsize=4)
def _baselines(measured: Measured, count: int) -> Mapping[str, float]:
    return {name: reference(measured).distance(x) for name, x in simpler(measured, count).items()}


class Neighbours(NamedTuple):
    """Training images to measure distances to, and what real images measure."""

    training: Tensor
    mirrored: bool
    device: torch.device
    threshold: float
    real: Tensor
    real_name: str

    def distances(self, x: Tensor, themselves: Tensor | None = None) -> Tensor:
        """Distance of each image to the nearest training image; not counting row ``themselves[i]`` for image i."""
        nearest = _nearest(x, self.training, self.device, themselves)
        if not self.mirrored:
            return nearest
        return torch.minimum(nearest, _nearest(x, self.training.flip(-1), self.device, themselves))


@lru_cache(maxsize=1)
def _neighbours(measured: Measured) -> Neighbours:
    source = measured.data.train()
    training = everything(source).x1
    found = Neighbours(training, getattr(source, "flip", False), device(measured), 0.0, training, "")
    probes = torch.randperm(len(training), generator=generator(measured.seed, "probes"))[:PROBES]
    among = found.distances(training[probes], probes)
    held = held_out(measured)
    return found._replace(
        threshold=torch.quantile(among, 0.01).item(),
        real=among if held is None else found.distances(held.x1),
        real_name="training images to their nearest other" if held is None else "held-out images",
    )


def _nearest(x: Tensor, training: Tensor, device: torch.device, themselves: Tensor | None) -> Tensor:
    flat, rows = training.flatten(1).to(device), []
    images = x.clamp(-1, 1).flatten(1)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].to(device)
        away = torch.cdist(part, flat)
        if themselves is not None:
            away[torch.arange(len(part)), themselves[start : start + CHUNK]] = torch.inf
        # once more for the nearest alone: cdist subtracts large products, and is not 0 for equal rows
        rows.append((part - flat[away.argmin(1)]).norm(dim=1).cpu())
    return torch.cat(rows)
