import numpy as np
import pytest
import torch

from flowcore.errors import UsageError
from flowcore.seeds import generator
from flowplat_timeseries.asking import told
from flowplat_timeseries.conditional import NUGGET, Law, regress, sampler, start
from flowplat_timeseries.forecasting import forecast
from flowplat_timeseries.priors import covariance
from flowplat_timeseries.windows import Windows

LAW = Law("ou", 6, 20, 14)
K = covariance("ou", 20, 6, jitter=0.1)


def masks():
    known = torch.ones(4, 20)
    known[:, 14:] = 0
    known[1, [2, 3, 9]] = 0
    known[2, :14] = 0  # nothing at all
    known[3, 0::6] = 0  # nothing of one phase
    return known


def dense(x, known):
    """The mean and the covariance of the unknown given the known, by the textbook."""
    x, there = x.double(), known.bool()
    phase = torch.arange(20) % 6
    overall = x[there].mean() if there.any() else torch.tensor(0.0, dtype=torch.float64)
    about = torch.stack([
        x[there & (phase == p)].mean() if (there & (phase == p)).any() else overall for p in phase
    ])  # fmt: skip
    seen = there.nonzero()[:, 0]
    system = K[seen][:, seen] + NUGGET * torch.eye(len(seen), dtype=torch.float64)
    gain = torch.linalg.solve(system, K[seen]).T
    return about + gain @ (x - about)[seen], K - gain @ K[seen]


def test_the_mean_is_that_of_dense_conditioning_for_any_mask():
    x = torch.randn(4, 20, generator=generator(0)) + 2
    mean, _ = regress(x, masks(), LAW)
    for row, known, found in zip(x, masks(), mean, strict=True):
        np.testing.assert_allclose(found, dense(row, known)[0], atol=1e-6)
    usual, _ = regress(x[:1], masks()[:1], LAW, usual=True)
    np.testing.assert_allclose(usual[0], mean[0], atol=1e-9)


def test_draws_have_that_mean_and_the_covariance_of_conditioning_and_keep_what_is_known():
    x, known, n = torch.randn(1, 20, generator=generator(0)) + 2, masks()[1:2], 20_000
    drawn, filled = start(x, known, LAW, generator(1), n)
    there = known[0].bool()
    assert torch.equal(drawn[0][:, there], x[:, there].expand(n, -1))
    mean, spread = dense(x[0], known[0])
    np.testing.assert_allclose(filled[0][~there], mean[~there], atol=1e-5)
    free = drawn[0][:, ~there].double()
    deviations = spread[~there][:, ~there]
    assert ((free.mean(0) - mean[~there]).abs() < 4 * (deviations.diagonal() / n).sqrt()).all()
    error = (torch.cov(free.T) - deviations).abs()
    assert (error < 5 * (deviations.diagonal().outer(deviations.diagonal()) / n).sqrt()).all()


def test_a_training_window_tells_the_context_and_nothing_of_what_follows():
    values = [np.arange(60.0) + 1, np.where(np.arange(60) % 9 == 4, np.nan, 5.0)]
    source = Windows(values, 14, 6, lags=[3], law=LAW)
    batch = source.batch(torch.tensor([0, 1]), generator(0))
    assert batch.x1.shape == batch.x0.shape == batch.mask.shape == (2, 1, 20)
    assert batch.condition.shape == (2, 3, 20)
    known = batch.condition[:, 2]
    assert (known[:, 14:] == 0).all()
    assert torch.equal(known[:, :14], batch.mask[:, 0, :14])
    there = known.bool()
    assert torch.equal(batch.x0[:, 0][there], batch.x1[:, 0][there])
    assert torch.equal(batch.condition[:, 1][there], batch.x1[:, 0][there])
    plain = Windows(values, 14, 6, lags=[3]).batch(torch.tensor([0, 1]), generator(0))
    assert torch.equal(batch.condition[:, 0, :17], plain.x1[:, 1, :17])
    assert (batch.condition[:, 0, 17:] == 0).all()  # three steps before: in the horizon, as the series itself is
    late = [np.where(np.arange(60) >= 54, 9.0, one) for one in values]  # the horizon of the last windows
    before, after = (
        Windows(one, 14, 6, [3], True, source.levels, law=LAW).batch(torch.tensor([0, 1]), generator(1))
        for one in (values, late)
    )
    assert torch.equal(before.x0, after.x0)
    assert torch.equal(before.condition, after.condition)
    assert not torch.equal(before.x1, after.x1)


def test_forecasts_of_a_conditional_model_beat_the_last_value_and_know_no_future(small_conditional):
    model, data = small_conditional, small_conditional.data
    tests = [one.values for one in data.tests]
    windows = told(data, [one[:-12] for one in tests])
    x = forecast(model.parts(), model.network, windows.x, windows.mask, 20, 8, generator=generator(0))
    assert x.shape == (8, 20, 36)
    there = windows.mask[:, 0].bool()
    assert torch.allclose(x.median(1).values[there], windows.x[:, 0][there], atol=0.3)
    truth = told(data, tests, ahead=False).x[:, 0, 24:]
    error = (x[:, :, 24:].median(1).values - truth).abs().mean()
    last = (windows.x[:, 0, 23:24] - truth).abs().mean()
    assert error < 0.6 * last
    spread = x[:, :, 24:].std(1).mean()
    assert 0.05 < spread < 0.5  # the noise of the waves is 0.15


def test_gaps_of_a_context_are_told_as_gaps(small_conditional):
    model = small_conditional
    windows = told(model.data, [model.data.tests[0].values[:-12]])
    mask = windows.mask.clone()
    mask[:, :, 5:9] = 0
    wild = windows.x.masked_fill(mask == 0, float("nan"))
    x = forecast(model.parts(), model.network, wild, mask, 5, 4, generator=generator(0))
    assert x.isfinite().all()


def test_samples_of_a_run_are_forecasts_and_the_wrong_sampler_is_refused(small, small_conditional):
    model = small_conditional
    told = model.data.condition(10, None)
    assert told.shape == (10, 2, 36)
    assert torch.equal(told[8:], told[:2])  # eight series, in turn
    batch = sampler(model.parts())(model.network, told, 10, 4, generator(0))
    known = told[:, 1].bool()
    assert torch.equal(batch.x0[:, 0][known], told[:, 0][known])
    assert batch.x1.isfinite().all()
    with pytest.raises(UsageError, match=r"sampler conditional is for"):
        sampler(small.parts())
    assert not hasattr(small.data, "draw_source")
    with pytest.raises(UsageError, match=r"sample\.sampler=conditional"):
        model.data.draw_source(3, generator(0))
    with pytest.raises(UsageError, match="in words"):
        model.data.condition(3, "a rise")


@pytest.mark.parametrize("task", ["refine", "detect", "impute", "synthesize"])
def test_what_needs_the_unconditional_model_says_so(small_conditional, task, write, long_table, waves):
    from flowplat_timeseries import further, tasks

    inputs = [] if task in ("refine", "synthesize") else [write("a.csv", long_table(waves(1, 60)))]
    with pytest.raises(UsageError, match=r"data\.conditional"):
        getattr(further if hasattr(further, task) else tasks, task)(small_conditional, inputs, None)
