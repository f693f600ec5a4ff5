"""Guidance against posteriors that are known exactly: Gaussians, mixtures, linear constraints; and what it costs."""

import gc
import math
import weakref
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from scipy.special import dawsn
from torch import Tensor, nn

from flowcore import paths
from flowcore.closed_form import mixture
from flowcore.field import Field
from flowcore.guidance import (
    Guidance,
    Guided,
    classifier,
    classifier_free,
    compose,
    gradient_skipping,
    linear_constraint,
    observation,
    quantile,
    replacement,
    squared_error,
)
from flowcore.seeds import generator
from flowcore.solvers import euler_maruyama, solve, time_grid

F64 = torch.float64
MEAN, STD = 1.5, 0.5
PATHS = {
    "linear": paths.linear(),
    "floor": paths.linear(floor=0.01),
    "polynomial": paths.polynomial(2),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "ve": paths.ve(80.0),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=dtype)


def gaussian(path, mean=MEAN, std=STD, d=1) -> Field:
    """The exact field for data N(mean, std^2 I) in d dimensions."""
    return mixture(path, torch.full((1, d), mean, dtype=F64), std)


class Classes(nn.Module):
    """The exact velocity for data N(m_c, S_c^2 I) given the class c."""

    def __init__(self, path, means: Tensor, stds: Tensor) -> None:
        super().__init__()
        self.path, self.means, self.stds = path, means, stds
        self.rows: list[int] = []

    def forward(self, x, t, condition):
        self.rows.append(len(x))
        column = (-1, *(1,) * (x.ndim - 1))
        a, s, da, ds = (one.reshape(column) for one in self.path.coefficients(t))
        m, S = self.means[condition], self.stds[condition].reshape(column)
        rate = (a * da * S**2 + s * ds) / (a**2 * S**2 + s**2)
        return da * m + rate * (x - a * m)


class Mlp(nn.Module):
    """Any network at all, of (x, t, condition), the condition a dict of numbers and of rows."""

    def __init__(self, d: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d + 4, 16), nn.SiLU(), nn.Linear(16, d)).to(dtype)
        draws = generator(7)
        for weight in self.parameters():
            weight.data = 0.5 * torch.randn(weight.shape, generator=draws, dtype=dtype)

    def forward(self, x, t, condition):
        told = torch.cat([x.flatten(1), t[:, None], condition["number"][:, None], condition["row"]], 1)
        return self.layers(told).view_as(x)


def told(d: int, batch: int, dtype: torch.dtype = torch.float32) -> Field:
    condition = {"number": normal(batch, seed=1, dtype=dtype), "row": normal(batch, 2, seed=2, dtype=dtype)}
    null = {"number": torch.tensor(0.0), "row": torch.zeros(2)}
    return Field(Mlp(d, dtype), paths.linear(), condition=condition, null=null)


class Passes(torch.autograd.Function):
    """The identity, which counts how often it is passed forward and backward."""

    count: ClassVar[dict[str, int]] = {}

    @staticmethod
    def forward(ctx, x):
        Passes.count["forward"] += 1
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Passes.count["backward"] += 1
        return gradient


def counted(field: Field) -> Field:
    """The same field, its network's passes counted in ``Passes`` from 0."""
    Passes.count = {"forward": 0, "backward": 0}
    return Field(lambda x, t, c: Passes.apply(field.network(x, t, c)), field.path, field.predicts)


class Change(Guidance):
    """Any two functions, of the velocity and of the state."""

    def __init__(self, velocity=lambda v: v, state=lambda x: x) -> None:
        self.of_velocity, self.of_state = velocity, state

    def velocity(self, field, x, t, dt):
        return self.of_velocity(field.velocity(x, t))

    def state(self, field, x, t, dt):
        return self.of_state(x)


class Diary(Guidance):
    """Writes down when it was called."""

    def __init__(self) -> None:
        self.velocities: list[tuple[float, float]] = []
        self.states: list[tuple[float, float]] = []

    def velocity(self, field, x, t, dt):
        self.velocities.append((float(t), dt))
        return field.velocity(x, t)

    def state(self, field, x, t, dt):
        self.states.append((float(t), dt))
        return x


# --- the two places, and composition


def test_when_guidance_is_called():
    """The velocity with the step under way, the state after it with the step to come, 0 at the end."""
    diary = Diary()
    solve(gaussian(paths.linear()), normal(2, 1), torch.tensor([0.0, 0.5, 0.75, 1.0]), guidance=[diary, Guidance()])
    assert diary.velocities == [(0, 0.5), (0.5, 0.25), (0.75, 0.25)]
    assert diary.states == [(0.5, 0.25), (0.75, 0.25), (1, 0)]


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4", "dopri5", "euler_maruyama", "exponential"])
def test_no_guidance(method):
    """The base class changes no bit and costs no call."""
    plain, guided = gaussian(paths.linear(), d=2), gaussian(paths.linear(), d=2)
    x = normal(3, 2)
    expected = solve(plain, x, 5, method, generator=generator(0))
    found = solve(guided, x, 5, method, [Guidance()], generator=generator(0))
    assert torch.equal(found, expected) or method in ("exponential", "euler_maruyama")  # these ask for x1 or the score
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert guided.calls == plain.calls


def every_guidance(d: int) -> dict[str, Guidance]:
    """One of each, for a field on ``d`` numbers."""
    y, mask = torch.ones(d, dtype=F64), torch.arange(d) % 2 == 0
    return {
        "classifier": classifier(lambda x, t: -t * (x - 1).square().flatten(1).sum(1), 0.5),
        "gradient_skipping": gradient_skipping(squared_error(y, mask), 0.3, repeats=2),
        "observation": observation(squared_error(y, mask), 0.5),
        "observation state": observation(squared_error(y, mask), 0.5, "state"),
        "quantile": observation(quantile(y, mask), 0.5),
        "linear_constraint": linear_constraint(torch.ones(1, d, dtype=F64), torch.ones(1, dtype=F64)),
        "replacement": replacement(y, mask),
    }


@pytest.mark.parametrize("name", every_guidance(4))
def test_composing_with_the_identity(name):
    """[g, identity] = [identity, g] = [g], to the bit."""
    g, x = every_guidance(4)[name], normal(3, 4)
    field = mixture(paths.linear(), normal(3, 4, seed=1), STD)

    def run(guidance):
        return solve(field, x, 6, "midpoint", guidance, generator=generator(0))

    expected = run([g])
    assert not torch.equal(expected, run([]))
    assert torch.equal(run([g, Guidance()]), expected)
    assert torch.equal(run([Guidance(), g]), expected)


def test_order_of_velocities():
    """The first is innermost: [+3, x2] is 2 (v + 3), [x2, +3] is 2 v + 3."""
    field, x = Field(lambda x, t, c: torch.ones_like(x), paths.linear()), torch.zeros(2, 1)
    more, double = Change(velocity=lambda v: v + 3), Change(velocity=lambda v: 2 * v)
    assert torch.equal(solve(field, x, 1, guidance=[more, double]), torch.full((2, 1), 8.0))
    assert torch.equal(solve(field, x, 1, guidance=[double, more]), torch.full((2, 1), 5.0))


def test_order_of_states():
    """The first is first: x + 1 and then doubled, or doubled and then + 1."""
    field, x = Field(lambda x, t, c: torch.zeros_like(x), paths.linear()), torch.zeros(2, 1)
    more, double = Change(state=lambda x: x + 1), Change(state=lambda x: 2 * x)
    assert torch.equal(solve(field, x, 1, guidance=[more, double]), torch.full((2, 1), 2.0))
    assert torch.equal(solve(field, x, 1, guidance=[double, more]), torch.full((2, 1), 1.0))


def test_likelihoods_add_up():
    """Two classifiers in a list are one with the sum of their log-likelihoods."""
    field, x, t = mixture(paths.cosine(), normal(3, 2, seed=1), STD), normal(4, 2), torch.tensor(0.4, dtype=F64)

    def one(x, t):
        return -(x - 1).square().sum(1)

    def two(x, t):
        return -x[:, 0].abs()

    both = compose(field, [classifier(one), classifier(two, 2.0)]).velocity(x, t)
    summed = compose(field, [classifier(lambda x, t: one(x, t) + 2 * two(x, t))]).velocity(x, t)
    torch.testing.assert_close(both, summed)


def test_a_guided_field_is_a_field():
    """x1, noise and score follow from the guided velocity by the path's conversions, at no further call."""
    field, x, t = gaussian(paths.cosine(), d=2), normal(3, 2), torch.tensor(0.3, dtype=F64)
    guided = Guided(field, Change(lambda v: v + 0.7))
    v = field.velocity(x, t) + 0.7
    for kind in ("x1", "noise", "score"):
        torch.testing.assert_close(getattr(guided, kind)(x, t), field.path.convert(v, x, t, "velocity", kind))
    assert field.calls == 1


def test_time_as_a_number():
    """A float t is the same time as a tensor, in double precision too."""
    field, x = gaussian(paths.linear(), d=2), normal(3, 2)
    guided = Guided(field, Guidance())
    assert torch.equal(guided.velocity(x, 0.3), field.velocity(x, torch.tensor(0.3, dtype=F64)))


def test_plain_functions_cannot_be_guided():
    with pytest.raises(ValueError, match="Field"):
        solve(lambda x, t: -x, normal(2, 2), 3, guidance=[Guidance()])


# --- classifier-free


@pytest.mark.parametrize("shape", [(3, 4), (3, 3), (3, 1, 2, 3)], ids=["rows", "B == d", "images"])
def test_classifier_free_identities(shape):
    """w = 1 is v(c) and w = 0 is v(null), to the bit and at the price of one."""
    field, x, t = told(math.prod(shape[1:]), 3), normal(*shape, dtype=torch.float32), torch.tensor(0.3)
    empty = field.with_condition(field.null_condition())
    calls = field.calls
    assert torch.equal(compose(field, [classifier_free(1.0)]).velocity(x, t), field.predict(x, t))
    assert torch.equal(compose(field, [classifier_free(0.0)]).velocity(x, t), empty.predict(x, t))
    assert field.calls == calls + 4
    assert not torch.equal(field.predict(x, t), empty.predict(x, t))


@pytest.mark.parametrize("time", [torch.tensor(0.3), torch.tensor([0.1, 0.5, 0.9])], ids=["one t", "t per sample"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 3), (3, 1, 2, 3)], ids=["rows", "B == d", "images"])
def test_one_doubled_batch(shape, time):
    """The doubled batch gives v(null) + w (v(c) - v(null)) of two separate evaluations, in one call."""
    field, x, w = told(math.prod(shape[1:]), 3), normal(*shape, dtype=torch.float32), 2.5
    conditional, empty = field.predict(x, time), field.with_condition(field.null_condition()).predict(x, time)
    calls = field.calls
    found = compose(field, [classifier_free(w)]).velocity(x, time)
    assert field.calls == calls + 1
    torch.testing.assert_close(found, empty + w * (conditional - empty), atol=1e-5, rtol=0)


def test_doubled_dict_states():
    path, label = paths.linear(), torch.tensor([0, 1, 1])
    exact = Classes(path, torch.tensor([[-1.0], [2.0], [0.0]], dtype=F64), torch.ones(3, dtype=F64))

    def network(x, t, condition):
        return {"a": exact(x["a"], t, condition), "b": {"c": exact(x["b"]["c"], t, condition)}}

    a, c = normal(3, 1), normal(3, 2, seed=1)
    null = torch.tensor(2)
    field = Field(network, path, condition=label, null=null)
    found = solve(field, {"a": a, "b": {"c": c}}, 5, guidance=[classifier_free(3.0)])
    for leaf, start in ((found["a"], a), (found["b"]["c"], c)):
        alone = Field(exact, path, condition=label, null=null)
        torch.testing.assert_close(leaf, solve(alone, start, 5, guidance=[classifier_free(3.0)]))
    assert field.calls == 5


def test_ragged_batches_are_doubled_too():
    """Rows of samples of unequal length: t is one per sample, and the answer that of the rows' own labels."""
    path, index, label = paths.linear(), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1])
    exact = Classes(path, torch.tensor([[-1.0], [2.0], [0.0]], dtype=F64), torch.ones(3, dtype=F64))
    times = []

    def network(x, t, condition, index):
        times.append(t.shape)
        return exact(x, t[index], condition[index])

    x = normal(4, 1)
    ragged = Field(network, path, condition=label, null=torch.tensor(2), index=index, samples=2)
    rows = Field(exact, path, condition=label[index], null=torch.tensor(2))
    found = solve(ragged, x, 5, guidance=[classifier_free(3.0)])
    torch.testing.assert_close(found, solve(rows, x, 5, guidance=[classifier_free(3.0)]))
    assert ragged.calls == 5
    assert set(times) == {(4,)}


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_classifier_free_on_two_gaussians(name, w):
    """Equal deviations: the guided flow is that of the mean m_null + w (m_c - m_null)."""
    path, means = PATHS[name], torch.tensor([[1.0, -2.0], [0.0, 3.0], [-0.5, 0.5]], dtype=F64)
    label, x = torch.tensor([0, 1, 0, 1]), normal(4, 2)
    network = Classes(path, means, torch.full((3,), STD, dtype=F64))
    field = Field(network, path, condition=label, null=torch.tensor(2))
    found = solve(field, x, 100, "rk4", [classifier_free(w)])
    torch.testing.assert_close(found, means[2] + w * (means[label] - means[2]) + STD * x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("w", [0.5, 2.0])
def test_classifier_free_deviations(w, method):
    """Means 0: log S is what is extrapolated, S = S_null^(1 - w) S_c^w."""
    network = Classes(paths.linear(), torch.zeros(2, 1, dtype=F64), torch.tensor([0.5, 0.8], dtype=F64))
    field = Field(network, paths.linear(), condition=torch.tensor([0, 0]), null=torch.tensor(1))
    x = normal(2, 3)
    found = solve(field, x, 1 if method == "dopri5" else 200, method, [classifier_free(w)])
    torch.testing.assert_close(found, 0.8 ** (1 - w) * 0.5**w * x, atol=5e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("interval", [(0.3, 0.6), (0.7, 0.9), (0.1, 0.3)])
def test_interval(interval, dtype):
    """A doubled batch from the first time to the last, both included in either precision; v(c) to the bit outside."""
    path, (first, last) = paths.linear(), interval
    network = Classes(path, torch.tensor([[1.0], [-1.0]], dtype=dtype), torch.full((2,), STD, dtype=dtype))
    field = Field(network, path, condition=torch.tensor([0, 0]), null=torch.tensor(1))
    guidance = [classifier_free(2.0, interval)]
    solve(field, normal(2, 1, dtype=dtype), 10, guidance=guidance)
    assert network.rows == [4 if 10 * first <= i <= 10 * last else 2 for i in range(10)]
    x, t = normal(2, 1, dtype=dtype), torch.tensor(0.95, dtype=dtype)
    assert torch.equal(compose(field, guidance).velocity(x, t), field.predict(x, t))


@pytest.mark.parametrize("given", [{}, {"condition": torch.zeros(2, dtype=torch.long)}, {"null": torch.tensor(1)}])
def test_classifier_free_needs_two_conditions(given):
    with pytest.raises(ValueError, match="null condition"):
        solve(Field(lambda x, t, c: x, paths.linear(), **given), normal(2, 1), 3, guidance=[classifier_free(2.0)])


# --- classifier


def observed(path, y: float, r: float, mean=MEAN, std=STD):
    """log p(y | x_t) for y = x1 + r z and Gaussian data: x1 given x_t is Gaussian, so y is."""

    def log_likelihood(x: Tensor, t: Tensor) -> Tensor:
        a, s, *_ = path.coefficients(t)
        C = a**2 * std**2 + s**2
        expected = mean + a * std**2 / C * (x - a * mean)
        variance = r**2 + std**2 * s**2 / C
        return torch.distributions.Normal(expected, variance.sqrt()).log_prob(torch.full_like(x, y)).flatten(1).sum(1)

    return log_likelihood


def posterior(y: float, r: float) -> tuple[float, float]:
    """Mean and deviation of x1 ~ N(MEAN, STD^2) after y = x1 + r z."""
    precision = 1 / STD**2 + 1 / r**2
    return (MEAN / STD**2 + y / r**2) / precision, precision**-0.5


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("r", [0.3, 1.0])
@pytest.mark.parametrize("name", ["linear", "floor", "polynomial", "cosine", "linear_vp", "vp"])
def test_classifier_gives_the_posterior(name, r, method):
    """w = 1 with the exact likelihood of noisy x: the flow carries N(0, 1) to the posterior."""
    path, y, x = PATHS[name], 0.4, torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
    mean, std = posterior(y, r)
    guidance = [classifier(observed(path, y, r))]
    found = solve(gaussian(path), x, 1 if method == "dopri5" else 60, method, guidance)
    torch.testing.assert_close(found, mean + std * x, atol=0.05, rtol=0)
    if name in ("linear", "cosine", "polynomial") and method == "rk4":
        torch.testing.assert_close(found, mean + std * x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_classifier_gives_the_posterior_of_the_sde(name):
    """The guided score drives the SDE to the same posterior: mean and deviation of 20,000 samples."""
    path, (mean, std) = PATHS[name], posterior(0.4, 0.5)
    guidance = [classifier(observed(path, 0.4, 0.5))]
    x = solve(gaussian(path), normal(20000, 1), 200, euler_maruyama(0.5), guidance, generator=generator(1))
    assert x.mean().item() == pytest.approx(mean, abs=0.05)
    assert x.std().item() == pytest.approx(std, abs=0.05)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", PATHS)
def test_classifier_picks_a_component(name, t):
    """A mixture guided by the exact posterior of one component is that component's field, at every point."""
    path, t = PATHS[name], torch.tensor(t, dtype=F64)
    means, stds, weights = normal(2, 3, seed=1), torch.tensor([0.5, 0.9], dtype=F64), torch.tensor([0.3, 0.7])
    both = mixture(path, means, stds, weights.double())
    one = mixture(path, means[:1], stds[0])
    a, s, *_ = path.coefficients(t)

    def log_likelihood(x, t):
        variances = a**2 * stds**2 + s**2
        squared = (x[:, None] - a * means).square().sum(2)
        return (weights.log() - squared / (2 * variances) - 1.5 * variances.log()).log_softmax(1)[:, 0]

    x = a * means[:1] + s * normal(5, 3)
    found = compose(both, [classifier(log_likelihood)]).velocity(x, t)
    torch.testing.assert_close(found, one.velocity(x, t), atol=1e-7, rtol=1e-7)


def test_classifier_scale():
    """w and log p enter as their product; w = 0 changes no bit and asks for no gradient."""
    field, x = gaussian(paths.linear(), d=2), normal(3, 2)

    def log_likelihood(x, t):
        return -(x - 1).square().sum(1)

    doubled = solve(field, x, 8, guidance=[classifier(log_likelihood, 2.0)])
    summed = solve(field, x, 8, guidance=[classifier(lambda x, t: 2 * log_likelihood(x, t))])
    torch.testing.assert_close(doubled, summed)
    assert torch.equal(solve(field, x, 8, guidance=[classifier(None, 0.0)]), solve(field, x, 8))


# --- gradient skipping (FlowChef)


def half_square(y: float):
    """|x1 - y|^2 / 2, whose gradient is x1 - y."""
    return lambda x1: (x1 - y).square().flatten(1).sum(1) / 2


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (2, 1, 3, 2)], ids=["rows", "B == d", "images"])
def test_gradient_skipping_contracts(shape, repeats):
    """Under a constant velocity c each step but the last takes x1 - y to (1 - eta)^M of itself."""
    eta, y, steps, x = 0.2, 3.0, 5, normal(*shape)
    c = normal(*shape, seed=1)
    field = Field(lambda x, t, condition: c, paths.linear())
    found = solve(field, x, steps, guidance=[gradient_skipping(half_square(y), eta, repeats)])
    expected = y + (1 - eta) ** (repeats * (steps - 1)) * (x + c - y)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["linear", "cosine", "linear_vp", "vp", "ve"])
def test_a_step_of_gradient_skipping(name):
    """x - eta grad_x1 L + dt v with the old v and the data that v predicts."""
    path, eta, dt = PATHS[name], 0.4, 0.05
    field, x, t = gaussian(path, d=2), normal(3, 2), torch.tensor(0.5, dtype=F64)
    v, data = field.velocity(x, t), field.x1(x, t)
    grid = torch.tensor([0.5, 0.5 + dt], dtype=F64)
    found = solve(field, x, grid, guidance=[gradient_skipping(half_square(2.0), eta)])
    torch.testing.assert_close(found, x - eta * (data - 2.0) + dt * v, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_gradient_skipping_lowers_the_loss(name):
    """On a quadratic the loss of the predicted data falls in every guided step; unguided it would rise.

    From pairs x0, -x0, so that the data which a Gaussian's field predicts stay around the same mean.
    """
    field, loss, noise = gaussian(PATHS[name], d=3), half_square(3.0), normal(8, 3)

    def losses(rate):
        seen = []

        def callback(i, t, x):
            if i < 30:
                seen.append(loss(field.x1(x, torch.tensor(t, dtype=F64))).sum())

        guidance = [gradient_skipping(loss, rate)]
        solve(field, torch.cat([noise, -noise]), 30, guidance=guidance, callback=callback)
        return torch.stack(seen).diff()

    assert (losses(0.05) < 0).all()
    assert losses(0.0).sum() > 0


@pytest.mark.parametrize("repeats", [1, 4])
def test_gradient_skipping_costs_no_backward_pass(repeats):
    """One forward pass a step whatever the repeats, none backward; through the network it would be one each."""
    field = counted(gaussian(paths.linear(), d=2))
    solve(field, normal(3, 2).requires_grad_(), 10, guidance=[gradient_skipping(half_square(2.0), 0.1, repeats)])
    assert Passes.count == {"forward": 10, "backward": 0}
    field = counted(gaussian(paths.linear(), d=2))
    solve(field, normal(3, 2), 10, guidance=[observation(half_square(2.0))])
    assert Passes.count == {"forward": 10, "backward": 10}


def test_gradient_skipping_leaves_the_last_step_alone():
    """One step is the last: it is Euler's, to the bit; so is any number at rate 0."""
    field, x = gaussian(paths.linear(), d=2), normal(3, 2)
    assert torch.equal(solve(field, x, 1, guidance=[gradient_skipping(half_square(2.0), 0.5)]), solve(field, x, 1))
    assert torch.equal(solve(field, x, 9, guidance=[gradient_skipping(half_square(2.0), 0.0)]), solve(field, x, 9))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("steps", [7, 100, 1000])
def test_the_last_step_is_recognised(steps, dtype):
    """In either precision the number of gradients is the number of steps less one."""
    count = []

    def loss(x1):
        count.append(1)
        return half_square(2.0)(x1)

    field = Field(lambda x, t, c: torch.zeros_like(x), paths.linear())
    solve(field, torch.zeros(1, 1, dtype=dtype), steps, guidance=[gradient_skipping(loss, 0.1)])
    assert len(count) == steps - 1


def test_gradients_around_gradient_skipping():
    """What is skipped is skipped for guidance around it too: only x itself is differentiated in x1 = x + (1 - t) v."""
    eta, dt, t = 0.2, 0.1, torch.tensor(0.6, dtype=F64)
    x, c = normal(3, 2), normal(3, 2, seed=1)
    field = compose(
        Field(lambda x, t, condition: c, paths.linear()),
        [gradient_skipping(half_square(2.0), eta), observation(half_square(-1.0))],
    )
    field.dt = dt
    v = c - eta / dt * (x + 0.4 * c - 2)
    torch.testing.assert_close(field.velocity(x, t), v - 0.4 / 0.6 * (x + 0.4 * v + 1))


def test_inpainting_a_gaussian():
    """Half of a correlated signal is seen: gradient skipping fits it and halves the error of the posterior mean.

    The mean of 64 samples against mu + S A^T (A S A^T)^-1 (y - A mu), N = 100, rate 1/2; the guidance is of single
    samples, so that a batch of them is what each is alone.
    """
    d = 12
    distance = (torch.arange(d)[:, None] - torch.arange(d)[None]).abs()
    S, mean, mask = 0.8 ** distance.double(), torch.linspace(-1, 1, d, dtype=F64), torch.arange(d) < d // 2
    truth = mean + torch.linalg.cholesky(S) @ normal(d, seed=3)
    posterior_mean = mean + S[:, mask] @ torch.linalg.solve(S[mask][:, mask], (truth - mean)[mask])

    def network(x, t, condition):
        t, eye = t[0], torch.eye(d, dtype=F64)
        rate = torch.linalg.solve(t**2 * S + (1 - t) ** 2 * eye, t * S - (1 - t) * eye)
        return mean + (x - t * mean) @ rate

    field, x = Field(network, paths.linear()), normal(64, d)
    guidance = [gradient_skipping(squared_error(truth, mask), 0.5)]
    found, free = solve(field, x, 100, guidance=guidance), solve(field, x, 100)
    assert ((found - truth)[:, mask].norm() / (8 * truth[mask].norm())).item() < 0.05
    error, unguided = ((one.mean(0) - posterior_mean).norm() for one in (found, free))
    assert error < unguided / 2
    torch.testing.assert_close(solve(field, x[:1], 100, guidance=guidance), found[:1], atol=1e-9, rtol=0)


# --- observation: posterior sampling and self-guidance


def blind_posterior(y: float, r: float) -> tuple[float, float]:
    """What guidance makes of y = x1 + r z if Var[x1 | x_t] is left out of the variance of y given x_t.

    With P = Var[x1 | x_t] falling from S^2 to 0, the normalised deviation obeys dz/dP = z / (2 r^2) and so on: the end
    has deviation S exp(-S^2 / (2 r^2)), where the posterior has S (1 + S^2 / r^2)^(-1/2), and its mean is pulled by
    sqrt(2) (S / r) Dawson(S / (sqrt(2) r)) of y - m, where the posterior's is pulled by S^2 / (S^2 + r^2) of it.
    Both agree to first order in S^2 / r^2, on every path.
    """
    pull = math.sqrt(2) * STD / r * dawsn(STD / (math.sqrt(2) * r))
    return MEAN + pull * (y - MEAN), STD * math.exp(-(STD**2) / (2 * r**2))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("r", [0.4, 2.0])
@pytest.mark.parametrize("name", ["linear", "floor", "cosine", "linear_vp", "vp"])
def test_observation_of_a_gaussian(name, r, method):
    """Diffusion posterior sampling with the variance of the observation alone: its own, known, answer."""
    path, y, x = PATHS[name], 0.4, torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
    mean, std = blind_posterior(y, r)
    guidance = [observation(squared_error(torch.tensor([y], dtype=F64), torch.ones(1), r**2))]
    found = solve(gaussian(path), x, 1 if method == "dopri5" else 60, method, guidance)
    torch.testing.assert_close(found, mean + std * x, atol=0.02, rtol=0)
    if r == 2.0:  # the observation says little: the exact posterior
        mean, std = posterior(y, r)
        torch.testing.assert_close(found, mean + std * x, atol=0.02, rtol=0)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("name", ["linear", "cosine", "linear_vp", "vp", "ve"])
def test_observation_with_the_right_variance(name, t):
    """At the variance r^2 + Var[x1 | x_t] of y given x_t it is the exact classifier, at every point."""
    path, r, y, t = PATHS[name], 0.3, 0.4, torch.tensor(t, dtype=F64)
    a, s, *_ = path.coefficients(t)
    variance = r**2 + (STD**2 * s**2 / (a**2 * STD**2 + s**2)).item()
    x, field = a * MEAN + s * normal(4, 2), gaussian(path, d=2)
    loss = squared_error(torch.full((2,), y, dtype=F64), torch.ones(2), variance)
    found = compose(field, [observation(loss)]).velocity(x, t)
    exact = compose(field, [classifier(observed(path, y, r))]).velocity(x, t)
    torch.testing.assert_close(found, exact, atol=1e-8, rtol=1e-8)


def test_the_two_places_agree():
    """After the step or within it: the same to first order in dt, so half the difference with twice the steps."""
    field, x = mixture(paths.cosine(), normal(3, 2, seed=1), STD), normal(5, 2)
    loss = squared_error(torch.tensor([0.5, -0.5], dtype=F64), torch.tensor([1, 0]), 0.5)

    def difference(steps):
        ends = [solve(field, x, steps, guidance=[observation(loss, 1.0, place)]) for place in ("velocity", "state")]
        return (ends[0] - ends[1]).abs().max().item()

    coarse, fine = difference(100), difference(200)
    assert coarse > 1e-4
    assert coarse / fine == pytest.approx(2, abs=0.3)


def test_calls_of_observation():
    """The velocity and the data it predicts are one evaluation; the state after a step is another."""
    for place, calls in (("velocity", 10), ("state", 19)):
        field = gaussian(paths.linear(), d=2)
        solve(field, normal(2, 2), 10, guidance=[observation(half_square(1.0), 1.0, place)])
        assert field.calls == calls


@pytest.mark.parametrize("place", ["velocity", "state"])
def test_observation_of_scale_zero(place):
    field, x = gaussian(paths.linear(), d=2), normal(3, 2)
    assert torch.equal(solve(field, x, 9, guidance=[observation(half_square(2.0), 0.0, place)]), solve(field, x, 9))


def test_unknown_place():
    with pytest.raises(ValueError, match="'velocity' or 'state'"):
        observation(half_square(1.0), 1.0, "end")


# --- observation of series: correlated data, a correlated source, other weights


def stationary(d: int, reach: float) -> Tensor:
    distance = (torch.arange(d)[:, None] - torch.arange(d)[None]).abs()
    return torch.exp(-distance.double() / reach)


class Steady(nn.Module):
    """The exact velocity for data N(m, S) and a source N(0, K) on a path, and what is left of x1 given x_t."""

    def __init__(self, path, m, S, K):
        super().__init__()
        self.path, self.m, self.S, self.K = path, m, S, K

    def gain(self, t):
        """S_x = alpha^2 S + sigma^2 K, the covariance of x_t, and the four coefficients."""
        a, s, da, ds = (float(one) for one in self.path.coefficients(t.double()))
        return a**2 * self.S + s**2 * self.K, a, s, da, ds

    def forward(self, x, t, condition=None):
        C, a, s, da, ds = self.gain(t.flatten()[0])
        rate = torch.linalg.solve(C, a * da * self.S + s * ds * self.K)
        return da * self.m + (x - a * self.m) @ rate

    def left(self, t):
        C, a, *_ = self.gain(t)
        return self.S - a**2 * self.S @ torch.linalg.solve(C, self.S)


def drawn_from(K):
    factor = torch.linalg.cholesky(K)

    def draw(like, generator):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype) @ factor.T

    draw.covariance, draw.precision = lambda x: x @ K, lambda x: x @ torch.linalg.inv(K)
    return draw


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("source", ["white", "correlated"])
@pytest.mark.parametrize("name", ["linear", "vp"])
def test_observation_of_part_of_a_gaussian_is_conditioning(name, source, scale):
    """With -log p(y | x_t) as the loss, noise and what x_t leaves open together, at w = 1: the conditional mean and
    covariance, within 4 standard errors of 4,000 samples. At w = 0 those of the data. vp forgets e^-5 of them."""
    d, n, r = 6, 4000, 0.5
    S, K = stationary(d, 3.0), torch.eye(d, dtype=F64) if source == "white" else stationary(d, 1.5)
    path = paths.linear() if name == "linear" else paths.vp()
    if source == "correlated":
        path = replace(path, source=drawn_from(K))
    m, seen = torch.linspace(-0.5, 0.5, d, dtype=F64), torch.tensor([0, 1, 3])
    y = torch.tensor([1.0, 0.3, -1.0], dtype=F64)
    network = Steady(path, m, S, K)

    def loss(x1, t):
        R = network.left(t)[seen][:, seen] + r**2 * torch.eye(3, dtype=F64)
        e = x1[:, seen] - y
        return (e * torch.linalg.solve(R, e.T).T).sum(1) / 2

    loss.timed = True
    x0 = path.initial(path.draw_source(torch.empty(n, d, dtype=F64), generator(5)))
    x1 = solve(Field(network, path), x0, 60, "rk4", [observation(loss, scale)])
    gain = scale * torch.linalg.solve(S[seen][:, seen] + r**2 * torch.eye(3, dtype=F64), S[seen]).T
    mean, cov = m + gain @ (y - m[seen]), S - gain @ S[seen]
    spread = cov.diagonal().sqrt()
    assert ((x1.mean(0) - mean).abs() / spread < 4 / n**0.5 + 0.01).all()
    error = ((cov.square() + spread[:, None] ** 2 * spread**2) / n).sqrt()
    assert ((x1.T.cov() - cov).abs() < 4 * error + 0.01).all()


def test_weights_of_observation():
    """On straight lines (1 - t) / t, 1 - t and 1 of one gradient; sigma |sigma'| on another path."""
    x, loss, t = normal(4, 2), half_square(1.0), torch.tensor(0.3, dtype=F64)
    for path, factors in (
        (paths.linear(), {"score": 0.7 / 0.3, "tsflow": 0.7, "constant": 1.0}),
        (paths.cosine(), {"tsflow": math.pi / 4 * math.sin(0.3 * math.pi), "constant": 1.0}),
    ):
        field = gaussian(path, d=2)
        plain = field.velocity(x, t)
        shift = {w: plain - compose(field, [observation(loss, 2.0, weight=w)]).velocity(x, t) for w in factors}
        for weight, factor in factors.items():
            torch.testing.assert_close(shift[weight], factor * shift["constant"])
        assert shift["constant"].abs().max() > 0.1


def test_the_gradient_of_each_sample_is_clipped_by_itself():
    field, x, t = gaussian(paths.linear(), d=2), normal(4, 2) * torch.tensor([[0.01], [1], [10], [100]]), 0.5
    plain = field.velocity(x, torch.tensor(t))

    def shift(clip):
        guided = compose(field, [observation(half_square(0.0), 1.0, weight="constant", clip=clip)])
        return plain - guided.velocity(x, torch.tensor(t))

    free, held = shift(None), shift(1.0)
    norms = free.norm(dim=1)
    torch.testing.assert_close(held.norm(dim=1), norms.clamp(max=1.0))
    torch.testing.assert_close(held / held.norm(dim=1, keepdim=True), free / norms[:, None])
    assert norms.min() < 1 < norms.max()


@pytest.mark.parametrize(
    ("options", "said"), [({"weight": "linear"}, "weight must be"), ({"clip": 0.0}, "clip must be")]
)
def test_unknown_ways_of_observation(options, said):
    with pytest.raises(ValueError, match=said):
        observation(half_square(1.0), 1.0, **options)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_variance_that_knows_the_time_makes_the_whole_way_exact(name):
    path, r, y, x = PATHS[name], 0.4, 0.4, torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)

    def variance(t):
        a, s, *_ = path.coefficients(t)
        return r**2 + STD**2 * s**2 / (a**2 * STD**2 + s**2)

    loss = squared_error(torch.tensor([y], dtype=F64), torch.ones(1), variance)
    mean, std = posterior(y, r)
    found = solve(gaussian(path), x, 60, "rk4", [observation(loss)])
    torch.testing.assert_close(found, mean + std * x, atol=0.01, rtol=0)


# --- losses of predicted data


def test_squared_error_is_a_log_likelihood():
    """-log N(y; x1, variance) over the observed entries, up to the constant."""
    x1, y, mask = normal(4, 2, 3), normal(4, 2, 3, seed=1), normal(4, 2, 3, seed=2) > 0
    log_p = torch.distributions.Normal(x1, 0.7**0.5).log_prob(y)
    constant = -0.5 * math.log(2 * math.pi * 0.7)
    expected = ((constant - log_p) * mask).flatten(1).sum(1)
    torch.testing.assert_close(squared_error(y, mask, 0.7)(x1), expected)


def test_quantile_levels():
    """Sample k of S has slope -q below what was observed and 1 - q above, q = k / (S + 1), and none elsewhere."""
    x1 = torch.tensor([[-1.0, 1.0, 5.0]] * 4, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(quantile(torch.zeros(3), torch.tensor([1, 1, 0]))(x1).sum(), x1)
    q = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64)
    torch.testing.assert_close(slope, torch.stack([-q, 1 - q, 0 * q], 1))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_quantile_is_minimal_at_the_quantile(level):
    """Over many observations the loss is least at their quantile of that level."""
    seen = normal(2001, 1)
    candidates = torch.linspace(-2, 2, 401, dtype=F64)
    levels = torch.full((2001,), level, dtype=F64)
    totals = torch.stack([quantile(seen, torch.ones(1), levels)(c.expand(2001, 1)).sum() for c in candidates])
    assert candidates[totals.argmin()].item() == pytest.approx(seen.quantile(level).item(), abs=0.011)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_quantiles_spread(name):
    """A likelihood exp(w q x1) tilts a Gaussian by w q S^2: below what was observed level q pulls up by that, above it
    1 - q pulls down, on every path."""
    path, w, x = PATHS[name], 2.0, normal(9, 1)
    q = torch.arange(1, 10, dtype=F64)[:, None] / 10
    for y, tilt in ((50.0, q), (-50.0, q - 1)):
        guidance = [observation(quantile(torch.full((1,), y), torch.ones(1)), w)]
        found = solve(gaussian(path), x, 60, "rk4", guidance)
        torch.testing.assert_close(found, MEAN + STD * x + w * tilt * STD**2, atol=0.02, rtol=0)


# --- linear constraint


def covariance(d: int, seed: int = 5) -> Tensor:
    root = normal(d, d, seed=seed)
    return root @ root.T / d + 0.1 * torch.eye(d, dtype=F64)


def project(x: Tensor, guidance: Guidance) -> Tensor:
    return guidance.state(gaussian(paths.linear()), x, torch.tensor(1.0), 0.0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
@pytest.mark.parametrize("shape", [(5, 6), (6, 6), (5, 1, 2, 3)], ids=["rows", "B == d", "images"])
def test_constraint_is_met(shape, dtype, bound, weighted):
    """A x = b, for every sample its own b; and a state that obeys it stays where it is."""
    A, b, x = normal(3, 6, dtype=dtype), normal(shape[0], 3, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
    guidance = linear_constraint(A, b, covariance(6).to(dtype) if weighted else None)
    found = project(x, guidance)
    assert found.shape == x.shape
    assert (found.flatten(1) @ A.T - b).abs().max() < bound
    assert (project(found, guidance) - found).abs().max() < bound


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_redundant_rows(dtype):
    """A row given twice, doubled, or as the sum of others changes nothing."""
    A, b, x = normal(2, 6, dtype=dtype), normal(2, seed=1, dtype=dtype), normal(4, 6, seed=2, dtype=dtype)
    more = torch.cat([A, A[:1], 2 * A[1:], A.sum(0, keepdim=True)])
    right = torch.cat([b, b[:1], 2 * b[1:], b.sum(0, keepdim=True)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    found = project(x, linear_constraint(more, right))
    torch.testing.assert_close(found, project(x, linear_constraint(A, b)), atol=tolerance, rtol=0)


def test_the_nearest_state():
    """Without a covariance the move is orthogonal to the constraint's plane; with one, in the metric S^-1."""
    A, b, x = normal(2, 5), normal(2, seed=1), normal(3, 5, seed=2)
    basis = torch.linalg.svd(A)[2][2:]  # directions within the plane
    assert ((project(x, linear_constraint(A, b)) - x) @ basis.T).abs().max() < 1e-12
    S = covariance(5)
    move = project(x, linear_constraint(A, b, S)) - x
    assert (move @ torch.linalg.inv(S) @ basis.T).abs().max() < 1e-10


def test_constraint_is_the_conditional_mean():
    """Of a Gaussian with mean x and covariance S given A x = b, by its precision restricted to the plane."""
    A, b, x, S = normal(2, 5), normal(2, seed=1), normal(1, 5, seed=2), covariance(5)
    precision, basis = torch.linalg.inv(S), torch.linalg.svd(A)[2][2:]
    point = torch.linalg.pinv(A) @ b  # on the plane; the rest minimises (u - x)^T S^-1 (u - x) along it
    along = torch.linalg.solve(basis @ precision @ basis.T, basis @ precision @ (x[0] - point))
    expected = point + basis.T @ along
    torch.testing.assert_close(project(x, linear_constraint(A, b, S))[0], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("noise", [1e-3, 0.5, 10.0])
def test_soft_constraint_is_bayes(noise):
    """(S^-1 + A^T A / r)^-1 (S^-1 x + A^T b / r); for one row the residual shrinks by r / (r + A S A^T)."""
    A, b, x, S = normal(2, 5), normal(2, seed=1), normal(3, 5, seed=2), covariance(5)
    precision = torch.linalg.inv(S)
    expected = torch.linalg.solve(precision + A.T @ A / noise, (x @ precision + b @ A / noise).T).T
    torch.testing.assert_close(project(x, linear_constraint(A, b, S, noise)), expected, atol=1e-9, rtol=1e-9)
    one = project(x, linear_constraint(A[:1], b[:1], S, noise)) @ A[0] - b[0]
    shrink = noise / (noise + (A[:1] @ S @ A[:1].T).item())
    torch.testing.assert_close(one, shrink * (x @ A[0] - b[0]))


def test_two_constraints_in_order():
    """The last of a list holds; orthogonal ones both hold, in either order."""
    field, x, one = gaussian(paths.linear(), d=3), normal(4, 3), torch.ones(1, dtype=F64)
    A, B, C = (torch.tensor([row], dtype=F64) for row in ([1.0, 1, 0], [1.0, 0, 0], [0, 0, 1.0]))
    first, second, apart = linear_constraint(A, one), linear_constraint(B, 3 * one), linear_constraint(C, -one)

    def miss(x, A, b):
        return (x @ A.T - b).abs().max().item()

    x1 = solve(field, x, 5, guidance=[first, second])
    assert miss(x1, B, 3) < 1e-12
    assert miss(x1, A, 1) > 0.1
    x1 = solve(field, x, 5, guidance=[second, first])
    assert miss(x1, A, 1) < 1e-12
    assert miss(x1, B, 3) > 0.1
    for order in ([first, apart], [apart, first]):
        x1 = solve(field, x, 5, guidance=order)
        assert max(miss(x1, A, 1), miss(x1, C, -1)) < 1e-12


def test_constraint_at_the_end_conditions_a_gaussian():
    """With S the covariance of the samples, one projection of them is a draw from the conditional distribution."""
    d, A, b = 3, torch.tensor([[1.0, 1, 1]], dtype=F64), torch.tensor([2.0], dtype=F64)
    S, mean = covariance(d), normal(d, seed=3)
    x = mean + normal(20000, d) @ torch.linalg.cholesky(S).T
    still = Field(lambda x, t, c: torch.zeros_like(x), paths.linear())
    found = solve(still, x, 4, guidance=[linear_constraint(A, b, S, last_only=True)])
    gain = S @ A.T / (A @ S @ A.T)
    torch.testing.assert_close(found.mean(0), mean + gain @ (b - A @ mean), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(found.T), S - gain @ A @ S, atol=0.03, rtol=0)


def test_last_only():
    """Between the ends it is the identity: one projection in all, instead of one a step."""
    A, b, x = torch.ones(1, 2, dtype=F64), torch.ones(1, dtype=F64), normal(3, 2)
    field, seen = gaussian(paths.linear(), d=2), {True: [], False: []}
    for last, states in seen.items():

        def callback(i, t, x, states=states):
            states.append((x @ A.T - b).abs().max())

        solve(field, x, 4, guidance=[linear_constraint(A, b, last_only=last)], callback=callback)
    assert [miss < 1e-12 for miss in seen[False]] == [False, True, True, True, True]
    assert [miss < 1e-12 for miss in seen[True]] == [False, False, False, False, True]


@pytest.mark.parametrize(("given", "state"), [(F64, torch.float32), (torch.float32, F64)])
def test_constraint_takes_the_states_dtype(given, state):
    """A matrix read from a file is float64, a sample float32: no error, and the sample keeps its dtype."""
    A, b = torch.tensor([[1.0, 1, 0]], dtype=given), torch.ones(1, dtype=given)
    found = project(normal(4, 3, dtype=state), linear_constraint(A, b, torch.eye(3, dtype=given)))
    assert found.dtype == state
    assert (found[:, 0] + found[:, 1] - 1).abs().max() < 1e-5


# --- replacement


def test_replacement():
    """At the end what is known is there exactly; the rest went its own way, and the other entries were not touched."""
    field, x, known = gaussian(paths.linear(), d=4), normal(3, 4), normal(3, 4, seed=1)
    mask = torch.tensor([True, False, True, False])
    found = solve(field, x, 10, guidance=[replacement(known, mask)], generator=generator(0))
    assert torch.equal(found[:, mask], known[:, mask])
    torch.testing.assert_close(found[:, ~mask], solve(field, x, 10)[:, ~mask])  # the dimensions are independent


@pytest.mark.parametrize("name", ["linear", "linear_vp", "vp", "ve"])
def test_replacement_is_exact_wherever_the_path_stops(name):
    path, known = PATHS[name], normal(2, 3, seed=1)
    guidance = [replacement(known, torch.ones(3))]
    found = solve(gaussian(path, d=3), normal(2, 3), 5, guidance=guidance, generator=generator(0))
    assert torch.equal(found, known)


@pytest.mark.parametrize("known", [(6, 1, 2, 3), (1, 2, 3), (2, 3)], ids=["each sample", "all", "channels"])
def test_replacement_broadcasts(known):
    """What is known, and the mask, may be the same for all samples or channels."""
    values, mask = normal(*known, seed=1), torch.tensor([1, 0, 1])
    field = mixture(paths.linear(), normal(2, 1, 2, 3, seed=2), STD)
    found = solve(field, normal(6, 1, 2, 3), 5, guidance=[replacement(values, mask)], generator=generator(0))
    assert found.shape == (6, 1, 2, 3)
    assert torch.equal(found[..., mask.bool()], values.expand(6, 1, 2, 3)[..., mask.bool()])


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_marginals_of_what_is_replaced(name):
    """On the way it is alpha y + sigma z with z from the source, fresh after each step."""
    path, y, states = PATHS[name], 2.0, []
    mask = torch.tensor([True, False])
    solve(
        gaussian(path, d=2),
        normal(20000, 2),
        4,
        guidance=[replacement(torch.full((2,), y, dtype=F64), mask)],
        callback=lambda i, t, x: states.append((t, x[:, 0])),
        generator=generator(1),
    )
    for t, x in states[1:-1]:
        a, s, *_ = path.coefficients(torch.tensor(t, dtype=F64))
        assert x.mean().item() == pytest.approx((a * y).item(), abs=0.03)
        assert x.std().item() == pytest.approx(s.item(), abs=0.03)
    noises = torch.stack([x for _, x in states[:-1]])
    correlation = torch.corrcoef(noises) - torch.eye(len(noises), dtype=F64)
    assert correlation.abs().max() < 0.03


def test_replacement_draws_from_the_generator():
    """None given is an error; the same gives the same, another another, and the global one is not touched."""
    field, x = mixture(paths.linear(), normal(3, 2, seed=1), STD), normal(3, 2)
    guidance = [replacement(torch.zeros(2), torch.tensor([1, 0]))]
    with pytest.raises(ValueError, match="generator"):
        solve(field, x, 5, guidance=guidance)
    state = torch.get_rng_state()
    first, again, other = (solve(field, x, 5, guidance=guidance, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="generator"):  # the last solve's generator is not kept
        solve(field, x, 5, guidance=guidance)


def test_replacement_takes_the_paths_source():
    """With a Student-t source the noise on what is known has its tails."""
    path, states = replace(paths.ve(1.0), source=paths.student_t(3)), []
    field = Field(lambda x, t, c: torch.zeros_like(x), path)
    guidance = [replacement(torch.zeros(1, dtype=F64), torch.ones(1))]
    solve(
        field, normal(20000, 1), 2, guidance=guidance, callback=lambda i, t, x: states.append(x), generator=generator(0)
    )
    share = (states[1].abs() > 2).double().mean().item()  # |x0| > 4 at sigma 1/2
    assert share == pytest.approx(0.0280, abs=0.005)  # 2 P(T_3 > 4); a normal has 6e-5


# --- solvers


def test_adaptive_solvers_refuse_what_needs_steps():
    field, x = gaussian(paths.linear(), d=4), normal(2, 4)
    needy = gradient_skipping(half_square(1.0), 0.1)
    for guidance in ([needy], [Guidance(), needy]):
        with pytest.raises(ValueError, match="fixed steps"):
            solve(field, x, 3, "dopri5", guidance)


@pytest.mark.parametrize("name", sorted(set(every_guidance(4)) - {"gradient_skipping"}))
def test_adaptive_solvers_take_the_others(name):
    """Within the grid's steps dopri5 sees the guided velocity; at its times the states are corrected. rk4 agrees."""
    field, x, g = mixture(paths.linear(), normal(3, 4, seed=1), STD), normal(3, 4), every_guidance(4)[name]
    adaptive, fixed = (solve(field, x, 20, m, [g], generator=generator(0)) for m in ("dopri5", "rk4"))
    torch.testing.assert_close(adaptive, fixed, atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4", "euler_maruyama", "exponential"])
def test_every_method_is_guided(method):
    """A constant likelihood gradient toward larger x: every method ends at larger x."""
    field, x = gaussian(paths.linear(), d=2), normal(3, 2)
    guidance = [classifier(lambda x, t: x.sum(1) * t)]
    free = solve(field, x, 20, method, generator=generator(0))
    assert (solve(field, x, 20, method, guidance, generator=generator(0)) > free + 0.1).all()


def test_exponential_under_classifier_gives_the_posterior():
    """The guided x1 drives the exponential integrator as the guided velocity drives the others."""
    path, x = paths.linear(), torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
    mean, std = posterior(0.4, 0.5)
    found = solve(gaussian(path), x, 200, "exponential", [classifier(observed(path, 0.4, 0.5))])
    torch.testing.assert_close(found, mean + std * x, atol=0.01, rtol=0)


def test_guidance_on_the_way_back():
    """Guided inversion undoes guided sampling."""
    path, x = paths.cosine(), normal(3, 1)
    field, guidance = gaussian(path), [classifier(observed(path, 0.4, 0.5))]
    grid = time_grid(100)[1:]
    there = solve(field, x, grid, "rk4", guidance)
    torch.testing.assert_close(solve(field, there, grid.flip(0), "rk4", guidance), x, atol=1e-5, rtol=0)


# --- memory


class Saved:
    """What a graph keeps of one tensor; alive exactly as long as the graph is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("name", [*every_guidance(4), "classifier_free", "all"])
def test_no_graph_is_kept(name):
    """Nothing piles up over many steps: no tensor held by a graph, and as many tensors alive as after 10 steps."""
    network = Mlp(4, F64)
    condition = {"number": normal(3, seed=1), "row": normal(3, 2, seed=2)}
    null = {"number": torch.tensor(0.0), "row": torch.zeros(2)}
    field = Field(network, paths.linear(), condition=condition, null=null)
    everything = {**every_guidance(4), "classifier_free": classifier_free(1.5)}
    guidance = list(everything.values()) if name == "all" else [everything[name]]
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()
    steps, graphs, tensors = 1000 if name == "all" else 200, [], {}

    def pack(tensor):
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    def callback(i, t, x):
        graphs.append(len(alive))
        if i in (10, steps - 10):
            tensors[i] = sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        x = solve(field, normal(3, 4), steps, guidance=guidance, callback=callback, generator=generator(0))
    assert max(graphs) == 0
    assert tensors[10] == tensors[steps - 10]
    assert x.grad_fn is None


@pytest.mark.parametrize("name", [*every_guidance(4), "classifier_free"])
def test_inference_mode(name):
    """As under no_grad, gradients of guidance included, at the same number of evaluations."""
    field, x = told(4, 3, F64), normal(3, 4)
    guidance = [{**every_guidance(4), "classifier_free": classifier_free(1.5)}[name]]
    with torch.no_grad():
        expected = solve(field, x, 5, guidance=guidance, generator=generator(0))
    calls = field.calls
    with torch.inference_mode():
        found = solve(field, x.clone(), 5, guidance=guidance, generator=generator(0))
        assert torch.equal(found, expected)
    assert field.calls == 2 * calls
