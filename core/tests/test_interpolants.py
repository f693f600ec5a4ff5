import math

import pytest
import torch
from scipy import stats

from flowcore.closed_form import interpolant_mixture
from flowcore.couplings import Pairs
from flowcore.interpolants import (
    MARGIN,
    Interpolant,
    InterpolantField,
    bridge,
    brownian,
    encoding_decoding,
    interpolant,
    interpolant_loss,
    linear,
    mirror,
    quadratic,
    sine_squared,
    trigonometric,
    zero,
)
from flowcore.paths import gaussian
from flowcore.seeds import generator
from flowcore.solvers import euler_maruyama, solve
from flowcore.state import leaves, tree_map


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def normal(shape, seed=0):
    if isinstance(shape, dict):
        return {key: normal(one, seed + i) for i, (key, one) in enumerate(shape.items())}
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def draws(seed=0):
    return generator(seed, "test")


def agree(a, b, rtol=1e-8, atol=1e-8):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


GAMMAS = {
    "brownian": (brownian(), lambda t: (t * (1 - t)) ** 0.5),
    "brownian of variance 0.5": (brownian(0.5), lambda t: (0.5 * t * (1 - t)) ** 0.5),
    "quadratic": (quadratic(), lambda t: t * (1 - t)),
    "quadratic doubled": (quadratic(2.0), lambda t: 2 * t * (1 - t)),
    "sine_squared": (sine_squared(), lambda t: math.sin(math.pi * t) ** 2),
    "sine_squared halved": (sine_squared(0.5), lambda t: 0.5 * math.sin(math.pi * t) ** 2),
    "zero": (zero(), lambda t: 0.0),
}
each_gamma = pytest.mark.parametrize("name", GAMMAS)
PATHS = {
    "linear": linear(quadratic()),
    "bridge": bridge(0.8),
    "trigonometric": trigonometric(brownian(0.7)),
    "trigonometric with sine": trigonometric(sine_squared(0.9)),
    "trigonometric without noise": trigonometric(zero()),
    "encoding_decoding": encoding_decoding(),
    "encoding_decoding with brownian": encoding_decoding(brownian()),
    "mirror": mirror(brownian()),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
SHAPES = [(4,), (4, 3), (4, 4), (4, 2, 3, 3), {"a": (4, 4), "b": {"c": (4, 3)}}]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
PER_SAMPLE = double([0.1, 0.35, 0.6, 0.9])
INSIDE = torch.linspace(0.01, 0.99, 98, dtype=torch.float64)  # not at 1/2, where encoding meets decoding
ENDS = double([0.0, 1.0])


# gamma


@each_gamma
def test_gamma_has_its_closed_form_and_vanishes_at_both_ends(name):
    gamma, formula = GAMMAS[name]
    agree(gamma.value(INSIDE), double([formula(t) for t in INSIDE.tolist()]))
    agree(gamma.value(ENDS), torch.zeros_like(ENDS), atol=1e-12)


@each_gamma
def test_the_slope_is_half_the_derivative_of_gamma_squared(name):
    """gamma gamma' = (gamma^2)' / 2, by a central difference of order 4."""
    (gamma, _), h = GAMMAS[name], 1e-3

    def half(t):
        return gamma.value(t).square() / 2

    difference = 8 * (half(INSIDE + h) - half(INSIDE - h)) - (half(INSIDE + 2 * h) - half(INSIDE - 2 * h))
    agree(gamma.slope(INSIDE), difference / (12 * h))


@pytest.mark.parametrize("variance", [0.5, 1.0, 4.0])
def test_gamma_times_its_derivative_is_finite_at_the_ends_of_a_brownian_bridge(variance):
    """gamma' itself is infinite there; the product is c (1 - 2 t) / 2."""
    agree(brownian(variance).slope(ENDS), double([variance / 2, -variance / 2]))
    agree(bridge(variance**0.5).gamma.value(INSIDE), brownian(variance).value(INSIDE))


# the interpolation


@each_path
def test_the_derivatives_are_those_of_the_coefficients(path):
    t = INSIDE.clone().requires_grad_()
    for value, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        (wanted,) = torch.autograd.grad((value(t) + 0 * t).sum(), t)
        agree(slope(INSIDE), wanted)


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [
        (linear(zero()), lambda t: t, lambda t: 1 - t),
        (bridge(2.0), lambda t: t, lambda t: 1 - t),
        (
            trigonometric(quadratic()),
            lambda t: math.sqrt(1 - (t * (1 - t)) ** 2) * math.sin(math.pi * t / 2),
            lambda t: math.sqrt(1 - (t * (1 - t)) ** 2) * math.cos(math.pi * t / 2),
        ),
        (
            encoding_decoding(),
            lambda t: math.cos(math.pi * t) ** 2 if t > 0.5 else 0.0,
            lambda t: math.cos(math.pi * t) ** 2 if t <= 0.5 else 0.0,
        ),
        (mirror(brownian()), lambda t: 1.0, lambda t: 0.0),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_the_two_sided_forms(path, alpha, sigma):
    agree(path.alpha(INSIDE), double([alpha(t) for t in INSIDE.tolist()]))
    agree(path.sigma(INSIDE), double([sigma(t) for t in INSIDE.tolist()]))


@each_path
def test_interpolants_begin_at_x0_and_end_at_x1(path):
    x0, x1, z = normal((4, 3), 1), normal((4, 3), 2), normal((4, 3), 3)
    agree(path.interpolate(x0, x1, 1.0, z), x1)
    agree(path.interpolate(x0, x1, 0.0, z), x1 if path.name == "mirror" else x0)


@pytest.mark.parametrize("gamma", [brownian(), quadratic(), sine_squared(0.9), zero()])
def test_the_trigonometric_interpolant_keeps_unit_variance(gamma):
    path = trigonometric(gamma)
    agree(path.alpha(INSIDE) ** 2 + path.sigma(INSIDE) ** 2 + gamma.value(INSIDE) ** 2, torch.ones_like(INSIDE))


def test_halfway_the_encoder_has_forgotten_both_ends():
    z = normal((4, 3), 3)
    agree(encoding_decoding().interpolate(normal((4, 3), 1), normal((4, 3), 2), 0.5, z), z)


@each_path
@each_shape
@pytest.mark.parametrize("t", [0.35, PER_SAMPLE], ids=["scalar", "per sample"])
def test_x_t_and_its_drift_sample_by_sample(path, shape, t):
    x0, x1, z = normal(shape, 1), normal(shape, 11), normal(shape, 21)
    x, drift = path.interpolate(x0, x1, t, z), path.drift(x0, x1, t)
    for i, now in enumerate(double(t).expand(4)):
        a, s, da, ds, g = (f(now) for f in (path.alpha, path.sigma, path.dalpha, path.dsigma, path.gamma.value))
        for leaf, slope, left, right, noise in zip(*map(leaves, (x, drift, x0, x1, z)), strict=True):
            agree(leaf[i], a * right[i] + s * left[i] + g * noise[i])
            agree(slope[i], da * right[i] + ds * left[i])


@each_path
@each_shape
def test_the_derivative_of_x_t_is_the_drift_plus_the_rate_of_the_noise(path, shape):
    x0, x1, z, h = normal(shape, 1), normal(shape, 11), normal(shape, 21), 1e-4

    def at(offset):
        return path.interpolate(x0, x1, PER_SAMPLE + offset, z)

    def rate(forth, back, far_forth, far_back):
        return (8 * (forth - back) - (far_forth - far_back)) / (12 * h)

    g, slope = path.gamma.value(PER_SAMPLE), path.gamma.slope(PER_SAMPLE)
    dg = torch.where(g > 0, slope / g, 0.0)
    wanted = tree_map(
        lambda drift, noise: drift + dg.reshape(-1, *(1,) * (noise.ndim - 1)) * noise, path.drift(x0, x1, PER_SAMPLE), z
    )
    agree(wanted, tree_map(rate, at(h), at(-h), at(2 * h), at(-2 * h)))


# the field


MEANS0, MEANS1 = double([[-1.0], [1.5]]), double([[2.0], [-2.0], [0.3]])


def test_gaussian_to_gaussian_has_the_closed_form_of_the_sheet():
    """b = m1 - m0 + (-(1-t) S0^2 + t S1^2 + g g') / C (x - m_t), score -(x - m_t) / C; slope -.253 at t = .3."""
    m0, m1, S0, S1 = 0.5, -1.0, 0.7, 1.2
    field = interpolant_mixture(bridge(1.0), (double([[m0]]), S0), (double([[m1]]), S1))
    x = normal((50, 1))
    for t in (0.1, 0.3, 0.8):
        C = (1 - t) ** 2 * S0**2 + t**2 * S1**2 + t * (1 - t)
        mean = (1 - t) * m0 + t * m1
        gain = (-(1 - t) * S0**2 + t * S1**2 + (1 - 2 * t) / 2) / C
        agree(field.velocity(x, t), m1 - m0 + gain * (x - mean))
        agree(field.score(x, t), -(x - mean) / C)
        agree(field.denoiser(x, t), math.sqrt(t * (1 - t)) * (x - mean) / C)
    unit = interpolant_mixture(bridge(1.0), (double([[0.0]]), 1.0), (double([[0.0]]), 1.0))
    slope = unit.velocity(double([[1.0]]), 0.3) - unit.velocity(double([[0.0]]), 0.3)
    assert slope.item() == pytest.approx(-0.253, abs=5e-4)


@pytest.mark.parametrize("name", [name for name in PATHS if "without noise" not in name])
@pytest.mark.parametrize("t", [0.15, 0.6, 0.9])
def test_the_score_is_the_gradient_of_log_p(name, t):
    path, x, h = PATHS[name], torch.linspace(-3, 3, 31, dtype=torch.float64), 1e-3
    field = interpolant_mixture(path, (MEANS0, 0.5), (MEANS1, 0.4))
    a, s, g = path.alpha(double(t)), path.sigma(double(t)), path.gamma.value(double(t))
    means = (a * MEANS1[None, :, 0] + s * MEANS0[:, 0, None]).flatten()
    C = a**2 * 0.16 + s**2 * 0.25 + g**2

    def log_p(at):
        return torch.logsumexp(-((at[:, None] - means) ** 2) / (2 * C), 1)

    difference = (8 * (log_p(x + h) - log_p(x - h)) - (log_p(x + 2 * h) - log_p(x - 2 * h))) / (12 * h)
    agree(field.score(x[:, None], t)[:, 0], difference, rtol=1e-7, atol=1e-7)


@each_shape
@pytest.mark.parametrize("t", [0.35, PER_SAMPLE], ids=["scalar", "per sample"])
def test_a_field_that_learns_v_adds_the_rate_of_the_noise(shape, t):
    """b = v + gamma' eta = v - gamma gamma' score."""
    path, x = bridge(0.8), normal(shape)
    v, eta = normal(shape, 11), normal(shape, 21)
    field = InterpolantField(lambda x, time, condition: (v, eta), path, learns="v")
    plain = InterpolantField(lambda x, time, condition: (v, eta), path)
    agree(plain.velocity(x, t), v)
    agree(plain.denoiser(x, t), eta)
    rates, scores = field.velocity(x, t), field.score(x, t)
    for b, q, first, noise in zip(*map(leaves, (rates, scores, v, eta)), strict=True):
        for i, now in enumerate(double(t).expand(4)):
            g = path.gamma.value(now)
            agree(q[i], -noise[i] / g)
            agree(b[i], first[i] - path.gamma.slope(now) * q[i])
            agree(b[i], first[i] + 0.8 * (1 - 2 * now) / (2 * (now * (1 - now)).sqrt()) * noise[i])


def test_the_network_sees_one_time_a_sample_and_the_condition():
    seen = []

    def network(x, t, condition):
        seen.append((t, condition))
        return x, x

    field = InterpolantField(network, bridge(1.0), condition="told")
    for t in (0.25, torch.tensor(0.25), double([0.25] * 4)):
        field.velocity(normal((4, 3)), t)
    for time, condition in seen:
        assert (time.shape, time.dtype, condition) == ((4,), torch.float64, "told")
        assert (time == 0.25).all()


def bent(x, t, condition):
    return torch.sin(x) + t[:, None], torch.cos(x) * t[:, None]


def test_one_evaluation_serves_velocity_and_score_of_a_step():
    field, x, t = InterpolantField(bent, bridge(1.0)), normal((4, 3)), double(0.3)
    with torch.no_grad():
        field.velocity(x, t), field.score(x, t), field.denoiser(x, t)
    assert field.calls == 1


MOVES = {
    "another state": lambda x, t: (x + 1, t),
    "the state changed in place": lambda x, t: (x.add_(1), t),
    "another time": lambda x, t: (x, t + 0.1),
    "the time changed in place": lambda x, t: (x, t.mul_(0.5)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_change_of_place_is_noticed(move):
    field, x, t = InterpolantField(bent, bridge(1.0)), normal((4, 3)), double(0.3)
    with torch.no_grad():
        field.velocity(x, t)
        x, t = move(x, t)
        agree(field.velocity(x, t), bent(x, t.expand(4), None)[0])
    assert field.calls == 2


def test_an_answer_without_a_graph_does_not_serve_where_gradients_are_wanted():
    field, x, t = InterpolantField(bent, bridge(1.0)), normal((4, 3)).requires_grad_(), double(0.3)
    with torch.no_grad():
        field.velocity(x, t)
    (gradient,) = torch.autograd.grad(field.velocity(x, t).sum(), x)
    agree(gradient, torch.cos(x))


# the loss


def test_the_loss_has_its_published_form_over_the_antithetic_pair():
    path, field = bridge(0.8), InterpolantField(bent, bridge(0.8))
    x0, x1, t = normal((4, 3), 1), normal((4, 3), 2), PER_SAMPLE
    z = torch.randn(4, 3, generator=draws(), dtype=torch.float64)
    g = (0.64 * t * (1 - t)).sqrt()[:, None]
    dg = (0.64 * (1 - 2 * t) / 2)[:, None] / g
    wanted = {"b": 0, "v": 0}
    for n in (z, -z):
        first, eta = bent((1 - t[:, None]) * x0 + t[:, None] * x1 + g * n, t, None)
        for kind, target in (("b", x1 - x0 + dg * n), ("v", x1 - x0)):
            each = first**2 / 2 - target * first + eta**2 / 2 - n * eta
            wanted[kind] = wanted[kind] + each.mean(1) / 2
    agree(interpolant_loss(field, Pairs(x0, x1), t, draws()), wanted["b"])
    of_v = InterpolantField(bent, path, learns="v")
    agree(interpolant_loss(of_v, Pairs(x0, x1), t, draws()), wanted["v"])
    assert field.calls == 2


def test_the_loss_of_a_dict_is_the_sum_over_its_leaves():
    path, t = linear(quadratic()), PER_SAMPLE
    x0, x1 = normal({"a": (4, 3), "b": (4, 2, 2)}, 1), normal({"a": (4, 3), "b": (4, 2, 2)}, 11)
    both = InterpolantField(lambda x, t, c: (tree_map(torch.sin, x), tree_map(torch.cos, x)), path)
    one = InterpolantField(lambda x, t, c: (torch.sin(x), torch.cos(x)), path)
    g = draws()  # the leaves are drawn in order
    parts = [interpolant_loss(one, Pairs(x0[key], x1[key]), t, g) for key in x0]
    agree(interpolant_loss(both, Pairs(x0, x1), t, draws()), sum(parts))


def test_weights_of_the_pairs_count_over_their_mean():
    field, t = InterpolantField(bent, bridge(1.0)), PER_SAMPLE
    x0, x1, w = normal((4, 3), 1), normal((4, 3), 2), double([1.0, 2.0, 0.0, 5.0])
    plain = interpolant_loss(field, Pairs(x0, x1), t, draws())
    agree(interpolant_loss(field, Pairs(x0, x1, weight=w), t, draws()), plain * w / 2)


def minimiser(path, learns, pairs, t):
    """(intercept, slope) of the first output and of eta, at the minimum of the loss over fields linear in x.

    The loss is quadratic in the four numbers: its gradient is affine, and five of them say where it is zero.
    """
    time = torch.full((len(pairs.x1),), t, dtype=torch.float64)

    def gradient(theta):
        theta.requires_grad_()
        field = InterpolantField(
            lambda x, time, condition: (theta[0] + theta[1] * x, theta[2] + theta[3] * x), path, learns=learns
        )
        return torch.autograd.grad(interpolant_loss(field, pairs, time, draws()).mean(), theta)[0]

    at_zero = gradient(double([0.0] * 4))
    hessian = torch.stack([gradient(unit) - at_zero for unit in torch.eye(4, dtype=torch.float64)], 1)
    return -torch.linalg.solve(hessian, at_zero)


@pytest.mark.parametrize("learns", ["b", "v"])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("path", [bridge(1.0), trigonometric(quadratic(1.5))], ids=["bridge", "trigonometric"])
def test_the_minimiser_of_the_loss_is_the_exact_field(path, learns, t):
    """Least squares on (1, x) with Gaussian ends: b (or v) and eta are linear in x, so they are recovered."""
    m0, m1, S0, S1, n = 0.5, -1.0, 0.7, 1.2, 100_000
    pairs = Pairs(m0 + S0 * normal((n, 1), 1), m1 + S1 * normal((n, 1), 2))
    time = double(t)
    a, s, da, ds = (f(time).item() for f in (path.alpha, path.sigma, path.dalpha, path.dsigma))
    g, slope = path.gamma.value(time).item(), path.gamma.slope(time).item()
    C, mean = a**2 * S1**2 + s**2 * S0**2 + g**2, a * m1 + s * m0
    gain = (a * da * S1**2 + s * ds * S0**2 + (slope if learns == "b" else 0.0)) / C
    wanted = double([da * m1 + ds * m0 - gain * mean, gain, -g / C * mean, g / C])
    agree(minimiser(path, learns, pairs, t), wanted, rtol=0, atol=0.02)


def test_antithetic_noise_tames_the_loss_near_the_ends():
    """A single draw has a term gamma' z . b, of variance ~ 1 / t; in the pair it is gamma gamma' z^2 b', finite."""
    path, n = bridge(1.0), 4000
    field = interpolant_mixture(path, (double([[0.5]]), 0.7), (double([[-1.0]]), 1.2))
    pairs = Pairs(0.5 + 0.7 * normal((n, 1), 1), -1.0 + 1.2 * normal((n, 1), 2))
    for end in (MARGIN, 1 - MARGIN):
        t = torch.full((n,), end, dtype=torch.float64)
        z = normal((n, 1), 3)
        b, eta = field.predict(path.interpolate(pairs.x0, pairs.x1, t, z), t)
        dg = (path.gamma.slope(t) / path.gamma.value(t))[:, None]
        single = (b**2 / 2 - (path.drift(pairs.x0, pairs.x1, t) + dg * z) * b + eta**2 / 2 - z * eta).mean(1)
        pair = interpolant_loss(field, pairs, t, draws())
        assert pair.var() < single.var() / 30
        assert pair.var() < 20


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [brownian(), quadratic(), sine_squared(), zero()])
def test_the_loss_is_finite_at_both_ends(gamma, end):
    field = InterpolantField(bent, linear(gamma))
    pairs = Pairs(normal((4, 3), 1), normal((4, 3), 2))

    def at(t):
        return interpolant_loss(field, pairs, torch.full((4,), t, dtype=torch.float64), draws())

    assert torch.isfinite(at(end)).all()
    agree(at(end), at(abs(end - MARGIN)))  # t is kept that far from the ends


def test_the_noise_of_the_loss_comes_from_the_generator():
    field, pairs = InterpolantField(bent, bridge(1.0)), Pairs(normal((4, 3), 1), normal((4, 3), 2))
    state = torch.get_rng_state()
    one, again, other = (interpolant_loss(field, pairs, PER_SAMPLE, draws(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


# generation: the ODE and every SDE have the same marginals


def marginal(path, ends, t, n, seed):
    """n exact draws of x_t between two mixtures in one dimension."""
    sides = []
    for k, (means, stds) in enumerate(ends):
        which = torch.randint(len(means), (n,), generator=draws(seed + k))
        sides.append(means[which] + double(stds).expand(len(means))[which, None] * normal((n, 1), seed + k))
    return path.interpolate(*sides, t, normal((n, 1), seed + 2))


GAUSSIANS = (double([[0.5]]), 0.7), (double([[-1.0]]), 1.2)


@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_noise_level_carries_one_end_to_the_other(e, direction):
    """Euler-Maruyama of dX = (b + e q) dt + sqrt(2 e) dW, and of b - e q back from t = 1, on the bridge."""
    path, n = bridge(1.0), 20_000
    field = interpolant_mixture(path, *GAUSSIANS)
    grid = torch.linspace(path.start, path.stop, 201, dtype=torch.float64)
    if direction == "backward":
        grid = grid.flip(0)
    x = marginal(path, GAUSSIANS, grid[0].item(), n, 5)
    with torch.no_grad():
        x = solve(field, x, grid, euler_maruyama(lambda t: e), generator=draws())
    t = grid[-1].item()
    mean = (1 - t) * 0.5 + t * -1.0
    variance = (1 - t) ** 2 * 0.49 + t**2 * 1.44 + t * (1 - t)
    assert x.mean().item() == pytest.approx(mean, abs=0.03)
    assert x.var().item() == pytest.approx(variance, abs=0.03)
    assert field.calls == 200


@pytest.mark.parametrize("e", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("path", [bridge(1.0), trigonometric(brownian(0.7))], ids=["bridge", "trigonometric"])
def test_every_noise_level_has_the_marginals_of_the_interpolant_on_the_way(path, e):
    """Between mixtures, whole distributions, at two times."""
    ends, n = ((double([[-1.0], [1.5]]), double([0.4, 0.7])), (double([[2.0], [-2.0]]), double([0.5, 0.6]))), 3000
    field, seen = interpolant_mixture(path, *ends), {}
    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    with torch.no_grad():
        solve(
            field,
            marginal(path, ends, 0.01, n, 5),
            grid,
            euler_maruyama(lambda t: e),
            callback=lambda i, t, x: seen.update({i: x}),
            generator=draws(),
        )
    for i in (49, 98):
        wanted = marginal(path, ends, grid[i].item(), n, 50)
        assert stats.ks_2samp(seen[i].flatten().numpy(), wanted.flatten().numpy()).statistic < 1.95 * (2 / n) ** 0.5


def test_no_noise_is_the_ode():
    field, x = interpolant_mixture(bridge(1.0), *GAUSSIANS), normal((50, 1))
    assert torch.equal(solve(field, x, 20, euler_maruyama(lambda t: 0.0)), solve(field, x, 20, "euler"))


# the Schroedinger bridge


def test_the_marginal_variance_of_a_bridge_with_a_given_covariance():
    """(1 - t)^2 S0^2 + t^2 S1^2 + 2 t (1 - t) Cov + sigma^2 t (1 - t)."""
    S0, S1, covariance, sigma, n = 1.0, 2.0, 1.56155, 1.0, 200_000
    x0 = S0 * normal((n,), 1)
    x1 = covariance / S0**2 * x0 + math.sqrt(S1**2 - covariance**2 / S0**2) * normal((n,), 2)
    for t in (0.25, 0.5, 0.8):
        x = bridge(sigma).interpolate(x0, x1, t, normal((n,), 3))
        wanted = (1 - t) ** 2 * S0**2 + t**2 * S1**2 + 2 * t * (1 - t) * covariance + sigma**2 * t * (1 - t)
        assert x.var().item() == pytest.approx(wanted, rel=4 * math.sqrt(2 / n))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_between_two_points_the_drifts_are_those_of_the_brownian_bridge(sigma):
    """u = (1-2t)/(2t(1-t)) (x - mean) + x1 - x0, score -(x - mean)/(sigma^2 t(1-t)); with the joint drift
    u + sigma^2/2 score = (x1 - x)/(1 - t), Brownian motion of variance sigma^2 is pinned at x1, and back at x0."""
    x0, x1, x = normal((1, 3), 1), normal((1, 3), 2), normal((20, 3), 3)
    field = interpolant_mixture(bridge(sigma), (x0, 0.0), (x1, 0.0))
    for t in (0.1, 0.5, 0.9):
        mean = (1 - t) * x0 + t * x1
        b, q = field.velocity(x, t), field.score(x, t)
        agree(b, (1 - 2 * t) / (2 * t * (1 - t)) * (x - mean) + x1 - x0)
        agree(q, -(x - mean) / (sigma**2 * t * (1 - t)))
        agree(b + sigma**2 / 2 * q, (x1 - x) / (1 - t))
        agree(b - sigma**2 / 2 * q, (x - x0) / t)
        weight = 2 * math.sqrt(t * (1 - t)) / sigma  # [SF]2M's lambda: lambda (sigma^2 / 2) score = -z
        agree(weight * sigma**2 / 2 * q, -field.denoiser(x, t))


def test_the_joint_drift_with_bridge_noise_pins_the_process():
    """Simulated with e = sigma^2 / 2 between two points: mean and variance of a Brownian bridge at t = 1/2."""
    path, sigma, n = bridge(0.8), 0.8, 4000
    field = interpolant_mixture(path, (double([[1.0]]), 0.0), (double([[3.0]]), 0.0))
    grid, seen = torch.linspace(MARGIN, 1 - MARGIN, 201, dtype=torch.float64), {}
    start = 1 + sigma * math.sqrt(MARGIN) * normal((n, 1))
    method = euler_maruyama(lambda t: sigma**2 / 2)
    with torch.no_grad():
        end = solve(field, start, grid, method, callback=lambda i, t, x: seen.update({i: x}), generator=draws())
    assert seen[100].mean().item() == pytest.approx(2, abs=0.03)
    assert seen[100].var().item() == pytest.approx(sigma**2 / 4, abs=0.02)
    assert (end - 3).abs().mean() < 0.1


def test_the_mirror_noises_the_data_and_takes_the_noise_away():
    x1, z = normal((4, 3), 1), normal((4, 3), 2)
    path = mirror(brownian(0.25))
    agree(path.interpolate(normal((4, 3), 9), x1, 0.5, z), x1 + 0.25 * z)
    agree(path.drift(normal((4, 3), 9), x1, 0.5), torch.zeros(4, 3).double())


def test_an_interpolant_made_of_own_functions_is_like_the_others():
    own = Interpolant("own", lambda t: t**2, lambda t: 1 - t**2, lambda t: 2 * t, lambda t: -2 * t, quadratic())
    field, x = interpolant_mixture(own, *GAUSSIANS), normal((20, 1))
    a, s, g = 0.25, 0.75, 0.25
    C = a**2 * 1.44 + s**2 * 0.49 + g**2
    mean = a * -1.0 + s * 0.5
    gain = (a * 1.0 * 1.44 - s * 1.0 * 0.49 + 0.0) / C
    agree(field.velocity(x, 0.5), -1.0 - 0.5 + gain * (x - mean))


@pytest.mark.parametrize("gamma", ["brownian", "quadratic", "sine_squared", "zero"])
@pytest.mark.parametrize("between", ["linear", "trigonometric", "encoding_decoding", "mirror"])
def test_an_interpolant_by_its_names(between, gamma):
    factors = {"brownian": brownian, "quadratic": quadratic, "sine_squared": sine_squared}
    noise = factors[gamma](0.7) if gamma in factors else zero()
    shapes = {
        "linear": linear,
        "trigonometric": trigonometric,
        "encoding_decoding": encoding_decoding,
        "mirror": mirror,
    }
    found, wanted = interpolant(between, gamma, 0.7), shapes[between](noise)
    x0, x1, z, t = normal((4, 3), 1), normal((4, 3), 2), normal((4, 3), 3), PER_SAMPLE
    agree(found.interpolate(x0, x1, t, z), wanted.interpolate(x0, x1, t, z))
    agree(found.drift(x0, x1, t), wanted.drift(x0, x1, t))
    assert (found.name, found.source) == (between, gaussian)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_an_interpolant_of_no_scale(scale):
    with pytest.raises(ValueError, match="a number above 0"):
        interpolant(scale=scale)


def test_a_trigonometric_interpolant_has_room_for_its_noise():
    with pytest.raises(ValueError, match="gamma below 1, and sine_squared of scale 1 goes to 1"):
        interpolant("trigonometric", "sine_squared")


@each_shape
@pytest.mark.parametrize("learns", ["b", "v"])
def test_the_drift_is_the_velocity_without_the_noise(shape, learns):
    path, x, t = bridge(0.8), normal(shape), PER_SAMPLE
    field = InterpolantField(lambda x, time, condition: (normal(shape, 11), normal(shape, 21)), path, learns=learns)
    for v, b, eta in zip(*map(leaves, (field.drift(x, t), field.velocity(x, t), field.denoiser(x, t))), strict=True):
        for i, now in enumerate(t):
            agree(b[i] - v[i], path.gamma.slope(now) / path.gamma.value(now) * eta[i])
