"""The space the Frechet distance is measured in: the features of a small classifier trained on the data themselves.

Inception features know photographs, not 8x8 digits, and cannot be had offline. A classifier that tells the data's own
classes apart is the honest substitute, and where there are no classes, clusters of the images stand in for them:
linear features such as principal components cannot tell the data from a Gaussian with their mean and covariance. The
distances compare with each other and with no other network's.
"""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowcore.data import Batch, Rows, batches
from flowcore.errors import IntegrityError
from flowcore.seeds import derive, generator

STEPS, EPOCHS, BATCH = 1500, 200, 256  # whichever of steps and epochs ends first
CLUSTERS, ROUNDS = 10, 20
SEEN = 64  # larger images are averaged down to this many pixels a side


class Classifier(nn.Module):
    """Features (B, 64), and class scores by one more linear layer. ``forward`` gives features, for torchmetrics."""

    num_features = 64

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if max(shape[1:]) <= 12:
            layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.ReLU()]
            size = 128
        else:
            layers, size = [nn.AdaptiveAvgPool2d(SEEN)] if max(shape[1:]) > SEEN else [], shape[0]
            for channels in (32, 64, 128):
                layers += [nn.Conv2d(size, channels, 3, stride=2, padding=1), nn.ReLU()]
                size = channels
            layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
            size *= 4
        self.body = nn.Sequential(*layers, nn.Linear(size, self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.float())

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """The likeliest class of each image, (B,) int64 on the CPU."""
        device = self.head.weight.device
        return torch.cat([self.head(self(part.to(device))).argmax(1).cpu() for part in x.split(1024)])


def clusters(x: Tensor, count: int, seed: int) -> Tensor:
    """k-means on the images averaged down to at most 16x16: the cluster of each, (n,) int64 in [0, count)."""
    small = F.adaptive_avg_pool2d(x, (min(x.shape[2], 16), min(x.shape[3], 16))).flatten(1)
    centres = small[torch.randperm(len(x), generator=generator(seed, "clusters"))[:count]]
    for _ in range(ROUNDS):
        nearest = torch.cdist(small, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, small)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return nearest


class Fitted(NamedTuple):
    """A feature network, a line that says what it is, and whether its classes are the data's own."""

    network: Classifier
    note: str
    labelled: bool


def fit(
    training: Batch, held: Batch | None, seed: int, keep: Path | None, device: torch.device | str = "cpu"
) -> Fitted:
    """The feature network for a training set.

    It is trained on ``training.extra["labels"]``, or on k-means clusters where there are not two classes, by Adam under
    a one-cycle learning rate, and stored in ``keep``, if given; what is stored there already is used as it is. ``held``
    are held-out images to give its accuracy on. Raises ``IntegrityError`` when the stored weights are damaged or of
    another shape.
    """
    own = training.extra.get("labels")
    labelled = own is not None and int(own.max()) > int(own.min())
    labels = training.extra["labels"] if labelled else clusters(training.x1, min(CLUSTERS, len(training)), seed)
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "features"))  # torch's layers draw their first weights from the global generator
        network = Classifier(tuple(training.x1.shape[1:]), classes)
    if keep is not None and keep.exists():
        try:
            network.load_state_dict(load_file(keep))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise IntegrityError(f"{keep} is damaged or belongs to other data; delete it to train it again") from error
        network.to(device)
    else:
        _train(network.to(device), Rows(training.x1, extra={"labels": labels}), seed, device)
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            save_file(network.state_dict(), keep)
    network.eval()
    kind = "the data's own classes" if labelled else f"{classes} clusters, for want of classes"
    tested, truth, which = training.x1, labels, "training"
    if labelled and held is not None:
        tested, truth, which = held.x1, held.extra["labels"], "held-out"
    accuracy = torch.eq(network.classify(tested), truth).double().mean().item()
    note = f"features: classifier of {kind}, {which} accuracy {accuracy:.4f}"
    if keep is not None:
        note += f", {keep.name} sha256 {hashlib.sha256(keep.read_bytes()).hexdigest()[:16]}"
    return Fitted(network, note, labelled)


def _train(network: Classifier, source: Rows, seed: int, device: torch.device | str) -> None:
    size = min(BATCH, len(source))
    steps = min(STEPS, EPOCHS * math.ceil(len(source) / size))
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for batch in batches(source, size, 0, steps, seed):
        scores = network.head(network(batch.x1.to(device)))
        loss = F.cross_entropy(scores, batch.extra["labels"].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
