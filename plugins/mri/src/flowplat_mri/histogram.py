"""The ways that know no anatomy: one intensity map for a whole volume. What every harmonization is measured against."""

import numpy as np

from flowplat_mri.target import LEVELS, Target


def matched(x: np.ndarray, mask: np.ndarray, target: Target) -> np.ndarray:
    """Histogram matching: x -> Q_target(F_x(x)) for the voxels of ``x`` (X, Y, Z) in ``mask``, with Q piecewise linear
    between the target's 257 percentiles; float32, zero outside the mask.

    F counts half of the voxels that share a value: of stored integers many do, and would all be put at the darkest of
    their places otherwise.
    """
    _, place, counts = np.unique(x[mask], return_inverse=True, return_counts=True)
    ranks = 100 * (np.cumsum(counts) - counts / 2) / counts.sum()
    out = np.zeros(x.shape, np.float32)
    out[mask] = np.interp(ranks, LEVELS, target.quantiles)[place]
    return out


def standardized(x: np.ndarray, mask: np.ndarray, target: Target) -> np.ndarray:
    """The z-score put onto the target: mean and standard deviation of the voxels in ``mask`` become the target's."""
    values, wanted = x[mask], moments(target)
    out = np.zeros(x.shape, np.float32)
    out[mask] = (values - values.mean()) / max(float(values.std()), 1e-6) * wanted[1] + wanted[0]
    return out


def moments(target: Target) -> tuple[float, float]:
    """Mean and standard deviation of the target's histogram, whose quantile function is linear between the levels."""
    low, high = target.quantiles[:-1].astype(np.float64), target.quantiles[1:].astype(np.float64)
    mean = ((low + high) / 2).mean()
    square = ((low * low + low * high + high * high) / 3).mean()
    return float(mean), float(np.sqrt(max(square - mean * mean, 1e-12)))
