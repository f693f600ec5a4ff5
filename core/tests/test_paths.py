import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from flowcore import paths
from flowcore.paths import END, PREDICTIONS, Product, gaussian, student_t
from flowcore.seeds import generator
from flowcore.state import leaves, tree_map

HALF_PI = math.pi / 2
PATHS = {
    "linear": paths.linear(),
    "linear with floor": paths.linear(0.05),
    "polynomial 2": paths.polynomial(),
    "polynomial 1/2": paths.polynomial(0.5),
    "cosine": paths.cosine(),
    "linear_vp": paths.linear_vp(),
    "vp": paths.vp(),
    "vp of another schedule": paths.vp(0.5, 8.0),
    "ve": paths.ve(),
    "ve of latents": paths.ve(3.0),
    "general": paths.general(lambda t: t**3, lambda t: (1 - t).exp() - 1, "own"),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
SHAPES = [(5,), (5, 3), (5, 5), (5, 2, 4, 4), {"a": (5, 5), "b": {"c": (5, 3, 4)}}]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
TIMES = {"scalar": 0.37, "per sample": torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)}
each_t = pytest.mark.parametrize("t", TIMES.values(), ids=TIMES.keys())


def draws(seed=0):
    return generator(seed, "test")


def normal(shape, seed=0, dtype=torch.float64):
    if isinstance(shape, dict):
        return {key: normal(one, seed + i, dtype) for i, (key, one) in enumerate(shape.items())}
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=dtype)


def pair(shape):
    return normal(shape, 1), normal(shape, 11)


def agree(a, b, rtol=1e-8, atol=1e-8):
    assert type(a) is type(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def sample(state, i):
    """Sample i alone, as a batch of one."""
    return tree_map(lambda leaf: leaf[i : i + 1], state)


INSIDE = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)


# coefficients


@each_path
def test_the_derivatives_are_those_of_the_coefficients(path):
    t = INSIDE.clone().requires_grad_()
    for value, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        (wanted,) = torch.autograd.grad((value(t) + 0 * t).sum(), t)  # 0 t: some coefficients are constant
        torch.testing.assert_close(slope(INSIDE), wanted, rtol=1e-10, atol=1e-10)


@each_path
def test_the_data_gain_on_the_noise_at_all_times(path):
    a, s, da, ds = path.coefficients(INSIDE)
    W = da * s - ds * a
    assert (W > 0).all()
    assert ((a / s).diff() > 0).all()
    t = INSIDE.clone().requires_grad_()
    (slope,) = torch.autograd.grad((path.alpha(t) / path.sigma(t)).sum(), t)
    torch.testing.assert_close(W / s.square(), slope, rtol=1e-9, atol=0)  # W = sigma^2 d(alpha/sigma)/dt


@pytest.mark.parametrize(
    ("name", "W"),
    [
        ("linear", torch.ones_like),
        ("linear with floor", torch.ones_like),
        ("polynomial 2", lambda t: 2 * t),
        ("cosine", lambda t: torch.full_like(t, HALF_PI)),
        ("linear_vp", lambda t: 1 / (1 - t * t).sqrt()),
        ("ve", lambda t: torch.full_like(t, 80)),
    ],
)
def test_the_wronskian_has_its_closed_form(name, W):
    a, s, da, ds = PATHS[name].coefficients(INSIDE)
    torch.testing.assert_close(da * s - ds * a, W(INSIDE), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("linear", (0, 1), (1, 0)),
        ("linear with floor", (0, 1), (1, 0.05)),
        ("polynomial 2", (0, 1), (1, 0)),
        ("polynomial 1/2", (0, 1), (1, 0)),
        ("cosine", (0, 1), (1, 0)),
        ("linear_vp", (0, 1), (1, 0)),
        ("vp", (math.exp(-20.1 / 4), math.sqrt(1 - math.exp(-20.1 / 2))), (1, 0)),
        ("ve", (1, 80), (1, 0)),
        ("general", (0, math.e - 1), (1, 0)),
    ],
)
def test_paths_run_from_the_source_to_the_data(name, start, end):
    for t, wanted in ((0.0, start), (1.0, end)):
        time = torch.tensor(t, dtype=torch.float64)
        got = (PATHS[name].alpha(time).item(), PATHS[name].sigma(time).item())
        assert got == pytest.approx(wanted, abs=1e-12)
        assert got[1] == 0 or wanted[1] != 0  # exactly: an end without noise is known by it


@pytest.mark.parametrize("name", ["cosine", "linear_vp", "vp", "vp of another schedule"])
def test_variance_preserving_paths_preserve_the_variance(name):
    a, s = PATHS[name].alpha(INSIDE), PATHS[name].sigma(INSIDE)
    torch.testing.assert_close(a.square() + s.square(), torch.ones_like(a), rtol=1e-12, atol=0)


def test_vp_is_the_diffusion_of_its_linear_schedule():
    """d log alpha / ds = -beta(s) / 2 with beta(s) = b + s (B - b) in diffusion time s = 1 - t."""
    a, _, da, _ = paths.vp(0.1, 20.0).coefficients(INSIDE)
    torch.testing.assert_close(da / a, (0.1 + (1 - INSIDE) * 19.9) / 2, rtol=1e-12, atol=0)


def test_a_general_path_differentiates_its_functions():
    cosine, own = PATHS["cosine"], paths.general(PATHS["cosine"].alpha, PATHS["cosine"].sigma)
    for one, other in zip(cosine.coefficients(INSIDE), own.coefficients(INSIDE), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(own.inverse(cosine.alpha(INSIDE), cosine.sigma(INSIDE)), INSIDE, rtol=0, atol=1e-14)


def test_a_polynomial_of_no_positive_power_is_refused():
    with pytest.raises(ValueError, match="power must be positive, not 0"):
        paths.polynomial(0)


# the interpolation and its velocity


@each_path
@each_shape
@each_t
def test_x_t_is_alpha_x1_plus_sigma_x0_sample_by_sample(path, shape, t):
    x0, x1 = pair(shape)
    x = path.interpolate(x0, x1, t)
    for i in range(5):
        now = torch.as_tensor(t, dtype=torch.float64).expand(5)[i]
        wanted = tree_map(lambda a, b, now=now: path.alpha(now) * b + path.sigma(now) * a, sample(x0, i), sample(x1, i))
        agree(sample(x, i), wanted, rtol=1e-14, atol=1e-14)


@each_path
@each_shape
@each_t
def test_the_target_velocity_is_the_derivative_of_x_t(path, shape, t):
    x0, x1 = pair(shape)
    h = 1e-4

    def at(offset):
        return path.interpolate(x0, x1, t + offset)

    def difference(forth, back, far_forth, far_back):
        return (8 * (forth - back) - (far_forth - far_back)) / (12 * h)  # of order h^4

    wanted = tree_map(difference, at(h), at(-h), at(2 * h), at(-2 * h))
    agree(path.target("velocity", x0, x1, t), wanted)


@each_path
@each_shape
@each_t
def test_the_targets_of_a_pair_convert_into_each_other(path, shape, t):
    x0, x1 = pair(shape)
    x = path.interpolate(x0, x1, t)
    for given, wanted in itertools.product(PREDICTIONS, repeat=2):
        got = path.convert(path.target(given, x0, x1, t), x, t, given, wanted)
        agree(got, path.target(wanted, x0, x1, t))


@each_path
@each_shape
@each_t
def test_any_velocity_comes_back_from_any_other_prediction(path, shape, t):
    x, v = normal(shape, 3), normal(shape, 4)
    for by in ("x1", "noise", "score"):
        agree(path.convert(path.convert(v, x, t, "velocity", by), x, t, by, "velocity"), v)


@each_path
@pytest.mark.parametrize("given", PREDICTIONS)
def test_every_prediction_closes_the_circle_x_is_alpha_x1_plus_sigma_noise(path, given):
    x, value, t = normal((5, 5), 3), normal((5, 5), 4), TIMES["per sample"]
    x1, noise, q = (path.convert(value, x, t, given, wanted) for wanted in ("x1", "noise", "score"))
    agree(path.interpolate(noise, x1, t), x)
    agree(q, -noise / path.sigma(t)[:, None])


def test_the_targets_of_data_noise_and_score():
    path, (x0, x1), t = paths.cosine(), pair((5, 5)), TIMES["per sample"]
    assert path.target("x1", x0, x1, t) is x1
    assert path.target("noise", x0, x1, t) is x0
    agree(path.target("score", x0, x1, t), -x0 / torch.cos(HALF_PI * t)[:, None])


@pytest.mark.parametrize("name", ["linear", "linear with floor", "cosine", "ve"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_velocity_and_data_are_finite_at_both_ends_where_no_coefficient_is_infinite(name, t):
    path, (x0, x1) = PATHS[name], pair((5, 3))
    x, v = path.interpolate(x0, x1, t), path.target("velocity", x0, x1, t)
    agree(path.convert(v, x, t, "velocity", "x1"), x1)
    agree(path.convert(v, x, t, "velocity", "noise"), x0)


@pytest.mark.parametrize("given", ["x1", "noise"])
def test_what_a_network_predicts_becomes_a_velocity_at_the_end_where_it_is_known(given):
    for path in (paths.linear(), paths.cosine()):
        x0, x1 = pair((5, 3))
        t = 0.0 if given == "x1" else 1.0
        x = path.interpolate(x0, x1, t)
        agree(path.convert(path.target(given, x0, x1, t), x, t, given, "velocity"), path.target("velocity", x0, x1, t))


# the preconditioning of EDM


@each_path
def test_the_edm_prediction_is_the_output_of_edms_preconditioning(path):
    """c_skip y + c_out F at c_in y, for y = x_t / alpha at the noise level s = sigma / alpha."""
    path, sd, t = replace(path, sigma_data=0.8), 0.8, TIMES["per sample"]
    x, F = normal((5, 3), 3), normal((5, 3), 4)
    alpha, s = path.alpha(t)[:, None], (path.sigma(t) / path.alpha(t))[:, None]
    y, root = x / alpha, (s**2 + sd**2).sqrt()
    denoised = sd**2 / root**2 * y + s * sd / root * F
    agree(path.convert(F, x, t, "edm", "x1"), denoised)
    agree(path.convert(F, x, t, "edm", "velocity"), path.convert(denoised, x, t, "x1", "velocity"))
    shown, told = path.shown(x, t)
    agree(shown, y / root)
    agree(told, (1 / (1 + s)).flatten())
    for kind in ("velocity", "x1", "noise", "score"):
        agree(path.convert(path.convert(F, x, t, "edm", kind), x, t, kind, "edm"), F)


@each_path
def test_the_squared_error_of_the_edm_prediction_is_edms_weighted_loss(path):
    t, (x0, x1), F = TIMES["per sample"], pair((5, 3)), normal((5, 3), 4)
    x, sd = path.interpolate(x0, x1, t), path.sigma_data
    s = (path.sigma(t) / path.alpha(t))[:, None]
    weight = (s**2 + sd**2) / (s * sd) ** 2
    denoised = path.convert(F, x, t, "edm", "x1")
    agree(weight * (denoised - x1).square(), (F - path.target("edm", x0, x1, t)).square())


@pytest.mark.parametrize("name", ["linear", "linear with floor", "cosine", "ve"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_edm_prediction_is_finite_at_both_ends(name, t):
    path, (x0, x1) = PATHS[name], pair((5, 3))
    x, F = path.interpolate(x0, x1, t), path.target("edm", x0, x1, t)
    agree(path.convert(F, x, t, "edm", "velocity"), path.target("velocity", x0, x1, t))
    end = torch.tensor(t, dtype=torch.float64)
    shown, told = path.shown(x, end)
    assert torch.isfinite(shown).all()
    assert 0 <= told.item() <= 1


def test_gaussian_data_of_the_given_deviation_have_the_edm_prediction_zero_and_unit_inputs_and_targets():
    """What the preconditioning is for: E[F* | x_t] = 0, and x_t / R and F* have variance 1 at all noise levels."""
    path, n = paths.ve(), 40_000
    x0, x1 = normal((n, 1), 1), path.sigma_data * normal((n, 1), 2)
    for sigma in (0.01, 0.5, 20.0):
        t = torch.tensor(1 - sigma / 80, dtype=torch.float64)
        x, target = path.interpolate(x0, x1, t), path.target("edm", x0, x1, t)
        shown = path.shown(x, t)[0]
        assert shown.var().item() == pytest.approx(1, rel=0.03)
        assert target.var().item() == pytest.approx(1, rel=0.03)
        assert (shown * target).mean().item() == pytest.approx(0, abs=0.03)


def test_what_an_edm_network_is_shown_depends_on_the_ratio_of_data_to_noise_and_on_nothing_else():
    x0, x1 = pair((5, 3))
    seen = []
    for path in PATHS.values():
        a, s = torch.tensor([0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64), torch.linspace(0.9, 0.1, 5).double()
        t = path.inverse(a, s)
        seen.append((path.shown(path.interpolate(x0, x1, t), t), path.target("edm", x0, x1, t)))
    for (shown, told), target in seen:
        agree(shown, seen[0][0][0], 1e-6)
        agree(told, seen[0][0][1], 1e-6)
        agree(target, seen[0][1], 1e-6)


def test_a_dict_and_ragged_rows_are_shown_at_the_time_of_their_sample():
    path, t = paths.cosine(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    index = {"atoms": torch.tensor([0, 0, 1, 0, 1]), "cell": None}
    x = normal({"atoms": (5, 3), "cell": (2, 6)})
    shown, told = path.shown(x, t, index)
    agree(shown["atoms"], path.shown(x["atoms"], t[index["atoms"]])[0])
    agree(shown["cell"], path.shown(x["cell"], t)[0])
    assert told.shape == (2,)


@pytest.mark.parametrize("given", PREDICTIONS)
@pytest.mark.parametrize("wanted", PREDICTIONS)
def test_ragged_rows_are_converted_at_the_time_of_their_sample(given, wanted):
    path, index, t = paths.vp(), torch.tensor([1, 0, 2, 2, 1, 0, 0]), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x0, x1 = pair((7, 3))
    x = path.interpolate(x0, x1, t, index)
    agree(x, path.interpolate(x0, x1, t[index]))
    got = path.convert(path.target(given, x0, x1, t, index), x, t, given, wanted, index)
    agree(got, path.target(wanted, x0, x1, t[index]))


def test_a_dict_state_takes_an_index_for_each_leaf():
    path, t = paths.cosine(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    index = {"atoms": torch.tensor([0, 0, 1, 0, 1]), "cell": None}
    x0, x1 = pair({"atoms": (5, 3), "cell": (2, 6)})
    x = path.interpolate(x0, x1, t, index)
    agree(x["atoms"], path.interpolate(x0["atoms"], x1["atoms"], t[index["atoms"]]))
    agree(x["cell"], path.interpolate(x0["cell"], x1["cell"], t))
    v = path.target("velocity", x0, x1, t, index)
    agree(path.convert(v, x, t, "velocity", "x1", index), x1)
    shared = torch.tensor([0, 1, 1])
    x0, x1 = pair({"positions": (3, 3), "charges": (3, 5)})
    x = path.interpolate(x0, x1, t, shared)
    agree(x["charges"], path.interpolate(x0["charges"], x1["charges"], t[shared]))


def test_an_unknown_prediction_is_named_with_the_known_ones():
    path, x = paths.linear(), normal((5, 3))
    known = "'epsilon'; one of velocity, x1, noise, score, edm"
    with pytest.raises(ValueError, match=known):
        path.target("epsilon", x, x, 0.5)
    for kind in PREDICTIONS:
        with pytest.raises(ValueError, match=known):
            path.convert(x, x, 0.5, "epsilon", kind)
        with pytest.raises(ValueError, match=known):
            path.convert(x, x, 0.5, kind, "epsilon")


def test_a_time_for_each_sample_is_refused_where_the_count_is_wrong():
    x = normal((5, 3))
    with pytest.raises(ValueError, match="3 values for 5 rows"):
        paths.linear().interpolate(x, x, torch.rand(3))


def test_single_precision_states_stay_in_single_precision():
    x0, x1 = normal((5, 3), 1, torch.float32), normal((5, 3), 11, torch.float32)
    for path in PATHS.values():
        x = path.interpolate(x0, x1, TIMES["per sample"])
        v = path.target("velocity", x0, x1, 0.4)
        assert x.dtype == v.dtype == path.convert(v, x, 0.4, "velocity", "x1").dtype == torch.float32


# the inverse of alpha : sigma


@pytest.mark.parametrize(
    ("source", "data"),
    [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.complex128, torch.complex128)],
    ids=str,
)
def test_straight_lines_join_states_of_any_dtypes_and_end_exactly_at_the_data(source, data):
    path = paths.linear()
    x0, x1 = (torch.randn(4, 3, generator=generator(i), dtype=kind) for i, kind in enumerate((source, data)))
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    x = path.interpolate(x0, x1, t)
    torch.testing.assert_close(x, t[:, None].to(data) * x1 + (1 - t[:, None].to(data)) * x0)
    same = x0.to(data)
    x = path.interpolate(same, x1, t)
    assert torch.equal(x[0], same[0])
    assert torch.equal(x[3], x1[3])


@each_path
@pytest.mark.parametrize("scale", [1.0, 0.2, 7.0])
def test_the_inverse_finds_the_time_of_a_ratio_whatever_its_scale(path, scale):
    t = torch.linspace(0.01, 1, 200, dtype=torch.float64) if path.start else torch.linspace(0, 1, 200).double()
    found = path.inverse(scale * path.alpha(t), scale * path.sigma(t))
    torch.testing.assert_close(found, t, rtol=0, atol=1e-8)


@each_path
def test_a_ratio_that_no_time_of_the_path_has_is_given_its_nearest_end(path):
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert path.inverse(zero, one).item() == pytest.approx(0, abs=1e-9)
    assert path.inverse(one, zero).item() == pytest.approx(1, abs=1e-9)


# the source


@each_path
@each_shape
def test_the_source_has_the_shapes_and_the_dtype_of_the_data(path, shape):
    like = normal(shape, dtype=torch.float32)
    x0, again, other = (path.draw_source(like, draws(seed)) for seed in (0, 0, 1))
    for a, b, c, leaf in zip(leaves(x0), leaves(again), leaves(other), leaves(like), strict=True):
        assert (a.shape, a.dtype) == (leaf.shape, leaf.dtype)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_leaves_of_a_dict_are_drawn_independently():
    x0 = paths.linear().draw_source({"a": torch.zeros(4, 3), "b": torch.zeros(4, 3)}, draws())
    assert not torch.equal(x0["a"], x0["b"])


def test_the_gaussian_source_is_standard_normal():
    x = gaussian(torch.zeros(2000, 5, dtype=torch.float64), draws())
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        (paths.linear(), 1.0),
        (paths.cosine(), 1.0),
        (paths.polynomial(0.5), 1 - END**0.5),
        (paths.vp(), math.sqrt(1 - math.exp(-10.05))),
        (paths.ve(80.0), 80.0),
        (paths.general(lambda t: t, lambda t: 2 - 2 * t), 2.0),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
@pytest.mark.parametrize("shape", [(5, 3), {"a": (5, 3), "b": (5, 2)}], ids=str)
def test_a_sampler_starts_from_the_source_at_the_scale_of_the_start(path, scale, shape):
    x0 = normal(shape)
    agree(path.initial(x0), tree_map(lambda leaf: scale * leaf, x0), rtol=1e-12)


# Student's t: PFGM++


@pytest.mark.parametrize("dimension", [1, 3, 10])
def test_each_coordinate_of_the_student_source_has_students_t_distribution(dimension):
    x = student_t(dimension)(torch.zeros(4000, 2, dtype=torch.float64), draws())
    for coordinate in x.T:
        assert stats.kstest(coordinate.contiguous().numpy(), stats.t(dimension).cdf).pvalue > 0.01


@pytest.mark.parametrize(("dimension", "shape"), [(2, (4000, 5)), (64, (4000, 3, 4, 4)), (128, (4000,))], ids=str)
def test_the_radius_of_the_student_source_is_that_of_the_augmented_poisson_flow(dimension, shape):
    """|n|^2 / D is beta prime (N/2, D/2): the radial law of the kernel 1 / (|n|^2 + D)^((N + D) / 2)."""
    x = student_t(dimension)(torch.zeros(shape, dtype=torch.float64), draws()).reshape(4000, -1)
    N = x.shape[1]
    radius = x.square().sum(1) / dimension
    assert stats.kstest(radius.numpy(), stats.betaprime(N / 2, dimension / 2).cdf).pvalue > 0.01


def test_ve_of_a_dimension_draws_the_poisson_flows_source_and_one_of_none_the_gaussian():
    """E R^2 = sigma^2 N D / (D - 2) for D > 2; as D grows R becomes sigma chi_N."""
    like, N = torch.zeros(20_000, 16, dtype=torch.float64), 16
    for D in (16, 64):
        radius = paths.ve(dimension=D).draw_source(like, draws()).square().sum(1)
        assert radius.mean().item() == pytest.approx(N * D / (D - 2), rel=0.03)
    radius = paths.ve(dimension=1e6).draw_source(like, draws()).norm(dim=1)
    shares = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    wanted = torch.from_numpy(stats.chi(N).ppf(shares.numpy()))
    torch.testing.assert_close(radius.quantile(shares), wanted, rtol=0.01, atol=0)
    assert torch.equal(paths.ve().draw_source(like, draws()), gaussian(like, draws()))
    with pytest.raises(ValueError, match="no score"):  # an SDE would be wrong in silence
        paths.ve(dimension=3).convert(like, like, 0.5, "x1", "score")
    for D in (0, -1):
        with pytest.raises(ValueError, match="dimension must be positive"):
            paths.ve(dimension=D)


def test_the_optimal_denoiser_of_a_finite_set_is_its_mean_under_the_poisson_kernel():
    """E[x1 | x_t] by importance sampling of the path, against weights (|x - y|^2 + r^2)^(-(N + D) / 2).

    r^2 = sigma^2 D. As D grows the weights become the Gaussian softmax.
    """
    points, sigma, D, N = normal((4, 2), 3), 0.7, 3, 2
    path = paths.ve(dimension=D)
    t = torch.tensor(1 - sigma / 80, dtype=torch.float64)

    def posterior(x, D):
        squares = torch.cdist(x, points).square()
        if D is None:
            return (-squares / (2 * sigma**2)).softmax(1) @ points
        return (-(N + D) / 2 * (squares + sigma**2 * D).log()).softmax(1) @ points

    n = 400_000
    number = torch.randint(4, (n,), generator=generator(1))
    x1 = points[number]
    x = path.interpolate(path.draw_source(x1, draws()), x1, t)
    bins = (x / 0.5).floor().long()
    for cell in (0, 0), (1, -1), (-2, 1):
        here = (bins == torch.tensor(cell)).all(1)
        assert here.sum() > 3000
        torch.testing.assert_close(x1[here].mean(0), posterior(x[here], D).mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(posterior(x[:50], 1e7), posterior(x[:50], None), rtol=0, atol=1e-5)


def test_the_direction_of_the_student_source_is_uniform_and_free_of_the_radius():
    x = student_t(3)(torch.zeros(4000, 2, dtype=torch.float64), draws())
    angle = torch.atan2(x[:, 0], x[:, 1]) / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 0.01
    assert abs(stats.spearmanr((2 * math.pi * angle).cos().numpy(), x.norm(dim=1).numpy()).statistic) < 4 / 4000**0.5


def test_with_many_added_dimensions_the_student_source_is_gaussian():
    x = student_t(1e6)(torch.zeros(2000, 3, dtype=torch.float64), draws())
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.01
    like = torch.zeros(2000, 3, dtype=torch.float64)
    torch.testing.assert_close(x, gaussian(like, draws()), rtol=0.01, atol=0)  # the same z underneath


@pytest.mark.parametrize("dimension", [6, 20])
def test_the_student_source_has_its_second_moment(dimension):
    N = 4
    x = student_t(dimension)(torch.zeros(100_000, N, dtype=torch.float64), draws())
    squared = x.square().sum(1)
    error = squared.std() / len(x) ** 0.5
    assert abs(squared.mean() - N * dimension / (dimension - 2)) < 4 * error


def test_three_added_dimensions_leave_a_tail_of_index_three():
    """P(|x| > r) ~ r^-3; Hill's estimate from the 1000 largest of 100 000 has a standard error of 3 / sqrt(1000)."""
    x = student_t(3)(torch.zeros(100_000, dtype=torch.float64), draws()).abs().sort(descending=True).values
    hill = 1 / (x[:1000].log() - x[1000].log()).mean()
    assert hill.item() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("dimension", [4, 128])
def test_the_best_linear_denoiser_under_the_student_source(dimension):
    """x1 ~ N(m, S^2), x = x1 + sigma n: slope S^2 / (S^2 + sigma^2 D / (D - 2)), which is D -> inf's as D grows."""
    m, S, t, n = 2.0, 0.7, 0.75, 400_000
    path = replace(paths.ve(4.0), source=student_t(dimension))  # sigma = 1 at t = 0.75
    x1 = m + S * normal((n,))
    x = path.interpolate(path.draw_source(x1, draws()), x1, t)
    slope = ((x - x.mean()) * x1).mean() / x.var()
    assert slope.item() == pytest.approx(S**2 / (S**2 + dimension / (dimension - 2)), abs=0.02)


def test_the_student_source_draws_float64_from_single_precision_and_one_factor_a_sample():
    like = torch.zeros(3, 100, dtype=torch.float32)
    x = student_t(1)(like, draws())
    factor = x / gaussian(like, draws())
    assert x.dtype == torch.float32
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert len(set(factor[:, 0].tolist())) == 3


# products


def test_each_key_of_a_product_follows_its_own_path_at_the_same_time():
    parts = {"positions": paths.linear(), "charges": paths.vp()}
    path, t = Product(parts), TIMES["per sample"]
    x0, x1 = pair({"positions": (5, 3), "charges": (5, 5)})
    x, v = path.interpolate(x0, x1, t), path.target("velocity", x0, x1, t)
    for key, own in parts.items():
        agree(x[key], own.interpolate(x0[key], x1[key], t))
        agree(v[key], own.target("velocity", x0[key], x1[key], t))
    agree(path.convert(v, x, t, "velocity", "x1"), x1)
    assert (path.start, path.stop) == (0.0, 1 - END)
    assert Product({"a": paths.polynomial(0.5), "b": paths.linear()}).start == END
    agree(path.initial(x0), {key: own.initial(x0[key]) for key, own in parts.items()})


@pytest.mark.parametrize("wanted", PREDICTIONS)
def test_each_key_of_a_product_may_be_predicted_as_another_kind(wanted):
    path, t = Product({"a": paths.cosine(), "b": paths.vp(), "c": paths.ve()}), torch.tensor([0.3, 0.6]).double()
    kinds = {"a": "velocity", "b": "x1", "c": "noise"}
    index = {"a": torch.tensor([0, 1, 1]), "c": torch.tensor([1, 0, 1, 0])}
    x0, x1 = pair({"a": (3, 3), "b": (2, 2), "c": (4, 5)})
    x = path.interpolate(x0, x1, t, index)
    value = path.target(kinds, x0, x1, t, index)
    assert value["b"] is x1["b"]
    agree(path.convert(value, x, t, kinds, wanted, index), path.target(wanted, x0, x1, t, index))
    assert path.draw_source(x1, draws())["c"].shape == (4, 5)
