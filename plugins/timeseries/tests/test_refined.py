"""Refinement between GluonTS's own predictors and its own evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("gluonts.torch")
from gluonts.evaluation import Evaluator, make_evaluation_predictions
from gluonts.model import Predictor
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from flowcore.errors import InputError, UsageError
from flowplat_timeseries.estimator import FlowEstimator
from flowplat_timeseries.refined import Refined, matched
from flowplat_timeseries.refining import energy
from flowplat_timeseries.windows import observed, scaled

START = pd.Period("2024-01-01 00:00", freq="h")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    steps = np.arange(120)
    waves = [10 * (i + 1) * (1 + 0.5 * np.sin(steps / 2 + i) + 0.1 * rng.standard_normal(120)) for i in range(6)]
    waves[1][20:40] = np.nan
    return [{"item_id": f"s{i}", "start": START, "target": wave.astype(np.float32)} for i, wave in enumerate(waves)]


@pytest.fixture(scope="module")
def flow(dataset):
    torch.manual_seed(0)
    quick = {"max_epochs": 6, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return FlowEstimator(
        freq="h", prediction_length=12, context_length=24, hidden=16, blocks=2, state=8, lr=5e-3, num_steps=4,
        num_parallel_samples=10, batch_size=16, num_batches_per_epoch=40, trainer_kwargs=quick,
    ).train(dataset)  # fmt: skip


NAIVE = SeasonalNaivePredictor(prediction_length=12, season_length=12)


def test_refined_forecasts_keep_their_items_and_are_likelier_to_the_model(flow, dataset):
    better = flow.refine(NAIVE, dataset, rate=0.02)
    assert isinstance(better, Predictor)
    casts = list(better.predict(dataset, num_samples=8))
    module, values = flow.prediction_net, [entry["target"].astype(np.float64) for entry in dataset]
    cuts = [observed(one, 24, 12, [])[0] for one in values]
    level = torch.tensor([np.nanmean(np.abs(one)) for one in values])
    made = scaled(torch.from_numpy(np.stack(cuts)), 24, [], level)

    def cost(ahead):
        x = made.x.clone()
        x[:, 0, 24:] = torch.from_numpy(ahead / made.scale[:, None].numpy()).float()
        draws = torch.Generator().manual_seed(1)
        return energy(module.parts(), module.average.module, x, torch.ones_like(x), draws, better.options["tau"], 32)

    before = np.stack([one.mean for one in NAIVE.predict(dataset)])
    after = np.stack([one.mean for one in casts])
    for entry, one in zip(dataset, casts, strict=True):
        assert one.item_id == entry["item_id"]
        assert one.start_date == START + len(entry["target"])
        assert one.samples.shape == (8, 12)
    assert (cost(after) < cost(before)).all()


def test_gluonts_evaluates_what_is_refined_and_writes_and_reads_it(flow, dataset, tmp_path: Path):
    better = flow.refine(NAIVE, dataset, iterations=2)
    casts, truths = make_evaluation_predictions(dataset, better, num_samples=5)
    agg, _ = Evaluator(quantiles=[0.5], num_workers=0)(truths, casts)
    assert np.isfinite(agg["mean_wQuantileLoss"])
    better.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    assert isinstance(again, Refined)
    draws = []
    for one in (better, again):
        torch.manual_seed(3)
        draws.append([cast.samples for cast in one.predict(dataset)])
    assert draws[0][0].shape == (10, 12)
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True))


def test_forecasts_of_the_base_are_joined_by_name_and_beginning(dataset):
    casts = list(NAIVE.predict(dataset))
    assert matched(dataset, casts[::-1]) == casts
    assert matched(dataset[:2], casts) == casts[:2]
    with pytest.raises(InputError, match="no forecast of s5 from"):
        matched(dataset, casts[:-1])


def test_a_base_of_another_horizon_and_a_method_that_is_none_are_refused(flow, dataset):
    with pytest.raises(UsageError, match="one prediction_length"):
        flow.refine(SeasonalNaivePredictor(prediction_length=6, season_length=12), dataset)
    with pytest.raises(UsageError, match="ml or langevin"):
        flow.refine(NAIVE, dataset, method="hmc")
    with pytest.raises(UsageError, match="no series to refine by"):
        flow.refine(NAIVE, [])
