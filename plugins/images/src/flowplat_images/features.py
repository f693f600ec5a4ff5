"""The space the Frechet distance is measured in: a small classifier trained on the data's own labels, or PCA.

Inception features know photographs, not 8x8 digits, and cannot be had offline. A classifier that tells the data's own
classes apart is the honest substitute; its distances compare with each other and with no other network's.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowcore.data import Batch, Rows, batches
from flowcore.seeds import derive

STEPS, BATCH = 1500, 256
COMPONENTS = 50


class Classifier(nn.Module):
    """Features (B, 64), and class scores by one more linear layer. ``forward`` gives features, for torchmetrics."""

    num_features = 64

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if max(shape[1:]) <= 12:
            layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.ReLU()]
            size = 128
        else:
            layers, size = [], shape[0]
            for channels in (32, 64, 128):
                layers += [nn.Conv2d(size, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
                size = channels
            layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
            size *= 4
        self.body = nn.Sequential(*layers, nn.Linear(size, self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.float())

    def classify(self, x: Tensor) -> Tensor:
        """Class scores (B, K)."""
        return self.head(self(x))


class Components(nn.Module):
    """The first 50 principal components of the pixels, for data without labels."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        flat = images.flatten(1).double()
        mean = flat.mean(0)
        count = min(COMPONENTS, flat.shape[1], flat.shape[0] - 1)
        axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:count]
        self.register_buffer("mean", mean.float())
        self.register_buffer("axes", axes.float())
        self.num_features = count

    def forward(self, x: Tensor) -> Tensor:
        return (x.float().flatten(1) - self.mean) @ self.axes.T


def fit(training: Batch, classes: int, seed: int, keep: Path) -> tuple[nn.Module, str]:
    """The feature network for a training set and a line that says what it is.

    A classifier is trained for 1,500 steps of Adam, or read from ``keep`` if it was before, and stored there. Data
    without labels get PCA.
    """
    labels = training.extra.get("labels")
    if labels is None:
        return Components(training.x1), "features: 50 principal components of the pixels (the data have no labels)"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "features"))
        network = Classifier(tuple(training.x1.shape[1:]), classes)
    if keep.exists():
        network.load_state_dict(load_file(keep))
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for batch in batches(Rows(training.x1, extra={"labels": labels}), BATCH, 0, STEPS, seed):
            loss = F.cross_entropy(network.classify(batch.x1), batch.extra["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        keep.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), keep)
    network.eval()
    with torch.no_grad():
        guesses = torch.cat([network.classify(part).argmax(1) for part in training.x1.split(1024)])
    accuracy = (guesses == labels).double().mean().item()
    return network, f"features: a classifier of the data's own classes, training accuracy {accuracy:.4f}"
