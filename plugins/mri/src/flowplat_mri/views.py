"""What a network is told of a volume: a view that keeps the anatomy and says little of the scanner.

In training views are made of the target's own volumes, so that no other scanner's are needed: ``contrast`` is the
volume as some scanner that nobody has seen might show it, its histogram matched back to the target's; ``edges`` is
where it changes most, in any contrast (BlindHarmonyDiff, arXiv 2505.00133). Of a source, the view is that volume
matched, or its edges."""

from typing import Literal

import numpy as np
from scipy import ndimage

from flowplat_mri import histogram
from flowplat_mri.simulate import field
from flowplat_mri.target import Target

View = Literal["contrast", "edges", "none"]
EDGES = 0.08  # share of a brain's voxels that are edges
KNOTS = 5


def of_source(x: np.ndarray, mask: np.ndarray, target: Target, view: View) -> np.ndarray:
    """The view (X, Y, Z) of a source on the common scale: matched and standardized, or edges as 0 and 1."""
    if view == "edges":
        return edges(x, mask)
    if view == "none":
        return np.zeros(x.shape, np.float32)
    return standard(histogram.matched(x, mask, target), mask, target)


def of_target(x: np.ndarray, mask: np.ndarray, target: Target, view: View, rng: np.random.Generator) -> np.ndarray:
    """The view of a target's volume in another guise: ``restyled`` first."""
    if view == "none":
        return np.zeros(x.shape, np.float32)
    return of_source(restyled(x, mask, target.voxel, rng), mask, target, view)


def standard(x: np.ndarray, mask: np.ndarray, target: Target) -> np.ndarray:
    """The common scale to mean 0 and standard deviation 1 of the target's histogram; 0 outside the mask."""
    mean, sd = histogram.moments(target)
    return np.where(mask, (x - mean) / sd, 0).astype(np.float32)


def unstandard(x: np.ndarray, mask: np.ndarray, target: Target) -> np.ndarray:
    """The way back from ``standard``."""
    mean, sd = histogram.moments(target)
    return np.where(mask, x * sd + mean, 0).astype(np.float32)


def restyled(
    x: np.ndarray, mask: np.ndarray, voxel: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """The volume under a random monotone map of its intensities, another coil, blur and noise.

    In the order of a scanner, so that where the map flattens a contrast the noise that follows hides it: a map through
    5 random knots; exp of a smooth field of standard deviation up to 0.35; a blur of up to 2 mm (standard deviation),
    across slices of one axis or everywhere; Rician noise of up to 0.05.
    """
    out = np.clip(x, 0, 1.5)
    knots = np.concatenate([[0], np.cumsum(rng.dirichlet(np.ones(KNOTS)) * 0.8 + 0.2 / KNOTS)])
    places = np.linspace(0, 1, KNOTS + 1)
    out = np.interp(out, np.append(places, 1.5), np.append(knots, knots[-1] * 1.2))
    width = rng.uniform(25, 60) / float(np.mean(voxel))
    out = out * np.exp(rng.uniform(0, 0.35) * field(x.shape, width, rng))
    blur = np.full(3, rng.uniform(0, 0.8)) / voxel
    if rng.random() < 0.4:
        axis = rng.integers(3)
        blur[axis] = rng.uniform(0.5, 2.5) / voxel[axis]
    out = ndimage.gaussian_filter(np.where(mask, out, 0), blur, truncate=3)
    noise = rng.standard_normal((2, *x.shape), dtype=np.float32) * rng.uniform(0, 0.05)
    return np.where(mask, np.hypot(out + noise[0], noise[1]), 0).astype(np.float32)


def edges(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """1 where the gradient of the volume, smoothed by one voxel, is among the largest 8 % of its mask, else 0.

    A share and not a threshold of the gradient, which would move with contrast and noise. Beyond the mask the nearest
    voxel within goes on, or its rim would be an edge in every contrast.
    """
    if not mask.any():
        return np.zeros(x.shape, np.float32)
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    length = ndimage.gaussian_gradient_magnitude(x[tuple(nearest)].astype(np.float32), 1.0)
    return np.where(mask & (length >= np.percentile(length[mask], 100 * (1 - EDGES))), 1, 0).astype(np.float32)
