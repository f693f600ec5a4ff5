"""Intensities of a volume on a common scale: MR units are arbitrary, and differ from scan to scan."""

from dataclasses import dataclass

import numpy as np

from flowcore.errors import InputError

LOW, HIGH = 0.5, 99.5  # percentiles


@dataclass(frozen=True)
class Scale:
    """x -> (x - low) / (high - low), so that ``low`` is 0 and ``high`` is 1; nothing is clipped."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """high - low, in the units of the volume."""
        return self.high - self.low

    def apply(self, volume: np.ndarray) -> np.ndarray:
        """The volume on the common scale, float32."""
        return ((volume.astype(np.float32) - np.float32(self.low)) / np.float32(self.width)).astype(np.float32)

    def undo(self, volume: np.ndarray) -> np.ndarray:
        """A volume of the common scale in the units it was taken from, float32."""
        return (volume.astype(np.float32) * np.float32(self.width) + np.float32(self.low)).astype(np.float32)


def robust(volume: np.ndarray, mask: np.ndarray, name: str = "the volume") -> Scale:
    """The scale on which the 0.5 and 99.5 percentiles of the voxels in ``mask`` are 0 and 1.

    Of the whole volume and not slice by slice, where nearly empty slices would be blown up and stripes come in. Raises
    ``InputError`` where all voxels of the mask have one value.
    """
    low, high = (float(q) for q in np.percentile(volume[mask], (LOW, HIGH)))
    if not high > low:
        raise InputError(f"{name} has one value, {low:g}, wherever its mask is; it shows nothing to harmonize")
    return Scale(low, high)


def common(volume: np.ndarray, mask: np.ndarray, name: str = "the volume") -> tuple[np.ndarray, Scale]:
    """A volume on the common scale, float32, zero outside ``mask``, and its scale; see ``robust``."""
    scale = robust(volume, mask, name)
    return np.where(mask, scale.apply(volume), np.float32(0)), scale
