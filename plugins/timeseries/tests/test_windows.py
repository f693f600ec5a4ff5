import numpy as np
import pytest
import torch

from flowplat_timeseries.windows import CLIP, FLOOR, STILL, Windows, channels, cut, hidden, lags_of, scaled


def one(values, context, lags=(), level=1.0, scaling="mean"):
    return scaled(torch.tensor([values], dtype=torch.float64), context, lags, torch.tensor([level]), scaling)


def test_a_lag_is_known_exactly_where_what_it_points_to_is():
    nan = float("nan")
    series = [0.0, 1.0, nan, 3.0, 4.0, nan, 6.0, 7.0]  # the largest lag, 3, and five steps of a window
    x, mask = channels(torch.tensor([series]), [1, 3])
    assert x[0].tolist() == [[3, 4, 0, 6, 7], [0, 3, 4, 0, 6], [0, 1, 0, 3, 4]]
    assert mask[0].tolist() == [[1, 1, 0, 1, 1], [0, 1, 1, 0, 1], [1, 1, 0, 1, 1]]
    known = np.isfinite(series)
    for k, lag in enumerate((0, 1, 3)):
        for i in range(5):
            assert bool(mask[0, k, i]) == known[3 + i - lag]


def test_a_window_before_the_beginning_and_after_the_end_is_missing():
    np.testing.assert_array_equal(cut(np.array([1.0, 2.0, 3.0]), 5, 7), [np.nan, np.nan, 1, 2, 3, np.nan, np.nan])
    assert np.isnan(cut(np.array([1.0]), 9, 3)).all()
    assert np.isnan(cut(np.array([]), 0, 3)).all()


def test_the_scale_is_the_mean_size_of_what_is_known_of_the_context():
    nan = float("nan")
    made = one([-2.0, nan, 4.0, 30.0], context=3, level=3.0)
    assert made.scale.tolist() == [3.0]
    assert made.loc.tolist() == [0.0]
    np.testing.assert_allclose(made.x[0, 0], [-2 / 3, 0, 4 / 3, 10], rtol=1e-6)
    np.testing.assert_allclose(made.back(made.x)[0, 0, [0, 2, 3]], [-2, 4, 30], rtol=1e-6)


def test_a_context_of_zeros_does_not_make_a_giant_of_what_follows():
    made = one([0.0, 0.0, 0.0, 5.0], context=3, level=2.0)
    assert made.scale.tolist() == [pytest.approx(FLOOR * 2)]
    assert made.x[0, 0, 3] == CLIP
    assert one([0.0, 0.0, 0.0], context=2, level=0.0).scale.tolist() == [1.0]
    nothing = one([float("nan")] * 3, context=2, level=7.0)
    assert nothing.scale.tolist() == [7.0]
    assert nothing.mask.sum() == 0
    assert nothing.x.abs().sum() == 0


def test_standard_scaling_centres_and_measures_the_spread():
    made = one([99.0, 101.0, 100.0, 103.0], context=2, level=100.0, scaling="standard")
    assert made.loc.tolist() == [100.0]
    assert made.scale.tolist() == [pytest.approx(1.0)]
    np.testing.assert_allclose(made.x[0, 0], [-1, 1, 0, 3], atol=1e-6)
    constant = one([50.0, 50.0, 50.5], context=2, level=50.0, scaling="standard")
    assert constant.scale.tolist() == [pytest.approx(STILL * 50)]
    np.testing.assert_allclose(constant.x[0, 0], [0, 0, 1], atol=1e-6)


def test_large_levels_keep_their_small_moves():
    made = one([1e9, 1e9 + 1, 1e9 + 2], context=2, level=1e9)
    np.testing.assert_allclose(made.back(one([1e9, 1e9 + 1, 1e9 + 2], 2, level=1e9).x.double())[0, 0], 1e9, rtol=1e-6)
    assert made.scale[0] == 1e9 + 0.5


def test_windows_lie_within_their_series_and_every_place_comes():
    values = [np.arange(40.0) + 1, np.arange(7.0) + 1]
    source, draws = Windows(values, context=8, horizon=4, lags=[3]), torch.Generator().manual_seed(0)
    batch = source.batch(torch.zeros(2000, dtype=torch.int64), draws)
    starts = batch.extra["start"]
    assert set(starts.tolist()) == set(range(3, 40 - 12 + 1))
    assert bool(batch.mask.all())
    values_back = batch.x1[:, 0].double() * batch.extra["scale"].double()[:, None]
    np.testing.assert_allclose(values_back, starts[:, None] + torch.arange(12) + 1, rtol=1e-5)
    np.testing.assert_allclose(batch.x1[:, 1] * batch.extra["scale"][:, None], values_back - 3, rtol=1e-5, atol=1e-4)
    short = source.batch(torch.ones(5, dtype=torch.int64), draws)
    assert set(short.extra["start"].tolist()) == {7 - 12}
    assert short.mask[0, 0].tolist() == [0] * 5 + [1] * 7


def test_a_batch_is_a_function_of_its_rows_and_generator():
    source = Windows([np.arange(50.0)] * 3, 8, 4)
    rows = torch.tensor([0, 1, 2])
    first, again = (source.batch(rows, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.x1, again.x1)
    assert torch.equal(first.extra["start"], again.extra["start"])


@pytest.mark.parametrize("context", [10, 11])
def test_half_of_a_context_is_hidden_at_random_at_the_start_or_at_the_end(context):
    draws = torch.Generator().manual_seed(0)
    assert not hidden(context, "none", draws).any()
    random = hidden(context, "random", draws)
    assert random.sum() == 5
    assert not np.array_equal(random, hidden(context, "random", draws))
    assert np.flatnonzero(hidden(context, "start", draws)).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(hidden(context, "end", draws)).tolist() == list(range(context - 5, context))


def test_lags_of_the_paper_and_of_a_list():
    assert lags_of("h", "tsdiff") == [24, 48, 72, 96, 120, 144, 168, 336, 504, 672]
    assert lags_of("B", "tsdiff") == [30 * k for k in range(1, 13)]
    assert lags_of("h", [168, 24, 24]) == [24, 168]
    assert lags_of("h", "none") == []
    assert 12 in lags_of("M", "gluonts")
    assert 24 in lags_of("h", "gluonts")
