"""Axes and voxels: to the order of a model and exactly back."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from flowcore.errors import InputError

TOLERANCE = 0.2  # a voxel may differ so much from the model's, as a share of it
CANONICAL = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)


class Canonical(NamedTuple):
    """A volume whose axes run to the right, to the front and up (RAS), by permuting and flipping axes alone; ``back``
    brings an array of that order to the file's, to the last bit."""

    data: np.ndarray
    voxel: tuple[float, float, float]
    back: Callable[[np.ndarray], np.ndarray]
    forth: Callable[[np.ndarray], np.ndarray]


def canonical(data: np.ndarray, affine: np.ndarray, name: str = "the volume") -> Canonical:
    """``data`` (X, Y, Z) of a file with ``affine`` (4, 4) in RAS order; an oblique volume in the order nearest to it.

    Raises ``InputError`` where the affine says of an axis no direction.
    """
    from nibabel import orientations

    found = orientations.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(found).any():
        raise InputError(f"{name} has an affine that gives an axis no direction; set its sform or qform first")

    def forth(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(orientations.apply_orientation(array, found))

    def back(array: np.ndarray) -> np.ndarray:
        inverse = orientations.ornt_transform(CANONICAL, found)
        return np.ascontiguousarray(orientations.apply_orientation(array, inverse))

    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    order = np.argsort(found[:, 0])  # the file's axis that became axis 0, 1, 2
    x, y, z = (float(sizes[i]) for i in order)
    return Canonical(forth(data), (x, y, z), back, forth)


def differs(voxel: Sequence[float], model: Sequence[float]) -> bool:
    """Whether a volume must be resampled for a model of such voxels (mm): one axis is a fifth off."""
    return any(abs(a / b - 1) > TOLERANCE for a, b in zip(voxel, model, strict=True))


def resampled(volume: np.ndarray, voxel: Sequence[float], wanted: Sequence[float]) -> np.ndarray:
    """``volume`` (X, Y, Z) of voxels ``voxel`` mm on a grid of ``wanted`` mm that covers the same box.

    Linear, after a Gaussian that leaves nothing finer than the new voxels.
    """
    factors = [b / a for a, b in zip(voxel, wanted, strict=True)]
    shape = [max(1, round(n / f)) for n, f in zip(volume.shape, factors, strict=True)]
    return onto(volume, shape)


def onto(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``volume`` on a grid of ``shape`` voxels that covers the same box; see ``resampled``."""
    if tuple(shape) == volume.shape:
        return volume
    factors = np.array(volume.shape) / np.array(shape)
    smooth = ndimage.gaussian_filter(
        volume.astype(np.float32), sigma=[max(0.0, (f - 1) / 2) for f in factors], mode="nearest"
    )
    return np.asarray(
        ndimage.affine_transform(
            smooth, factors, offset=(factors - 1) / 2, output_shape=tuple(shape), order=1, mode="nearest"
        )
    )
