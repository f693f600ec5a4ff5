"""Blocks of volumes for a 3D network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcore.data import Batch


class Blocks:
    """A ``flowcore.data.Source`` of cubes of ``edge`` voxels, one of a volume's guises each, at a place that is drawn:
    ``targets`` (S, X, Y, Z), ``views`` (S, M, X, Y, Z) or None, ``masks`` and ``places`` as of ``slices.Slices``. An
    epoch has as many blocks of each volume as it takes to cover it. Half are mirrored where ``mirror`` is set."""

    def __init__(
        self, targets: Tensor, views: Tensor | None, masks: Tensor, places: Sequence[Tensor], edge: int, mirror: bool
    ) -> None:
        self.edge, self.mirror = edge, mirror
        short = [max(0, edge - n) for n in targets.shape[1:]]  # a frame smaller than a block is filled up
        pad = [size for n in reversed(short) for size in (0, n)]
        grow = torch.nn.functional.pad
        self.targets, self.masks = grow(targets, pad), grow(masks, pad)
        self.views = None if views is None else grow(views, pad)
        self.places = [grow(one, (0, n)) for one, n in zip(places, short, strict=True)]
        self.guises = 1 if views is None else views.shape[1]
        self.each = max(1, round(self.targets[0].numel() / edge**3))

    def __len__(self) -> int:
        return len(self.targets) * self.guises * self.each

    @property
    def nbytes(self) -> int:
        """See ``flowcore.data.Resident``."""
        return sum(one.nbytes for one in (self.targets, self.views, self.masks) if one is not None)

    def to(self, device: torch.device) -> "Blocks":
        """See ``flowcore.data.Resident``."""
        moved = object.__new__(Blocks)
        moved.__dict__.update(self.__dict__)
        moved.targets, moved.masks = self.targets.to(device), self.masks.to(device)
        moved.views = None if self.views is None else self.views.to(device)
        moved.places = [one.to(device) for one in self.places]
        return moved

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        room = torch.tensor([n - self.edge + 1 for n in self.targets.shape[1:]])
        corners = (torch.rand(len(rows), 3, generator=generator) * room).long()
        flips = torch.rand(len(rows), generator=generator) < (0.5 if self.mirror else 0.0)
        made = []
        for row, corner, flip in zip(rows.tolist(), corners.tolist(), flips.tolist(), strict=True):
            subject, guise = divmod(row // self.each, self.guises)
            cut = tuple(slice(c, c + self.edge) for c in corner)
            inside = self.masks[subject][cut][None].to(self.targets.dtype)
            parts = [self.targets[subject][cut][None], inside]
            if self.views is not None:
                parts.append(self.views[subject, guise][cut][None])
            whole = torch.cat(parts)
            whole = whole.flip(1) if flip else whole
            lines = [one[subject][part] for one, part in zip(self.places, cut, strict=True)]
            grids = torch.stack(torch.meshgrid(*lines, indexing="ij")) * whole[1:2]
            made.append(torch.cat([whole[:1], whole[2:], whole[1:2], grids.to(whole.dtype)]))
        stacked = torch.stack(made).float()
        return Batch(stacked[:, :1], stacked[:, 1:])
