"""Subjects and scanners that need no download: anatomy drawn from nilearn's template, scanned by signal equations.

The template is the ICBM 152 2009a symmetric average that nilearn carries: Copyright (C) 1993-2009 Louis Collins,
McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University, free to use, copy, modify and
distribute with this notice. Tissue constants are typical literature values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from flowcore.errors import MissingPackageError, UsageError
from flowplat_mri import signals

ORIGIN = (-98.0, -134.0, -72.0)  # of the template's first voxel, in mm; its voxels are 1 mm
DENSITY = np.array([1.0, 0.84, 0.71])  # proton density of CSF, GM, WM
RELAXATION = {  # by field strength in tesla: T1, T2, T2* of CSF, GM, WM in ms
    1.5: ((4000, 1000, 650), (2000, 95, 75), (500, 70, 60)),
    3.0: ((4200, 1350, 840), (1800, 90, 72), (300, 50, 45)),
    7.0: ((4400, 1950, 1200), (1000, 58, 48), (100, 33, 27)),
}
JITTER = 0.02  # of tissue constants from one scan to the next


@dataclass(frozen=True)
class Tissues:
    """A subject: ``fractions`` (3, X, Y, Z) of CSF, GM and WM, which add up to 1 inside ``mask`` (X, Y, Z); ``texture``
    (X, Y, Z) multiplies the signal of every scanner alike; ``affine`` (4, 4) takes voxels to mm, in RAS."""

    fractions: np.ndarray
    mask: np.ndarray
    texture: np.ndarray
    affine: np.ndarray

    @property
    def voxel(self) -> float:
        """Edge of a voxel in mm."""
        return float(self.affine[0, 0])

    @property
    def labels(self) -> np.ndarray:
        """(X, Y, Z) of 1, 2, 3 where CSF, GM or WM is most, 0 outside the mask."""
        return np.where(self.mask, self.fractions.argmax(0) + 1, 0)


@dataclass(frozen=True)
class Scanner:
    """A pulse sequence at a field strength, and what it does to the picture.

    ``bias`` is the standard deviation of the log of the coil's profile, ``noise`` that of each Rician channel in units
    of the brightest tissue, ``plane`` and ``slab`` the width at half maximum (mm) of the blur within axial slices and
    across them, ``remap`` a monotone change of the finished picture.
    """

    sequence: Literal["mprage", "spgr", "se"]
    field: float
    timing: tuple[float, ...]  # mprage: TR, TI, angle; spgr: TR, TE, angle; se: TR, TE
    bias: float = 0.05
    noise: float = 0.015
    plane: float = 0.0
    slab: float = 0.0
    remap: Callable[[np.ndarray], np.ndarray] | None = None


_TARGET = Scanner("mprage", 3.0, (2300, 900, 9))
SCANNERS: dict[str, Scanner] = {
    "target": _TARGET,
    "S1": Scanner("mprage", 1.5, (2400, 1000, 8), bias=0.1, noise=0.03),
    "S2": Scanner("spgr", 3.0, (9, 4, 18), bias=0.12),
    "S3": Scanner("mprage", 7.0, (2600, 1100, 7), bias=0.3),
    "S4": Scanner("se", 1.5, (500, 15), noise=0.03, slab=5.0),
    "S5": Scanner("spgr", 3.0, (20, 5, 10), bias=0.1, noise=0.02),
    "T2w": Scanner("se", 3.0, (4000, 90)),
    "gamma0.7": replace(_TARGET, remap=lambda x: x**0.7),
    "gamma1.5": replace(_TARGET, remap=lambda x: x**1.5),
    "exp": replace(_TARGET, remap=lambda x: np.expm1(x) / np.expm1(1)),
    "log": replace(_TARGET, remap=lambda x: np.log1p(3 * x) / np.log(4)),
}
UNSEEN = ("S1", "S2", "S3", "S4", "S5")
"""Scanners whose contrast no intensity map takes to the target's."""
REMAPPED = ("gamma0.7", "gamma1.5", "exp", "log")


def subject(seed: int, resolution: float = 3.0) -> Tissues:
    """A subject of its own anatomy, on voxels of ``resolution`` mm: the template under a random affine I + N(0, 0.03)
    and a smooth random displacement (sigma 16 mm, standard deviation 4 mm), with a texture of 3 % (sigma 2 mm)."""
    rng = np.random.default_rng([seed, 1])
    fractions, mask, affine = template(float(resolution))
    shape = mask.shape
    centre = np.array(ndimage.center_of_mass(mask))
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"))
    turn = np.eye(3) + rng.normal(0, 0.03, (3, 3))
    places = np.einsum("ij,jxyz->ixyz", turn, grid - centre[:, None, None, None]) + centre[:, None, None, None]
    places += np.stack([field(shape, 16 / resolution, rng) for _ in range(3)]) * (4 / resolution)
    drawn = np.stack([ndimage.map_coordinates(one, places, order=1) for one in fractions])
    total = drawn.sum(0)
    inside = total > 0.5
    drawn = np.where(inside, drawn / np.maximum(total, 1e-6), 0).astype(np.float32)
    texture = 1 + 0.03 * field(shape, 2 / resolution, rng)
    return Tissues(drawn, inside, texture.astype(np.float32), affine)


def scan(tissues: Tissues, scanner: str | Scanner, seed: int) -> np.ndarray:
    """The subject on a scanner of ``SCANNERS``: (X, Y, Z) float32, about 1 at its 99.5th percentile, zero outside the
    mask. Another ``seed`` is another visit: noise, coil and tissue constants are drawn anew."""
    if isinstance(scanner, str):
        if scanner not in SCANNERS:
            raise UsageError(f"no scanner {scanner!r}; there are {', '.join(SCANNERS)}")
        scanner = SCANNERS[scanner]
    rng = np.random.default_rng([seed, 2])
    values = signal(scanner, rng.normal(1, JITTER, (4, 3)))
    picture = np.einsum("k,kxyz->xyz", values / values.max(), tissues.fractions) * tissues.texture
    shape = picture.shape
    picture = picture * np.exp(scanner.bias * field(shape, 40 / tissues.voxel, rng))
    widths = np.array([scanner.plane, scanner.plane, scanner.slab]) / (2.355 * tissues.voxel)
    if widths.any():
        picture = ndimage.gaussian_filter(picture, widths)
    noise = rng.standard_normal((2, *shape)) * scanner.noise
    picture = np.hypot(picture + noise[0], noise[1])
    picture = picture / np.percentile(picture[tissues.mask], 99.5)
    if scanner.remap is not None:
        picture = scanner.remap(picture)
    return np.where(tissues.mask, picture, 0).astype(np.float32)


def signal(scanner: Scanner, factors: Any = 1.0) -> np.ndarray:
    """What CSF, GM and WM shine with, (3,). ``factors`` (4, 3) multiply PD, T1, T2 and T2*."""
    t1, t2, t2s = (np.array(one, np.float64) for one in RELAXATION[scanner.field])
    pd, t1, t2, t2s = np.stack([DENSITY, t1, t2, t2s]) * factors
    if scanner.sequence == "se":
        return np.asarray(signals.spin_echo(pd, t1, t2, *scanner.timing))
    if scanner.sequence == "spgr":
        return np.asarray(signals.spoiled_gradient_echo(pd, t1, t2s, *scanner.timing))
    return np.asarray(signals.mprage(pd, t1, t2s, *scanner.timing))


def field(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth Gaussian field of mean 0 and variance 1: white noise under a Gaussian of ``sigma`` voxels.

    It is a sum of Gaussian bumps on a grid of spacing min(sigma, 1 voxel or more), whose weights are independent; bumps
    of a product form make it three small matrix products, whatever sigma is.
    """
    spacing = max(1.0, 0.75 * sigma)
    bumps = []
    for n in shape:
        nodes = np.arange(-3 * sigma, n - 1 + 3 * sigma + spacing, spacing)
        weights = np.exp(-0.5 * ((np.arange(n)[:, None] - nodes) / sigma) ** 2)
        bumps.append(weights / np.linalg.norm(weights, axis=1, keepdims=True))
    drawn = rng.standard_normal([one.shape[1] for one in bumps])
    for axis, one in enumerate(bumps):
        drawn = np.moveaxis(np.tensordot(one, drawn, (1, axis)), 0, axis)
    return drawn


@lru_cache(maxsize=4)
def template(resolution: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fractions (3, X, Y, Z) of CSF, GM, WM and the mask on voxels of ``resolution`` mm, and their affine.

    An average of many brains is blurred: the fractions are sharpened to p^2 / sum p^2.
    """
    head, grey, white = (_map(name) for name in ("t1", "gm", "wm"))
    inside = head > 0
    parts = np.stack([_coarse(np.where(inside, one, 0), resolution) for one in (255 * inside, grey, white)])
    parts = np.stack([np.clip(parts[0] - parts[1] - parts[2], 0, None), parts[1], parts[2]]) / np.float32(255)
    total = parts.sum(0)
    mask = total > 0.5
    sharp = parts**2 / np.maximum((parts**2).sum(0), 1e-6)
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = np.array(ORIGIN) + (resolution - 1) / 2
    return sharp * np.minimum(total, 1), mask, affine


def _coarse(one: np.ndarray, resolution: float) -> np.ndarray:
    """Means over voxels of ``resolution`` mm of a map of 1 mm, float32; its last layers are left out where they fill no
    voxel. Of no whole number of mm, by linear interpolation of a running mean."""
    shape = tuple(int(n // resolution) for n in one.shape)
    step = int(resolution)
    if step == resolution:
        cut = one[tuple(slice(n * step) for n in shape)]
        for axis in range(3):
            cut = np.add.reduceat(cut.astype(np.float32), np.arange(0, cut.shape[axis], step), axis)
        return cut / np.float32(step**3)
    smooth = ndimage.uniform_filter(one.astype(np.float32), round(resolution))
    scale, shift = np.full(3, resolution), (resolution - 1) / 2
    return np.asarray(ndimage.affine_transform(smooth, scale, shift, output_shape=shape, order=1), np.float32)


def _map(name: str) -> np.ndarray:
    """A map of the template that nilearn carries; nilearn itself, which is slow to import, is not."""
    import importlib.util

    import nibabel

    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError("simulated subjects are drawn from nilearn's template: pip install nilearn")
    file = Path(found.submodule_search_locations[0]) / "datasets/data"
    file /= f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not file.is_file():
        raise MissingPackageError(f"this nilearn carries no {file.name}: pip install 'nilearn>=0.11'")
    return np.asarray(nibabel.load(file).dataobj, np.uint8)  # type: ignore[attr-defined]
