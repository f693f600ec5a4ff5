"""A volume as a model sees it: RAS, the model's voxels, the common scale, nothing outside the brain; and the way back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowcore.errors import InputError
from flowplat_mri import geometry, masking, scaling
from flowplat_mri.reading import Volume
from flowplat_mri.scaling import Scale

LEAST = 100  # voxels of a mask


@dataclass(frozen=True)
class Prepared:
    """``x`` (X, Y, Z) float32 and ``mask`` bool are the model's view; ``own`` and ``own_mask`` the same volume on the
    common scale with its own voxels, in RAS; ``space`` the way from the file to that and back."""

    x: np.ndarray
    mask: np.ndarray
    own: np.ndarray
    own_mask: np.ndarray
    scale: Scale
    space: geometry.Canonical

    def onto_model(self, array: np.ndarray) -> np.ndarray:
        """An array in the order of the file, such as a lesion mask, on the grid of ``x``, float32."""
        return geometry.onto(self.space.forth(array).astype(np.float32), self.x.shape)

    def back(self, change: np.ndarray) -> np.ndarray:
        """A change of ``x`` in the order of the file, with its voxels; nothing outside of the mask.

        It is the change that is resampled and not the volume, so that what is fine in the source stays.
        """
        own = geometry.onto(change.astype(np.float32), self.own.shape)
        return self.space.back(np.where(self.own_mask, own, np.float32(0)))


def prepared(volume: Volume, mask: np.ndarray | None, voxel: Sequence[float]) -> Prepared:
    """``volume`` for a model of ``voxel`` mm; ``mask`` (X, Y, Z) in the order of the file, or found (``masking``).

    Resampled where an axis differs by a fifth. Raises ``InputError`` naming the volume.
    """
    space = geometry.canonical(volume.data, volume.affine, volume.name)
    inside = masking.brain(space.data, volume.name) if mask is None else space.forth(mask)
    if int(inside.sum()) < LEAST:
        raise InputError(f"{volume.name} has a mask of {int(inside.sum())} voxels; give one of its brain")
    scale = scaling.robust(space.data, inside, volume.name)
    own = np.where(inside, scale.apply(space.data), np.float32(0))
    if not geometry.differs(space.voxel, voxel):
        return Prepared(own, inside, own, inside, scale, space)
    share = geometry.resampled(inside.astype(np.float32), space.voxel, voxel)
    sums = geometry.resampled(own, space.voxel, voxel)
    there = share > 0.5
    if int(there.sum()) < LEAST:
        raise InputError(f"{volume.name} is of {int(there.sum())} voxels of the model's {tuple(voxel)} mm; too few")
    x = np.where(there, sums / np.maximum(share, 0.5), 0).astype(np.float32)  # the mean of what lies in the mask
    return Prepared(x, there, own, inside, scale, space)
