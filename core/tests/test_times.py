"""Quantile function, density and draws are three faces of one law; each is checked against the others, and the laws
against closed forms from elsewhere."""

import math

import pytest
import torch
from scipy import stats

from flowcore.seeds import generator
from flowcore.times import MARGIN, cosmap, log_normal_noise, logit_normal, mode, shift, shifted, u_shaped, uniform

CASES = {
    "uniform": (uniform, {}),
    "logit_normal": (logit_normal, {}),
    "logit_normal off centre": (logit_normal, {"mean": -0.6, "std": 0.7}),
    "u_shaped": (u_shaped, {}),
    "u_shaped mild": (u_shaped, {"a": 0.5}),
    "mode": (mode, {}),
    "mode inverted": (mode, {"k": -0.8}),
    "mode peaked": (mode, {"k": 1.5}),
    "cosmap": (cosmap, {}),
    "log_normal_noise": (log_normal_noise, {}),
    "log_normal_noise of latents": (log_normal_noise, {"mean": -0.4, "std": 1.0, "sigma_max": 100.0}),
}
SHIFTS = {"shifted uniform": (uniform, 3.0), "shifted logit_normal": (logit_normal, 3.0), "towards data": (cosmap, 0.4)}


def made(name, **options):
    if name in SHIFTS:
        inner, k = SHIFTS[name]
        return shifted(inner(**options), k)
    factory, own = CASES[name]
    return factory(**own, **options)


NAMES = [*CASES, *SHIFTS]
each_law = pytest.mark.parametrize("name", NAMES)
GRID = torch.sigmoid(torch.linspace(-16, 16, 40_001, dtype=torch.float64))


def draws(times, n, seed=0):
    return times(n, generator(seed, "times"))


def cdf(times):
    """The integral of the density, by the trapezoidal rule on a grid that is fine at both ends."""
    density = times.density(GRID)
    steps = (density[1:] + density[:-1]) / 2 * GRID.diff()
    total = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])

    def at(t):
        place = torch.searchsorted(GRID, t).clamp(1, len(GRID) - 1)
        low, high = GRID[place - 1], GRID[place]
        return total[place - 1] + (t - low) / (high - low) * (total[place] - total[place - 1])

    return at, total[-1].item()


@each_law
def test_the_density_integrates_to_one(name):
    assert cdf(made(name))[1] == pytest.approx(1, abs=1e-5)


@each_law
def test_the_density_is_one_over_the_slope_of_the_quantile_function(name):
    times = made(name)
    u = torch.linspace(0.01, 0.99, 200, dtype=torch.float64, requires_grad=True)
    t = times.quantile(u)
    (slope,) = torch.autograd.grad(t.sum(), u)
    assert (slope > 0).all()
    torch.testing.assert_close(times.density(t.detach()), 1 / slope, rtol=1e-8, atol=1e-12)


@each_law
def test_draws_follow_the_density(name):
    times = made(name)
    F, _ = cdf(times)
    assert stats.kstest(F(draws(times, 5000)).numpy(), "uniform").pvalue > 0.01


@each_law
def test_stratified_draws_have_one_in_each_share_of_the_law(name):
    n = 512
    times = made(name, stratified=True)
    F, _ = cdf(times)
    shares = F(draws(times, n).sort().values)
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    # the margin moves a draw in the outermost hundred-thousandth; the trapezoidal rule is good to 1e-5
    assert (shares - middle).abs().max() <= 0.5 / n + 2e-5


@each_law
def test_each_place_of_a_stratified_batch_has_the_whole_law(name):
    times = made(name, stratified=True)
    F, _ = cdf(times)
    g = generator(0, "places")
    batches = torch.stack([times(4, g) for _ in range(1500)])
    for place in (0, 3):
        assert stats.kstest(F(batches[:, place].contiguous()).numpy(), "uniform").pvalue > 0.01


@each_law
def test_the_mean_over_a_stratified_batch_varies_far_less(name):
    g = generator(0, "means")
    ends = made(name).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))  # a tail would be all of the variance

    def variance(times):
        return torch.stack([times(64, g).clamp(*ends).mean() for _ in range(200)]).var()

    assert variance(made(name, stratified=True)) < variance(made(name)) / 50


@each_law
def test_draws_are_double_precision_inside_the_margins_and_repeatable(name):
    times = made(name)
    t = draws(times, 20_000)
    assert t.dtype == torch.float64
    assert t.shape == (20_000,)
    assert t.min() >= MARGIN
    assert t.max() <= 1 - MARGIN
    assert torch.isfinite(times.density(t)).all()
    assert torch.equal(t, draws(times, 20_000))
    assert not torch.equal(t, draws(times, 20_000, seed=1))
    assert draws(times, 1).shape == (1,)


@pytest.mark.parametrize("name", ["u_shaped", "mode", "mode inverted", "cosmap"])
@pytest.mark.parametrize("f", [torch.ones_like, torch.square, lambda t: torch.cos(3 * t)], ids=["1", "t^2", "cos 3t"])
def test_importance_weights_give_back_the_uniform_expectation(name, f):
    times = made(name, stratified=True, importance=True)
    t = draws(times, 20_000)
    middles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert (times.weights(t) * f(t)).mean().item() == pytest.approx(f(middles).mean().item(), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name != "uniform"])
def test_weights_are_one_over_the_density_and_only_where_asked_for(name):
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    torch.testing.assert_close(made(name, importance=True).weights(t), 1 / made(name).density(t))
    assert made(name).weights(t) is None
    assert uniform().weights(t) is None


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_a_shifted_law_keeps_the_importance_and_the_stratification_of_its_own(k):
    times = shifted(u_shaped(stratified=True, importance=True), k)
    t = draws(times, 20_000)
    assert (times.weights(t) * t.square()).mean().item() == pytest.approx(1 / 3, abs=1e-4)


# the laws, against closed forms from elsewhere


def test_logit_normal_is_the_logistic_function_of_a_normal_variable():
    t = torch.linspace(0.02, 0.98, 50, dtype=torch.float64)
    times = logit_normal(0.3, 0.8)
    wanted = stats.norm(0.3, 0.8).pdf(torch.logit(t).numpy()) / (t * (1 - t)).numpy()
    torch.testing.assert_close(times.density(t), torch.from_numpy(wanted))
    assert stats.kstest(torch.logit(draws(times, 5000)).numpy(), stats.norm(0.3, 0.8).cdf).pvalue > 0.01
    assert times.quantile(torch.tensor(0.5).double()).item() == pytest.approx(1 / (1 + math.exp(-0.3)))


def test_u_shaped_is_a_truncated_exponential_flipped_with_probability_one_half():
    a, n = 4.0, 20_000
    g = generator(0, "reference")
    e = torch.log1p(torch.rand(n, generator=g, dtype=torch.float64) * math.expm1(a)) / a
    flipped = torch.where(torch.rand(n, generator=g) < 0.5, 1 - e, e)
    t = draws(u_shaped(a), n)
    assert stats.ks_2samp(t.numpy(), flipped.numpy()).pvalue > 0.01


def test_u_shaped_has_mean_one_half_and_17_per_cent_below_one_tenth():
    t = draws(u_shaped(stratified=True), 100_000)
    assert t.mean().item() == pytest.approx(0.5, abs=1e-4)
    assert (t < 0.1).double().mean().item() == pytest.approx(0.1725, abs=1e-4)


def test_cosmap_has_26_per_cent_below_three_tenths_and_times_the_linear_path_like_the_cosine_path():
    times = cosmap(stratified=True)
    assert (draws(times, 100_000) < 0.3).double().mean().item() == pytest.approx(0.2578, abs=1e-4)
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    t = times.quantile(u)
    torch.testing.assert_close(t / (1 - t), torch.tan(math.pi * u / 2))  # alpha : sigma of either path


def test_mode_has_its_published_noise_level():
    u, k = torch.linspace(0, 1, 50, dtype=torch.float64), 1.29
    noise = 1 - u - k * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    torch.testing.assert_close(1 - mode(k).quantile(u), noise)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(mode(0.0).density(t), torch.ones_like(t))


@pytest.mark.parametrize("k", [-1.0, 2 / (math.pi - 2)])
def test_mode_rises_up_to_both_of_its_bounds(k):
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = mode(k).quantile(u)
    assert (t.diff() > -1e-12).all()
    assert (t[0].item(), t[-1].item()) == pytest.approx((0, 1), abs=1e-12)


@pytest.mark.parametrize("k", [-1.01, 1.76])
def test_mode_refuses_a_scale_at_which_time_would_run_backwards(k):
    with pytest.raises(ValueError, match=r"between -1 and 1\.752"):
        mode(k)


def test_log_normal_noise_is_the_noise_level_of_edm_on_the_path_ve():
    sigma = 80 * (1 - draws(log_normal_noise(), 5000))
    assert stats.kstest(sigma.log().numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    sigma = torch.tensor([0.01, 0.3, 5.0], dtype=torch.float64)
    wanted = 80 * stats.lognorm(1.2, scale=math.exp(-1.2)).pdf(sigma.numpy())
    torch.testing.assert_close(log_normal_noise().density(1 - sigma / 80), torch.from_numpy(wanted))


def test_noise_above_sigma_max_is_cut_to_it():
    t = draws(log_normal_noise(mean=0.0, std=2.0, sigma_max=1.0), 4000)  # half of the law is above
    assert (t == MARGIN).double().mean().item() == pytest.approx(0.5, abs=0.03)


# the shift


@pytest.mark.parametrize("k", [0.3, 1.0, 3.0, 7.0])
def test_shift_maps_the_noise_level_as_published_and_keeps_the_ends(k):
    noise = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(1 - shift(1 - noise, k), k * noise / (1 + (k - 1) * noise))
    assert shift(torch.tensor([0.0, 1.0]), k).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", CASES)
def test_a_shifted_law_is_shifted_once(name):
    inner = made(name)
    wanted = shift(draws(inner, 1000), 3.0)
    torch.testing.assert_close(draws(shifted(inner, 3.0), 1000), wanted, rtol=0, atol=3 * MARGIN)


def test_shifts_multiply_and_one_is_no_shift():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(shift(shift(t, 2.0), 3.0), shift(t, 6.0))
    torch.testing.assert_close(shift(shift(t, 3.0), 1 / 3), t)
    torch.testing.assert_close(shift(t, 1.0), t)
    inside = t[1:-1]
    torch.testing.assert_close(shifted(cosmap(), 1.0).density(inside), cosmap().density(inside))
    twice = shifted(shifted(logit_normal(), 2.0), 3.0)
    torch.testing.assert_close(twice.density(inside), shifted(logit_normal(), 6.0).density(inside))


def test_a_shift_above_one_moves_time_towards_the_noise():
    assert shift(torch.tensor(0.5), 3.0).item() == pytest.approx(0.25)
    assert draws(shifted(uniform(), 3.0), 4000).mean() < 0.4
