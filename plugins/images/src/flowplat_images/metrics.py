"""How good samples are: Frechet distance with its floor and baselines, and whether they are copies."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from flowcore.data import Batch, everything
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import generator
from flowplat_images import features

CHUNK = 1024


def frechet(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Frechet distance |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) between features of samples and of the training set.

    Floor: one half of the training set against the other. Baselines: a Gaussian with the pixels' mean and covariance,
    and pure noise, on as many samples. It falls with the number of samples, so compare equal counts only, and only
    figures with the same feature network (Heusel et al. 2017, arXiv 1706.08500).
    """
    found = _reference(measured.data, measured.seed, measured.folder)
    n, shape = len(samples), samples.x1.shape[1:]
    gaussian, noise = _baselines(measured.data, measured.seed, measured.folder, n)
    figure = Figure(
        _distance(found.network, found.training.x1, samples.x1, shape),
        floor=found.floor,
        baselines={"gaussian": gaussian, "noise": noise},
        note=found.note,
    )
    return {"frechet": figure}


def nearest(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Euclidean distance to the nearest training image, and the share of samples that are copies of one.

    A copy is nearer to a training image than 99 of 100 training images are to their nearest neighbour; a model that
    has memorised its data has distance 0 and copies 1. The floor is what training images score among themselves.
    """
    training = everything(measured.data.train()).x1.flatten(1)
    real = _nearest(training, training, itself=True)
    drawn = _nearest(samples.x1.clamp(-1, 1).flatten(1), training)
    threshold = torch.quantile(real, 0.01)
    return {
        "nearest_distance": Figure(
            drawn.mean().item(),
            better="neither",
            floor=real.mean().item(),
            note="mean distance to the nearest training image; floor: of a training image to its nearest other",
        ),
        "copies": Figure(
            (drawn < threshold).double().mean().item(),
            floor=0.01,
            note="share of samples nearer to a training image than 1 % of training images are to each other",
        ),
    }


class Reference(NamedTuple):
    """What does not depend on the samples."""

    network: nn.Module
    training: Batch
    floor: float
    note: str


@lru_cache(maxsize=2)
def _reference(data: Any, seed: int, folder: Path) -> Reference:
    training = everything(data.train())
    keep = folder / "features.safetensors"
    classes = int(training.extra["labels"].max()) + 1 if "labels" in training.extra else 0
    network, note = features.fit(training, classes, seed, keep)
    if keep.exists():
        note += f", sha256 {hashlib.sha256(keep.read_bytes()).hexdigest()[:16]}"
    order = torch.randperm(len(training), generator=generator(seed, "halves"))
    one, other = training.x1[order].chunk(2)
    return Reference(network, training, _distance(network, one, other, one.shape[1:]), note)


@lru_cache(maxsize=2)
def _baselines(data: Any, seed: int, folder: Path, count: int) -> tuple[float, float]:
    network, training, _, _ = _reference(data, seed, folder)
    shape = training.x1.shape[1:]
    flat = training.x1.flatten(1).double()
    draws = generator(seed, "baselines")
    noise = torch.randn(count, flat.shape[1], dtype=torch.float64, generator=draws)
    centred = (flat - flat.mean(0)) / (len(flat) - 1) ** 0.5
    mix = torch.randn(count, len(flat), dtype=torch.float64, generator=draws)
    gaussian = flat.mean(0) + mix @ centred  # covariance centred^T centred, without forming a matrix root
    return tuple(
        _distance(network, training.x1, x.float().view(-1, *shape), shape) for x in (gaussian, noise)
    )  # type: ignore[return-value]


@torch.no_grad()
def _distance(network: nn.Module, real: Tensor, drawn: Tensor, shape: torch.Size) -> float:
    metric = FrechetInceptionDistance(feature=network, input_img_size=tuple(shape))
    for images, is_real in ((real, True), (drawn.clamp(-1, 1), False)):
        for part in images.split(CHUNK):
            metric.update(part, real=is_real)
    return metric.compute().item()


def _nearest(x: Tensor, training: Tensor, itself: bool = False) -> Tensor:
    """Distance of each row of x to the nearest row of ``training``, or to the nearest other one."""
    rank = 2 if itself else 1
    return torch.cat([torch.cdist(part, training).kthvalue(rank, dim=1).values for part in x.split(CHUNK)])
