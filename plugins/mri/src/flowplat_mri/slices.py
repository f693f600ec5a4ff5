"""Volumes cut for a network: slices across an axis, or blocks, each with what the network is told of it."""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from flowcore.data import Batch

LEAST = 0.02  # share of a slice that must be brain for it to be shown
PLACES = 4  # channels beside the views: the mask, and three coordinates


def channels(neighbours: int, view: str) -> int:
    """Channels of a condition: views of the slice and of ``neighbours`` on either side, mask, coordinates."""
    return PLACES + (0 if view == "none" else 2 * neighbours + 1)


def box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box that holds the mask."""
    found = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        found.append(slice(int(line[0]), int(line[-1]) + 1))
    return found[0], found[1], found[2]


def frame(mask: np.ndarray, shape: Sequence[int] = (0, 0, 0), multiple: int = 8) -> tuple[np.ndarray, tuple[int, ...]]:
    """Where a frame begins, (3,), may be below 0, and its shape: at least ``shape``, a multiple of ``multiple``, about
    the middle of the mask, which it holds with a voxel to spare."""
    found = box(mask)
    sizes = tuple(-(-max(s.stop - s.start + 2, n) // multiple) * multiple for s, n in zip(found, shape, strict=True))
    begin = np.array([(s.start + s.stop - n) // 2 for s, n in zip(found, sizes, strict=True)])
    return begin, sizes


def framed(x: np.ndarray, begin: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The part of ``x`` (X, Y, Z) in a frame, zeros where that is outside of it."""
    out = np.zeros(tuple(shape), x.dtype)
    here, there = _overlap(x.shape, begin, shape)
    out[there] = x[here]
    return out


def unframed(part: np.ndarray, begin: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """What ``framed`` cut, put back into a volume of ``shape``; zeros elsewhere."""
    out = np.zeros(tuple(shape), part.dtype)
    there, here = _overlap(shape, begin, part.shape)
    out[there] = part[here]
    return out


def _overlap(
    shape: Sequence[int], begin: np.ndarray, size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    here, there = [], []
    for n, b, s in zip(shape, (int(b) for b in begin), size, strict=True):
        low, high = max(0, b), max(min(n, b + s), max(0, b))
        here.append(slice(low, high))
        there.append(slice(low - b, high - b))
    return tuple(here), tuple(there)


def coordinates(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each axis, the place of every index between the ends of the brain, from -1 to 1 (beyond them outside)."""
    found = []
    for axis, part in enumerate(box(mask)):
        middle, half = (part.start + part.stop - 1) / 2, max(1.0, (part.stop - part.start - 1) / 2)
        found.append(((np.arange(mask.shape[axis]) - middle) / half).astype(np.float32))
    return tuple(found)


def shown(mask: np.ndarray, axis: int) -> np.ndarray:
    """The numbers of the slices across ``axis`` that hold enough brain to be shown."""
    share = np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1).mean(1)
    return np.flatnonzero(share >= LEAST)


def planes(volume: Tensor, axis: int) -> Tensor:
    """(X, Y, Z) as (slices across ``axis``, H, W)."""
    return volume.movedim(axis, 0)


def conditions(view: Tensor | None, mask: Tensor, places: Sequence[Tensor], axis: int, neighbours: int) -> Tensor:
    """(slices, C, H, W): for every slice across ``axis`` the views of it and of its neighbours, its mask, and x, y and
    z of each pixel; all 0 outside the mask but the neighbours' views. Beyond the last slice there is nothing."""
    inside = planes(mask.float(), axis)
    grids = torch.stack([planes(g, axis) * inside for g in torch.meshgrid(*places, indexing="ij")], 1)
    parts = [inside[:, None], grids]
    if view is not None:
        stack = planes(view, axis)
        padded = torch.nn.functional.pad(stack, (0, 0, 0, 0, neighbours, neighbours))
        parts.insert(0, torch.stack([padded[k : k + len(stack)] for k in range(2 * neighbours + 1)], 1))
    return torch.cat(parts, 1)


class Framed:
    """Volumes in memory that a source cuts: ``targets`` (S, X, Y, Z), ``views`` (S, M, X, Y, Z) or None, ``masks``
    (S, X, Y, Z), and ``places``, for each axis the coordinates (S, X), (S, Y), (S, Z). Half of what is cut is mirrored,
    left to right, where ``mirror`` is set: brains are nearly symmetric. See ``flowcore.data.Resident``."""

    def __init__(
        self, targets: Tensor, views: Tensor | None, masks: Tensor, places: Sequence[Tensor], mirror: bool
    ) -> None:
        self.targets, self.views, self.masks, self.places = targets, views, masks, list(places)
        self.mirror = mirror

    @property
    def nbytes(self) -> int:
        """Memory that all take."""
        return sum(one.nbytes for one in (self.targets, self.views, self.masks) if one is not None)

    def to(self, device: torch.device) -> Self:
        """The same on ``device``."""
        moved = copy(self)
        moved.targets, moved.masks = self.targets.to(device), self.masks.to(device)
        moved.views = None if self.views is None else self.views.to(device)
        moved.places = [one.to(device) for one in self.places]
        return moved

    def flips(self, count: int, generator: torch.Generator) -> Tensor:
        """Which of ``count`` are mirrored, (count,) bool."""
        return torch.rand(count, generator=generator) < (0.5 if self.mirror else 0.0)


class Slices(Framed):
    """A ``flowcore.data.Source`` of slices across ``axes``."""

    def __init__(
        self, targets: Tensor, views: Tensor | None, masks: Tensor, places: Sequence[Tensor], axes: Sequence[int],
        neighbours: int, mirror: bool,
    ) -> None:  # fmt: skip
        super().__init__(targets, views, masks, places, mirror)
        self.neighbours = neighbours
        guises = 1 if views is None else views.shape[1]
        self.rows = torch.tensor([
            (subject, guise, axis, int(number))
            for subject in range(len(targets))
            for axis in axes
            for number in shown(masks[subject].numpy(), axis)
            for guise in range(guises)
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        wanted = self.rows[rows]
        flips = self.flips(len(rows), generator)
        made, order = [], []
        for axis in wanted[:, 2].unique().tolist():
            mine = (wanted[:, 2] == axis).nonzero().flatten()
            order.append(mine)
            made.append(
                self._across(axis, wanted[mine], flips[mine] if axis else torch.zeros_like(mine, dtype=torch.bool))
            )
        back = torch.cat(order).argsort().to(self.targets.device)
        x1, condition = (torch.cat(part)[back].float() for part in zip(*made, strict=True))
        return Batch(x1, condition)

    def _across(self, axis: int, rows: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
        """Slices across one axis and what is told of them: (B, 1, H, W), (B, C, H, W)."""
        device = self.targets.device
        subject, guise, _, number = rows.to(device).unbind(1)
        steps = torch.arange(-self.neighbours, self.neighbours + 1, device=device)
        x1 = self.targets.movedim(axis + 1, 1)[subject, number][:, None]
        inside = self.masks.movedim(axis + 1, 1)[subject, number][:, None].to(x1.dtype)
        parts = [x1, inside]
        if self.views is not None:
            near = number[:, None] + steps
            size = self.targets.shape[axis + 1]
            there = ((near >= 0) & (near < size))[:, :, None, None]
            views = self.views.movedim(axis + 2, 2)[subject[:, None], guise[:, None], near.clamp(0, size - 1)]
            parts.append(views * there)
        whole = torch.cat(parts, 1)
        whole = torch.where(flips.to(device)[:, None, None, None], whole.flip(-2), whole)
        x1, inside, views = whole[:, :1], whole[:, 1:2], whole[:, 2:]
        places = [
            (one[subject, number][:, None] if k == axis else one[subject]).to(x1.dtype)
            for k, one in enumerate(self.places)
        ]
        grids = torch.stack([g.squeeze(axis + 1) for g in _mesh(places)], 1) * inside
        return x1, torch.cat([views, inside, grids], 1)


def _mesh(lines: Sequence[Tensor]) -> list[Tensor]:
    """(B, X), (B, Y), (B, Z) as three grids (B, X, Y, Z)."""
    x, y, z = lines
    shape = (len(x), x.shape[1], y.shape[1], z.shape[1])
    return [x[:, :, None, None].expand(shape), y[:, None, :, None].expand(shape), z[:, None, None].expand(shape)]
