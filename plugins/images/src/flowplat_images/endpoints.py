"""Two sets of images as the ends of a flow: source pictures become target pictures.

A batch brings target images x1 and as many source images x0, paired at random: independent pairs, for an interpolant,
or for a rectified flow from one domain to the other.
"""

import hashlib
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowplat_images import pictures
from flowplat_images.data import (
    TINY,
    Digits,
    DigitsConfig,
    Fixed,
    Folder,
    FolderConfig,
    Images,
    ImagesConfig,
    Loaded,
    Npz,
    NpzConfig,
    Part,
    Place,
    some,
)


class EndConfig(BaseModel):
    """One end: which images."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    path: Place | None = Field(None, description="a folder, a .zip or an .npz; null for scikit-learn's digits")
    label: str | None = Field(None, description="the images of this class alone; null for all")


class EndpointsConfig(ImagesConfig):
    """Two sets of images."""

    source: EndConfig = Field(default_factory=lambda: EndConfig(label="3"), description="where the flow begins")
    target: EndConfig = Field(default_factory=lambda: EndConfig(label="8"), description="where it ends")
    size: int = Field(32, ge=4, le=512, description="height and width of the pictures of a folder or .zip")
    channels: Literal[1, 3] = Field(3, description="of the pictures of a folder or .zip: 1 for grey, 3 for colour")
    on_error: Literal["refuse", "skip"] = Field(
        "refuse", description="skip leaves out a file with a fault, and names it"
    )


class Pairs:
    """Target images, each beside a source image that the batch's generator draws: a ``flowcore.data.Source``."""

    def __init__(self, source: Part, target: Part) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.target)

    @property
    def flip(self) -> bool:
        """Whether images are mirrored at random."""
        return self.target.flip

    @property
    def nbytes(self) -> int:
        """See ``flowcore.data.Resident``."""
        return self.source.nbytes + self.target.nbytes

    def to(self, device: torch.device) -> "Pairs":
        """See ``flowcore.data.Resident``."""
        return Pairs(self.source.to(device), self.target.to(device))

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        there = self.target.batch(rows, generator)
        here = torch.randint(len(self.source), (len(rows),), generator=generator)
        return Batch(there.x1, there.condition, x0=self.source.batch(here, generator).x1, extra=there.extra)


class Endpoints(Images):
    """Images at both ends; what is written and measured are those of the target. Satisfies ``contracts.Sourced``."""

    config: EndpointsConfig

    def read(self, limit: int | None = None) -> Loaded:
        """The target images."""
        return some(_end(self.config.target, "target", self.config), limit)

    @cached_property
    def source(self) -> Fixed:
        """The source images, read when they are first asked for: a trained model needs no others."""
        source = Fixed(self.config, _end(self.config.source, "source", self.config))
        shape, wanted = tuple(source.loaded.x.shape[1:]), tuple(self._outline[0])
        if shape != wanted:
            raise UsageError(
                f"data.source has images of {shape}, data.target of {wanted}; the pictures of a folder or .zip are made"
                " any data.size and data.channels"
            )
        return source

    def train(self) -> Pairs:  # type: ignore[override]
        """See ``Data.train``."""
        return Pairs(self.source.train(), super().train())

    def val(self) -> Pairs:  # type: ignore[override]
        """See ``Data.val``."""
        return Pairs(self.source.val(), super().val())

    def draw_source(self, count: int, generator: torch.Generator) -> Tensor:
        """See ``Sourced.draw_source``: held-out source images where some are held out, each as often as any other."""
        held = self.source.val()
        rounds = -(-count // len(held))
        device = generator.device
        rows = torch.cat([torch.randperm(len(held), generator=generator, device=device) for _ in range(rounds)])
        return held.batch(rows[:count].cpu(), generator).x1

    def tiny(self) -> "Endpoints":
        """128 of the images of each end at random."""
        made = Endpoints(self.config)
        made.loaded, made.source = some(self.loaded, TINY), Fixed(self.config, some(self.source.loaded, TINY))
        return made

    def fingerprint(self) -> str:
        """sha256 of what both ends hold."""
        return hashlib.sha256((self.source.fingerprint() + super().fingerprint()).encode()).hexdigest()

    def show(self, samples: Batch) -> bytes:
        """A contact sheet, each sample behind the source image that it came from."""
        if samples.x0 is None or samples.x0.shape != samples.x1.shape:
            return super().show(samples)
        return pictures.sheet(torch.stack([samples.x0, samples.x1], 1).flatten(0, 1), ["from", "to"])


def _end(end: EndConfig, name: str, config: EndpointsConfig) -> Loaded:
    """The images of one end. Raises ``InputError`` where there are none."""
    images: Images
    if end.path is None:
        images, where = Digits(DigitsConfig()), "the digits"
    elif end.path.suffix == ".npz":
        images, where = Npz(NpzConfig(path=end.path)), str(end.path)
    else:
        options: dict[str, Any] = {"size": config.size, "channels": config.channels, "on_error": config.on_error}
        images, where = Folder(FolderConfig(path=end.path, **options)), str(end.path)
    try:
        loaded = images.loaded
    except InputError as error:
        raise InputError(str(error).replace("data.path", f"data.{name}.path")) from error
    if end.label is None:
        return loaded
    if loaded.labels is None or end.label not in loaded.names:
        there = f"the classes are {', '.join(loaded.names)}" if loaded.names else "these have none"
        raise InputError(f"data.{name}.label: no image of {where} is of class {end.label!r}; {there}")
    rows = (loaded.labels == loaded.names.index(end.label)).nonzero().flatten()
    return Loaded(loaded.x[rows], None, [], loaded.white)
