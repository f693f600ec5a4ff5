"""How useful drawn windows are to forecasters that are themselves networks: these learn from samples alone, and are
tested on what really came.

GluonTS's forecasters, told nothing but the values: no calendar, and no scale of their own where that can be left out,
as windows are scaled already. (Kollovieh et al. 2023, arXiv 2307.11494, section 4.3; they have a Transformer, which
GluonTS no longer has for torch: its temporal fusion transformer stands in.)
"""

import logging
import tempfile
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import derive, generator
from flowplat_timeseries import baselines, calendar
from flowplat_timeseries.asking import told
from flowplat_timeseries.data import SeriesSet
from flowplat_timeseries.metrics import scores
from flowplat_timeseries.synthesis import windows_of
from flowplat_timeseries.windows import Scaled

Forecaster = Literal["deepar", "feed_forward", "tft"]


def _estimator(kind: Forecaster, context: int, horizon: int, freq: str, epochs: int, batches: int, folder: str) -> Any:
    from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator, TemporalFusionTransformerEstimator
    from gluonts.transform import ValidationSplitSampler

    common: dict[str, Any] = {
        "prediction_length": horizon,
        "num_batches_per_epoch": batches,
        "train_sampler": ValidationSplitSampler(min_future=horizon),  # a window is cut where its context ends
        "trainer_kwargs": {
            "max_epochs": epochs, "default_root_dir": folder, "accelerator": "cpu", "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False,
        },
    }  # fmt: skip
    if kind == "feed_forward":
        return SimpleFeedForwardEstimator(context_length=context, hidden_dimensions=[64, 64], **common)
    if kind == "tft":
        return TemporalFusionTransformerEstimator(freq=freq, context_length=context, time_features=[], **common)
    return DeepAREstimator(
        freq=freq, context_length=context - 1, lags_seq=[1], time_features=[], scaling=False, **common
    )


def taught(
    kind: Forecaster, windows: Tensor, context: int, told: Scaled, freq: str, epochs: int, batches: int, draws: int,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Forecasts (m, draws, horizon), scaled, of the contexts ``told`` by a forecaster that learned from ``windows``
    (n, L) and nothing else. Global generators are seeded, and left as they were."""
    start = calendar.period("2000-01-01", freq)
    known = torch.where(told.mask[:, 0].bool(), told.x[:, 0], torch.nan)[:, :context].double().numpy()

    def entries(rows: np.ndarray) -> list[dict[str, Any]]:
        return [{"start": start, "target": row.astype(np.float32), "item_id": str(i)} for i, row in enumerate(rows)]

    state, silent = np.random.get_state(), logging.root.manager.disable
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # of Lightning, who tells each epoch
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            horizon = windows.shape[1] - context
            estimator = _estimator(kind, context, horizon, freq, epochs, batches, folder)
            predictor = estimator.train(entries(windows.double().numpy()))
            levels = (np.arange(draws) + 1) / (draws + 1)
            made = []
            for one in predictor.predict(entries(known)):
                rows = getattr(one, "samples", None)
                made.append(np.stack([one.quantile(float(q)) for q in levels]) if rows is None else rows[:draws])
        finally:
            logging.disable(silent)
            np.random.set_state(state)
    return np.stack(made).astype(np.float64)


def downstream_score(
    samples: Batch,
    measured: Measured,
    forecaster: Annotated[Forecaster, Field(description="what learns: deepar, feed_forward or tft")] = "deepar",
    epochs: Annotated[int, Field(ge=1, description="epochs it learns for")] = 20,
    batches: Annotated[int, Field(ge=1, description="batches of 32 windows an epoch")] = 50,
    draws: Annotated[int, Field(ge=1, le=100, description="draws of a forecast")] = 100,
) -> Mapping[str, Figure]:
    """CRPS, on held-out windows, of a forecaster of GluonTS's that learned from the samples alone.

    Floor: the same forecaster, taught as long on as many windows of the training series. Baseline: seasonal naive.
    Nothing of a conditional model, whose samples are forecasts of held-out windows.
    """
    data = cast(SeriesSet, measured.data)
    if data.config.conditional is not None:
        return {}
    context, horizon, season = data.config.context, data.config.horizon, data.season
    tests = [one.values for one in data.tests]
    windows = told(data, [one[:-horizon] for one in tests])
    truth, past = np.stack([one[-horizon:] for one in tests]), [one[:-horizon] for one in tests]
    count = len(samples)
    real = windows_of(data, count, generator(measured.seed, "downstream"))

    def score(learnt_from: Tensor) -> float:
        made = taught(
            forecaster, learnt_from, context, windows, data.freq, epochs, batches, draws,
            derive(measured.seed, forecaster),
        )  # fmt: skip
        return scores(windows.back(torch.from_numpy(made)).numpy(), truth, past, season)["crps"]

    naive = np.stack([baselines.seasonal_naive(one, horizon, season) for one in past])[:, None]
    return {
        f"downstream_{forecaster}": Figure(
            score(samples.x1[:, 0]),
            floor=score(real),
            baselines={"seasonal_naive": scores(naive, truth, past, season)["crps"]},
            note=f"{forecaster} taught on {count} samples, {epochs} x {batches} batches; floor: on real windows",
        )
    }
