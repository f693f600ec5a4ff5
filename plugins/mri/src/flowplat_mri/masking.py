"""Where the brain is, if nobody says."""

import numpy as np
from scipy import ndimage

from flowcore.errors import InputError

EMPTY = 0.2  # share of voxels that have the value of the corners, in a volume without its skull
WHOLE = 0.98  # share of the other voxels that hang together there


def brain(volume: np.ndarray, name: str = "the volume") -> np.ndarray:
    """The mask (X, Y, Z), bool, of a volume.

    Where the eight corners have one value and so has a fifth of the volume, the skull has been stripped, and what has
    another value is the mask, its holes filled. Else it is what lies above Otsu's threshold, of that the largest
    component, its holes filled: the head, then, with the skull. Raises ``InputError`` for a volume of one value.
    """
    if volume.max() == volume.min():
        raise InputError(f"{name} has the value {float(volume.min()):g} everywhere; there is no brain in it")
    corners = volume[:: max(1, volume.shape[0] - 1), :: max(1, volume.shape[1] - 1), :: max(1, volume.shape[2] - 1)]
    background = corners.flat[0]
    if (corners == background).all():
        other = volume != background
        largest = _largest(other)
        if other.mean() <= 1 - EMPTY and largest.sum() >= WHOLE * other.sum():
            return _filled(largest)
    from skimage.filters import threshold_otsu

    return _filled(_largest(volume > threshold_otsu(volume)))


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _filled(mask: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=bool)
