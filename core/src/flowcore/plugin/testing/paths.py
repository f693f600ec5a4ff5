"""Checks of a path, a coupling, a distribution of training times and a loss. ``make()`` builds it."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from flowcore.couplings import Coupling, Pairs
from flowcore.losses import Metric
from flowcore.paths import Affine
from flowcore.plugin.testing.trees import apart, must, same, shapes
from flowcore.seeds import generator
from flowcore.times import Times


def _inside(path: Affine) -> Tensor:
    """Times in float64 that keep from both ends, where a slope may be infinite."""
    low, high = max(path.start, 0.02), min(path.stop, 0.98)
    return torch.linspace(low, high, 49, dtype=torch.float64)


def it_begins_at_the_source_and_ends_at_the_data(make: Callable[[], Affine]) -> None:
    """alpha(1) = 1 to a hundredth; the other coefficient is a tenth or less of the one that counts at each end."""
    path = make()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (a0, a1), (s0, s1) = path.alpha(ends).tolist(), path.sigma(ends).tolist()
    must(abs(a1 - 1) < 0.01, f"alpha(1) is {a1:.4g}; it should be 1: the path ends at the data")
    must(abs(s1) <= 0.1, f"sigma(1) is {s1:.4g}; it should be near 0: the path ends at the data")
    must(abs(a0) <= 0.1 * abs(s0), f"alpha(0) is {a0:.4g} beside sigma(0) = {s0:.4g}; a path begins at the source")


def its_slopes_are_the_derivatives(make: Callable[[], Affine]) -> None:
    """dalpha and dsigma are the derivatives of alpha and sigma, by central differences, to 1e-5."""
    path, h = make(), 1e-6
    t = _inside(path)
    for name, function, slope in (("alpha", path.alpha, path.dalpha), ("sigma", path.sigma, path.dsigma)):
        found = (function(t + h) - function(t - h)) / (2 * h)
        miss = apart(found, slope(t).expand_as(t))
        must(miss < 1e-5, f"d{name} is {miss:.3g} away from the derivative of {name}; differentiate it again")


def noise_gives_way_to_data_all_along(make: Callable[[], Affine]) -> None:
    """alpha' sigma - sigma' alpha > 0 between the ends, and ``inverse`` finds t again from the ratio."""
    path = make()
    t = _inside(path)
    a, s, da, ds = path.coefficients(t)
    W = da * s - ds * a
    must(bool((W > 0).all()), f"alpha' sigma - sigma' alpha is {W.min().item():.3g} somewhere; it has to be positive")
    miss = apart(t, path.inverse(a, s))
    must(miss < 1e-5, f"inverse(alpha(t), sigma(t)) is {miss:.3g} away from t; it should give t back")


def its_target_is_the_velocity(make: Callable[[], Affine]) -> None:
    """The target of a velocity is d x_t / dt, and a velocity turned into x1, noise or score and back is itself."""
    path, h = make(), 1e-6
    draws = generator(0, "path")
    t = _inside(path)
    x0, x1 = (torch.randn(len(t), 3, generator=draws, dtype=torch.float64) for _ in range(2))
    x, v = path.interpolate(x0, x1, t), path.target("velocity", x0, x1, t)
    slope = (path.interpolate(x0, x1, t + h) - path.interpolate(x0, x1, t - h)) / (2 * h)
    must(apart(slope, v) < 1e-5, f"target('velocity') is {apart(slope, v):.3g} away from the derivative of x_t")
    for kind in ("x1", "noise", "score"):
        there = path.convert(v, x, t, "velocity", kind)
        back = path.convert(there, x, t, kind, "velocity")
        must(apart(v, back) < 1e-6, f"a velocity turned into {kind} and back is {apart(v, back):.3g} away")


def its_source_is_drawn_from_the_generator(make: Callable[[], Affine]) -> None:
    """x0 is finite, shaped like the data and the same from the same generator."""
    path, like = make(), torch.zeros(16, 3)
    one, other = (path.draw_source(like, generator(0, "source")) for _ in range(2))
    must(shapes(one) == shapes(like), f"its source gave {shapes(one)} where the data are {shapes(like)}")
    must(
        same(one, other) and bool(one.isfinite().all()), "its source is not finite, or not the same from one generator"
    )


def _coupled(couple: Coupling, labels: bool = False) -> tuple[Tensor, Tensor, Pairs]:
    draws = generator(0, "coupling")
    x0, x1 = torch.randn(32, 3, generator=draws), 2 * torch.randn(32, 3, generator=draws) + 1
    condition = torch.arange(32) % 4 if labels else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that conditions skew the source is for who trains with it to hear
        return x0, x1, couple(x0, x1, condition, generator(1, "coupling"))


def its_pairs_are_of_the_batch(make: Callable[[], Coupling]) -> None:
    """Each x1 of a pair is one of the batch, each x0 one of the batch or new and of its shape, and ``index``, where it
    is given, says which."""
    for labels in (False, True):
        x0, x1, pairs = _coupled(make(), labels)
        must(pairs.x0.shape[1:] == x0.shape[1:] and len(pairs.x0) == len(pairs.x1) > 0,
             f"it paired {shapes(pairs.x0)} with {shapes(pairs.x1)}; there is one x0 for each x1")  # fmt: skip
        must(
            bool((pairs.x1[:, None] == x1).all(-1).any(1).all()),
            "a pair's x1 is none of the batch; data are not made up",
        )
        if pairs.index is not None:
            first, second = pairs.index
            must(
                same(pairs.x0, x0[first]) and same(pairs.x1, x1[second]), "index does not say where its pairs come from"
            )
        else:
            must(same(pairs.x1, x1), "it moves x1 and gives no index; labels and masks could not follow")


def its_weights_are_none_or_positive(make: Callable[[], Coupling]) -> None:
    """Weights are finite, one for each pair, none below 0 and not all 0."""
    weight = _coupled(make())[2].weight
    if weight is not None:
        rows = len(_coupled(make())[2].x1)
        must(weight.shape == (rows,), f"weights are {shapes(weight)}; there should be one for each of {rows} pairs")
        good = bool(weight.isfinite().all()) and bool((weight >= 0).all()) and bool(weight.sum() > 0)
        must(good, "a weight is not finite or below 0, or all are 0; a mean over them has to exist")


def it_draws_from_the_generator(make: Callable[[], Coupling]) -> None:
    """The same batch and generator give the same pairs, whatever the global seed, and its arguments stay."""
    with torch.random.fork_rng(devices=[]):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(_coupled(make())[2])
    must(
        same(found[0], found[1]),
        "the same generator gave other pairs; draw from it alone",
    )


def its_draws_are_times(make: Callable[[], Times]) -> None:
    """t is (n,) in [0, 1], and the same from the same generator."""
    one, other = (make()(1000, generator(0, "times")) for _ in range(2))
    must(one.shape == (1000,), f"it drew {shapes(one)}; it should be 1000 times, one for each sample")
    low, high = one.min().item(), one.max().item()
    must(low >= 0 and high <= 1, f"its times go from {low:.4g} to {high:.4g}; they belong in [0, 1]")
    must(same(one, other), "the same generator gave other times; draw from it alone")


def its_density_is_that_of_its_draws(make: Callable[[], Times]) -> None:
    """The share of draws below t is the integral of the density up to t, to three hundredths."""
    times = make()
    grid = torch.linspace(1e-5, 1 - 1e-5, 200_001, dtype=torch.float64)
    density = times.density(grid)
    total = torch.cumulative_trapezoid(density, grid)
    draws = times(20_000, generator(0, "times")).double().sort().values
    share = torch.searchsorted(draws, grid[1:].contiguous()).double() / len(draws)
    miss = (share - total).abs().max().item()
    must(
        miss < 0.03, f"density() and the draws are {miss:.3g} apart in distribution; one of the two is not what it says"
    )


def its_importance_is_finite(make: Callable[[], Times]) -> None:
    """The weights of drawn times are None, or finite and positive."""
    times = make()
    t = times(1000, generator(0, "times"))
    weights = times.weights(t)
    good = weights is None or (
        weights.shape == t.shape and bool(weights.isfinite().all()) and bool((weights > 0).all())
    )
    must(good, "weights(t) has a value that is not finite or not above 0")


def it_is_nothing_where_they_are_equal(make: Callable[[], Metric]) -> None:
    """The loss of a prediction that hits is 0, with a gradient that is finite."""
    x = torch.randn(5, 3, 4, generator=generator(0, "loss")).requires_grad_()
    loss = make()(x, x.detach())
    must(loss.shape == (5,), f"it returned {shapes(loss)}; it should be one value for each of 5 samples")
    must(bool((loss.abs() < 1e-6).all()), f"the loss of equal tensors is {loss.abs().max().item():.3g}; it should be 0")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    must(
        bool(gradient.isfinite().all()),
        "its gradient is not finite where prediction and target are equal; add an epsilon",
    )


def it_grows_with_the_error_of_its_own_sample(make: Callable[[], Metric]) -> None:
    """Twice as wrong costs more, and what is wrong with one sample costs no other anything."""
    draws = generator(0, "loss")
    target, error = torch.randn(5, 3, 4, generator=draws), torch.randn(5, 3, 4, generator=draws)
    metric = make()
    once, twice = metric(target + error, target), metric(target + 2 * error, target)
    must(bool(((once > 0) & (twice > once)).all()), "the loss does not grow with the error")
    error[1:] = 0
    one = metric(target + error, target)
    must(
        apart(once[:1], one[:1]) < 1e-6 and bool((one[1:].abs() < 1e-6).all()),
        "the loss of one sample counts another's",
    )


PATH = (
    it_begins_at_the_source_and_ends_at_the_data, its_slopes_are_the_derivatives, noise_gives_way_to_data_all_along,
    its_target_is_the_velocity, its_source_is_drawn_from_the_generator,
)  # fmt: skip
COUPLING = (its_pairs_are_of_the_batch, its_weights_are_none_or_positive, it_draws_from_the_generator)
TIMES = (its_draws_are_times, its_density_is_that_of_its_draws, its_importance_is_finite)
LOSS = (it_is_nothing_where_they_are_equal, it_grows_with_the_error_of_its_own_sample)
