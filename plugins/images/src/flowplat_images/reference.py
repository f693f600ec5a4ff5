"""What samples are measured against: training images, their halves, simpler draws, and the features of a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from flowcore.data import Batch, everything
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Measured
from flowcore.seeds import generator
from flowplat_images import features

CHUNK = 1024


class Frechet:
    """Distances of sets of images to one real set, in the features (n, d) that ``network`` gives n images.

    Values outside [-1, 1] are clipped. The real set is seen once.
    """

    def __init__(self, network: nn.Module, real: Tensor, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.metric = FrechetInceptionDistance(feature=network, reset_real_features=False).to(device)
        self._update(real, real=True)

    def __call__(self, images: Tensor) -> float:
        self.metric.reset()
        self._update(images, real=False)
        return self.metric.compute().item()

    @torch.no_grad()
    def _update(self, images: Tensor, real: bool) -> None:
        for part in images.clamp(-1, 1).split(CHUNK):
            self.metric.update(part.to(self.device), real=real)


@dataclass(frozen=True)
class Reference:
    """What of a measurement does not depend on the samples. ``halves`` are those of the training images, at random."""

    training: Batch
    halves: tuple[Tensor, Tensor]
    fitted: features.Fitted
    device: torch.device

    @cached_property
    def distance(self) -> Frechet:
        """The Frechet distance to all training images."""
        return Frechet(self.fitted.network, self.training.x1, self.device)

    @cached_property
    def floor(self) -> float | None:
        """The Frechet distance of one half to the other."""
        one, other = self.halves
        return Frechet(self.fitted.network, one, self.device)(other) if len(other) > 1 else None

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """The features of images as float64 (n, 64), values outside [-1, 1] clipped; on ``device``."""
        parts = x.clamp(-1, 1).split(CHUNK)
        return torch.cat([self.fitted.network(part.to(self.device)).double() for part in parts])


@lru_cache(maxsize=1)
def reference(measured: Measured) -> Reference:
    """The reference of a run, made once. Raises ``UsageError`` for a single training image."""
    training, where = everything(measured.data.train()), device(measured)
    if len(training) < 2:
        raise UsageError("this metric needs two training images or more; leave it out of eval.metrics")
    fitted = features.fit(training, held_out(measured), measured.seed, measured.folder / "features.safetensors", where)
    order = torch.randperm(len(training), generator=generator(measured.seed, "halves"))
    one, other = training.x1[order].chunk(2)
    return Reference(training, (one, other), fitted, where)


@lru_cache(maxsize=2)
def simpler(measured: Measured, count: int) -> Mapping[str, Tensor]:
    """``count`` images drawn in simpler ways: a Gaussian with the pixels' mean and covariance, and pure noise."""
    gaussian = gaussian_fit(reference(measured).training.x1, count, generator(measured.seed, "gaussian"))
    return {"gaussian": gaussian, "noise": torch.randn(gaussian.shape, generator=generator(measured.seed, "noise"))}


def gaussian_fit(x: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """``count`` draws from the Gaussian with the mean and covariance of the pixels of x, shape (count, c, h, w)."""
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    root = (flat - mean) / max(1, len(flat) - 1) ** 0.5  # covariance = root^T root
    if len(flat) > flat.shape[1]:  # fewer rows with the same product
        values, vectors = torch.linalg.eigh(root.T @ root)
        root = (vectors * values.clamp(min=0).sqrt()).T
    drawn = mean + torch.randn(count, len(root), dtype=torch.float64, generator=draws) @ root
    return drawn.float().view(count, *x.shape[1:])


def held_out(measured: Measured) -> Batch | None:
    """The held-out images, or None where the data set validates on its training images."""
    return everything(measured.data.val()) if getattr(measured.data, "holds_out", True) else None


def device(measured: Measured) -> torch.device:
    """The run's device, if it computes in float64."""
    return torch.device("cpu") if measured.device.type == "mps" else measured.device
