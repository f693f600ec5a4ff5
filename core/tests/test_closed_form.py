"""The exact fields against quadrature of their definition, and against identities that use none of their formulas."""

from dataclasses import replace

import pytest
import torch

from flowcore import interpolants, paths
from flowcore.closed_form import MixtureVelocity, correlated, interpolant_mixture, mixture
from flowcore.field import Field
from flowcore.seeds import generator
from flowcore.solvers import euler, exponential, solve, time_grid


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


PATHS = {
    "linear": paths.linear(),
    "linear with floor": paths.linear(0.05),
    "polynomial": paths.polynomial(2.0),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "ve": paths.ve(5.0),
    "general": paths.general(lambda t: t**3, lambda t: 1 - t),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
INTERPOLANTS = {
    "bridge": interpolants.bridge(0.8),
    "linear": interpolants.linear(interpolants.quadratic()),
    "trigonometric": interpolants.trigonometric(interpolants.brownian(0.7)),
    "encoding_decoding": interpolants.encoding_decoding(),
    "no noise": interpolants.linear(interpolants.zero()),
}
each_interpolant = pytest.mark.parametrize("path", INTERPOLANTS.values(), ids=INTERPOLANTS.keys())
each_shape = pytest.mark.parametrize("shape", [(4, 1), (4, 4), (4, 2, 3, 3)], ids=str)
PER_SAMPLE = double([0.1, 0.35, 0.6, 0.9])
each_t = pytest.mark.parametrize("t", [0.35, PER_SAMPLE], ids=["scalar", "per sample"])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def agree(a, b, rtol=1e-8, atol=1e-8):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def at(path, t, like):
    """alpha, sigma, alpha', sigma' at t, shaped to multiply ``like``."""
    t = double(t)
    t = t.reshape(-1, *(1,) * (like.ndim - 1)) if t.ndim else t
    return path.alpha(t), path.sigma(t), path.dalpha(t), path.dsigma(t)


# one Gaussian


@each_path
@each_shape
@each_t
def test_the_field_of_gaussian_data_is_linear_in_x(path, shape, t):
    m, S, x = normal(1, *shape[1:], seed=1), 0.6, normal(*shape)
    a, s, da, ds = at(path, t, x)
    C = a**2 * S**2 + s**2
    field = mixture(path, m, S)
    agree(field.velocity(x, t), da * m + (a * da * S**2 + s * ds) / C * (x - a * m))
    agree(field.x1(x, t), m + a * S**2 / C * (x - a * m))
    agree(field.noise(x, t), s / C * (x - a * m))
    agree(field.score(x, t), -(x - a * m) / C)


@each_shape
def test_with_unit_variance_on_the_cosine_path_the_velocity_is_the_same_everywhere(shape):
    m = normal(1, *shape[1:], seed=1)
    field = mixture(paths.cosine(), m, 1.0)
    for t in (0.0, 0.3, 1.0):
        agree(field.velocity(normal(*shape), t), (at(paths.cosine(), t, m)[2] * m).expand(shape))


@each_path
@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 3, 3)], ids=str)
def test_the_flow_scales_and_shifts_the_source_whatever_the_path(path, shape):
    """x(t) = a m + sqrt(C(t) / C(0)) (x(0) - a(0) m), which is m + S x(0) where the path begins and ends clean."""
    m, S = normal(1, *shape[1:], seed=1), 0.6
    x0 = path.initial(normal(*shape))
    got = solve(mixture(path, m, S), x0, 100, "rk4")
    start, stop = (double(t) for t in (path.start, path.stop))
    C0, C1 = (path.alpha(t) ** 2 * S**2 + path.sigma(t) ** 2 for t in (start, stop))
    agree(got, path.alpha(stop) * m + (C1 / C0).sqrt() * (x0 - path.alpha(start) * m), rtol=0, atol=5e-4)
    if path.name in ("linear", "polynomial", "cosine", "general") and path.sigma(stop) == 0:
        agree(got, m + S * x0, rtol=0, atol=1e-5)


def test_the_flow_map_of_five_paths_is_one_map():
    m, S, x0 = normal(1, 3, seed=1), 0.6, normal(50, 3)
    for path in (paths.linear(), paths.polynomial(3.0), paths.polynomial(2.0), paths.cosine(), PATHS["general"]):
        agree(solve(mixture(replace(path, start=0.0), m, S), x0, 60, "rk4"), m + S * x0, rtol=0, atol=1e-6)


# mixtures


def density(path, means, stds, weights, x, t):
    """p_t(x) of a one-dimensional mixture along an affine path."""
    a, s, _, _ = at(path, t, torch.zeros(()))
    parts = torch.distributions.Normal(a * means, (a * a * stds * stds + s * s).sqrt())
    return parts.log_prob(x[:, None]).exp() @ weights


M1 = double([[-2.0], [0.5], [3.0]])
S1 = double([0.5, 0.3, 0.8])
W1 = double([1.0, 2.0, 1.0])


@each_path
@pytest.mark.parametrize("t", [0.2, 0.5, 0.85])
def test_a_mixture_is_the_conditional_expectation_of_the_pairs(path, t):
    """E[f | x_t = x] = int f p1(x1) p0((x - a x1) / s) dx1 / int p1 p0, by quadrature."""
    field = mixture(path, M1, S1, W1)
    a, s, da, ds = (value.item() for value in at(path, t, torch.zeros(())))
    p1 = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(W1 / W1.sum()), torch.distributions.Normal(M1[:, 0], S1)
    )
    for x in (-1.5, 0.1, 2.0):
        data = torch.linspace(-9, 12, 4001, dtype=torch.float64)
        noise = (x - a * data) / s
        joint = torch.exp(p1.log_prob(data) - noise**2 / 2)
        point = double([[x]])
        for answer, f in ((field.velocity, da * data + ds * noise), (field.x1, data), (field.noise, noise)):
            wanted = ((f * joint).sum() / joint.sum()).item()
            assert answer(point, t).item() == pytest.approx(wanted, rel=1e-8, abs=1e-8)


@each_path
@each_shape
@each_t
def test_a_mixture_weighs_the_fields_of_its_parts_by_their_responsibilities(path, shape, t):
    means, x = normal(3, *shape[1:], seed=1), normal(*shape)
    stds, weights = double([0.5, 1.0, 0.2]), double([0.2, 0.5, 0.3])
    a, s, _, _ = at(path, t, x)
    log = []
    for m, S, w in zip(means, stds, weights, strict=True):
        C = a**2 * S**2 + s**2
        normals = -((x - a * m) ** 2) / (2 * C) - 0.5 * torch.log(2 * torch.pi * C)
        log.append(w.log() + normals.flatten(1).sum(1))
    r = torch.stack(log).softmax(0)
    field = mixture(path, means, stds, weights)
    for kind in ("velocity", "score"):
        parts = [getattr(mixture(path, m[None], S), kind)(x, t) for m, S in zip(means, stds, strict=True)]
        wanted = sum(one.reshape(-1, *(1,) * (x.ndim - 1)) * part for one, part in zip(r, parts, strict=True))
        agree(getattr(field, kind)(x, t), wanted)


@each_path
@each_shape
@each_t
def test_velocity_score_and_posterior_of_the_module_agree_through_the_path(path, shape, t):
    field, x = mixture(path, normal(3, *shape[1:], seed=1), 0.4), normal(*shape)
    exact = field.network
    agree(exact.posterior(x, double(t)), field.x1(x, t))
    agree(exact.score(x, double(t)), field.score(x, t))


@each_path
def test_mixtures_satisfy_the_continuity_equation(path):
    """d log p / dt + div v + v . score = 0, where p is written down here and differentiated."""
    field = mixture(path, M1, S1, W1)
    t = torch.tensor(0.45, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    log_p = density(path, M1[:, 0], S1, W1 / W1.sum(), x, t).log()
    q = torch.autograd.grad(log_p.sum(), x, retain_graph=True)[0]
    rate = torch.stack([torch.autograd.grad(one, t, retain_graph=True)[0] for one in log_p])
    y = x.detach()[:, None].requires_grad_()
    v = field.velocity(y, 0.45)
    divergence = torch.autograd.grad(v.sum(), y)[0][:, 0]
    agree(rate + divergence + v[:, 0] * q, torch.zeros_like(q))
    agree(field.score(y, 0.45)[:, 0], q)


@pytest.mark.parametrize("K", [1, 4])
def test_equal_weights_are_the_default_and_weights_are_normalised(K):
    means, x = normal(K, 2, seed=1), normal(5, 2)
    equal = mixture(paths.linear(), means, 0.3).velocity(x, 0.4)
    agree(mixture(paths.linear(), means, 0.3, double([7.0] * K)).velocity(x, 0.4), equal)
    agree(mixture(paths.linear(), means, double([0.3] * K)).velocity(x, 0.4), equal)


def test_a_component_of_no_weight_is_not_there():
    means, x = normal(3, 2, seed=1), normal(5, 2)
    weights = double([0.5, 0.0, 0.5])
    agree(
        mixture(paths.cosine(), means, 0.3, weights).velocity(x, 0.6),
        mixture(paths.cosine(), means[[0, 2]], 0.3).velocity(x, 0.6),
    )


def test_the_posterior_is_finite_at_both_ends():
    exact, x = mixture(paths.linear(), M1, S1, W1).network, normal(5, 1)
    mean = (W1 @ M1 / W1.sum()).expand(5, 1)
    agree(exact.posterior(x, double(0.0)), mean)  # pure noise tells nothing
    agree(exact.posterior(x, double(1.0)), x)  # the data tell all


def test_the_samples_of_a_mixture_have_its_weights():
    x0 = normal(2000, 1)
    x = solve(mixture(paths.linear(), M1, S1, W1), x0, 50, "heun")
    shares = [(x < -0.8).double().mean(), ((x > -0.8) & (x < 1.5)).double().mean()]
    assert shares == pytest.approx([0.25, 0.50], abs=0.05)


# points: S = 0


@each_path
@each_shape
@each_t
def test_with_one_data_point_the_posterior_is_that_point(path, shape, t):
    y = normal(1, *shape[1:], seed=1)
    field, x = mixture(path, y), normal(*shape)
    agree(field.network.posterior(x, double(t)), y.expand(shape))
    agree(field.x1(x, t), y.expand(shape))
    a, s, da, ds = at(path, t, x)
    agree(field.velocity(x, t), da * y + ds * (x - a * y) / s)


@each_path
@pytest.mark.parametrize("shape", [(4, 3), (4, 4), (4, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_one_exponential_step_carries_any_path_to_a_single_data_point(path, shape, order):
    """On the conditional path x_r = alpha_r y + sigma_r x0, from a time inside and, where x1 is defined, from 0."""
    y, x0 = normal(1, *shape[1:], seed=1), normal(*shape)
    field = mixture(path, y)
    starts = [0.3] if path.name in ("polynomial", "general") else [path.start, 0.3]  # their velocity is zero at 0
    for start in starts:
        x = path.interpolate(x0, y.expand(shape), start)
        for stop in (0.7, path.stop):
            got = solve(field, x, double([start, stop]), exponential(order))
            agree(got, path.interpolate(x0, y.expand(shape), stop))


@pytest.mark.parametrize("name", [name for name in PATHS if name != "general"])  # its user says where it may start
def test_an_exponential_solve_over_the_whole_path_arrives_at_a_single_data_point(name):
    path, y, x0 = PATHS[name], normal(1, 3, seed=1), normal(4, 3)
    got = solve(mixture(path, y), path.initial(x0), 5, "exponential")
    sigma = path.sigma(double(path.stop)).item()
    agree(got, y.expand(4, 3), rtol=0, atol=5 * sigma + 0.01)


def test_on_the_linear_path_an_exponential_step_of_order_one_is_an_euler_step():
    field, x = mixture(paths.linear(), normal(5, 3, seed=1), 0.4), normal(6, 3)
    grid = time_grid(7)
    agree(solve(field, x, grid, exponential(1)), solve(field, x, grid, euler()), rtol=0, atol=1e-12)


def test_the_samples_of_a_set_of_points_are_the_points():
    points, x0 = normal(6, 2, seed=1), normal(100, 2)
    x = solve(mixture(paths.linear(), points), x0, time_grid(50, 0.0, 1 - 1e-6), "heun")
    nearest = torch.cdist(x, points).min(1)
    assert nearest.values.max() < 1e-4
    assert len(nearest.indices.unique()) == 6


# two mixtures


SOURCE = (double([[-1.0], [1.5]]), double([0.4, 0.7]))
DATA = (double([[2.0], [-2.0], [0.3]]), double([0.5, 0.3, 0.6]))


def mixed(end):
    means, stds = end
    shares = torch.distributions.Categorical(torch.ones(len(means), dtype=torch.float64))
    return torch.distributions.MixtureSameFamily(shares, torch.distributions.Normal(means[:, 0], stds))


@pytest.mark.parametrize("name", ["bridge", "linear", "trigonometric", "encoding_decoding"])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_an_interpolant_mixture_is_the_conditional_expectation_of_the_pairs(name, t):
    """E[f | x_t = x] by quadrature over x0 and x1; z is what is left of x."""
    path = INTERPOLANTS[name]
    field = interpolant_mixture(path, SOURCE, DATA)
    time = double(t)
    g = path.gamma.value(time)
    grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
    x0, x1 = grid[:, None], grid[None, :]
    for x in (-0.8, 1.1):
        point = double([[x]])
        z = (x - path.alpha(time) * x1 - path.sigma(time) * x0) / g
        joint = torch.exp(mixed(SOURCE).log_prob(x0) + mixed(DATA).log_prob(x1) - z**2 / 2)
        b = path.dalpha(time) * x1 + path.dsigma(time) * x0 + path.gamma.slope(time) / g * z
        exact = MixtureVelocity(path, ((*DATA, double([1, 1, 1])), (*SOURCE, double([1, 1]))))
        for answer, f in ((field.velocity, b), (field.denoiser, z), (field.score, -z / g), (exact.posterior, x1)):
            wanted = ((f * joint).sum() / joint.sum()).item()
            assert answer(point, time).item() == pytest.approx(wanted, rel=1e-8, abs=1e-8)


@each_interpolant
@each_shape
@each_t
def test_each_pair_of_parts_has_mean_a_mu1_plus_b_mu0_and_covariance_with_the_noise(path, shape, t):
    source, data = normal(2, *shape[1:], seed=1), normal(3, *shape[1:], seed=2)
    R, S = double([0.4, 0.7]), double([0.5, 0.3, 0.6])
    x = normal(*shape)
    time = double(t)
    time = time.reshape(-1, *(1,) * (x.ndim - 1)) if time.ndim else time
    a, s, g = path.alpha(time), path.sigma(time), path.gamma.value(time)
    log, scores = [], []
    for n, r in zip(source, R, strict=True):
        for m, one in zip(data, S, strict=True):
            C = a**2 * one**2 + s**2 * r**2 + g**2
            d = x - a * m - s * n
            log.append((-(d**2) / (2 * C) - torch.log(2 * torch.pi * C) / 2).flatten(1).sum(1))
            scores.append(-d / C)
    share = torch.stack(log).softmax(0)
    wanted = sum(w.reshape(-1, *(1,) * (x.ndim - 1)) * q for w, q in zip(share, scores, strict=True))
    exact = MixtureVelocity(path, ((data, S, double([1, 1, 1])), (source, R, double([1, 1]))))
    agree(exact.score(x, double(t)), wanted)
    if path.gamma.value(torch.tensor(0.3)) > 0:
        agree(interpolant_mixture(path, (source, R), (data, S)).denoiser(x, t), -g * wanted)


@each_interpolant
def test_interpolant_mixtures_satisfy_the_continuity_equation(path):
    """In two dimensions, with log p written down here: d log p / dt + div b + b . score = 0."""
    n, m = normal(2, 2, seed=1), normal(3, 2, seed=2)
    ends = (m, double([0.5, 0.3, 0.6]), double([1, 1, 1])), (n, double([1, 1]), double([1, 1]))
    exact = MixtureVelocity(path, ends)

    def log_p(x, t):
        a, s, g = path.alpha(t), path.sigma(t), path.gamma.value(t)
        C = a**2 * double([0.25, 0.09, 0.36]) + s**2 + g**2
        d = x - (a * m[None] + s * n[:, None])  # (2, 3, 2)
        return torch.logsumexp((-(d**2).sum(-1) / (2 * C) - C.log()).flatten(), 0)

    for t in (0.2, 0.7):
        time = double(t)
        for x in normal(5, 2, seed=3):
            score, rate = torch.func.grad(log_p, argnums=(0, 1))(x, time)
            b = exact(x[None], time)[0]
            divergence = torch.func.jacrev(lambda y, time=time: exact(y[None], time)[0])(x).trace()
            agree(rate + divergence + b @ score, torch.zeros((), dtype=torch.float64))
            agree(exact.score(x[None], time)[0], score)


@each_path
@each_t
def test_with_a_standard_normal_source_and_no_gamma_the_interpolant_is_the_affine_path(path, t):
    means, x = normal(3, 4, seed=1), normal(4, 4)
    two_ended = interpolants.Interpolant(
        path.name, path.alpha, path.sigma, path.dalpha, path.dsigma, interpolants.zero(), path.start, path.stop
    )
    origin = (torch.zeros(1, 4, dtype=torch.float64), 1.0)
    agree(interpolant_mixture(two_ended, origin, (means, 0.5)).velocity(x, t), mixture(path, means, 0.5).velocity(x, t))


def test_the_module_moves_its_buffers_and_holds_no_parameters():
    field = mixture(paths.linear(), M1, S1, W1)
    assert list(field.network.parameters()) == []
    narrow = Field(mixture(paths.linear(), M1, S1, W1).network.float(), paths.linear())
    x = normal(5, 1)
    assert narrow.velocity(x.float(), 0.4).dtype == torch.float32
    torch.testing.assert_close(narrow.velocity(x.float(), 0.4).double(), field.velocity(x, 0.4), rtol=1e-5, atol=1e-5)


# correlated data


@each_path
def test_uncorrelated_data_are_a_mixture_of_one(path):
    t = double([0.2, 0.5, 0.9])
    x = torch.randn(3, 4, generator=generator(0), dtype=torch.float64)
    mean = torch.randn(4, generator=generator(1), dtype=torch.float64)
    found = correlated(path, mean, 0.25 * torch.eye(4, dtype=torch.float64)).velocity(x, t)
    torch.testing.assert_close(found, mixture(path, mean[None], 0.5).velocity(x, t))


def test_the_flow_of_correlated_data_ends_at_their_covariance():
    """The flow of a Gaussian is linear: the images of 0 and of the unit vectors tell all of it, in each channel."""
    S = double([[1.0, 0.6, 0.2], [0.6, 2.0, -0.5], [0.2, -0.5, 0.5]])
    x0 = torch.cat([torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)])
    x1 = solve(correlated(paths.linear(), double(1.5), S), torch.stack([x0, x0], 1), 200, "rk4")
    A = x1[1:] - x1[:1]
    torch.testing.assert_close(x1[0], torch.full((2, 3), 1.5, dtype=torch.float64), atol=1e-6, rtol=0)
    for channel in (0, 1):
        torch.testing.assert_close(A[:, channel].T @ A[:, channel], S, atol=1e-5, rtol=0)
