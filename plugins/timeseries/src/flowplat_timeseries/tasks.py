"""The plugin's verbs on series: what comes next, and what is missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
from pydantic import Field

from flowcore import files
from flowcore.errors import InputError
from flowcore.plugin.contracts import Trained
from flowplat_timeseries import drawing, reading, writing
from flowplat_timeseries.asking import (
    Asked,
    Likelihood,
    PriorSteps,
    Samples,
    Scale,
    Seed,
    Steps,
    Weight,
    of_everything,
    permuted,
    windowed,
)
from flowplat_timeseries.data import SeriesSet
from flowplat_timeseries.metrics import quantile, scores, simple
from flowplat_timeseries.reading import Columns, Series

SHOWN, PAST = 8, 3  # panels of a picture; horizons of the past that each shows, at the least

Freq = Annotated[str | None, Field(description="frequency of the files; null for the model's own")]
Time = Annotated[str, Field(description="the column of the times; empty for timestamp, date, ds ...")]
Item = Annotated[str, Field(description="the column that says whose row it is; empty for item_id, unique_id ...")]
Target = Annotated[str, Field(description="the column of the values; empty for target, value, y")]


def brought(
    trained: Trained, inputs: Sequence[Any], freq: str | None, columns: Columns
) -> tuple[list[Series], dict[str, str]]:
    """The series that a user brings a model, and which are left out and why. They are of the model's frequency, or what
    ``freq`` says against that. Raises ``InputError``."""
    own = cast(SeriesSet, trained.data).freq
    return reading.usable(reading.brought(inputs, reading.as_freq(freq) or own, columns))


def forecast(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    compare: Annotated[
        bool, Field(description="forecast the last horizon of each series, and say how good that is")
    ] = False,
    samples: Samples = 100,
    steps: Steps = 32,
    likelihood: Likelihood = "quantile",
    scale: Scale = 4.0,
    weight: Weight = "tsflow",
    prior_steps: PriorSteps = 0,
    freq: Freq = None,
    time: Time = "",
    item: Item = "",
    target: Target = "",
    seed: Seed = 0,
) -> Any:
    """What follows each series, as samples of the horizon that the model was trained for.

    Inputs are tables, JSON lines, Arrow files, or from Python pandas frames and GluonTS data sets; gaps may be anywhere
    and a series may be shorter than the context. Without inputs the model's own held-out windows are forecast and
    compared. ``out`` is a table of item_id, timestamp, mean and deciles, or a folder with that, ``samples.npz``
    (item_id, samples (n, S, horizon)), ``forecasts.png`` and, with ``compare``, ``metrics.json`` beside seasonal naive,
    the last value and GluonTS's NPTS; from Python it returns the table. Series of which nothing is known are skipped.
    """
    files.refuse_ending(out, *writing.TABLES)
    data = cast(SeriesSet, trained.data)
    horizon = data.config.horizon
    series, truth, skipped = pasts(trained, inputs, compare, freq, Columns(time, item, target))
    asked = Asked(
        samples=samples, steps=steps, likelihood=likelihood, scale=scale, weight=weight, prior_steps=prior_steps
    )
    made = windowed(trained, [one.values for one in series], asked, seed)
    made = permuted(made[:, :, -horizon:], seed)
    found: dict[str, Any] = {"series": len(series), "horizon": horizon, "samples": samples, "skipped": skipped}
    if truth is not None:
        histories = [one.values for one in series]
        others = simple(series, horizon, data.season, seed)
        found["figures"] = scores(made, truth, histories, data.season)
        found["baselines"] = {name: scores(drawn, truth, histories, data.season) for name, drawn in others.items()}
    return finish(series, made, truth, found, out, data.config.context)


def pasts(
    trained: Trained, inputs: Sequence[Any], compare: bool, freq: str | None, columns: Columns
) -> tuple[list[Series], np.ndarray | None, dict[str, str]]:
    """What is forecast from: the series brought, or to ``compare``, and without any of the model's own held-out ones,
    these before their last horizon and what came then (n, horizon); and which are left out and why."""
    data = cast(SeriesSet, trained.data)
    series, skipped = brought(trained, inputs, freq, columns) if inputs else (data.tests, dict(data.skipped))
    if inputs and not compare:
        return series, None, skipped
    horizon = data.config.horizon
    series, skipped = split(series, skipped, horizon)
    truth = np.stack([one.values[-horizon:] for one in series])
    return [one.until(len(one.values) - horizon) for one in series], truth, skipped


def split(series: Sequence[Series], skipped: dict[str, str], horizon: int) -> tuple[list[Series], dict[str, str]]:
    """The series of which something is known before their last ``horizon`` steps. Raises ``InputError`` for none."""
    kept = [one for one in series if one.until(max(0, len(one.values) - horizon)).known]
    left = skipped | {
        one.name: f"nothing is known of it before its last {horizon} steps" for one in series if one not in kept
    }
    if not kept:
        raise InputError(
            f"no series is longer than the horizon of {horizon} steps, so there is nothing to compare with"
        )
    return kept, left


def finish(
    series: Sequence[Series],
    made: np.ndarray,
    truth: np.ndarray | None,
    found: dict[str, Any],
    out: Path | None,
    context: int,
) -> Any:
    """Forecasts (n, S, horizon) written where a user wants them; from Python the table."""
    table = writing.quantiles(series, made)
    if out is None:
        return table
    if out.suffix:
        writing.table(table, out)
        return found
    with files.refusals(f"{out} cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
    writing.table(table, out / "forecasts.csv")
    writing.arrays(out / "samples.npz", item_id=np.array([one.name for one in series]), samples=made.astype(np.float32))
    shown = [int(i) for i in np.unique(np.linspace(0, len(series) - 1, min(SHOWN, len(series))).round())]
    panels = [_panel(series[i], made[i], None if truth is None else truth[i], context) for i in shown]
    files.write(out / "forecasts.png", drawing.forecasts(panels))
    if truth is not None:
        writing.figures(out / "metrics.json", {key: found[key] for key in ("figures", "baselines")})
    return found


def _panel(one: Series, drawn: np.ndarray, truth: np.ndarray | None, context: int) -> drawing.Told:
    past = max(0, len(one.values) - max(context, PAST * drawn.shape[1]))
    known = one.values[past:]
    whole = Series(one.name, one.start, np.concatenate([one.values, np.zeros(drawn.shape[1])]))
    return drawing.Told(one.name, known, drawn, len(known), truth, whole.times[past:])


def impute(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    samples: Samples = 100,
    steps: Steps = 32,
    likelihood: Likelihood = "quantile",
    scale: Scale = 4.0,
    weight: Weight = "tsflow",
    prior_steps: PriorSteps = 0,
    freq: Freq = None,
    time: Time = "",
    item: Item = "",
    target: Target = "",
    seed: Seed = 0,
) -> Any:
    """Every missing value of each series, drawn given all that is known around it; what is known stays as it is.

    A value is missing where it is empty or NaN, or where a row of the frequency is not there. A long series is read in
    windows that overlap by half, and a gap is filled from the window it is nearest the middle of. ``out`` is a table of
    item_id, timestamp, value, observed, q0.1, q0.9 (value is the median of the samples where nothing was observed), or
    a folder with that, ``samples.npz`` (item_id, step, samples (gaps, S)) and ``imputed.png``; from Python it returns
    the table.
    """
    files.refuse_ending(out, *writing.TABLES)
    data = cast(SeriesSet, trained.data)
    of_everything(data, "impute")
    series, skipped = brought(trained, inputs, freq, Columns(time, item, target))
    length = data.config.context + data.config.horizon
    jobs = [job for number, one in enumerate(series) for job in _jobs(number, one.values, length)]
    asked = Asked(
        samples=samples, steps=steps, likelihood=likelihood, scale=scale, weight=weight, prior_steps=prior_steps
    )
    drawn: list[dict[int, np.ndarray]] = [{} for _ in series]
    if jobs:
        pasts = [series[number].values[:stop] for number, stop, _ in jobs]
        made = windowed(trained, pasts, asked, seed, ahead=False, name="impute")
        for (number, stop, gaps), windows in zip(jobs, permuted(made, seed), strict=True):
            for gap in gaps:
                drawn[number][gap] = windows[:, gap - (stop - length)]
    table = pd.concat([_filled(one, gaps) for one, gaps in zip(series, drawn, strict=True)], ignore_index=True)
    if out is None:
        return table
    filled = sum(len(gaps) for gaps in drawn)
    found = {"series": len(series), "filled": filled, "samples": samples, "skipped": skipped}
    if out.suffix:
        writing.table(table, out)
        return found
    with files.refusals(f"{out} cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
    writing.table(table, out / "imputed.csv")
    owners = [series[number].name for number, gaps in enumerate(drawn) for _ in gaps]
    places = [gap for gaps in drawn for gap in gaps]
    values = [row for gaps in drawn for row in gaps.values()]
    stacked = np.stack(values).astype(np.float32) if values else np.zeros((0, samples), np.float32)
    writing.arrays(out / "samples.npz", item_id=np.array(owners, np.str_), step=np.array(places), samples=stacked)
    panels = [_gap_panel(one, gaps, length) for one, gaps in zip(series, drawn, strict=True) if gaps][:SHOWN]
    if panels:
        files.write(out / "imputed.png", drawing.forecasts(panels))
    return found


def _jobs(number: int, values: np.ndarray, length: int) -> list[tuple[int, int, list[int]]]:
    """(series, end of a window, the gaps that are filled from it), of the windows that any gap needs."""
    n = len(values)
    stops = np.array([*range(length, n, max(1, length // 2)), max(n, length)] if n > length else [n])
    centres = stops - length / 2
    gaps: dict[int, list[int]] = {}
    for gap in np.flatnonzero(~np.isfinite(values)).tolist():
        gaps.setdefault(int(stops[np.abs(centres - gap).argmin()]), []).append(gap)
    return [(number, stop, places) for stop, places in gaps.items()]


def _filled(one: Series, gaps: dict[int, np.ndarray]) -> pd.DataFrame:
    value, low, high = one.values.copy(), one.values.copy(), one.values.copy()
    for gap, drawn in gaps.items():
        low[gap], value[gap], high[gap] = (float(quantile(drawn[:, None], q)[0]) for q in (0.1, 0.5, 0.9))
    return pd.DataFrame(
        {
            "item_id": one.name, "timestamp": one.times, "value": value, "observed": np.isfinite(one.values),
            "q0.1": low, "q0.9": high,
        }
    )  # fmt: skip


def _gap_panel(one: Series, gaps: dict[int, np.ndarray], length: int) -> drawing.Told:
    """The longest run of gaps, with what is known about it."""
    places = np.array(sorted(gaps))
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    longest = max(runs, key=len)
    begin, stop = int(longest[0]), int(longest[-1]) + 1
    left, right = max(0, begin - length // 2), min(len(one.values), stop + length // 2)
    drawn = np.stack([gaps[int(gap)] for gap in longest], 1)
    return drawing.Told(one.name, one.values[left:right], drawn, begin - left, None, one.times[left:right])
