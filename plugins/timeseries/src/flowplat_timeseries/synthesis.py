"""How useful drawn windows are: what is learnt from them is tested on what really came."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from flowcore.data import Batch
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import generator
from flowplat_timeseries import baselines
from flowplat_timeseries.asking import told
from flowplat_timeseries.data import SeriesSet

ALPHA = 1.0


def missed(forecast: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
    """sum |y - f| / sum |y| over what is known: the mean weighted quantile loss of a forecast without spread."""
    size = float(np.abs(truth)[known].sum())
    return float(np.abs(truth - forecast)[known].sum() / size) if size else float("nan")


def taught(windows: Tensor, context: int, told: Tensor) -> np.ndarray:
    """Ridge regression from context to horizon, learnt from ``windows`` (n, L), for contexts ``told`` (m, context)."""
    from sklearn.linear_model import Ridge

    learnt = Ridge(alpha=ALPHA).fit(windows[:, :context].double().numpy(), windows[:, context:].double().numpy())
    return np.asarray(learnt.predict(told.double().numpy()))


def windows_of(data: SeriesSet, count: int, draws: torch.Generator) -> Tensor:
    """``count`` windows (n, L) of the training series, scaled; of these the ones without gaps, if there are any."""
    source = data.train()
    real = source.batch(torch.arange(count) % len(source), draws)
    whole = torch.ones(count, dtype=torch.bool) if real.mask is None else real.mask[:, 0].bool().all(1)
    x: Tensor = real.x1[:, 0]
    return x[whole] if bool(whole.any()) else x


def linear_predictive_score(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """The error, on held-out windows, of ridge regression that was taught on the samples alone.

    Floor: taught on as many windows of the training series. Baseline: seasonal naive. A point forecast's mean weighted
    quantile loss is its absolute error over the size of the truth. (Kollovieh et al. 2023, arXiv 2307.11494, with
    alpha = 1; they take 10,000 windows.) Nothing of a conditional model: its samples are forecasts of held-out windows.
    """
    data = cast(SeriesSet, measured.data)
    if data.config.conditional is not None:
        return {}
    context, horizon = data.config.context, data.config.horizon
    tests = [one.values for one in data.tests]
    windows = told(data, tests, ahead=False)
    known = windows.mask[:, 0, context:].bool().numpy()
    truth = np.nan_to_num(np.stack([one[-horizon:] for one in tests]))
    count = len(samples)
    real = windows_of(data, count, generator(measured.seed, "linear predictive score"))

    def score(learnt_from: Tensor) -> float:
        made = taught(learnt_from, context, windows.x[:, 0, :context])
        return missed(windows.back(torch.from_numpy(made)).numpy(), truth, known)

    naive = np.stack([baselines.seasonal_naive(one[:-horizon], horizon, data.season) for one in tests])
    return {
        "linear_predictive_score": Figure(
            score(samples.x1[:, 0]),
            floor=score(real),
            baselines={"seasonal_naive": missed(naive, truth, known)},
            note=f"ridge regression taught on {count} samples; floor: on real windows",
        )
    }
