"""The local geometry of fields, against Gaussian data N(0, Sigma) and finite sets of points, whose fields are known.

Sigma_t = t^2 Sigma + (1 - t)^2 I,   v = (t Sigma - (1 - t) I) Sigma_t^-1 x,   score = -Sigma_t^-1 x
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import flowcore.jacobian as jacobians
from flowcore.closed_form import mixture
from flowcore.field import Field
from flowcore.jacobian import (
    asymmetry,
    circle,
    flow_dimension,
    flow_spectrum,
    from_rows,
    gauge_residual,
    gauge_share,
    jacobian,
    jacobian_products,
    line_integral,
    negative_mass,
    path_dependence,
    polyline,
    random_plane,
    score_dimension,
    score_spectrum,
    to_rows,
    triangle,
)
from flowcore.likelihood import exact_divergence
from flowcore.paths import cosine, linear
from flowcore.seeds import generator
from flowcore.solvers import solve
from flowcore.state import tree_map

TIMES = [0.0, 0.3, 0.7, 0.95]
STATES = {"rows": (5, 4), "square": (4, 4), "images": (3, 1, 2, 2), "dict": {"a": (3, 2), "b": {"c": (3, 1, 2)}}}
states = pytest.mark.parametrize("shape", STATES.values(), ids=STATES.keys())


def draws(seed=0):
    return generator(seed, "test")


def normal(shape, seed=0):
    if isinstance(shape, dict):
        return {key: normal(one, seed + i) for i, (key, one) in enumerate(shape.items())}
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def linear_field(matrix):
    """v = M x on the rows of any state, whatever t."""
    return lambda x, t: from_rows(to_rows(x) @ matrix.T, x)


def skew(d, seed=0):
    matrix = normal((d, d), seed)
    return matrix - matrix.T


def gaussian_data(variances, seed=0):
    """Data N(0, Sigma) in random directions: the field, Sigma, and Sigma_t as a function of t."""
    variances = torch.as_tensor(variances, dtype=torch.float64)
    U = torch.linalg.qr(normal((len(variances),) * 2, seed)).Q

    def network(x, t, condition):
        t = t[:, None]
        gain = (t * variances - (1 - t)) / (t**2 * variances + (1 - t) ** 2)
        return ((x.flatten(1) @ U) * gain @ U.T).view_as(x)

    Sigma = (U * variances) @ U.T
    return Field(network, linear()), Sigma, lambda t: t**2 * Sigma + (1 - t) ** 2 * torch.eye(len(Sigma)).double()


def curled(field, c, matrix):
    """The field with c M score added: a rotation along the level lines of p_t for a skew M."""
    return lambda x, t: field(x, t) + c * field.score(x, t) @ matrix.T


def points_at(field, t, count=8, seed=0):
    """Samples of p_t of a ``mixture``."""
    means, std = field.network.m, field.network.data_variance.sqrt()
    which = torch.randint(len(means), (count,), generator=draws(seed))
    data = means[which] + std[which, None] * normal((count, means.shape[1]), seed + 1)
    return field.path.interpolate(normal(data.shape, seed + 2), data, t)


@states
def test_the_jacobian_of_a_linear_field_is_its_matrix(shape):
    x, M = normal(shape), normal((4, 4), 5)
    count = len(to_rows(x))
    torch.testing.assert_close(jacobian(linear_field(M), x, 0.5), M.expand(count, 4, 4))
    e = normal((count, 4), 6)
    forward, backward = jacobian_products(linear_field(M), x, 0.5, e)
    torch.testing.assert_close(forward, e @ M.T)
    torch.testing.assert_close(backward, e @ M)


@states
def test_rows_and_states_are_two_views_of_the_same_numbers(shape):
    x = normal(shape)
    assert to_rows(x).shape[1] == 4
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), x, from_rows(to_rows(x), x))


@pytest.mark.parametrize("predicts", ["velocity", "x1", "noise"])
@pytest.mark.parametrize("path", [linear(), cosine()], ids=["linear", "cosine"])
def test_a_field_is_differentiated_as_it_is_whatever_its_network_predicts(path, predicts):
    exact = mixture(path, normal((5, 3)), 0.4)
    field = Field(lambda x, t, c: exact.path.convert(exact(x, t), x, t, "velocity", predicts), path, predicts)
    x, t, h = points_at(exact, 0.6), torch.tensor(0.6).double(), 1e-6
    e = normal(x.shape, 9)
    before = field(x, t)  # the field now holds an evaluation at these very tensors
    difference = (exact(x + h * e, t) - exact(x - h * e, t)) / (2 * h)
    J = jacobian(field, x, t)
    torch.testing.assert_close((J @ e[..., None])[..., 0], difference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(jacobian_products(field, x, t, e)[0], difference, rtol=1e-6, atol=1e-6)
    assert torch.equal(field(x, t), before)
    a, s, da, ds = path.coefficients(t)
    torch.testing.assert_close(jacobian(field.x1, x, t), (s * J - ds * torch.eye(3)) / (da * s - ds * a))


def test_each_sample_keeps_its_own_condition_and_time():
    c, t = torch.tensor([1.0, -2.0, 3.0]).double(), torch.tensor([0.1, 0.5, 0.9]).double()
    field = Field(lambda x, t, c: (c * t)[:, None] * x, linear(), condition=c)
    J = jacobian(field, normal((3, 2)), t)
    torch.testing.assert_close(J, (c * t)[:, None, None] * torch.eye(2).double().expand(3, 2, 2))


@pytest.mark.parametrize("t", TIMES)
def test_the_exact_jacobian_for_gaussian_data_is_symmetric(t):
    field, Sigma, at = gaussian_data([0.2, 1.0, 3.0, 0.5])
    J = jacobian(field, normal((4, 4)), t)
    torch.testing.assert_close(J, (t * Sigma - (1 - t) * torch.eye(4)) @ torch.linalg.inv(at(t)).expand(4, 4, 4))
    assert (J - J.mT).abs().max() < 1e-6
    assert asymmetry(field, normal((4, 4)), t).max() < 1e-6


@states
@pytest.mark.parametrize("probes", [None, 3])
def test_asymmetry_is_one_for_a_rotation_and_zero_for_a_gradient(shape, probes):
    x, R, S = normal(shape), skew(4), normal((4, 4), 3)
    found = [asymmetry(linear_field(M), x, 0.5, probes, draws()) for M in (R, S + S.T, 0 * S)]
    ones = torch.ones(len(to_rows(x))).double()
    for value, expected in zip(found, (1, 0, 0), strict=True):
        torch.testing.assert_close(value, expected * ones)


def test_asymmetry_is_the_share_of_the_skew_part():
    R, S = skew(4), normal((4, 4), 3)
    S = S + S.T
    share = R.norm() / (R.square().sum() + S.square().sum()).sqrt()
    torch.testing.assert_close(asymmetry(linear_field(R + S), normal((2, 4)), 0.5), share.expand(2))


def test_random_probes_are_within_five_per_cent_of_the_exact_asymmetry():
    M, x = normal((10, 10)), normal((6, 10), 1)

    def field(x, t):
        return torch.tanh(x @ M.T)

    exact, estimate = asymmetry(field, x, 0.6), asymmetry(field, x, 0.6, 256, draws())
    assert 0.3 < exact.min() < exact.max() < 0.9
    torch.testing.assert_close(estimate, exact, rtol=0.05, atol=0)
    assert not torch.equal(estimate, exact)
    assert torch.equal(asymmetry(field, x, 0.6, 5, draws()), asymmetry(field, x, 0.6, 5, draws()))


def test_random_probes_go_through_fused_attention():
    torch_generator = draws()
    W = [torch.randn(3, 24, generator=torch_generator), torch.randn(8, 3, generator=torch_generator)]

    def network(x, t, condition):
        q, k, v = (part.view(len(x), 5, 2, 4).transpose(1, 2) for part in (x @ W[0]).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ W[1]

    field, x = Field(network, linear()), normal((3, 5, 3)).float()
    torch.testing.assert_close(asymmetry(field, x, 0.5, 400, draws()), asymmetry(field, x, 0.5), rtol=0.05, atol=0)


def test_negative_mass_is_the_share_of_negative_eigenvalues_of_the_symmetric_part():
    M = torch.diag(torch.tensor([3.0, -1.0, 0.0, -1.0]).double())
    mass = negative_mass(linear_field(M + skew(4)), normal((2, 4)), 0.5)
    torch.testing.assert_close(mass, torch.full((2,), 0.4).double())
    assert negative_mass(linear_field(0 * M), normal((2, 4)), 0.5).max() == 0


@pytest.mark.parametrize("std", [0.3, 0.0])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 0.99])
def test_the_exact_posterior_mean_has_no_negative_mass(t, std):
    field = mixture(linear(), 2 * normal((6, 4)), std)
    assert negative_mass(field.x1, points_at(field, t), t).max() < 1e-12


@states
def test_stokes_holds_around_circles_and_triangles_of_a_linear_field(shape):
    x, M, radius = normal(shape), normal((4, 4), 3), 0.8
    plane = random_plane(x, draws())
    torch.testing.assert_close(plane.mT @ plane, torch.eye(2).double().expand(len(plane), 2, 2))
    curl = torch.einsum("bi,ij,bj->b", plane[..., 0], M.T - M, plane[..., 1])
    for loop, area in ((circle(x, plane, radius), math.pi * radius**2), (triangle(x, plane, radius), radius**2 / 2)):
        torch.testing.assert_close(loop.steps.sum(0), torch.zeros_like(loop.steps[0]))
        torch.testing.assert_close(line_integral(linear_field(M), loop, x, 0.5).value, area * curl)


def test_stokes_holds_around_small_circles_of_any_field():
    field = mixture(linear(), 2 * normal((6, 4)), 0.5)
    x, t, radius = points_at(field, 0.6), 0.6, 1e-3
    tilted = curled(field, 0.5, skew(4))
    plane = random_plane(x, draws())
    J = jacobian(tilted, x, t)
    curl = torch.einsum("bi,bij,bj->b", plane[..., 0], J.mT - J, plane[..., 1])
    found = line_integral(tilted, circle(x, plane, radius), x, t).value
    torch.testing.assert_close(found, math.pi * radius**2 * curl, rtol=1e-4, atol=1e-4 * radius**2)


def test_the_loop_ratio_is_one_along_a_rotation_and_zero_around_a_gradient():
    R, x = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double(), torch.zeros(3, 2).double()
    plane = random_plane(x, draws())
    turn = line_integral(linear_field(R), circle(x, plane, 0.5), x, 0.5)
    torch.testing.assert_close(turn.ratio, torch.ones(3).double())
    field = mixture(linear(), 2 * normal((6, 2)), 0.5)
    for loop in (circle(x, plane, 0.5), triangle(x, plane, 0.5)):
        assert line_integral(field, loop, x, 0.6).ratio.max() < 1e-10
    still = line_integral(linear_field(0 * R), circle(x, plane, 0.5), x, 0.5)
    assert still.ratio.max() == 0


@pytest.mark.parametrize("t", [0.05, 0.2, 0.5, 0.8, 0.95])
def test_the_exact_field_of_a_finite_set_of_points_is_a_gradient(t):
    field = mixture(linear(), normal((200, 16)))
    x = points_at(field, t, 16)
    assert asymmetry(field, x, t).max() < 1e-5
    plane = random_plane(x, draws())
    assert line_integral(field, circle(x, plane, 0.5), x, t).ratio.max() < 1e-4
    assert line_integral(field, triangle(x, plane, 0.5), x, t).ratio.max() < 1e-4


def test_a_curve_is_integrated_along_its_length():
    corners = [normal((3, 2), i) for i in range(4)]
    length = sum((b - a).norm(dim=1) for a, b in pairwise(corners))
    torch.testing.assert_close(polyline(corners).steps.norm(dim=-1).sum(0), length)
    plane = random_plane(corners[0], draws())
    around = circle(corners[0], plane, 0.3).steps.norm(dim=-1).sum(0)
    torch.testing.assert_close(around, torch.full((3,), 2 * math.pi * 0.3).double())


def test_the_log_density_does_not_depend_on_the_way_where_the_score_is_exact():
    weights, means, t = torch.tensor([0.3, 0.7]).double(), normal((2, 3)), 0.6
    field = mixture(linear(), means, 0.5, weights)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.Independent(
            torch.distributions.Normal(t * means, math.sqrt(t**2 * 0.25 + (1 - t) ** 2) * torch.ones_like(means)), 1
        ),
    )
    start, stop, via = (normal((5, 3), i) for i in (1, 2, 3))
    ways = path_dependence(field.score, start, stop, via, t)
    truth = law.log_prob(stop) - law.log_prob(start)
    torch.testing.assert_close(ways.direct, truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ways.detour, truth, rtol=1e-6, atol=1e-6)


def test_the_log_density_of_a_curling_score_depends_on_the_way_by_the_area_between():
    start, stop, via = (torch.tensor([corner]).double() for corner in ([0.0, 0.0], [2.0, 0.0], [1.0, 1.0]))
    R = torch.tensor([[0.0, -0.3], [0.3, 0.0]]).double()  # curl 0.6 over an area of 1
    ways = path_dependence(lambda x, t: -x + x @ R.T, start, stop, via, 0.5)
    torch.testing.assert_close(ways.direct - ways.detour, torch.tensor([0.6]).double())


GAUGE = [0.3, 1.0, 2.5]


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_a_rotation_along_the_level_lines_is_pure_gauge(t):
    field, _, _ = gaussian_data(GAUGE)
    R, x = skew(3), normal((6, 3))
    assert asymmetry(curled(field, 0.5, R), x, t).min() > 0.1
    assert gauge_residual(lambda x, t: 0.5 * field.score(x, t) @ R.T, field.score, x, t).abs().max() < 1e-10


def test_a_rotation_across_the_level_lines_is_not():
    field, _, at = gaussian_data(GAUGE)
    R, x, t = skew(3), normal((6, 3)), 0.7
    residual = gauge_residual(linear_field(R), field.score, x, t)
    torch.testing.assert_close(residual, -torch.einsum("bi,ij,jk,bk->b", x, torch.linalg.inv(at(t)), R, x))
    assert residual.abs().max() > 0.1
    expansion = gauge_residual(linear_field(2 * torch.eye(3).double()), lambda x, t: 0 * x, x, t)
    torch.testing.assert_close(expansion, torch.full((6,), 6.0).double())


@pytest.mark.parametrize("along", [True, False], ids=["along", "across"])
def test_only_a_gauge_term_leaves_the_covariance_of_the_samples(along):
    field, _, at = gaussian_data(GAUGE)
    R = skew(3)
    moved = curled(field, 0.5, R) if along else lambda x, t: field(x, t) + 0.5 * x @ R.T
    Y = solve(moved, torch.eye(3).double(), torch.linspace(0, 0.999, 301), "rk4").T  # a linear flow moves x0 to Y x0
    error = (Y @ Y.T - at(0.999)).abs().max()
    assert error < 1e-5 if along else error > 0.3
    assert not torch.allclose(Y, Y.T, atol=0.1)


def test_the_gauge_residual_by_probes_agrees_with_the_exact_one():
    field = mixture(linear(), 2 * normal((6, 10)), 0.5)
    x, t = points_at(field, 0.6, 4), 0.6

    def remainder(x, t):
        return torch.sin(x) * x.roll(1, -1)

    exact = gauge_residual(remainder, field.score, x, t)
    torch.testing.assert_close(gauge_residual(remainder, field.score, x, t, 1000, draws()), exact, rtol=0.05, atol=0.3)
    pictures = gauge_residual(
        lambda x, t: remainder(x.flatten(1), t).view_as(x), lambda x, t: field.score(x.flatten(1), t).view_as(x),
        x.view(4, 1, 2, 5), t,
    )  # fmt: skip
    torch.testing.assert_close(pictures, exact)


def test_the_gauge_share_is_found_by_fitting_a_potential():
    field = mixture(linear(), 2 * normal((4, 2)), 0.5)
    x, t = points_at(field, 0.6, 3000), 0.6
    tilted = curled(field, 0.5, skew(2))
    gauge = (0.5 * field.score(x, t) @ skew(2).T).square().sum() / tilted(x, t).square().sum()
    state = torch.random.get_rng_state()
    share = gauge_share(tilted, x, t, draws())
    assert gauge > 0.05
    assert share == pytest.approx(gauge.item(), rel=0.1)
    wide = gauge_share(lambda y, t: 1e-3 * tilted(y / 300, t), 300 * x, t, draws())  # in other units
    assert wide == pytest.approx(share, rel=0.01)
    assert gauge_share(field, x, t, draws()) < 0.01
    assert gauge_share(tilted, x, t, draws(), steps=5) == gauge_share(tilted, x, t, draws(), steps=5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_shift_and_rest_have_no_gauge_share():
    x = normal((50, 3))
    assert gauge_share(lambda x, t: torch.ones_like(x), x, 0.5, draws(), steps=5) < 1e-20
    assert gauge_share(lambda x, t: torch.zeros_like(x), x, 0.5, draws(), steps=5) == 0


def test_the_gauge_share_is_not_learned_by_heart():
    field, _, at = gaussian_data(GAUGE)
    x = normal((80, 3)) @ torch.linalg.cholesky(at(0.5)).T
    R = skew(3)
    assert gauge_share(lambda x, t: field.score(x, t) @ R.T, x, 0.5, draws()) == pytest.approx(1, abs=0.15)


def test_a_ball_of_noise_becomes_the_ellipsoid_of_the_data():
    variances = torch.tensor([4.0, 1.0, 0.09, 0.01]).double()
    field, _, _ = gaussian_data(variances)
    found = flow_spectrum(field, normal((3, 1, 2, 2)), torch.linspace(0, 1, 101))
    t = found.times[:, None]
    expected = (t**2 * variances + (1 - t) ** 2).sqrt()
    torch.testing.assert_close(found.values, expected[:, None].expand(101, 3, 4), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.x, solve(field, normal((3, 1, 2, 2)), 100, "heun"))


def test_a_gauge_term_turns_the_ellipsoid_but_does_not_change_it():
    field, _, at = gaussian_data([4.0, 1.0, 0.25])
    found = flow_spectrum(curled(field, 0.5, skew(3)), normal((2, 3)), 100, "rk4")
    expected = torch.linalg.eigvalsh(at(0.999)).sqrt().flip(0)
    torch.testing.assert_close(found.values[-1], expected.expand(2, 3), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("k", "d"), [(1, 3), (2, 5), (3, 20), (3, 3)])
def test_the_dimension_of_a_subspace_is_found_exactly(k, d):
    variances = [0.5 + i for i in range(k)] + [0.0] * (d - k)
    field, Sigma, _ = gaussian_data(variances)
    values = flow_spectrum(field, normal((6, d)), 50).values[-1]
    assert (flow_dimension(values, 0.001) == k).all()
    y = normal((6, d), 4) @ torch.linalg.cholesky(Sigma + 1e-12 * torch.eye(d)).T
    assert (score_dimension(score_spectrum(field, y, 0.99, draws())) == k).all()
    _, trace = exact_divergence(field.x1, 0.99 * y, torch.tensor(0.99).double())
    torch.testing.assert_close(trace, torch.full((6,), float(k)).double(), rtol=0.02, atol=0)


def test_the_dimension_of_a_curve_in_space_is_one():
    angle = torch.arange(400).double() * (2 * math.pi / 400)
    ring = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0 * angle], 1)
    field = mixture(linear(), ring)  # points .03 apart, a curve to noise of .1
    values = flow_spectrum(field, normal((20, 3)), torch.linspace(0, 0.9, 91)).values[-1]
    assert (flow_dimension(values, 0.1) == 1).all()
    assert (score_dimension(score_spectrum(field, ring[::20], 0.9, draws())) == 1).all()


@pytest.mark.parametrize("count", [2, 6])
def test_the_spectrum_of_scores_is_that_of_the_covariance_of_the_noise_around_a_single_point(count):
    """E[x0 | x_t] is then the noise itself."""
    y = normal((1, 3)) + 2
    values = score_spectrum(mixture(linear(), y), y, 0.9, draws(), count)
    noise, same = [], draws()
    for _ in range(count):
        noise.append(linear().draw_source(y, same)[0])
    expected = torch.linalg.eigvalsh(torch.stack(noise).T.cov()).clamp(min=0).sqrt().flip(0)
    torch.testing.assert_close(values[0], expected[: min(count, 3)], rtol=1e-6, atol=1e-6)


def test_the_jacobian_is_formed_up_to_its_largest_dimension(monkeypatch):
    x = normal((2, 3))
    monkeypatch.setattr(jacobians, "EXACT", 3)
    assert asymmetry(lambda x, t: x, x, 0.5).max() == 0
    assert negative_mass(lambda x, t: x, x, 0.5).max() == 0
    monkeypatch.setattr(jacobians, "EXACT", 2)
    with pytest.raises(ValueError, match="more than 2 numbers"):
        asymmetry(lambda x, t: x, x, 0.5)


def test_the_largest_gap_is_read_against_the_noise():
    assert flow_dimension(torch.tensor([1.0, 0.9, 1e-4, 1e-9]), 1e-3) == 2  # below the floor nothing counts
    assert flow_dimension(torch.tensor([[1.0, 0.5], [1.0, 2e-3]]), 1e-3).tolist() == [2, 1]
    assert score_dimension(torch.tensor([1.2, 0.8, 1e-3])) == 1
    assert score_dimension(torch.tensor([1e-2, 5e-3, 1e-3])) == 3


def test_what_cannot_be_computed_is_refused():
    x = torch.zeros(2, 1025)
    field = linear_field(torch.zeros(1))
    with pytest.raises(ValueError, match="more than 1024 numbers: pass a number of probes"):
        asymmetry(lambda x, t: x, x, 0.5)
    assert asymmetry(lambda x, t: x, x, 0.5, 2, draws()).max() == 0
    with pytest.raises(ValueError, match="up to 1024 dimensions"):
        negative_mass(lambda x, t: x, x, 0.5)
    with pytest.raises(ValueError, match="generator"):
        asymmetry(field, x, 0.5, 2)
    with pytest.raises(ValueError, match="at least 2 numbers"):
        random_plane(torch.zeros(3, 1), draws())
    with pytest.raises(ValueError, match="one half of the samples"):
        gauge_share(lambda x, t: x, torch.ones(1, 2), 0.5, draws())
    ragged = Field(lambda x, t, c, index: x, linear(), index=torch.tensor([0, 0, 1]), samples=2)
    for reading in (ragged, ragged.x1):
        with pytest.raises(ValueError, match="ragged"):
            jacobian(reading, torch.zeros(3, 2), 0.5)
    with pytest.raises(ValueError, match="at least two"):
        score_spectrum(mixture(linear(), normal((5, 2))), normal((5, 2)), 0.9, draws(), 1)
