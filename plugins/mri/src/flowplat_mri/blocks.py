"""Blocks of volumes for a 3D network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcore.data import Batch
from flowplat_mri.slices import Framed


class Blocks(Framed):
    """A ``flowcore.data.Source`` of cubes of ``edge`` voxels, one of a volume's guises each, at a place that is drawn.
    An epoch has as many blocks of each volume as it takes to cover it."""

    def __init__(
        self, targets: Tensor, views: Tensor | None, masks: Tensor, places: Sequence[Tensor], edge: int, mirror: bool
    ) -> None:
        short = [max(0, edge - n) for n in targets.shape[1:]]  # a frame smaller than a block is filled up
        pad = [size for n in reversed(short) for size in (0, n)]
        grow = torch.nn.functional.pad
        lines = [grow(one, (0, n)) for one, n in zip(places, short, strict=True)]
        seen = None if views is None else grow(views, pad)
        super().__init__(grow(targets, pad), seen, grow(masks, pad), lines, mirror)
        self.edge = edge
        self.guises = 1 if views is None else views.shape[1]
        self.each = max(1, round(self.targets[0].numel() / edge**3))

    def __len__(self) -> int:
        return len(self.targets) * self.guises * self.each

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        room = torch.tensor([n - self.edge + 1 for n in self.targets.shape[1:]])
        corners = (torch.rand(len(rows), 3, generator=generator) * room).long()
        flips = self.flips(len(rows), generator)
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
