"""How a harmonized volume compares with its source: figures, and what to look at twice."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flowplat_mri.target import LEVELS, Target

LEAST_NCC, LEAST_PATCH, MOST_LATENT, MOST_CLIPPED = 0.85, 0.5, 1.3, 0.02
PATCH = 16.0  # mm


@dataclass(frozen=True)
class Look:
    """Figures of one volume, by name, and its ``flags``, each a sentence; ``worst`` orders volumes, larger is worse."""

    figures: dict[str, float]
    flags: list[str] = field(default_factory=list)

    @property
    def worst(self) -> tuple[int, float]:
        """Flags first, then how little of the source is seen."""
        return len(self.flags), -self.figures["ncc"]


def ncc(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised cross-correlation of two lists of values; 1 where neither varies, 0 where only one does."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    norms = np.sqrt((a * a).sum()), np.sqrt((b * b).sum())
    if min(norms) < 1e-6 * max(1e-6, len(a)):
        return 1.0 if max(norms) < 1e-6 * max(1e-6, len(a)) else 0.0
    return float((a * b).sum() / (norms[0] * norms[1]))


def edges(x: np.ndarray) -> np.ndarray:
    """The length of the gradient, by central differences."""
    parts = np.gradient(x.astype(np.float32))
    return np.sqrt(sum(part * part for part in parts))


def worst_patch(a: np.ndarray, b: np.ndarray, mask: np.ndarray, voxel: Sequence[float]) -> float:
    """The lowest correlation of source and result over cubes of 16 mm that lie mostly within the mask."""
    n = [max(2, round(PATCH / v)) for v in voxel]
    least = 1.0
    for i in range(0, a.shape[0], n[0]):
        for j in range(0, a.shape[1], n[1]):
            for k in range(0, a.shape[2], n[2]):
                box = np.s_[i : i + n[0], j : j + n[1], k : k + n[2]]
                inside = mask[box]
                if inside.sum() >= 0.75 * np.prod(n):
                    least = min(least, ncc(a[box][inside], b[box][inside]))
    return least


def wasserstein(x: np.ndarray, target: Target) -> float:
    """The Wasserstein-1 distance of the values ``x`` to the target's histogram, both on the common scale."""
    return float(np.abs(np.percentile(x, LEVELS) - target.quantiles).mean())


def look(
    before: np.ndarray,
    after: np.ndarray,
    mask: np.ndarray,
    target: Target,
    latent_norm: float | None = None,
    voxel: Sequence[float] | None = None,
) -> Look:
    """Source and result (X, Y, Z) on the common scale, compared within ``mask``; the page says what each figure is."""
    a, b = before[mask], after[mask]
    figures = {
        "ncc": ncc(a, b),
        "edge_ncc": ncc(edges(before)[mask], edges(after)[mask]),
        "worst_patch": worst_patch(before, after, mask, voxel or target.voxel),
        "w1_before": wasserstein(a, target),
        "w1_after": wasserstein(b, target),
        "clipped": float(((b < target.quantiles[0]) | (b > target.quantiles[-1])).mean()),
        "mean_change": float(np.abs(a - b).mean()),
        "likeness": target.likeness(before, mask),
    }
    if latent_norm is not None:
        figures["latent_norm"] = latent_norm
    return Look(figures, flags(figures))


def flags(figures: dict[str, float]) -> list[str]:
    """What to look at twice, each with its figure and its limit."""
    made = []
    if figures["likeness"] < 0:
        made.append(f"contrast looks inverted (correlation with the target's mean {figures['likeness']:.2f})")
    if figures["ncc"] < LEAST_NCC:
        made.append(f"correlation with the source {figures['ncc']:.3f} is below {LEAST_NCC}")
    if figures["worst_patch"] < LEAST_PATCH:
        made.append(f"a patch correlates {figures['worst_patch']:.3f} with the source, below {LEAST_PATCH}")
    if figures["w1_after"] > figures["w1_before"]:
        made.append("the histogram is farther from the target's than the source's was")
    if figures.get("latent_norm", 1.0) > MOST_LATENT:
        made.append(f"latent norm {figures['latent_norm']:.2f} is above {MOST_LATENT}: unlike what was learned")
    if figures["clipped"] > MOST_CLIPPED:
        made.append(f"{100 * figures['clipped']:.1f} % of voxels are out of the target's range")
    return made
