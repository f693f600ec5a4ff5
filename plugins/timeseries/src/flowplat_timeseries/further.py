"""More verbs: the forecasts of others refined, series drawn, unusual windows found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from flowcore import files
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Trained
from flowcore.seeds import generator
from flowplat_timeseries import baselines, calendar, drawing, guidance, refining, writing
from flowplat_timeseries.asking import Scale, Seed, of_everything, permuted, told
from flowplat_timeseries.data import SeriesSet
from flowplat_timeseries.metrics import scores, simple
from flowplat_timeseries.reading import Columns, Series
from flowplat_timeseries.synthesis import taught
from flowplat_timeseries.tasks import Freq, Item, Target, Time, brought, finish, pasts
from flowplat_timeseries.windows import Scaled, observed, scaled

LEARNED = 2000  # windows that ridge regression sees


def refine(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    base: Annotated[
        str,
        Field(
            description="whose forecast is refined: seasonal_naive, last_value, linear, npts, or a table of `forecast`"
        ),
    ] = "seasonal_naive",
    compare: Annotated[
        bool, Field(description="forecast the last horizon of each series, and say how good that is")
    ] = False,
    method: Annotated[
        Literal["ml", "langevin"], Field(description="steps downhill in energy, or Langevin's, with noise")
    ] = "ml",
    iterations: Annotated[int, Field(ge=1, description="steps")] = 20,
    rate: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="length of a step; too long a one overshoots")
    ] = 0.01,
    samples: Annotated[int, Field(ge=1, description="draws for each series; a single forecast is repeated")] = 20,
    likelihood: Annotated[
        guidance.Likelihood, Field(description="what holds a forecast to its base: its quantiles; or only the history")
    ] = "quantile",
    scale: Scale = 1.0,
    freq: Freq = None,
    time: Time = "",
    item: Item = "",
    target: Target = "",
    seed: Seed = 0,
) -> Any:
    """The forecasts of another method, moved to where the model finds whole windows likelier.

    Inputs and ``out`` are as in ``forecast``; without inputs the model's own held-out windows are taken. ``linear`` is
    ridge regression, learned from 2,000 training windows. A table as ``base`` has item_id, timestamp and quantile
    columns q0.1 ... or mean, for the horizon after each series. Raises ``InputError`` where it misses a series, or a
    step.
    """
    files.refuse_ending(out, *writing.TABLES)
    data = cast(SeriesSet, trained.data)
    of_everything(data, "refine")
    horizon = data.config.horizon
    series, truth, skipped = pasts(trained, inputs, compare, freq, Columns(time, item, target))
    histories = [one.values for one in series]
    windows = told(data, histories)
    if base == "linear":
        first = np.repeat(_linear(data, windows, seed)[:, None], samples, 1)
    else:
        first = _base(base, series, horizon, data.season, samples, seed)
    trained.network.eval()
    x = refining.refine(
        trained.parts(), trained.network, windows.x, windows.mask, windows.guess(first), method=method,
        iterations=iterations, rate=rate, likelihood=likelihood, scale=scale,
        generator=generator(seed, "refine", device=trained.device),
    )  # fmt: skip
    made = permuted(windows.back(x.cpu()).numpy()[:, :, -horizon:], seed)
    found: dict[str, Any] = {"series": len(series), "horizon": horizon, "base": base, "skipped": skipped}
    if truth is not None:
        found["figures"] = scores(made, truth, histories, data.season)
        found["baselines"] = {"base": scores(first, truth, histories, data.season)} | {
            name: scores(drawn, truth, histories, data.season)
            for name, drawn in simple(series, horizon, data.season, seed, slow=False).items()
        }
    return finish(series, made, truth, found, out, data.config.context)


def _linear(data: SeriesSet, windows: Scaled, seed: int) -> np.ndarray:
    """Ridge regression from context to horizon, learned from windows of the model's training data: (n, horizon)."""
    source, context = data.train(), data.config.context
    batch = source.batch(torch.arange(LEARNED) % len(source), generator(seed, "linear"))
    made = taught(batch.x1[:, 0], context, windows.x[:, 0, :context])
    return np.asarray(windows.back(torch.from_numpy(made)).numpy())


def _base(base: str, series: Sequence[Series], horizon: int, season: int, samples: int, seed: int) -> np.ndarray:
    """Forecasts (n, samples, horizon) to begin from, rows in order of their quantiles."""
    if base in ("seasonal_naive", "last_value"):
        step = season if base == "seasonal_naive" else 1
        ahead = np.stack([baselines.seasonal_naive(one.values, horizon, step) for one in series])
        return np.repeat(ahead[:, None], samples, 1)
    if base == "npts":
        return np.sort(baselines.npts(series, horizon, samples, seed), 1)
    path = Path(base)
    if not path.is_file():
        raise UsageError(f"base={base} is neither seasonal_naive, last_value, linear, npts nor a file")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        table["timestamp"] = pd.to_datetime(table["timestamp"])
        table["item_id"] = table["item_id"].astype(str)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InputError(f"{path} is no table of forecasts with item_id and timestamp: {error}") from error
    levels = {
        float(name[1:]): name for name in table.columns if name[:1] == "q" and name[1:].replace(".", "").isdigit()
    }
    columns = [levels[level] for level in sorted(levels)] or ["mean"]
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"{path} has neither quantiles such as q0.5 nor a column {missing[0]}")
    found = []
    by_item = {name: part.set_index("timestamp") for name, part in table.groupby("item_id")}
    wanted = (np.arange(samples) + 1) / (samples + 1)
    for one in series:
        times = calendar.stamps(calendar.later(one.start, len(one.values)), horizon)
        if one.name not in by_item or not times.isin(by_item[one.name].index).all():
            raise InputError(f"{path} has no forecast of series {one.name} for the {horizon} steps from {times[0]} on")
        rows = by_item[one.name].loc[times, columns].to_numpy(np.float64)
        known = sorted(levels) or [0.5]
        found.append(np.stack([np.interp(wanted, known, row) for row in rows], 1))
    return np.stack(found)


def synthesize(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    count: Annotated[int, Field(ge=1, description="windows to draw")] = 100,
    steps: Annotated[int | None, Field(ge=1, description="from noise to a window; null for the model's own")] = None,
    seed: Seed = 0,
) -> Any:
    """Windows drawn from the model, told nothing: in units of the mean size of a context, at times that are made up.

    By its ending ``out`` is a long table, or ``.jsonl`` as GluonTS reads it; without one a folder with ``series.csv``,
    ``series.jsonl``, ``samples.npz`` (x (n, 1 + K, L), lags too) and ``samples.png``. From Python it returns x. Raises
    ``UsageError`` where there are inputs.
    """
    if inputs:
        raise UsageError(f"synthesize reads nothing, and was given {inputs[0]}: leave its inputs out")
    files.refuse_ending(out, *writing.TABLES, ".jsonl")
    data = cast(SeriesSet, trained.data)
    of_everything(data, "synthesize")
    samples = trained.sample(count, steps, seed)
    x = samples.x1.cpu().numpy()
    if out is None:
        return x
    start = calendar.period("2000-01-01", data.freq)
    names = [f"drawn-{number:05d}" for number in range(count)]
    times = calendar.stamps(start, x.shape[2])
    table = pd.DataFrame(
        {"item_id": np.repeat(names, x.shape[2]), "timestamp": np.tile(times, count), "target": x[:, 0].ravel()}
    )
    lines = "".join(
        json.dumps({"item_id": name, "start": str(times[0]), "target": [round(v, 6) for v in row.tolist()]}) + "\n"
        for name, row in zip(names, x[:, 0], strict=True)
    )
    found = {"windows": count, "steps": x.shape[2], "freq": data.freq}
    if out.suffix.lower() == ".jsonl":
        files.write(out, lines)
    elif out.suffix:
        writing.table(table, out)
    else:
        data.write(samples, out)
        (out / "samples.csv").unlink()
        writing.table(table, out / "series.csv")
        files.write(out / "series.jsonl", lines)
        files.write(out / "samples.png", data.show(samples))
    return found


def detect(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    stride: Annotated[int | None, Field(ge=1, description="steps between windows; null for the horizon")] = None,
    repeats: Annotated[int, Field(ge=1, description="draws of the noise for each window")] = 16,
    share: Annotated[
        float, Field(gt=0, lt=1, description="windows of the training data that may be as unusual as what is flagged")
    ] = 0.01,
    freq: Freq = None,
    time: Time = "",
    item: Item = "",
    target: Target = "",
    seed: Seed = 0,
) -> Any:
    """How unusual each window of each series is to the model: its training loss there, at one time that stands for all.

    ``out`` is a table of item_id, begin, end, energy, unusual: the last where the energy is above what all but
    ``share`` of 256 training windows have; or a folder with that and ``detected.png``, the most unusual windows. What
    is missing counts for nothing. A series shorter than a window is one. From Python it returns the table.
    """
    files.refuse_ending(out, *writing.TABLES)
    data = cast(SeriesSet, trained.data)
    of_everything(data, "detect")
    config = data.config
    length, step = config.context + config.horizon, stride or config.horizon
    series, skipped = brought(trained, inputs, freq, Columns(time, item, target))
    parts, draws = trained.parts(), generator(seed, "detect", device=trained.device)
    trained.network.eval()
    tau = refining.time_of(parts, trained.network, draws)

    def energies(x: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        found = refining.energy(parts, trained.network, x, mask, draws, tau, repeats)
        return np.asarray(found.cpu().numpy(), np.float64)

    source = data.train()
    usual = source.batch(torch.arange(256) % len(source), generator(seed, "usual"))
    assert usual.mask is not None
    limit = float(np.quantile(energies(usual.x1, usual.mask), 1 - share))
    rows: list[dict[str, Any]] = []
    places: list[tuple[Series, int]] = []
    for one in series:
        n = len(one.values)
        stops = sorted({*range(length, n, step), n}) if n > length else [n]
        cuts = [observed(one.values[:stop], config.context, config.horizon, data.lags, False)[0] for stop in stops]
        level = float(np.abs(one.values[np.isfinite(one.values)]).mean())
        kept = torch.from_numpy(np.stack(cuts))
        made = scaled(kept, config.context, data.lags, torch.full((len(stops),), level), config.scaling)
        for stop, energy in zip(stops, energies(made.x, made.mask).tolist(), strict=True):
            begin = max(0, stop - length)
            times = calendar.stamps(calendar.later(one.start, begin), stop - begin)
            rows.append(
                {"item_id": one.name, "begin": times[0], "end": times[-1], "energy": energy, "unusual": energy > limit}
            )
            places.append((one, stop))
    table = pd.DataFrame(rows)
    if out is None:
        return table
    found = {"windows": len(rows), "unusual": int(table["unusual"].sum()), "limit": limit, "skipped": skipped}
    if out.suffix:
        writing.table(table, out)
        return found
    with files.refusals(f"{out} cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
    writing.table(table, out / "detected.csv")
    worst = table["energy"].to_numpy().argsort()[::-1][:8]
    panels = [
        (
            f"{places[i][0].name}, {table['begin'][i]}: {table['energy'][i]:.2f}",
            places[i][0].until(places[i][1]).values[-length:],
        )
        for i in worst.tolist()
    ]
    files.write(out / "detected.png", drawing.named(panels, config.context))
    return found
