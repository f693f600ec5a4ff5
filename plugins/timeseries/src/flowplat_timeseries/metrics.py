"""How good forecasts are, by the figures of the field, and beside ways that need no training."""

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import numpy as np
from pydantic import Field

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import derive, generator
from flowplat_timeseries import baselines
from flowplat_timeseries.asking import Asked, Likelihood, PriorSteps, Samples, Scale, Weight, gapped, windowed
from flowplat_timeseries.data import SeriesSet
from flowplat_timeseries.reading import Series
from flowplat_timeseries.windows import Pattern

LEVELS = tuple(round(0.1 * k, 1) for k in range(1, 10))
CALLS = 32


def quantile(samples: np.ndarray, level: float) -> np.ndarray:
    """The sample at rank round((S - 1) level), as GluonTS takes it: (..., S, P) -> (..., P)."""
    rank = int(np.round((samples.shape[-2] - 1) * level))
    return np.sort(samples, -2)[..., rank, :]


def seasonal_error(history: np.ndarray, season: int) -> float:
    """mean |y_t - y_(t - season)| over what is known of a history, season 1 where that is longer than the history."""
    lag = season if season <= len(history) else 1
    apart = np.abs(history[lag:] - history[: len(history) - lag])
    apart = apart[np.isfinite(apart)]
    return float(apart.mean()) if len(apart) else float("nan")


def scores(
    samples: np.ndarray,
    truth: np.ndarray,
    histories: Sequence[np.ndarray],
    season: int,
    levels: Sequence[float] = LEVELS,
) -> dict[str, float]:
    """The figures of samples (n, S, P) for what came, ``truth`` (n, P); NaN there is left out.

        crps   = mean over q of  sum 2 |(y - f_q) (1[y <= f_q] - q)| / sum |y|     (mean weighted quantile loss)
        nd     = sum |y - median| / sum |y|
        nrmse  = sqrt(mean (y - mean)^2) / mean |y|
        mase   = mean (|y - median| / seasonal error of the history)
        coverage_80 = share of y in [f_0.1, f_0.9]

    All sums run over every series and step before anything is divided, as in GluonTS (``MeanWeightedSumQuantileLoss``,
    ``ND``, ``NRMSE``, ``MASE`` of ``gluonts.ev``). Series whose seasonal error is 0 are left out of mase alone.
    """
    known = np.isfinite(truth)
    y = np.where(known, truth, 0.0)
    ordered = np.sort(samples.astype(np.float64), -2)

    def at(level: float) -> np.ndarray:
        return np.asarray(ordered[:, int(np.round((ordered.shape[1] - 1) * level))])

    size, count = float(np.abs(y).sum()), max(1, int(known.sum()))
    losses = [2 * np.abs((y - at(q)) * ((y <= at(q)) - q))[known].sum() for q in levels]
    missed = np.abs(y - at(0.5))
    errors = np.array([seasonal_error(one, season) for one in histories])[:, None]
    counted = known & np.isfinite(errors) & (errors > 0)
    square = np.square(y - ordered.mean(1))[known].mean() if known.any() else np.nan
    inside = (at(0.1) <= y) & (y <= at(0.9))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "crps": float(np.mean(losses) / size) if size else float("nan"),
            "nd": float(missed[known].sum() / size) if size else float("nan"),
            "nrmse": float(np.sqrt(square) / (size / count)) if size else float("nan"),
            "mase": float((missed / errors)[counted].mean()) if counted.any() else float("nan"),
            "coverage_80": float(inside[known].mean()) if known.any() else float("nan"),
        }


def simple(series: Sequence[Series], horizon: int, season: int, seed: int, slow: bool = True) -> dict[str, np.ndarray]:
    """Forecasts (n, S, horizon) of the ways that need no training, by name, from the histories of ``series``; NPTS,
    which takes a quarter of a second a series, where ``slow``."""
    values = [one.values for one in series]
    found = {
        "seasonal_naive": np.stack([baselines.seasonal_naive(one, horizon, season) for one in values])[:, None],
        "last_value": np.stack([baselines.last_value(one, horizon) for one in values])[:, None],
    }
    return found | ({"npts": baselines.npts(series, horizon, 100, seed)} if slow else {})


NOTES = {
    "crps": "mean weighted quantile loss, levels 0.1 to 0.9, equal to GluonTS's",
    "nd": "absolute error of the median over the size of the truth",
    "nrmse": "root mean squared error of the mean over the size of the truth",
    "mase": "absolute error of the median over that of seasonal naive on the history",
    "coverage_80": "share of the truth within the band of 80 %",
}


def forecasts(
    samples: Batch,
    measured: Measured,
    count: Annotated[int, Field(ge=1, description="held-out windows at most, spread over all")] = 64,
    draws: Samples = 20,
    steps: Annotated[
        int | None, Field(ge=1, description="from noise to a series; null for as many as the samples took")
    ] = None,
    likelihood: Likelihood = "quantile",
    scale: Scale = 4.0,
    weight: Weight = "tsflow",
    prior_steps: PriorSteps = 0,
    patterns: Annotated[
        list[Pattern], Field(description="gaps in the context to measure under as well: random, start, end")
    ] = ["random", "start", "end"],  # noqa: B006
) -> Mapping[str, Figure]:
    """Forecasts of the held-out windows: CRPS, ND, NRMSE, MASE and coverage, beside seasonal naive, the last value and
    GluonTS's NPTS; and CRPS again with half of each context hidden, by the same model,
    beside the first two told the same.

    It is a property of the model and its guidance. Raises ``UsageError`` for samples that are files, which no model is
    there to be asked about.
    """
    trained = measured.trained
    if trained is None:
        raise UsageError("forecasts is measured of a model; leave it out of eval.metrics for samples that are files")
    data = cast(SeriesSet, measured.data)
    horizon, context, season = data.config.horizon, data.config.context, data.season
    tests = [data.tests[int(i)] for i in np.unique(np.linspace(0, len(data.tests) - 1, count).round().astype(int))]
    truth = np.stack([one.values[-horizon:] for one in tests])
    past = [one.until(len(one.values) - horizon) for one in tests]
    asked = Asked(
        samples=draws, steps=steps or int(samples.extra.get("calls") or CALLS), likelihood=likelihood, scale=scale,
        weight=weight, prior_steps=prior_steps,
    )  # fmt: skip
    figures: dict[str, Figure] = {}
    for pattern in ("none", *dict.fromkeys(patterns)):
        gaps = generator(measured.seed, "gaps", pattern)
        shown = past if pattern == "none" else [
            Series(one.name, one.start, gapped(one.values, context, pattern, gaps)) for one in past
        ]  # fmt: skip
        values = [one.values for one in shown]
        histories = [one.values for one in past]
        made = windowed(trained, values, asked, derive(measured.seed, pattern), name=f"forecast, gaps {pattern}")
        own = scores(made[:, :, -horizon:], truth, histories, season)
        others = {
            name: scores(drawn, truth, histories, season)
            for name, drawn in simple(shown, horizon, season, measured.seed, pattern == "none").items()
        }
        where = f"{len(tests)} held-out windows of {horizon} steps, {draws} draws, {asked.steps} steps"
        if pattern != "none":
            told = {name: one["crps"] for name, one in others.items()}
            note = f"half of each context hidden ({pattern}); {where}"
            figures[f"crps_{pattern}"] = Figure(own["crps"], floor=0.0, baselines=told, note=note)
            continue
        for name, value in own.items():
            if not np.isfinite(value):  # nothing but zeros came, or no history has a season
                continue
            bands = name == "coverage_80"
            told = {} if bands else {other: one[name] for other, one in others.items()}
            told |= {"npts": others["npts"][name]} if bands else {}
            figures[name] = Figure(
                value, better="neither" if bands else "lower", floor=0.8 if bands else 0.0, baselines=told,
                note=f"{NOTES[name]}; {where}",
            )  # fmt: skip
    return figures
