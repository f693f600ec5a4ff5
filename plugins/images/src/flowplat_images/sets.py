"""How two sets of images compare: kernel distance, precision and recall, the variety of classes, optimal transport."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.distances import wasserstein
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import generator
from flowplat_images.reference import CHUNK, Reference, reference, simpler

COMPARED = 10_000  # images of each set whose features are compared: time and memory grow with their square
ASSIGNED = 2000  # images of each set that are assigned to each other: a second or two
NEAREST = 3
HALVES = "floor: one half of the training images against the other"


def kernel(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Kernel distance E k(x, x') + E k(y, y') - 2 E k(x, y) between features of samples x and training images y,
    k(x, y) = (x . y / d + 1)^3, without the pairs of an image and itself.

    Unbiased: its mean over sets of one law is 0 whatever their size, so that it may be negative, and figures from other
    numbers of samples compare. Floor: one half of the training images against the other. Baselines: a Gaussian with the
    pixels' mean and covariance, and noise. (Binkowski et al. 2018, arXiv 1801.01401.)
    """
    found = _reference(samples, measured, "kernel")
    floor, baselines = _beside(measured, len(samples), kernel_distance)
    value = kernel_distance(_features(found, samples.x1), _features(found, found.training.x1))
    return {"kernel": Figure(value, floor=floor, baselines=baselines, note=f"{found.fitted.note}; {HALVES}")}


def precision_recall(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Precision, the share of samples in the support of the training images, and recall, the share of training images
    in that of the samples, by the classifier's features: the support of a set is all that is no farther from one of it
    than the third nearest other is.

    Floor: one half of the training images and the other. Baselines: a Gaussian with the pixels' mean and covariance,
    and noise. Compare equal numbers of samples only. (Kynkaanniemi et al. 2019, arXiv 1904.06991.)
    """
    found = _reference(samples, measured, "precision_recall")
    floor, baselines = _beside(measured, len(samples), supported)
    value = supported(_features(found, samples.x1), _features(found, found.training.x1))
    told = {"precision": "samples among training images", "recall": "training images among samples"}
    return {
        name: Figure(
            value[i],
            better="higher",
            floor=None if floor is None else floor[i],
            baselines={way: shares[i] for way, shares in baselines.items()},
            note=f"share of {what}, within reach of a third nearest other; {found.fitted.note}; {HALVES}",
        )
        for i, (name, what) in enumerate(told.items())
    }


def entropy(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Entropy -sum p log p, in nats, of how often the feature classifier gives each class: ln K for K classes equally
    often, 0 where all samples are of one.

    Floor: as many training images, drawn at random. Baselines: a Gaussian with the pixels' mean and covariance, and
    noise. It tells that classes are left out, not whether the images are good, and conditional samples are of the
    classes that were asked for.
    """
    found, count = _reference(samples, measured, "entropy"), len(samples)
    rows = torch.randint(len(found.training), (count,), generator=generator(measured.seed, "entropy"))
    figure = Figure(
        _entropy(found, samples.x1),
        better="higher",
        floor=_entropy(found, found.training.x1[rows]),
        baselines={way: _entropy(found, x) for way, x in simpler(measured, count).items()},
        unit="nats",
        note=f"{found.fitted.network.head.out_features} classes; {found.fitted.note}; floor: as many training images",
    )
    return {"entropy": figure}


def w2(
    samples: Batch,
    measured: Measured,
    components: Annotated[int, Field(ge=0, description="principal components to compare; 0 compares pixels")] = 0,
) -> Mapping[str, Figure]:
    """W2 = (min over assignments of the mean |x - y|^2)^(1/2) between samples and one half of the training images,
    exact, in pixels or in their first ``components`` principal components.

    As many of the one as of the other, and at most 2,000; it falls with their number, so compare equal counts only.
    Floor: the other half of the training images. Baselines: a Gaussian with the pixels' mean and covariance, and noise.
    """
    found = _reference(samples, measured, "w2")
    count = min(len(samples), len(found.halves[1]), ASSIGNED)
    floor, baselines = _beside_w2(measured, len(samples), count, components)
    where = f"{components} principal components" if components else "pixels"
    note = f"{count} images against {count} in {where}; {HALVES}"
    return {"w2": Figure(_w2(measured, samples.x1, count, components), floor=floor, baselines=baselines, note=note)}


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD of (n, d) and (m, d) under k(x, y) = (x . y / d + 1)^3; see ``kernel``."""

    def total(a: Tensor, b: Tensor) -> float:
        return sum((rows @ b.T / b.shape[1] + 1).pow(3).sum().item() for rows in a.split(CHUNK))

    def within(a: Tensor) -> float:
        themselves = (a.square().sum(1) / a.shape[1] + 1).pow(3).sum().item()
        return (total(a, a) - themselves) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


def supported(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The shares of x (n, d) in the support of y (m, d), and of y in that of x; see ``precision_recall``."""
    return _share(x, y), _share(y, x)


def _share(inner: Tensor, outer: Tensor) -> float:
    # the distance of an image to itself, which is among them, is the least
    third = min(NEAREST + 1, len(outer))
    reach = torch.cat([_lengths(rows, outer).kthvalue(third, 1).values for rows in outer.split(CHUNK)])
    return torch.cat([(_lengths(rows, outer) <= reach).any(1) for rows in inner.split(CHUNK)]).double().mean().item()


def _lengths(x: Tensor, y: Tensor) -> Tensor:
    # by subtraction, so that it is 0 for equal rows
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _entropy(found: Reference, x: Tensor) -> float:
    network = found.fitted.network
    shares = torch.bincount(network.classify(x.clamp(-1, 1)), minlength=network.head.out_features).double() / len(x)
    return torch.special.entr(shares).sum().item()


def _reference(samples: Batch, measured: Measured, name: str) -> Reference:
    found = reference(measured)
    if min(len(samples), len(found.halves[1])) < 2:
        raise UsageError(f"{name} needs two samples and four training images or more; leave it out of eval.metrics")
    return found


def _features(found: Reference, x: Tensor) -> Tensor:
    """The features of at most 10,000 images, at random: data sets are often sorted."""
    if len(x) > COMPARED:
        x = x[torch.randperm(len(x), generator=generator(0, "compared"))[:COMPARED]]
    return found.features(x)


@lru_cache(maxsize=8)
def _beside(measured: Measured, count: int, compare: Callable[[Tensor, Tensor], Any]) -> tuple[Any, dict[str, Any]]:
    """The floor and the baselines of a comparison in features."""
    found = reference(measured)
    one, other = (_features(found, half) for half in found.halves)
    training, ways = _features(found, found.training.x1), simpler(measured, count)
    return compare(other, one), {way: compare(_features(found, x), training) for way, x in ways.items()}


@lru_cache(maxsize=8)
def _beside_w2(measured: Measured, drawn: int, count: int, components: int) -> tuple[float, dict[str, float]]:
    other, ways = reference(measured).halves[1], simpler(measured, drawn)
    floor = _w2(measured, other, count, components)
    return floor, {way: _w2(measured, x, count, components) for way, x in ways.items()}


def _w2(measured: Measured, x: Tensor, count: int, components: int) -> float:
    """W2 of ``count`` of the images x to as many of the first half of the training images."""
    half = reference(measured).halves[0]
    rows = torch.randperm(len(x), generator=generator(measured.seed, "w2"))[:count]
    mine, others = x[rows].clamp(-1, 1).flatten(1).double(), half[:count].flatten(1).double()
    if components:
        axes = _axes(measured, components)
        mine, others = mine @ axes, others @ axes
    return wasserstein(mine, others)


@lru_cache(maxsize=2)
def _axes(measured: Measured, components: int) -> Tensor:
    """The first principal components of the training images as columns, from at most 2,000 of them."""
    flat = reference(measured).halves[0][:ASSIGNED].flatten(1).double()
    return torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:components].T
