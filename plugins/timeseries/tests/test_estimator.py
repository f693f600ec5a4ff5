"""What a GluonTS user does, on ours: the patterns of its own tests of estimators and evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("gluonts.torch")
from gluonts.core import serde
from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
from gluonts.evaluation import Evaluator, make_evaluation_predictions
from gluonts.model import Predictor, evaluate_forecasts, evaluate_model

from flowcore.errors import UsageError
from flowplat_timeseries.estimator import FlowEstimator

START = pd.Period("2024-01-01 00:00", freq="h")
QUICK = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def estimator(**options):
    return FlowEstimator(
        **{
            "freq": "H", "prediction_length": 12, "context_length": 24, "hidden": 8, "blocks": 2, "state": 8,
            "num_steps": 4, "num_parallel_samples": 10, "batch_size": 4, "num_batches_per_epoch": 5,
            "trainer_kwargs": dict(QUICK), **options,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(request):
    rng = np.random.default_rng(0)
    waves = [
        10 * (i + 1) * (1 + 0.5 * np.sin(np.arange(100 + i) / 2) + 0.1 * rng.standard_normal(100 + i)) for i in range(6)
    ]
    waves[1][20:40] = np.nan
    return [{"item_id": f"s{i}", "start": START, "target": wave.astype(np.float32)} for i, wave in enumerate(waves)]


@pytest.fixture(scope="module")
def predictor(dataset):
    torch.manual_seed(0)
    return estimator(lags=[24]).train(dataset, validation_data=dataset)


def test_training_writes_nothing_where_the_user_stands(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {**QUICK, "max_epochs": 1}
    estimator(trainer_kwargs=own).train(ListDataset([{"start": "2024-01-01", "target": [1.0] * 60}], freq="h"))
    assert list(tmp_path.iterdir()) == []
    estimator(trainer_kwargs={**own, "default_root_dir": str(tmp_path / "mine")}).train(dataset)
    assert (tmp_path / "mine").is_dir()


def test_forecasts_keep_their_items_and_begin_where_they_end(predictor, dataset):
    for entry, cast in zip(dataset, predictor.predict(dataset), strict=True):
        assert cast.item_id == entry["item_id"]
        assert cast.start_date == START + len(entry["target"])
        assert cast.samples.shape == (10, 12)
        assert np.isfinite(cast.samples).all()


def test_a_predictor_that_was_written_and_read_draws_the_same(predictor, dataset, tmp_path: Path):
    predictor.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    draws = []
    for one in (predictor, again):
        torch.manual_seed(3)
        draws.append([cast.samples for cast in one.predict(dataset)])
    assert all(np.array_equal(a, b) for a, b in zip(*draws, strict=True))
    assert not np.array_equal(draws[0][0], next(iter(predictor.predict(dataset))).samples)


def test_any_number_of_samples_is_spread_over_the_quantiles(predictor, dataset):
    """Rows of quantile guidance are in order of level, and GluonTS keeps the first ``num_samples`` of them."""
    torch.manual_seed(0)
    many = np.stack([cast.samples for cast in predictor.predict(dataset, num_samples=200)])
    assert many.shape == (6, 200, 12)
    few = np.concatenate(
        [np.stack([cast.samples for cast in predictor.predict(dataset, num_samples=3)]) for _ in range(30)], 1
    )
    error = many.std(1) / np.sqrt(30 * 3)
    assert (np.abs(few.mean(1) - many.mean(1)) < 6 * error).all()


def test_gluonts_evaluates_it_unchanged(predictor, dataset):
    casts, truths = make_evaluation_predictions(dataset, predictor, num_samples=20)
    agg, items = Evaluator(quantiles=[0.1, 0.5, 0.9], num_workers=0)(truths, casts)
    assert np.isfinite(agg["mean_wQuantileLoss"])
    assert len(items) == len(dataset)
    tested = split(dataset, offset=-12)[1].generate_instances(12)
    metrics = [MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9]), MASE()]
    frame = evaluate_model(predictor, test_data=tested, metrics=metrics)
    assert np.isfinite(frame.to_numpy()).all()
    frame = evaluate_forecasts(list(predictor.predict(tested.input)), test_data=tested, metrics=metrics, axis=1)
    assert len(frame) == len(dataset)


def test_an_estimator_is_written_as_gluonts_writes_them():
    one = estimator(lags="tsdiff", kernel="ou")
    again = serde.decode(serde.encode(one))
    assert isinstance(again, FlowEstimator)
    assert again.lags == one.lags == [24, 48, 72, 96, 120, 144, 168, 336, 504, 672]


@pytest.mark.parametrize(
    "target",
    [[3.0], [0.0] * 50, [5.0] * 50, [np.nan] * 49 + [2.0], [np.nan] * 50, [1.0] * 30, [np.inf, 1.0, 2.0]],
    ids=["one", "zeros", "constant", "all but one missing", "missing", "short", "infinite"],
)  # fmt: skip
def test_any_history_has_a_forecast(predictor, target):
    (cast,) = predictor.predict([{"start": START, "target": np.array(target, np.float32), "item_id": "x"}])
    assert cast.samples.shape == (10, 12)
    assert np.isfinite(cast.samples).all()


def test_what_cannot_be_learned_from_is_one_line():
    with pytest.raises(UsageError, match="no series to learn from"):
        estimator().train([{"start": START, "target": np.full(50, np.nan)}])
    with pytest.raises(UsageError, match="a model of single series"):
        estimator().train([{"start": START, "target": np.ones((2, 50)), "item_id": "pair"}])
    with pytest.raises(UsageError, match="is no frequency"):
        estimator(freq="hourly")


def test_training_goes_on_from_a_predictor(predictor, dataset):
    further = estimator(lags=[24]).train_from(predictor, dataset)
    assert int(further.network.average.n_averaged) > int(predictor.network.average.n_averaged)


def test_a_conditional_model_forecasts_and_is_written_and_read(dataset, tmp_path: Path):
    torch.manual_seed(0)
    told = estimator(conditional="ou", lags=[24]).train(dataset, validation_data=dataset)
    told.serialize(tmp_path)
    again = Predictor.deserialize(tmp_path)
    draws = []
    for one in (told, again):
        torch.manual_seed(3)
        draws.append([cast.samples for cast in one.predict(dataset)])
    assert draws[0][0].shape == (10, 12)
    assert all(np.isfinite(a).all() and np.array_equal(a, b) for a, b in zip(*draws, strict=True))
    with pytest.raises(UsageError, match="conditional=None"):
        told.refine(told, dataset)
    with pytest.raises(UsageError, match="is none of iso, se, ou, periodic"):
        estimator(conditional="rbf")
