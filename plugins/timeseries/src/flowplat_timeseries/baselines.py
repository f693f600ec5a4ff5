"""Forecasts that need no training, for every figure to stand beside."""

import warnings
from collections.abc import Sequence

import numpy as np

from flowplat_timeseries.reading import Series


def seasonal_naive(values: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """What was last known at the same place of the season, for the ``horizon`` steps after ``values``: (horizon,).

    A place of which nothing is known takes the last value that is; 0 where nothing is known at all. Where nothing is
    missing it is GluonTS's ``SeasonalNaivePredictor``.
    """
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros(horizon)
    ahead, n = np.empty(horizon), len(values)
    for place in range(min(season, horizon)):
        of_place = known[(known - n - place) % season == 0]
        ahead[place::season] = values[of_place[-1] if len(of_place) else known[-1]]
    return ahead


def last_value(values: np.ndarray, horizon: int) -> np.ndarray:
    """The last known value, held: (horizon,)."""
    return seasonal_naive(values, horizon, 1)


def npts(series: Sequence[Series], horizon: int, samples: int, seed: int) -> np.ndarray:
    """GluonTS's non-parametric forecaster: (n, samples, horizon), each value one of the past at like times, likelier
    the nearer. It draws from numpy's global generator, which is left as it was."""
    from gluonts.model.npts import NPTSPredictor

    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entries = [{"start": one.start, "target": one.values, "item_id": one.name} for one in series]
            drawn = [one.samples for one in NPTSPredictor(horizon).predict(entries, num_samples=samples)]
    finally:
        np.random.set_state(state)
    return np.stack(drawn).astype(np.float64)
