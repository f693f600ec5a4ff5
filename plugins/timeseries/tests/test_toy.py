"""Fifty noisy sinusoids of period 24: what one model of them is good for. Minutes of training, so `make test-slow`."""

import numpy as np
import pandas as pd
import pytest
import torch

from flowcore.seeds import generator
from flowcore.solvers import solve
from flowplat_timeseries import baselines
from flowplat_timeseries.asking import told
from flowplat_timeseries.data import BuiltinConfig, Given
from flowplat_timeseries.forecasting import forecast
from flowplat_timeseries.metrics import scores
from flowplat_timeseries.networks import S4DOptions
from flowplat_timeseries.reading import Series
from flowplat_timeseries.refining import energy, refine, representative_time
from flowplat_timeseries.synthesis import missed, taught

pytestmark = pytest.mark.slow
CONTEXT, HORIZON, SEASON = 96, 24, 24


def sinusoids():
    rng, steps = np.random.default_rng(0), np.arange(480)
    series = []
    for number in range(50):
        level, size, phase = 10 ** rng.uniform(0, 2), rng.uniform(0.2, 0.7), rng.uniform(0, 2 * np.pi)
        wave = 1 + size * np.sin(2 * np.pi * steps / SEASON + phase) + 0.15 * rng.standard_normal(480)
        series.append(Series(f"wave-{number:02d}", pd.Period("2024-01-01 00:00", freq="h"), level * wave))
    return series


@pytest.fixture(scope="module")
def toy(learned):
    data = Given(BuiltinConfig(context=CONTEXT, horizon=HORIZON), sinusoids())
    return learned(data, S4DOptions(hidden=32, blocks=3, state=64), 1500)


@pytest.fixture(scope="module")
def asked(toy):
    """Histories, what came, and the windows that the model is told."""
    past = [one.values[:-HORIZON] for one in toy.data.tests]
    truth = np.stack([one.values[-HORIZON:] for one in toy.data.tests])
    return past, truth, told(toy.data, past)


def naive(past):
    return np.stack([baselines.seasonal_naive(one, HORIZON, SEASON) for one in past])


@pytest.fixture(scope="module")
def drawn(toy, asked):
    """Forecasts under guidance of several strengths."""
    windows = asked[2]
    return {
        scale: forecast(
            toy.parts(), toy.network, windows.x, windows.mask, 20, 32, scale=scale, generator=generator(0, "toy")
        )
        for scale in (0.0, 1.0, 4.0)
    }


def figures(windows, x, past, truth):
    return scores(windows.back(x).numpy()[:, :, -HORIZON:], truth, past, SEASON)


def test_forecasts_beat_seasonal_naive_by_their_spread_too(asked, drawn):
    past, truth, windows = asked
    blind, steered = (figures(windows, drawn[scale], past, truth) for scale in (0.0, 4.0))
    base = scores(naive(past)[:, None], truth, past, SEASON)["crps"]
    assert steered["crps"] < 0.7 * base
    assert 0.6 <= steered["coverage_80"] <= 0.95
    assert blind["crps"] > base  # without guidance nothing is known of the context


def test_the_context_is_met_the_better_the_stronger_the_guidance(asked, drawn):
    known = asked[2].x[:, 0, :CONTEXT]
    apart = [(drawn[scale].mean(1)[:, :CONTEXT] - known).square().mean().sqrt().item() for scale in (0.0, 1.0, 4.0)]
    assert apart[0] > apart[1] > apart[2]


def test_ridge_regression_learns_as_much_from_drawn_windows_as_from_real_ones(toy, asked):
    _, truth, windows = asked
    x0 = torch.randn(2000, 1, CONTEXT + HORIZON, generator=generator(0, "drawn"))
    with torch.no_grad():
        synthetic = torch.cat([solve(toy.parts().field(toy.network), part, 32) for part in x0.split(500)])
    source = toy.data.train()
    real = source.batch(torch.arange(2000) % len(source), generator(0, "real")).x1
    score = [
        missed(
            windows.back(torch.from_numpy(taught(one[:, 0], CONTEXT, windows.x[:, 0, :CONTEXT]))).numpy(),
            truth,
            np.isfinite(truth),
        )
        for one in (synthetic, real)
    ]
    assert score[0] < 1.25 * score[1]


def test_refinement_makes_seasonal_naive_likelier_and_no_worse(toy, asked):
    past, truth, windows = asked
    source = toy.data.train()
    tau = representative_time(toy.parts(), toy.network, source.batch(torch.arange(50), generator(0)), generator(0))
    guess = torch.zeros(50, 10, CONTEXT + HORIZON)
    guess[:, :, CONTEXT:] = (torch.from_numpy(naive(past)) / windows.scale[:, None]).float()[:, None]
    better = refine(
        toy.parts(), toy.network, windows.x, windows.mask, guess, rate=0.01, tau=tau, generator=generator(0, "refine")
    )

    def cost(x):
        whole = torch.where(windows.mask.bool(), windows.x, x[:, None])
        return energy(toy.parts(), toy.network, whole, torch.ones_like(whole), generator(1), tau, 32)

    assert (cost(better.mean(1)) < cost(guess[:, 0])).all()
    before, after = (figures(windows, x, past, truth)["crps"] for x in (guess, better))
    assert after <= before
