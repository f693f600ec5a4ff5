"""Images in memory, and some of them as a source of batches."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowcore.data import Batch
from flowcore.seeds import generator
from flowplat_images import pictures


class Loaded(NamedTuple):
    """uint8 images (n, c, h, w), class numbers (n,) or None, the classes' names, the value of white, which images
    are the test images that the data set was published with (n,), or None where there are none, and the captions that
    came with the images (n), or None."""

    x: Tensor
    labels: Tensor | None
    names: list[str]
    white: int = 255
    test: Tensor | None = None
    captions: list[str] | None = None


class Part:
    """Some of the images as a ``flowcore.data.Source``: x / (white / 2) - 1, in [-1, 1], made float batch by batch.

    ``flip`` mirrors each image with probability 1/2. ``tokens`` (n, k, length) are k captions of every image, of which
    one is drawn each time.
    """

    def __init__(
        self, loaded: Loaded, rows: Tensor, conditional: bool, flip: bool, tokens: Tensor | None = None
    ) -> None:
        self.loaded, self.rows, self.conditional, self.flip, self.tokens = loaded, rows, conditional, flip, tokens

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """See ``flowcore.data.Resident``."""
        return self.loaded.x.nbytes + (0 if self.tokens is None else self.tokens.nbytes)

    def to(self, device: torch.device) -> "Part":
        """See ``flowcore.data.Resident``."""
        labels = None if self.loaded.labels is None else self.loaded.labels.to(device)
        loaded = self.loaded._replace(x=self.loaded.x.to(device), labels=labels)
        tokens = None if self.tokens is None else self.tokens.to(device)
        return Part(loaded, self.rows.to(device), self.conditional, self.flip, tokens)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        mine = self.rows[rows.to(self.rows.device, non_blocking=True)]
        x = pictures.scaled(self.loaded.x[mine], self.loaded.white)
        labels = None if self.loaded.labels is None else self.loaded.labels[mine]
        extra = {} if labels is None else {"labels": labels}
        told = labels if self.conditional else None
        if self.tokens is not None:
            which = torch.randint(self.tokens.shape[1], (len(x),), generator=generator).to(x.device, non_blocking=True)
            told = self.tokens[mine, which]
        batch = Batch(x, told, extra=extra)
        return mirrored(batch, generator) if self.flip else batch


def mirrored(batch: Batch, generator: torch.Generator) -> Batch:
    """Each image mirrored with probability 1/2, and with it the noise that it is paired with."""
    x = batch.x1
    coins = (torch.rand(len(x), generator=generator) < 0.5).to(x.device, non_blocking=True)[:, None, None, None]

    def turned(images: Tensor) -> Tensor:
        return torch.where(coins, images.flip(-1), images)

    return replace(batch, x1=turned(x), x0=None if batch.x0 is None else turned(batch.x0))


def random_rows(n: int, limit: int | None) -> list[int]:
    """All of n rows, or ``limit`` of them at random, in order: at random, since files are often sorted by class."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(torch.randperm(n, generator=generator(0, "some"))[:limit].tolist())


def some(loaded: Loaded, limit: int | None) -> Loaded:
    """All of the images, or ``limit`` of them at random."""
    if limit is None or limit >= len(loaded.x):
        return loaded
    rows = random_rows(len(loaded.x), limit)
    labels, test = (None if part is None else part[rows] for part in (loaded.labels, loaded.test))
    texts = None if loaded.captions is None else [loaded.captions[row] for row in rows]
    return loaded._replace(x=loaded.x[rows], labels=labels, test=test, captions=texts)
