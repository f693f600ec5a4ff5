"""What a model knows of its target scanner besides how to draw its images: voxels, units, histogram, a coarse view."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flowplat_mri.geometry import onto
from flowplat_mri.scaling import Scale

LEVELS = np.linspace(0, 100, 257)  # percentiles of the template histogram
COARSE, WITHIN = 16, 0.8  # blocks along an axis; share of a block that is in the mask


@dataclass(frozen=True)
class Target:
    """``voxel`` in mm, in RAS order; ``low`` and ``high`` the mean percentiles 0.5 and 99.5 of the target's volumes in
    their own units; ``quantiles`` of its voxels on the common scale, at ``LEVELS``; ``view`` its mean coarse view;
    ``contrast`` as BIDS calls it."""

    voxel: tuple[float, float, float]
    low: float
    high: float
    quantiles: np.ndarray
    view: np.ndarray
    contrast: str = "T1w"

    @property
    def scale(self) -> Scale:
        """From the target's units to the common scale."""
        return Scale(self.low, self.high)

    def likeness(self, x: np.ndarray, mask: np.ndarray) -> float:
        """The correlation of a volume with the target's mean, both coarse: below 0 where the contrast is another one,
        inverted as T2w is against T1w."""
        own = coarse(x, mask)
        there = np.isfinite(own) & np.isfinite(self.view)
        a, b = own[there], self.view[there]
        if len(a) < 8 or a.std() == 0 or b.std() == 0:
            return 0.0
        return float(np.corrcoef(a, b)[0, 1])

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        told = asdict(self)
        return told | {
            "voxel": list(self.voxel),
            "quantiles": self.quantiles.round(5).tolist(),
            "view": [None if np.isnan(v) else round(v, 4) for v in self.view.ravel().tolist()],
        }


def of_facts(facts: dict[str, Any]) -> Target:
    """The target that ``facts`` tell of."""
    x, y, z = facts["voxel"]
    return Target(
        (x, y, z), facts["low"], facts["high"], np.array(facts["quantiles"], np.float32),
        np.array(facts["view"], dtype=np.float32).reshape(COARSE, COARSE, COARSE), facts["contrast"],
    )  # fmt: skip


def of_volumes(
    volumes: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    scales: Sequence[Scale],
    voxel: Sequence[float],
    contrast: str = "T1w",
) -> Target:
    """The target of training volumes on the common scale, their masks, and the scales that brought them there."""
    x, y, z = voxel
    quantiles = np.mean([np.percentile(v[m], LEVELS) for v, m in zip(volumes, masks, strict=True)], 0)
    views = np.stack([coarse(v, m) for v, m in zip(volumes, masks, strict=True)])
    known = np.isfinite(views)
    view = np.where(known.any(0), np.where(known, views, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    low, high = (float(np.mean([getattr(s, key) for s in scales])) for key in ("low", "high"))
    return Target(
        (x, y, z), low, high, quantiles.round(5).astype(np.float32), view.round(4).astype(np.float32), contrast
    )


def coarse(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The box of the mask as 16 x 16 x 16 means over what of the mask lies there, NaN where that is little: so the
    insides of brains of any size and place lie roughly upon each other, without registration."""
    box = tuple(_extent(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    share = onto(mask[box].astype(np.float32), (COARSE,) * 3)
    sums = onto(np.where(mask, x, 0)[box].astype(np.float32), (COARSE,) * 3)
    return np.where(share > WITHIN, sums / np.maximum(share, WITHIN), np.nan).astype(np.float32)


def _extent(line: ArrayLike) -> slice:
    places = np.flatnonzero(line)
    return slice(int(places[0]), int(places[-1]) + 1)
