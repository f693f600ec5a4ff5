"""ComBat for tables of region measures (Johnson et al. 2007, doi 10.1093/biostatistics/kxj037): what to compare image
harmonization with where all that is wanted is a table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from flowcore import files
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Trained
from flowplat_mri import reading

ROUNDS, CLOSE = 1000, 1e-6


def combat(
    trained: Trained | None,
    inputs: Sequence[Any],
    out: Path | None,
    site: Annotated[str, Field(description="the column that says which scanner a row is from")] = "site",
    covariates: Annotated[
        tuple[str, ...], Field(description="columns whose effect is to stay: numbers, or groups by their names")
    ] = (),
    leave: Annotated[
        tuple[str, ...], Field(description="columns that are neither: names of subjects and the like")
    ] = (),
    target: Annotated[
        str, Field(description="the scanner that others are brought to; empty: to all of them pooled")
    ] = "",
) -> Any:
    """A CSV table (a row a scan, ``site``, region measures) with the location and scale of each scanner removed.

    y = a + X b + site's shift + site's scale * e in each region; shifts and scales are drawn together over regions by
    empirical Bayes, so that scanners with few scans are not overfitted. Columns of text that are not named stay as they
    are. ``out`` is a table with the same columns; from Python the rows are returned. Raises ``InputError``.
    """
    if len(inputs) != 1:
        raise UsageError("combat takes one table")
    path = Path(inputs[0])
    rows = _rows(path)
    if unknown := [name for name in (site, *covariates, *leave) if name not in rows[0]]:
        raise InputError(f"{path} has no column {unknown[0]!r}; it has {', '.join(rows[0])}")
    kept = {site, *covariates, *leave}
    regions = [name for name in rows[0] if name not in kept and all(_number(row[name]) is not None for row in rows)]
    if not regions:
        raise InputError(f"{path} has no column of numbers besides {', '.join(sorted(kept))}")
    sites = [row[site] for row in rows]
    if target and target not in sites:
        raise InputError(f"{path} has no row of {site}={target}; it has {', '.join(sorted(set(sites)))}")
    if rare := [name for name in set(sites) if sites.count(name) < 3]:
        raise InputError(f"{path} has {sites.count(rare[0])} rows of {site}={rare[0]}; a scale takes three at least")
    values = np.array([[_number(row[name]) for name in regions] for row in rows], dtype=float)
    design = np.column_stack([np.zeros((len(rows), 0)), *(_column([row[name] for row in rows]) for name in covariates)])
    try:
        made = adjusted(values, sites, design, target or None)
    except np.linalg.LinAlgError as error:
        raise InputError(f"{path}: a covariate tells the same as {site}; leave it out") from error
    told = [{**row, **dict(zip(regions, line, strict=True))} for row, line in zip(rows, made.tolist(), strict=True)]
    if out is None:
        return told
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(told)
    with files.refusals(f"{out} cannot be written"):
        files.write(out, text.getvalue())
    return {"rows": len(rows), "sites": len(set(sites)), "regions": len(regions), "covariates": list(covariates)}


def adjusted(values: np.ndarray, sites: Sequence[str], covariates: np.ndarray, target: str | None = None) -> np.ndarray:
    """``values`` (n, G) of n scans without the shift and scale of their sites; ``covariates`` (n, C) keep their effect.

    With z = (y - a - X b) / s and, of each site, the mean g and the variance d of z by region, the posterior is
        g* = (n t^2 g + d* m) / (n t^2 + d*),    d* = (theta + sum (z - g*)^2 / 2) / (n / 2 + lambda - 1)
    where m, t^2 are mean and variance of g over regions, lambda and theta the moments of an inverse gamma for d; and
    the result is s (z - g*) / sqrt(d*) + a + X b. Scans of ``target`` stay as they are, and a, s are theirs.
    Raises ``numpy.linalg.LinAlgError`` where the covariates tell the sites.
    """
    names = sorted(set(sites))
    member = np.array([[one == name for name in names] for one in sites], dtype=float)
    design = np.hstack([member, covariates - covariates.mean(0)])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise np.linalg.LinAlgError
    effects = np.linalg.lstsq(design, values, rcond=None)[0]
    shifts, slopes = effects[: len(names)], effects[len(names) :]
    residual = values - design @ effects
    if target is None:
        mean = member.mean(0) @ shifts
        spread = np.sqrt((residual**2).mean(0))
    else:
        mean = shifts[names.index(target)]
        spread = np.sqrt((residual[member[:, names.index(target)] > 0] ** 2).mean(0))
    spread = np.where(spread > 0, spread, 1.0)  # a region that is the same everywhere stays so
    rest = mean + (covariates - covariates.mean(0)) @ slopes
    z = (values - rest) / spread
    out = values.copy()
    for number, name in enumerate(names):
        rows = member[:, number] > 0
        if name != target:
            shift, scale = _posterior(z[rows])
            out[rows] = spread * (z[rows] - shift) / np.sqrt(scale) + rest[rows]
    return out


def _posterior(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and variance (G,) of a site with standardized values (n, G)."""
    n, shift, scale = len(z), z.mean(0), z.var(0, ddof=1)
    centre, width = shift.mean(), shift.var(ddof=1) if len(shift) > 1 else 0.0
    middle, variance = scale.mean(), scale.var(ddof=1) if len(scale) > 1 else 0.0
    if variance == 0 or width == 0:  # nothing to pool: one region, or all alike
        return shift, np.where(scale > 0, scale, 1.0)
    shape, rate = (2 * variance + middle**2) / variance, (middle * variance + middle**3) / variance
    new_shift, new_scale = shift, scale
    for _ in range(ROUNDS):
        before = new_shift, new_scale
        new_shift = (n * width * shift + new_scale * centre) / (n * width + new_scale)
        new_scale = (rate + 0.5 * ((z - new_shift) ** 2).sum(0)) / (n / 2 + shape - 1)
        if max(np.abs(a - b).max() for a, b in zip(before, (new_shift, new_scale), strict=True)) < CLOSE:
            break
    return new_shift, new_scale


def _rows(path: Path) -> list[dict[str, str]]:
    rows = reading.rows(path, "table")
    if not rows:
        raise InputError(f"{path} has no row")
    if any(None in row or None in row.values() for row in rows):
        raise InputError(f"{path} has rows of another length than its header")
    return rows


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _column(texts: Sequence[str]) -> np.ndarray:
    """A covariate as columns: its numbers, or an indicator for each group but the first."""
    numbers = [_number(text) for text in texts]
    if all(number is not None for number in numbers):
        return np.array(numbers, dtype=float)[:, None]
    return np.array([[text == name for name in sorted(set(texts))[1:]] for text in texts], dtype=float)
