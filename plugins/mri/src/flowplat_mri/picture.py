"""One volume and what became of it, in three planes, as a PNG."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from flowplat_mri.quality import edges
from flowplat_mri.target import LEVELS, Target

DARK, LIGHT, FIRST, SECOND = "#12161c", "#e8e6e1", "#e0a458", "#5ec2b7"
EDGES = 0.08  # share of a slice's brain that is drawn as edge


def picture(
    before: np.ndarray,
    after: np.ndarray,
    mask: np.ndarray,
    target: Target,
    std: np.ndarray | None = None,
    voxel: Sequence[float] | None = None,
) -> bytes:
    """Axial, coronal and sagittal slices of source, result, their difference and the result under the source's edges;
    with ``std`` also of the posterior's spread; and the three histograms. All (X, Y, Z) in RAS on the common scale."""
    from matplotlib.figure import Figure

    size = tuple(voxel or target.voxel)
    change = np.where(mask, after - before, np.nan)
    limit = max(1e-3, float(np.percentile(np.abs(change[mask]), 99)))
    spread = None if std is None else max(1e-3, float(np.percentile(std[mask], 99)))
    columns = ["source", "harmonized", "harmonized - source", "edges of the source"] + ["spread"] * (std is not None)
    planes = [_plane(axis, mask, size) for axis in (2, 1, 0)]
    figure = Figure(figsize=(2.1 * len(columns) + 2.6, 6.4), facecolor=DARK, layout="constrained")
    grid = figure.add_gridspec(3, len(columns) + 1, width_ratios=[*([1] * len(columns)), 1.25])
    for row, (axis, place, box, aspect) in enumerate(planes):

        def cut(array: np.ndarray, axis: int = axis, place: int = place, box: Any = box) -> np.ndarray:
            return np.take(array, place, axis)[box].T

        shown = [cut(before), cut(after), cut(change), cut(after)]
        for column, name in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, color=LIGHT, fontsize=9)
            if name == "spread" and std is not None:
                axes.imshow(cut(std), cmap="magma", vmin=0, vmax=spread, origin="lower", aspect=aspect)
                continue
            grey = {"cmap": "gray", "vmin": 0, "vmax": 1.05}
            kind: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if column == 2 else grey
            drawn = axes.imshow(shown[column], origin="lower", aspect=aspect, **kind)
            if column == 3:
                axes.imshow(_edges(cut(before), cut(mask)), origin="lower", aspect=aspect)
            if column == 2 and row == 2:
                place_of_bar = axes.inset_axes((0.05, -0.1, 0.9, 0.05))  # below, so that the image keeps its size
                bar = figure.colorbar(drawn, cax=place_of_bar, orientation="horizontal")
                bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.2f}", "0", f"{limit:.2f}"])
                bar.ax.tick_params(colors=LIGHT, labelsize=7)
                bar.outline.set_visible(False)
    _histograms(figure.add_subplot(grid[:2, -1]), before[mask], after[mask], target)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()


def _plane(axis: int, mask: np.ndarray, voxel: Sequence[float]) -> tuple[int, int, Any, float]:
    """Axis, the slice of it with the most brain near the middle, the box of the brain in it, height over width of a
    pixel."""
    others = [a for a in range(3) if a != axis]
    amount = mask.sum(axis=tuple(others))
    places = np.flatnonzero(amount)
    middle = int(np.average(np.arange(len(amount)), weights=amount))
    if axis == 0:  # not the gap between the hemispheres
        middle = int(min(places[-1], middle + max(1, round((places[-1] - places[0]) * 0.08))))
    flat: np.ndarray = np.asarray(mask.any(axis=axis))
    box = tuple(
        slice(max(0, int(p[0]) - 2), int(p[-1]) + 3) for p in (np.flatnonzero(flat.any(1)), np.flatnonzero(flat.any(0)))
    )
    return axis, middle, box, voxel[others[1]] / voxel[others[0]]


def _edges(source: np.ndarray, inside: np.ndarray) -> np.ndarray:
    inside = ndimage.binary_erosion(inside, iterations=2)  # the rim of the mask is no edge of the brain's
    strength = np.where(inside, edges(source), 0)
    over = np.zeros((*source.shape, 4), np.float32)
    if inside.any():
        over[(strength > np.quantile(strength[inside], 1 - EDGES)) & inside] = (1.0, 0.35, 0.25, 0.8)
    return over


def _histograms(axes: Any, before: np.ndarray, after: np.ndarray, target: Target) -> None:
    bins = np.linspace(-0.1, 1.2, 66)
    drawn = np.interp(np.linspace(0, 100, 20001), LEVELS, target.quantiles)
    for values, colour, name, style in (
        (before, FIRST, "source", "-"), (after, SECOND, "harmonized", "-"), (drawn, LIGHT, "target", "--"),
    ):  # fmt: skip
        height, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins, density=True)
        axes.plot((bins[1:] + bins[:-1]) / 2, height, style, color=colour, linewidth=1.3, label=name)
    axes.set_facecolor(DARK)
    axes.set_title("intensities in the brain", color=LIGHT, fontsize=9)
    axes.tick_params(colors=LIGHT, labelsize=7)
    axes.set_yticks([])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT)
    axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT)
