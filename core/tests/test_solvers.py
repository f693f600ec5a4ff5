"""Solvers against flows that are known exactly: dx/dt = -x, Gaussians, finite sets of points, straight lines."""

import gc
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowcore import paths
from flowcore.closed_form import interpolant_mixture, mixture
from flowcore.field import Field
from flowcore.interpolants import bridge
from flowcore.seeds import generator
from flowcore.solvers import (
    METHODS,
    dopri5,
    edm_grid,
    euler,
    euler_maruyama,
    exponential,
    heun,
    kept_noise,
    midpoint,
    rk4,
    solve,
    time_grid,
)

F64 = torch.float64
MEAN, STD = 1.5, 0.5
PATHS = {
    "linear": paths.linear(),
    "floor": paths.linear(floor=0.1),
    "polynomial": paths.polynomial(2),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "ve": paths.ve(5.0),
    "general": paths.general(lambda t: t, lambda t: (1 - t) * (1 + t / 2)),
}

GENERAL_COSINE = paths.general(lambda t: torch.sin(math.pi / 2 * t), lambda t: torch.cos(math.pi / 2 * t))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=dtype)


def gaussian(path, mean=MEAN, std=STD, d=2, dtype=F64) -> Field:
    """The exact field for data N(mean, std^2 I) in d dimensions."""
    return mixture(path, torch.full((1, d), mean, dtype=dtype), std)


def flow(path, x: Tensor, t: float, r: float) -> Tensor:
    """Where the Gaussian's flow carries x from t to r: the mean moves and the deviation from it scales."""

    def moments(time: float) -> tuple[Tensor, Tensor]:
        a, s, *_ = path.coefficients(torch.tensor(time, dtype=F64))
        return a * MEAN, (a * a * STD**2 + s * s).sqrt()

    (before, spread), (after, wide) = moments(t), moments(r)
    return after + wide / spread * (x - before)


def decay(x, t):
    """dx/dt = -x, so that x(1) = x(0) / e."""
    return {key: decay(leaf, t) for key, leaf in x.items()} if isinstance(x, dict) else -x


def slope(errors: list[float]) -> float:
    """The order of convergence from the errors at N and 2 N steps."""
    return math.log2(errors[0] / errors[1])


class Counter(nn.Module):
    """A velocity -x that counts the times it is evaluated at."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, x, t, condition=None):
        self.times.append(float(t.flatten()[0]))
        return -x


# --- order and exactness


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_order(method, order):
    """The error on dx/dt = -x falls as N^-order."""
    x = torch.ones(1, 1, dtype=F64)
    errors = [abs(solve(decay, x, N, method).item() - math.exp(-1)) for N in (20, 40)]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_order_in_time(method, order):
    """dx/dt = 5 t^4: each stage is evaluated at its own time."""
    x = torch.zeros(1, 1, dtype=F64)
    errors = [abs(solve(lambda x, t: 5 * t**4 + 0 * x, x, N, method).item() - 1) for N in (10, 20)]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["linear", "cosine", "linear_vp", "vp", "ve"])
@pytest.mark.parametrize("order", [1, 2])
def test_order_of_exponential(order, name):
    """Order 1 and 2M on a Gaussian, away from the ends where log(alpha / sigma) is infinite."""
    path, x = PATHS[name], normal(5, 2)
    field, exact = gaussian(path), flow(path, x, 0.2, 0.8)
    grids = [torch.linspace(0.2, 0.8, N + 1, dtype=F64) for N in (160, 320)]
    errors = [(solve(field, x, grid, exponential(order)) - exact).abs().max().item() for grid in grids]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("steps", [5, 20, 80])
@pytest.mark.parametrize("name", ["linear", "small floor", "floor", "cosine", "linear_vp", "vp"])
def test_exponential_from_end_to_end(name, steps):
    """2M is never the worse on a Gaussian, over the ends where log(alpha / sigma) is far away or infinite too."""
    path = paths.linear(floor=0.01) if name == "small floor" else PATHS[name]
    field, x = gaussian(path), path.initial(normal(5, 2))
    exact = flow(path, x, path.start, path.stop)
    first, second = ((solve(field, x, steps, exponential(order)) - exact).abs().max().item() for order in (1, 2))
    assert second < first * (1.01 if steps < 20 else 0.8)


def test_exponential_on_the_linear_path_is_euler():
    """x_r = (s_r/s_t) x + (a_r - a_t s_r/s_t) x1 is x + h v where a = t, s = 1 - t."""
    field, x = gaussian(paths.linear()), normal(3, 2)
    grid = torch.linspace(0, 1, 11, dtype=F64).square()
    torch.testing.assert_close(solve(field, x, grid, exponential(1)), solve(field, x, grid), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", PATHS)
def test_one_point_is_exact(name, steps, order):
    """With one data point y the flow is a y + s x0: the exponential integrator makes no error in any step."""
    path, y = PATHS[name], normal(1, 2, seed=3)
    x0 = normal(4, 2)
    a, s, *_ = path.coefficients(torch.tensor([path.start, path.stop], dtype=F64))
    found = solve(mixture(path, y), a[0] * y + s[0] * x0, steps, exponential(order))
    torch.testing.assert_close(found, a[1] * y + s[1] * x0, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4", "dopri5"])
def test_straight_lines_need_one_step(method):
    """A constant velocity is integrated exactly, to data of any shape."""
    for shape in [(4, 2), (2, 2), (3, 1, 4, 5)]:
        x, v = normal(*shape), normal(*shape, seed=1)
        torch.testing.assert_close(solve(lambda x, t, v=v: v, x, 1, method), x + v)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("name", PATHS)
def test_gaussian_flow(name, method):
    """The end does not depend on the path beyond its first and last coefficients: m + S x0 where those are 0, 1."""
    path = PATHS[name]
    x = path.initial(normal(5, 2))
    found = solve(gaussian(path), x, 1 if method == "dopri5" else 100, method)
    torch.testing.assert_close(found, flow(path, x, path.start, path.stop), atol=2e-4, rtol=0)


def test_dopri5_meets_its_tolerance():
    """dx/dt = -x within the tolerance, with fewer calls than rk4 needs for the same error at the tighter one."""
    x, field = torch.ones(3, 1, dtype=F64), Field(Counter(), paths.linear())
    assert (solve(field, x, 1, "dopri5") - math.exp(-1)).abs().max() < 1e-5
    assert field.calls < 30
    fine = solve(decay, x, 1, dopri5(rtol=1e-10, atol=1e-10))
    assert (fine - math.exp(-1)).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["linear", "vp"])
@pytest.mark.parametrize("times", [[0, 1], [1, 0], [0, 0.3, 0.4, 1]])
def test_dopri5_stays_within_the_grid(name, times):
    """Never evaluated beyond the end, where a network was not trained and a path may have no coefficients."""
    path = PATHS[name]
    field = Field(Counter(), path)
    grid = path.start + (path.stop - path.start) * torch.tensor(times, dtype=F64)
    solve(field, normal(2, 2), grid, "dopri5")
    assert path.start <= min(field.network.times)
    assert max(field.network.times) <= path.stop
    slow = Counter()
    solve(lambda x, t: 1e-4 * slow(x, t), normal(2, 2), grid, "dopri5")  # torchdiffeq's first guess is a step of 100
    assert path.start <= min(slow.times)
    assert max(slow.times) <= path.stop


# --- how often and when the field is evaluated


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (euler(), 10),
        (midpoint(), 20),
        (heun(), 20),
        (heun(correct_last=False), 19),
        (rk4(), 40),
        (euler_maruyama(0.5), 10),
        (exponential(1), 10),
        (exponential(2), 10),
        (kept_noise(), 10),
    ],
)
def test_calls(method, calls):
    field = gaussian(paths.linear(floor=0.1))
    solve(field, normal(2, 2), 10, method, generator=generator(0))
    assert field.calls == calls


def test_edm():
    """Heun with an Euler step at the end over the EDM grid: 18 steps, 35 calls, none of them at t = 1."""
    field = Field(Counter(), paths.ve())
    solve(field, normal(2, 2), edm_grid(18), heun(correct_last=False))
    assert field.calls == 35
    assert max(field.network.times) < 1


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ("euler", [0, 0.5]),
        ("midpoint", [0, 0.25, 0.5, 0.75]),
        ("heun", [0, 0.5, 0.5, 1]),
        ("rk4", [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]),
    ],
)
def test_stages(method, times):
    field = Field(Counter(), paths.linear())
    solve(field, normal(2, 2), 2, method)
    assert field.network.times == times


# --- grids


@pytest.mark.parametrize("steps", [1, 7, 10, 1000])
def test_whole_number_of_steps(steps):
    grid = time_grid(steps)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (0, 1)
    torch.testing.assert_close(grid.diff(), torch.full((steps,), 1 / steps, dtype=F64))


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_numpy_counts_are_counts(kind):
    assert len(time_grid(kind(10))) == 11


@pytest.mark.parametrize(
    ("length", "times"),
    [(0.3, [0, 0.3, 0.6, 0.9, 1]), (0.25, [0, 0.25, 0.5, 0.75, 1]), (0.4, [0, 0.4, 0.8, 1]), (1.0, [0, 1])],
)
def test_step_length(length, times):
    """The last step is shorter where the length does not divide, and there is no sliver where it does."""
    torch.testing.assert_close(time_grid(length), torch.tensor(times, dtype=F64))
    x = torch.zeros(1, 1, dtype=F64)
    assert solve(lambda x, t: 2 * t + 0 * x, x, length, "midpoint").item() == pytest.approx(1, abs=1e-12)


def test_dividing_step_lengths_leave_no_sliver():
    assert [len(time_grid(1 / N)) for N in range(1, 300)] == list(range(2, 301))


def test_grid_of_ones_own():
    """A tensor is used as it is; its steps need not be equal. Midpoint is exact on dx/dt = 2 t."""
    times = torch.tensor([0.0, 0.1, 0.7, 1.0])
    seen = []
    solve(lambda x, t: 2 * t + 0 * x, normal(1, 1), times, "midpoint", callback=lambda i, t, x: seen.append(t))
    assert seen == times.double().tolist()


@pytest.mark.parametrize("name", ["linear", "linear_vp", "vp"])
def test_grid_keeps_to_the_path(name):
    """Steps are counted from the path's start to its stop."""
    path, seen = PATHS[name], []
    solve(gaussian(path), normal(2, 2), 4, callback=lambda i, t, x: seen.append(t))
    assert (seen[0], seen[-1]) == (path.start, path.stop)


@pytest.mark.parametrize("grid", [0, -3, 0.0, -0.1, 2.0, math.nan, torch.tensor([0.5]), torch.zeros(2, 2)])
def test_grids_without_steps_are_refused(grid):
    with pytest.raises(ValueError, match=r"grid|step"):
        time_grid(grid)


@pytest.mark.parametrize("times", [[0, 0.5, 0.5, 1], [1, 0.5, 0.5, 0], [0, 0.6, 0.4, 1], [0, math.nan, 1]])
def test_steps_of_no_length_are_refused(times):
    """A step of length 0 would tell guidance that the sample is finished, and has no ratio to the next one."""
    with pytest.raises(ValueError, match=r"grid|step"):
        time_grid(torch.tensor(times))


@pytest.mark.parametrize("steps", [1, 18, 40])
def test_edm_grid(steps):
    """Each time has the noise level of the formula, from 80 to .002, then 0."""
    times = edm_grid(steps).tolist()
    top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = [(top + i / max(steps - 1, 1) * (bottom - top)) ** 7 for i in range(steps)] + [0]
    assert [80 * (1 - t) for t in times] == pytest.approx(levels, abs=1e-12)
    assert (times[0], times[-1]) == (0, 1)


# --- the noise kept


@pytest.mark.parametrize("name", ["linear", "cosine", "ve"])
def test_kept_noise_goes_from_one_prediction_of_the_data_to_the_next_with_the_first_noise(name):
    path, seen = PATHS[name], []
    field = gaussian(path)
    x0 = normal(3, 2)
    step = kept_noise()
    end = solve(field, path.initial(x0), 3, step, callback=lambda i, t, x: seen.append((t, x)))
    for (t, x), (r, after) in itertools.pairwise(seen):
        torch.testing.assert_close(after, path.interpolate(x0, field.x1(x, t), r))
    torch.testing.assert_close(end, field.x1(seen[2][1], seen[2][0]))  # no noise is left at t = 1
    other = path.initial(x0 + 1)  # a solve forgets the one before
    torch.testing.assert_close(solve(field, other, 3, step), solve(field, other, 3, kept_noise()))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_kept_noise_is_exact_for_a_single_data_point(steps):
    """As is Euler, whose steps it takes where the field is straight."""
    field = Field(lambda x, t, condition: torch.ones_like(x), paths.linear(), "x1")
    x0, grid = normal(4, 2), time_grid(steps, 0, 0.9)
    kept = solve(field, x0, grid, kept_noise())
    torch.testing.assert_close(kept, 0.9 * torch.ones_like(x0) + 0.1 * x0)
    torch.testing.assert_close(solve(field, x0, grid, "euler"), kept)


def test_kept_noise_goes_forwards_only():
    with pytest.raises(ValueError, match="from noise to data"):
        solve(gaussian(paths.linear()), normal(2, 2), time_grid(3).flip(0), kept_noise())


# --- backward in time


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_inversion(name, method):
    """Down the grid and up again is where it began, to 1e-5."""
    path = PATHS[name]
    field, x1 = mixture(path, normal(3, 2, seed=1), 0.6), normal(4, 2)
    grid = time_grid(1 if method == "dopri5" else 200, path.start, path.stop)
    step = dopri5(rtol=1e-6, atol=1e-6) if method == "dopri5" else rk4()
    x0 = solve(field, x1, grid.flip(0), step)
    assert (x0 - x1).abs().max() > 0.1
    torch.testing.assert_close(solve(field, x0, grid, step), x1, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["linear", "floor", "cosine"])
def test_exponential_inverts(name, order):
    """From t = 1, where sigma is 0, to the noise: the Gaussian's flow backwards, (x - m) / S."""
    path, x1 = PATHS[name], normal(4, 2)
    found = solve(gaussian(path), x1, time_grid(200).flip(0), exponential(order))
    torch.testing.assert_close(found, flow(path, x1, 1, 0), atol=0.1 if order == 1 else 0.01, rtol=0)


# --- states


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"euler_maruyama"}))
def test_dict_states(method):
    """A dict of tensors, nested, is carried like one tensor with its leaves side by side."""
    x = normal(4, 6)
    whole = gaussian(paths.linear(), d=6)
    means, exact = torch.full((1, 6), MEAN, dtype=F64), whole.network

    def network(x, t, condition):
        v = exact(torch.cat([x["a"], x["b"]["c"].flatten(1)], 1), t)
        return {"a": v[:, :2], "b": {"c": v[:, 2:].reshape(-1, 2, 2)}}

    field = Field(network, paths.linear())
    found = solve(field, {"a": x[:, :2], "b": {"c": x[:, 2:].reshape(-1, 2, 2)}}, 10, method)
    expected = solve(mixture(paths.linear(), means, STD), x, 10, method)
    torch.testing.assert_close(torch.cat([found["a"], found["b"]["c"].flatten(1)], 1), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (3, 3), (3, 1), (1, 2)], ids=["images", "B == d", "scalars", "B == 1"])
def test_shapes(method, shape):
    """Samples of any shape end where the same numbers end as rows of a table."""
    x, mean = normal(*shape), normal(1, *shape[1:], seed=1)
    found = solve(mixture(paths.linear(), mean, STD), x, 8, method, generator=generator(0))
    rows = solve(mixture(paths.linear(), mean.flatten(1), STD), x.flatten(1), 8, method, generator=generator(0))
    assert found.shape == shape
    torch.testing.assert_close(found.flatten(1), rows, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_float32(method):
    """Single precision stays single and close to double."""
    x = normal(3, 2, dtype=torch.float32)
    draws = generator(0)
    found = solve(gaussian(paths.linear(), dtype=torch.float32), x, 50, method, generator=draws)
    assert found.dtype == torch.float32
    if method != "euler_maruyama":  # whose draws differ with the dtype
        double = solve(gaussian(paths.linear()), x.double(), 50, method)
        torch.testing.assert_close(found.double(), double, atol=1e-4, rtol=0)


def test_the_start_is_left_alone():
    for method in METHODS:
        x = normal(3, 2)
        kept = x.clone()
        solve(gaussian(paths.linear()), x, 3, method, generator=generator(0))
        assert torch.equal(x, kept)


# --- stochastic


@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "linear_vp"])
def test_euler_maruyama_keeps_the_marginals(name, e):
    """Every e has the end of the ODE: the data's mean and deviation, from 20,000 samples in 200 steps."""
    path = PATHS[name]
    x = solve(gaussian(path, d=1), normal(20000, 1), 200, euler_maruyama(e), generator=generator(1))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.std().item() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("e", [0.5, 2.0])
def test_diffusion_as_a_function_of_time(e):
    """A function is e(t) itself, not times sigma; the marginal in the middle is right too."""
    half = []
    field = gaussian(paths.linear(), d=1)
    method = euler_maruyama(lambda t: e * torch.sin(math.pi * t))
    x = solve(field, normal(20000, 1), 200, method, callback=lambda i, t, x: half.append(x), generator=generator(1))
    assert half[100].mean().item() == pytest.approx(MEAN / 2, abs=0.03)
    assert half[100].std().item() == pytest.approx(math.hypot(STD / 2, 0.5), abs=0.03)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.std().item() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "general cosine"])
def test_euler_maruyama_backwards(name, e, dtype):
    """Down the grid the drift is v - e q, and data become the source N(0, 1); also where sigma(1) is -4e-8."""
    data = MEAN + STD * normal(20000, 1, dtype=dtype)
    field = gaussian(GENERAL_COSINE if name == "general cosine" else PATHS[name], d=1, dtype=dtype)
    x = solve(field, data, time_grid(200).flip(0), euler_maruyama(e), generator=generator(1))
    assert x.mean().item() == pytest.approx(0, abs=0.03)
    assert x.std().item() == pytest.approx(1, abs=0.03)


def test_euler_maruyama_forgets_the_start():
    """With noise the end depends on the draws and less on the start; with e = 0 it is Euler's."""
    field, x = gaussian(paths.linear(), d=1), normal(2000, 1)
    still = solve(field, x, 50, euler_maruyama(0.0))
    assert torch.equal(still, solve(field, x, 50))
    moved = solve(field, x, 50, euler_maruyama(2.0), generator=generator(0))
    assert torch.corrcoef(torch.stack([moved[:, 0], x[:, 0]]))[0, 1] < 0.5


def test_euler_maruyama_on_an_interpolant():
    """A bridge between two Gaussians, with the score of its own denoiser."""
    ends = (torch.full((1, 1), -1.0, dtype=F64), 1.0), (torch.full((1, 1), MEAN, dtype=F64), STD)
    field = interpolant_mixture(bridge(1.0), *ends)
    x = solve(field, normal(20000, 1) - 1, 200, euler_maruyama(lambda t: t.new_tensor(0.5)), generator=generator(1))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.std().item() == pytest.approx(STD, abs=0.03)


def test_draws_are_the_generators():
    """The same seed gives the same samples, another seed others, and the global generator is not touched."""
    field, x = gaussian(paths.linear()), normal(4, 2)
    state = torch.get_rng_state()
    first, again, other = (solve(field, x, 5, "euler_maruyama", generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_generator_is_asked_for():
    """Noise never comes from the global generator."""
    with pytest.raises(ValueError, match="generator"):
        solve(gaussian(paths.linear()), normal(4, 2), 5, "euler_maruyama")


# --- variance exploding and Poisson flow


def test_variance_exploding():
    """From sigma_max x0, Heun over the EDM grid converges to the Gaussian's flow with order 2."""
    path, x0 = paths.ve(), normal(6, 2)
    start = path.initial(x0)
    assert torch.equal(start, 80 * x0)
    grids = edm_grid(36), edm_grid(72)
    ends = [solve(gaussian(path), start, grid, heun(correct_last=False)) for grid in grids]
    errors = [(end - flow(path, start, 0, 1)).abs().max().item() for end in ends]
    assert errors[1] < 0.01
    assert slope(errors) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("dimension", [3, 64])
def test_poisson_flow(dimension):
    """PFGM++: with a Student-t source every sample ends on a data point, each as often as its weight.

    The posterior over the points is that of the kernel (|x - y|^2 + sigma^2 D)^-((N + D) / 2).
    """
    path = paths.ve()
    source = paths.student_t(dimension)
    points, weights = torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)

    def network(x, t, condition):
        sigma = path.sigma(t)[:, None]
        squared = (x[:, None] - points).square().sum(2)
        power = -(points.shape[1] + dimension) / 2
        return (weights.log() + power * (squared + sigma**2 * dimension).log()).softmax(1) @ points

    x0 = source(normal(4000, 2), generator(5))
    found = solve(Field(network, path, "x1"), path.initial(x0), edm_grid(40), heun(correct_last=False))
    distance = torch.cdist(found, points)
    assert distance.min(1).values.max() < 0.05
    share = (distance[:, 1] < distance[:, 0]).double().mean().item()
    assert share == pytest.approx(0.7, abs=0.03)


# --- callbacks, gradients, memory


@pytest.mark.parametrize("method", sorted(METHODS))
def test_callback(method):
    """It sees the start, the state before each step, and the end."""
    field, x, seen = gaussian(paths.linear()), normal(2, 2), []
    end = solve(field, x, 4, method, callback=lambda i, t, x: seen.append((i, t, x)), generator=generator(0))
    assert [i for i, *_ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == [0, 0.25, 0.5, 0.75, 1]
    assert seen[0][2] is x
    assert seen[-1][2] is end
    if method == "euler":
        torch.testing.assert_close(seen[1][2], x + field.velocity(x, 0.0) / 4)


def test_gradients_flow_through():
    """The flow map of a Gaussian is m + S x0: its derivative is S, its derivative by the mean 1."""
    x, mean = normal(3, 2).requires_grad_(), torch.zeros(1, 2, dtype=F64, requires_grad=True)
    field = mixture(paths.linear(), mean, STD)
    found = solve(field, x, 50, "rk4")
    by_x, by_mean = torch.autograd.grad(found.sum(), [x, mean])
    torch.testing.assert_close(by_x, torch.full_like(x, STD), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_mean, torch.full_like(mean, 3.0), atol=1e-5, rtol=0)


def live_tensors() -> int:
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "euler_maruyama", "exponential"])
def test_nothing_is_kept(method):
    """A solve leaves no graph, and holds as many tensors after 300 steps as after 10."""
    network = nn.Linear(2, 2)
    field, held = Field(lambda x, t, condition: network(x), paths.linear()), {}

    def callback(i, t, x):
        if i in (10, 300):
            held[i] = live_tensors()

    with torch.no_grad():
        x = solve(
            field, normal(2, 2, dtype=torch.float32), 301, METHODS[method](), callback=callback, generator=generator(0)
        )
    assert held[10] == held[300]
    assert x.grad_fn is None


@pytest.mark.parametrize("method", sorted(METHODS))
def test_inference_mode(method):
    """As under no_grad, at the same number of evaluations."""
    field, alike, x = gaussian(paths.linear()), gaussian(paths.linear()), normal(3, 2)
    with torch.no_grad():
        expected = solve(field, x, 4, method, generator=generator(0))
    with torch.inference_mode():
        found = solve(alike, x.clone(), 4, method, generator=generator(0))
        assert torch.equal(found, expected)
    assert alike.calls == field.calls


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_solve_that_is_watched_goes_the_same_way_at_the_same_cost(method):
    plain, watched, x = gaussian(paths.vp()), gaussian(paths.vp()), normal(3, 2)
    end = solve(plain, x, 4, method, generator=generator(0))
    same = solve(watched, x, 4, method, callback=lambda i, t, x: None, generator=generator(0))
    assert torch.equal(same, end)
    assert plain.calls == watched.calls


def test_a_kind_of_field_with_a_velocity_of_its_own_is_solved_along_that():
    class Slow(Field):
        def __call__(self, x, t):
            return super().velocity(x, t) / 2

    network, x = gaussian(paths.linear()).network, normal(3, 2)
    half = solve(lambda x, t: Field(network, paths.linear()).velocity(x, t) / 2, x, 8)
    assert torch.equal(solve(Slow(network, paths.linear()), x, 8), half)


def test_a_method_remembers_nothing_between_solves():
    """One step object used twice gives the same answer twice, on a path that stops short of sigma = 0."""
    field, method = mixture(paths.vp(), normal(3, 2, seed=1), 0.3), exponential(2)
    first, again = solve(field, normal(5, 2), 8, method), solve(field, normal(5, 2), 8, method)
    assert torch.equal(first, again)
    assert solve(field, normal(3, 2), 8, method).shape == (3, 2)


# --- errors


def test_unknown_method():
    with pytest.raises(ValueError, match=r"unknown solver 'eular'; one of euler, midpoint"):
        solve(decay, normal(1, 1), 3, "eular")


def test_unknown_order():
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        exponential(3)


@pytest.mark.parametrize("method", ["euler", "rk4", "exponential"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_reported(method, value):
    field = Field(lambda x, t, condition: torch.full_like(x, value), paths.linear(), "x1")
    with pytest.raises(FloatingPointError, match="not finite"):
        solve(field, normal(2, 2), 3, method)
    leaf = SimpleNamespace(good=torch.zeros(1, 1), bad=torch.full((1, 1), value))
    with pytest.raises(FloatingPointError, match="not finite"):
        solve(decay, {"a": leaf.good, "b": {"c": leaf.bad}}, 3)


@pytest.mark.parametrize(
    ("field", "start"),
    [(lambda x, t: x * math.nan, 2.0), (lambda x, t: x * x, 2.0), (lambda x, t: torch.zeros_like(x), math.inf)],
    ids=["not finite", "infinite before t = 1", "infinite from the start"],
)
def test_dopri5_underflow(field, start):
    """x' = x^2 from 2 is infinite at t = 1/2: the error names the method, the interval and the causes, in one line."""
    with pytest.raises(FloatingPointError, match=r"dopri5.*between 0 and 1.*not finite.*stiff.*rtol") as caught:
        solve(field, torch.full((2, 1), start), 1, "dopri5")
    assert "\n" not in str(caught.value)


def test_a_networks_own_assertion_is_its_own():
    def field(x, t):
        raise AssertionError("three channels, please")

    with pytest.raises(AssertionError, match="three channels"):
        solve(field, normal(2, 2), 1, "dopri5")


@pytest.mark.parametrize("method", ["euler_maruyama", "exponential"])
def test_methods_that_need_a_field_say_so(method):
    with pytest.raises(ValueError, match="Field"):
        solve(decay, normal(2, 2), 3, method, generator=generator(0))


def test_a_product_of_paths():
    """Each part goes its own way to its own data; a method that would need one sigma for all says so."""
    product = paths.Product({"a": paths.linear(), "b": paths.cosine()})
    parts = {key: gaussian(path, d=1) for key, path in product.paths.items()}
    field = Field(lambda x, t, c: {key: part.network(x[key], t) for key, part in parts.items()}, product)
    x = {"a": normal(20000, 1), "b": normal(20000, 1, seed=1)}
    for method in ("midpoint", euler_maruyama(lambda t: 0.5 * (1 - t))):
        for leaf in solve(field, x, 100, method, generator=generator(0)).values():
            assert leaf.mean().item() == pytest.approx(MEAN, abs=0.03)
            assert leaf.std().item() == pytest.approx(STD, abs=0.03)
    for method in ("exponential", "euler_maruyama"):
        with pytest.raises(ValueError, match="product of paths"):
            solve(field, x, 3, method, generator=generator(0))
