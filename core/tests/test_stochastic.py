"""stochastic: interpolants in a run, against the exact fields of Gaussians and of points."""

import math

import pytest
import torch
from torch import nn

from flowcore import paths, times
from flowcore.closed_form import interpolant_mixture
from flowcore.couplings import Pairs
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.interpolants import InterpolantField, interpolant, interpolant_loss
from flowcore.objectives import matching
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.samplers import flow
from flowcore.seeds import generator
from flowcore.solvers import euler, solve
from flowcore.stochastic import noisy, objective, read, sampler

CPU = torch.device("cpu")


def parts(path=None, shape=(3,), data=None, dtype="float32", **more):
    spec = Spec(Leaf(shape, dtype))
    return Parts(spec, data, CPU, path=path or interpolant(), times=times.uniform(), predicts="velocity", **more)


class Heads(nn.Module):
    """v = w x + t, eta = w x - t."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, condition=None):
        t = t[:, None].to(x.dtype)
        return torch.cat([self.w * x + t, self.w * x - t], 1)


class Ends:
    """A data set with a source of its own: fives and a half."""

    def draw_source(self, count, draws):
        return torch.full((count, 3), 5.0) + torch.rand(count, 3, generator=draws)


def gaussians(path, m0, S0, m1, S1):
    """The exact v and eta between N(m0, S0^2) and N(m1, S1^2), as a network returns them."""

    def network(x, t, condition):
        t = t[:, None]
        a, s, da, ds = path.alpha(t), path.sigma(t), path.dalpha(t), path.dsigma(t)
        g = path.gamma.value(t)
        away = x - a * m1 - s * m0
        C = a**2 * S1**2 + s**2 * S0**2 + g**2
        v = da * m1 + ds * m0 + (a * da * S1**2 + s * ds * S0**2) / C * away
        return torch.cat([v, g / C * away], 1)

    return network


def normal(count, mean, std, seed):
    return mean + std * torch.randn(count, 1, generator=generator(seed, "normal"), dtype=torch.float64)


class Gaussian:
    def draw_source(self, count, draws):
        return 0.5 + 0.7 * torch.randn(count, 1, generator=draws, dtype=torch.float64)


PATHS = {
    "brownian": interpolant(scale=2.0),
    "sine_squared": interpolant(gamma="sine_squared"),
    "trigonometric": interpolant("trigonometric", "quadratic", 1.5),
    "encoding_decoding": interpolant("encoding_decoding", "sine_squared"),
}


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_between_gaussians_the_ode_and_every_sde_end_in_the_data(path, epsilon):
    made = parts(path, (1,), Gaussian(), "float64")
    network = gaussians(path, 0.5, 0.7, -1.0, 1.2)
    drawn = sampler(made, epsilon)(network, None, 20_000, 400, generator(0))
    assert drawn.x1.mean().item() == pytest.approx(-1.0, abs=0.03)
    assert drawn.x1.std().item() == pytest.approx(1.2, abs=0.03)
    assert drawn.x0.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.extra["calls"] == 400


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_backwards_the_data_become_the_source(epsilon):
    path = interpolant(scale=2.0)
    field = read(gaussians(path, 0.5, 0.7, -1.0, 1.2), path)
    grid = torch.linspace(1, 0, 401, dtype=torch.float64)
    x0 = solve(field, normal(20_000, -1.0, 1.2, 1), grid, noisy(epsilon), generator=generator(0))
    assert x0.mean().item() == pytest.approx(0.5, abs=0.03)
    assert x0.std().item() == pytest.approx(0.7, abs=0.03)


POINTS = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.0, -1.5], [1.5, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("gamma", [("brownian", 2.0), ("sine_squared", 1.0)], ids=["brownian", "sine_squared"])
def test_from_noise_to_points_the_marginals_are_the_same_for_every_epsilon(gamma, epsilon):
    """Mean and covariance within 3 % at the middle and at the end, where every sample is one of the points."""
    path, n = interpolant("linear", *gamma), 10_000
    exact = interpolant_mixture(path, (torch.zeros(1, 2, dtype=torch.float64), 1.0), (POINTS, 0.0))

    def network(x, t, condition):
        t = t.clamp(1e-6, 1 - 1e-6)  # the exact b is infinite at both ends
        b, eta = exact.predict(x, t)
        return torch.cat([b - (path.gamma.slope(t) / path.gamma.value(t))[:, None] * eta, eta], 1)

    field, mean, spread = read(network, path), POINTS.mean(0), torch.cov(POINTS.T, correction=0)
    start = torch.randn(n, 2, generator=generator(1, "start"), dtype=torch.float64)
    middle = torch.linspace(0, 0.5, 101, dtype=torch.float64)
    with torch.no_grad():
        x = solve(field, start, middle, noisy(epsilon), generator=generator(0))
        y = solve(field, x, middle + 0.5, noisy(epsilon), generator=generator(2))
    noise = 0.25 + path.gamma.value(torch.tensor(0.5)).item() ** 2
    alike(x, mean / 2, spread / 4 + noise * torch.eye(2))
    alike(y, mean, spread)
    assert torch.cdist(y, POINTS).min(1).values.max() < 0.05


def alike(x, mean, covariance):
    size = covariance.diagonal().mean()
    assert (x.mean(0) - mean).abs().max() < 0.03 * size.sqrt()
    assert (torch.cov(x.T) - covariance).abs().max() < 0.03 * size


def test_without_noise_it_is_the_euler_method_of_the_velocity():
    path = interpolant(gamma="zero")
    drawn = sampler(parts(path))(Heads(), None, 8, 5, generator(0))
    half = Heads()
    wanted = solve(lambda x, t: half(x, t.expand(len(x)))[:, :3], drawn.x0, 5, euler())
    assert torch.equal(drawn.x1, wanted)


def test_the_ode_draws_noise_once_and_the_sde_at_each_step_but_the_last():
    """With v = eta = 0 a sample is what is left of the noise that was added: gamma(r) z of the step to r alone."""
    path, x = interpolant(), torch.zeros(20_000, 1)
    field = read(lambda x, t, c: torch.zeros(len(x), 2), path)
    grid = torch.tensor([0.0, 0.25, 0.5])
    for epsilon in (0.0, 1.0):
        kept = [0.0, math.exp(-epsilon * 0.25 / math.sqrt(0.1875 * 0.25))]
        found = solve(field, x, grid, noisy(epsilon), generator=generator(0))
        wanted = 0.1875 * (1 - kept[0] ** 2) + 0.25 * (1 - kept[1] ** 2)
        assert found.var().item() == pytest.approx(wanted, rel=0.04)
    end = solve(field, x, torch.tensor([0.9, 1.0]), noisy(1.0), generator=generator(0))
    assert torch.equal(end, x)


def test_a_sample_depends_on_the_generator_alone():
    one, again, other = (sampler(parts(), 0.5)(Heads(), None, 4, 6, generator(seed)).x1 for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_samples_begin_at_the_datas_own_source():
    straight = flow(parts(paths.linear(), data=Ends(), solver=euler()))
    for draw, width in ((sampler(parts(data=Ends())), 6), (straight, 3)):
        drawn = draw(lambda x, t, c, width=width: torch.zeros(len(x), width), None, 4, 3, generator(0))
        assert torch.equal(drawn.x0, Ends().draw_source(4, generator(0)))


def test_the_objective_is_the_loss_of_the_interpolant_under_the_same_draws():
    made, network, x1 = parts(interpolant(scale=2.0)), Heads(), torch.randn(64, 3, generator=generator(1))
    found = objective(made)(network, Batch(x1), generator(0))
    draws = generator(0)
    x0, t = torch.randn(64, 3, generator=draws), made.times(64, draws)
    field = InterpolantField(lambda x, t, c: tuple(network(x, t).chunk(2, 1)), made.path, learns="v")
    assert found.shape == (64,)
    assert torch.equal(found, interpolant_loss(field, Pairs(x0, x1), t.float(), draws))


def test_the_objective_takes_the_source_and_the_weights_it_is_given():
    made, network, x1 = parts(), Heads(), torch.randn(64, 3, generator=generator(1))
    x0, weight = torch.randn(64, 3, generator=generator(2)), torch.rand(64, generator=generator(3))
    found = objective(made)(network, Batch(x1, x0=x0, weight=weight), generator(0))
    draws = generator(0)
    t, field = made.times(64, draws), read(network, made.path)
    assert torch.equal(found, interpolant_loss(field, Pairs(x0, x1, weight), t.float(), draws))


def test_states_of_several_parts_have_both_outputs_in_each():
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 1, 2)}
    field = read(lambda x, t, c: {key: torch.cat([leaf, -leaf], 1) for key, leaf in x.items()}, interpolant())
    v, eta = field.predict(x, 0.5)
    assert all(torch.equal(v[key], x[key]) and torch.equal(eta[key], -x[key]) for key in x)


# what does not fit is told


@pytest.mark.parametrize("network", [lambda x, t, c: x, lambda x, t, c: (x, x)], ids=["one output", "a tuple"])
def test_a_network_of_other_outputs(network):
    batch = Batch(torch.zeros(4, 3))
    with pytest.raises(UsageError, match=r"two outputs.*\(4, 6\) for a state of \(4, 3\).*network\.outputs=2"):
        objective(parts())(network, batch, generator(0))
    with pytest.raises(UsageError, match=r"network\.outputs=2"):
        sampler(parts())(network, None, 4, 2, generator(0))


def test_another_path():
    for build in (objective, sampler):
        with pytest.raises(UsageError, match="follows path=interpolant, not path=linear"):
            build(parts(paths.linear()))


def test_another_objective_or_sampler():
    with pytest.raises(UsageError, match=r"objective=interpolant learns and sample\.sampler=interpolant follows"):
        matching(parts(loss=None))(Heads(), Batch(torch.zeros(4, 3)), generator(0))
    with pytest.raises(UsageError, match=r"sample\.sampler=interpolant"):
        flow(parts(solver=euler()))(Heads(), None, 4, 2, generator(0))


def test_what_it_has_no_use_for():
    with pytest.raises(UsageError, match=r"train\.drop_condition at 0"):
        objective(parts(drop_condition=0.1))
    ragged = Batch(torch.zeros(4, 3), index=torch.zeros(4, dtype=torch.int64), samples=1)
    with pytest.raises(UsageError, match="ragged"):
        objective(parts())(Heads(), ragged, generator(0))


@pytest.mark.parametrize("epsilon", [-0.1, math.inf, math.nan])
def test_an_epsilon_that_is_none(epsilon):
    with pytest.raises(ValueError, match="epsilon is a number from 0 on"):
        sampler(parts(), epsilon)


def test_noise_without_a_generator():
    with pytest.raises(ValueError, match="pass solve"):
        solve(read(Heads(), interpolant()), torch.zeros(4, 3), 5, noisy(1.0))
