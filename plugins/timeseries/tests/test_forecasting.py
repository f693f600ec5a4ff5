from dataclasses import replace

import pytest
import torch
from torch import nn

from flowcore import paths
from flowcore.closed_form import correlated
from flowcore.plugin.contracts import Parts
from flowcore.seeds import generator
from flowcore.solvers import euler, solve
from flowplat_timeseries import forecasting
from flowplat_timeseries.forecasting import forecast
from flowplat_timeseries.guidance import levels, misfit
from flowplat_timeseries.priors import covariance, gaussian_process
from flowplat_timeseries.spec import spec_of

LENGTH, CONTEXT, SEASON = 24, 16, 12


def known_context(batch):
    mask = torch.zeros(batch, 1, LENGTH)
    mask[..., :CONTEXT] = 1
    return mask


def parts_of(path=None):
    return Parts(
        spec_of(CONTEXT, LENGTH - CONTEXT, season=SEASON), None, torch.device("cpu"), path=path or paths.linear(),
        predicts="velocity", solver=euler(),
    )  # fmt: skip


S = covariance("periodic", LENGTH, SEASON, jitter=0.05)
EXACT = correlated(paths.linear(), torch.tensor(0.5), S.float()).network
TRUTH = 0.5 + (torch.linalg.cholesky(S) @ torch.randn(LENGTH, 4, generator=generator(7), dtype=torch.float64)).T
OBSERVED = TRUTH.float()[:, None]


def drawn(observed=OBSERVED, mask=None, samples=30, steps=24, parts=None, seed=0, **options):
    mask = known_context(len(observed)) if mask is None else mask
    return forecast(parts or parts_of(), EXACT, observed, mask, samples, steps, generator=generator(seed), **options)


@pytest.mark.parametrize("likelihood", ["mse", "quantile"])
def test_the_stronger_the_guidance_the_nearer_the_context(likelihood):
    near = [
        (drawn(likelihood=likelihood, scale=scale).mean(1) - TRUTH)[:, :CONTEXT].square().mean().sqrt().item()
        for scale in (0.0, 1.0, 4.0)
    ]
    assert near[0] > 1.3 * near[1]
    assert near[1] > 1.3 * near[2]


def test_forecasts_know_the_future_as_far_as_conditioning_does():
    """Means of guided forecasts, against those without guidance and the exact conditional mean."""
    seen = torch.arange(CONTEXT)
    K = S[seen][:, seen] + 0.05 * torch.eye(CONTEXT, dtype=torch.float64)
    exact = 0.5 + (TRUTH[:, :CONTEXT] - 0.5) @ torch.linalg.solve(K, S[seen])
    far = [(drawn(scale=scale).mean(1) - exact)[:, CONTEXT:].square().mean().sqrt().item() for scale in (0.0, 4.0)]
    assert far[1] < 0.5 * far[0]


@pytest.mark.parametrize("pattern", ["random", "start", "end"])
def test_gaps_anywhere_are_filled_by_the_same_model(pattern):
    mask = torch.ones(4, 1, LENGTH)
    gone = {"random": slice(0, None, 2), "start": slice(0, 6), "end": slice(LENGTH - 6, None)}[pattern]
    mask[..., gone] = 0
    wild = OBSERVED.clone()
    wild[..., gone] = float("nan")
    filled, blind = (drawn(wild, mask, scale=scale).mean(1) for scale in (4.0, 0.0))
    assert (filled - TRUTH)[:, gone].square().mean() < 0.5 * (blind - TRUTH)[:, gone].square().mean()


def test_rows_of_quantile_guidance_come_in_order():
    """The residual of the context grows with the level: the correlation of their ranks."""
    rows = drawn(samples=40, scale=2.0)[..., :CONTEXT].mean(-1).mean(0)
    ranks = rows.argsort().argsort().float()
    assert torch.corrcoef(torch.stack([ranks, torch.arange(40.0)]))[0, 1] > 0.6
    plain = drawn(samples=40, scale=2.0, likelihood="mse")[..., :CONTEXT].mean(-1).mean(0)
    assert rows[-10:].mean() - rows[:10].mean() > 3 * (plain[-10:].mean() - plain[:10].mean()).abs()


def test_levels_are_the_papers():
    torch.testing.assert_close(levels(4), torch.tensor([0.2, 0.4, 0.6, 0.8]))


def test_a_sum_and_a_mean_differ_by_what_is_known():
    mask, x1 = known_context(4), torch.randn(4, 1, LENGTH)
    for likelihood in ("mse", "quantile"):
        total, mean = (misfit(OBSERVED, mask, levels(4), likelihood, one)(x1) for one in (False, True))
        torch.testing.assert_close(total, mean * CONTEXT)
    wanted = ((OBSERVED - x1) * mask).square().sum((1, 2))
    torch.testing.assert_close(misfit(OBSERVED, mask, levels(4), "mse")(x1), wanted)


def test_the_same_generator_gives_the_same_forecast_and_no_series_hears_of_another():
    once = drawn(seed=1)
    assert torch.equal(once, drawn(seed=1))
    assert not torch.equal(once, drawn(seed=2))
    changed = OBSERVED.clone()
    changed[2] += 1
    torch.testing.assert_close(drawn(changed, seed=1)[:2], once[:2])
    assert (drawn(changed, seed=1)[2] - once[2]).abs().max() > 0.1


def test_chunks_bound_what_is_drawn_at_once(monkeypatch):
    sizes = []

    class Watched(nn.Module):
        def forward(self, x, t, condition=None):
            sizes.append(len(x))
            return EXACT(x, t)

    monkeypatch.setattr(forecasting, "ROWS", {"cpu": 20})
    out = forecast(parts_of(), Watched(), OBSERVED, known_context(4), 10, 2, generator=generator(0))
    assert out.shape == (4, 10, LENGTH)
    assert set(sizes) == {20}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_guidance_works_where_gradients_are_off_and_leaves_none_behind(mode):
    weight = nn.Parameter(torch.ones(()))

    class Weighed(nn.Module):
        def forward(self, x, t, condition=None):
            return weight * EXACT(x, t)

    with mode():
        out = forecast(parts_of(), Weighed(), OBSERVED, known_context(4), 3, 4, generator=generator(0))
    assert weight.grad is None
    assert not out.requires_grad
    torch.testing.assert_close(out, drawn(samples=3, steps=4))


@pytest.mark.parametrize("path", [gaussian_process("ou", SEASON), paths.vp(0.01, 10.0)], ids=["gp", "vp"])
@pytest.mark.parametrize("weight", ["tsflow", "score"])
def test_every_path_is_guided(path, weight):
    """On the white straight-line field it is the wrong field, and finite, and still pulled to the context."""
    parts = replace(parts_of(), path=path)
    free, held = (drawn(parts=parts, scale=scale, weight=weight, clip=50.0) for scale in (0.0, 0.3))
    apart = [(one.mean(1) - TRUTH)[:, :CONTEXT].square().mean().item() for one in (free, held)]
    assert apart[1] < apart[0]


def test_nothing_asked_is_nothing_drawn_and_what_does_not_fit_is_refused():
    assert drawn(OBSERVED[:0]).shape == (0, 30, LENGTH)
    with pytest.raises(ValueError, match="a mask like them"):
        drawn(OBSERVED, torch.ones(4, 2, LENGTH))
    with pytest.raises(ValueError, match="not finite"):
        drawn(torch.full_like(OBSERVED, float("nan")))
    with pytest.raises(ValueError, match="likelihood must be"):
        drawn(likelihood="l1")


def test_a_window_of_which_nothing_is_known_is_drawn_freely():
    blank = torch.zeros_like(OBSERVED)
    torch.testing.assert_close(drawn(blank, blank), drawn(scale=0.0))


def test_noise_is_moved_by_langevin_through_the_flow():
    """The network is affine, so flow(x0) = A x0 + b, and one step is known in closed form."""
    parts = replace(parts_of(), path=gaussian_process("ou", SEASON))
    mask, level = known_context(4), levels(4)
    x0 = parts.path.draw_source(torch.empty(4, 1, LENGTH), generator(1))

    def flow(x):
        return solve(parts.field(EXACT), x, forecasting.AHEAD, "euler")

    b = flow(torch.zeros(1, 1, LENGTH))[0, 0]
    A = (flow(torch.eye(LENGTH)[:, None]) - b)[:, 0].T  # columns are images of unit vectors
    e = (OBSERVED[:, 0] - (x0[:, 0] @ A.T + b)) * mask[:, 0]
    slope = -torch.where(e > 0, level[:, None], level[:, None] - 1) * mask[:, 0]  # of the quantile loss, by x1
    K = covariance("ou", LENGTH, SEASON)
    law = torch.linalg.solve(K, x0[:, 0].double().T).T.float()
    z = torch.randn(x0.shape, generator=generator(2))[:, 0]
    wanted = x0[:, 0] - 0.005 * (16 * slope @ A + law) + (2 * 0.005) ** 0.5 * 0.5 * z
    loss = misfit(OBSERVED, mask, level, "quantile")
    found = forecasting.nearer(parts, EXACT, x0, loss, 1, generator(2))
    torch.testing.assert_close(found[:, 0], wanted, atol=2e-4, rtol=1e-4)
    white = replace(parts_of(), path=paths.linear())
    still = forecasting.nearer(white, EXACT, x0, lambda x1: 0 * x1.flatten(1).sum(1), 1, generator(2))
    torch.testing.assert_close(still[:, 0], 0.995 * x0[:, 0] + 0.05 * z)


@pytest.mark.parametrize("path", [paths.linear(), gaussian_process("ou", SEASON)], ids=["white", "ou"])
def test_noise_that_was_moved_meets_the_context_better(path):
    parts = replace(parts_of(), path=path)
    mask, level = known_context(4).repeat_interleave(10, 0), torch.full((40,), 0.5)
    observed = OBSERVED.repeat_interleave(10, 0)
    loss = misfit(observed, mask, level, "quantile")
    x0 = path.draw_source(torch.empty(40, 1, LENGTH), generator(1))
    moved = forecasting.nearer(parts, EXACT, x0, loss, 4, generator(2))

    def missed(noise):
        return loss(solve(parts.field(EXACT), noise, 8)).view(4, 10).mean(1)

    assert (missed(moved) < 0.9 * missed(x0)).all()
    asked = drawn(parts=parts, prior_steps=4, scale=1.0)
    assert not torch.equal(asked, drawn(parts=parts, scale=1.0))
    assert asked.isfinite().all()
