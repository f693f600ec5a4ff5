"""A volume as a model sees it, RAS, the model's voxels, the common scale, nothing outside the brain; and back."""

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

    def to_model(self, own: np.ndarray) -> np.ndarray:
        """A volume on the source's own voxels, 0 outside of the mask, on the grid of ``x``: means over what of the mask
        lies in a voxel."""
        if own.shape == self.x.shape:
            return np.where(self.mask, own, np.float32(0))
        return _means(own, self.own_mask, self.mask)

    def onto_own(self, array: np.ndarray) -> np.ndarray:
        """An array on the grid of ``x``, such as a change of it, on the source's own voxels, 0 outside of its mask.

        It is changes that are resampled and not volumes, so that what is fine in the source stays.
        """
        return np.where(self.own_mask, geometry.onto(array.astype(np.float32), self.own.shape), np.float32(0))

    def back(self, own: np.ndarray) -> np.ndarray:
        """An array on the source's own voxels in the order of the file."""
        return self.space.back(own)


def prepared(volume: Volume, mask: np.ndarray | None, voxel: Sequence[float]) -> Prepared:
    """``volume`` for a model of ``voxel`` mm; ``mask`` (X, Y, Z) in the order of the file, or found (``masking``).

    Resampled where an axis differs by a fifth. Raises ``InputError`` naming the volume.
    """
    space = geometry.canonical(volume.data, volume.affine, volume.name)
    inside = masking.brain(space.data, volume.name) if mask is None else space.forth(mask)
    if int(inside.sum()) < LEAST:
        raise InputError(f"{volume.name} has a mask of {int(inside.sum())} voxels; give one of its brain")
    own, scale = scaling.common(space.data, inside, volume.name)
    if not geometry.differs(space.voxel, voxel):
        return Prepared(own, inside, own, inside, scale, space)
    there = geometry.resampled(inside.astype(np.float32), space.voxel, voxel) > 0.5
    if int(there.sum()) < LEAST:
        raise InputError(f"{volume.name} is of {int(there.sum())} voxels of the model's {tuple(voxel)} mm; too few")
    return Prepared(_means(own, inside, there), there, own, inside, scale, space)


def _means(own: np.ndarray, inside: np.ndarray, there: np.ndarray) -> np.ndarray:
    share = geometry.onto(inside.astype(np.float32), there.shape)
    sums = geometry.onto(np.where(inside, own, 0), there.shape)
    return np.where(there, sums / np.maximum(share, 0.5), 0).astype(np.float32)
