import numpy as np
import pandas as pd
import pytest
import torch

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Measured
from flowplat_timeseries import baselines
from flowplat_timeseries.metrics import LEVELS, forecasts, scores


def drawn(waves, count=5, samples=37, horizon=12):
    rng = np.random.default_rng(1)
    series = waves(count, 100)
    series[1].values[[3, 40, 90]] = np.nan  # in the history, and in what is to come
    made = np.stack([one.values[-horizon:] for one in waves(count, 100)])[:, None]
    made = made * (1 + 0.2 * rng.standard_normal((count, samples, horizon)))
    return series, made.astype(np.float32)


def test_our_figures_are_those_of_gluonts(waves):
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MASE, ND, NRMSE, MeanWeightedSumQuantileLoss
    from gluonts.evaluation import Evaluator
    from gluonts.model import evaluate_forecasts
    from gluonts.model.forecast import SampleForecast

    series, made = drawn(waves)
    horizon, cast = made.shape[2], [
        SampleForecast(samples, one.start + 100 - made.shape[2], item_id=one.name)
        for one, samples in zip(series, made.astype(np.float64), strict=True)
    ]  # fmt: skip
    own = scores(made, np.stack([s.values[-horizon:] for s in series]), [s.values[:-horizon] for s in series], 12)
    entries = [{"start": s.start, "target": s.values, "item_id": s.name} for s in series]
    tested = split(entries, offset=-horizon)[1].generate_instances(horizon)
    metrics = [MeanWeightedSumQuantileLoss(list(LEVELS)), MASE(), ND(), NRMSE()]
    theirs = evaluate_forecasts(cast, test_data=tested, metrics=metrics, seasonality=12).iloc[0]
    for name, theirs_name in [
        ("crps", "mean_weighted_sum_quantile_loss"), ("mase", "MASE[0.5]"), ("nd", "ND[0.5]"), ("nrmse", "NRMSE[mean]")
    ]:  # fmt: skip
        assert own[name] == pytest.approx(theirs[theirs_name], rel=1e-9), name

    whole = [pd.Series(one.values, pd.period_range(one.start, periods=100, freq="h")).to_frame() for one in series]
    agg, _ = Evaluator(quantiles=LEVELS, num_workers=0, seasonality=12)(whole, cast)
    assert own["crps"] == pytest.approx(agg["mean_wQuantileLoss"], rel=1e-9)
    assert own["nd"] == pytest.approx(agg["ND"], rel=1e-9)


def test_seasonal_naive_is_gluonts_where_nothing_is_missing(waves):
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    series = waves(3, 50)
    entries = [{"start": one.start, "target": one.values} for one in series]
    for season in (1, 7, 24):
        theirs = SeasonalNaivePredictor(prediction_length=30, season_length=season).predict(entries)
        for one, cast in zip(series, theirs, strict=True):
            np.testing.assert_allclose(baselines.seasonal_naive(one.values, 30, season), cast.mean, rtol=1e-6)


def test_seasonal_naive_looks_further_back_over_gaps():
    nan = np.nan
    values = np.array([1.0, 2, 3, 4, nan, 6])
    np.testing.assert_array_equal(baselines.seasonal_naive(values, 5, 3), [4, 2, 6, 4, 2])
    np.testing.assert_array_equal(baselines.last_value(np.array([5.0, nan]), 2), [5, 5])
    np.testing.assert_array_equal(baselines.seasonal_naive(np.array([nan, nan]), 2, 3), [0, 0])
    np.testing.assert_array_equal(baselines.seasonal_naive(np.array([7.0]), 3, 24), [7, 7, 7])


def test_a_certain_and_right_forecast_has_no_error():
    truth = np.array([[1.0, 2.0, np.nan]])
    own = scores(np.repeat(np.nan_to_num(truth)[:, None], 4, 1), truth, [np.array([1.0, 2, 3])], 1)
    assert own["crps"] == own["nd"] == own["mase"] == 0
    assert own["coverage_80"] == 1


def test_a_truth_of_zeros_and_a_constant_history_give_no_number():
    own = scores(np.ones((1, 3, 2)), np.zeros((1, 2)), [np.ones(9)], 1)
    assert all(np.isnan(own[name]) for name in ("crps", "nd", "nrmse", "mase"))


def test_the_model_is_measured_beside_others_with_and_without_gaps(small, tmp_path):
    measured = Measured(small.data, tmp_path, 0, small.device, small)
    samples = Batch(torch.zeros(1, 1, 36), extra={"calls": 16})
    found = forecasts(samples, measured, draws=16, patterns=["random", "end"])
    assert list(found) == ["crps", "nd", "nrmse", "mase", "coverage_80", "crps_random", "crps_end"]
    assert found["crps"].value < found["crps"].baselines["seasonal_naive"] < found["crps"].baselines["last_value"]
    for name in ("crps_random", "crps_end"):
        assert found[name].value < found[name].baselines["seasonal_naive"]
    assert {"seasonal_naive", "last_value", "npts"} == set(found["crps"].baselines)
    assert "16 steps" in found["crps"].note
    assert "8 held-out windows" in found["crps"].note
    assert found["crps"].value == forecasts(samples, measured, draws=16, patterns=[])["crps"].value
    with pytest.raises(UsageError, match="measured of a model"):
        forecasts(samples, Measured(small.data, tmp_path, 0, small.device))
