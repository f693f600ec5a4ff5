"""Distances between sets of samples, against the closed forms for Gaussians and for shifted sets."""

import math

import pytest
import scipy.stats
import torch

from flowcore import distances
from flowcore.distances import energy_distance, median_bandwidth, squared_mmd, wasserstein
from flowcore.seeds import generator

SHAPES = [(50, 3), (50, 50), (50, 1), (50,), (50, 2, 3, 3)]
ALL = [wasserstein, squared_mmd, energy_distance]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed, "distances"), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [1, 2, 3.5])
def test_wasserstein_of_a_shifted_set_is_the_length_of_the_shift(shape, order):
    x, shift = normal(*shape), normal(1, *shape[1:], seed=1)
    shuffled = x[torch.randperm(len(x), generator=generator(2))]
    assert wasserstein(x, shuffled + shift, order) == pytest.approx(shift.norm().item(), rel=1e-10)
    assert wasserstein(x, shuffled, order) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("order", "distance"), [(1, scipy.stats.wasserstein_distance), (2, None)])
def test_wasserstein_in_one_dimension_is_the_difference_of_quantiles(order, distance):
    x, y = normal(60, 1), 1 + 2 * normal(60, 1, seed=1)
    quantiles = (x.sort(0).values - y.sort(0).values).abs().pow(order).mean().item() ** (1 / order)
    assert wasserstein(x, y, order) == pytest.approx(quantiles, rel=1e-12)
    if distance:
        few = y[:25]
        assert wasserstein(x, few, order) == pytest.approx(distance(x.flatten(), few.flatten()), rel=1e-10)


def test_unequal_samples_share_their_mass():
    x, y = torch.tensor([[0.0], [4.0], [8.0]]), torch.tensor([[0.0], [8.0]])
    # 1/3 stays at 0 and at 8; the mass of 4 goes half each way, a third of it all in all, over a distance of 4
    assert wasserstein(x, y, 1) == pytest.approx(4 / 3)
    assert wasserstein(x, y, 2) == pytest.approx(math.sqrt(16 / 3))


def test_wasserstein_between_gaussians_is_that_of_bures():
    first, second = torch.tensor([1.0, 0.5]), torch.tensor([2.0, 1.5])
    x, y = normal(2000, 2) * first, normal(2000, 2, seed=1) * second + torch.tensor([1.0, -1.0])
    assert wasserstein(x, y) == pytest.approx(math.sqrt(2 + (second - first).square().sum().item()), rel=0.05)


@pytest.mark.parametrize("bandwidths", [[0.7], [0.5, 2.0]])
def test_mmd_between_gaussians_is_the_closed_form(bandwidths):
    d, s, shift = 2, 1.5, torch.tensor([1.0, 0.5], dtype=torch.float64)
    x, y = normal(2000, d), s * normal(2000, d, seed=1) + shift

    def expected(variance, mean):  # E exp(-|u|^2 / 2 b^2) for u ~ N(mean, variance I), averaged over b
        wide = [(b * b, b * b + variance) for b in bandwidths]
        return sum((narrow / w) ** (d / 2) * math.exp(-mean / (2 * w)) for narrow, w in wide) / len(wide)

    truth = expected(2, 0) + expected(2 * s * s, 0) - 2 * expected(1 + s * s, shift.square().sum().item())
    assert squared_mmd(x, y, bandwidths) == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize(("n", "m"), [(7, 5), (2, 2)])
def test_the_unbiased_mmd_leaves_out_exactly_the_pairs_of_a_sample_with_itself(n, m):
    x, y = normal(n, 2), normal(m, 2, seed=1)

    def mean(a, b, distinct):
        k = torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * 0.8**2))
        return k[~torch.eye(len(a), dtype=torch.bool)].mean() if distinct else k.mean()

    for unbiased in (True, False):
        truth = mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)
        assert squared_mmd(x, y, [0.8], unbiased) == pytest.approx(truth.item(), abs=1e-14)
    assert squared_mmd(x, x.flip(0), unbiased=False) == pytest.approx(0, abs=1e-14)


def test_the_unbiased_mmd_of_one_law_is_zero_on_average():
    sets = [squared_mmd(normal(30, 2, seed=2 * i), normal(30, 2, seed=2 * i + 1)) for i in range(200)]
    mean, error = scipy.stats.describe(sets).mean, scipy.stats.sem(sets)
    assert abs(mean) < 3 * error
    assert min(sets) < 0 < max(sets)


def test_the_default_bandwidth_is_the_median_distance():
    x, y = normal(20, 3), normal(30, 3, seed=1)
    assert median_bandwidth(x, y) == torch.pdist(torch.cat([x, y])).median()
    assert squared_mmd(x, y) == squared_mmd(x, y, [median_bandwidth(x, y)])


def test_energy_distance_in_one_dimension_is_the_square_of_scipys():
    x, y = normal(60), 0.5 + 2 * normal(40, seed=1)
    assert energy_distance(x, y) == pytest.approx(scipy.stats.energy_distance(x, y) ** 2, rel=1e-10)


def test_energy_distance_between_gaussians_is_the_closed_form():
    # E |N(m, 2)| = 2 phi(m / sqrt 2) sqrt 2 + m (2 Phi(m / sqrt 2) - 1)
    m = 1.0
    z = m / math.sqrt(2)
    apart = 2 * math.sqrt(2) * scipy.stats.norm.pdf(z) + m * (2 * scipy.stats.norm.cdf(z) - 1)
    truth = 2 * apart - 4 / math.sqrt(math.pi)
    assert energy_distance(normal(4000), normal(4000, seed=1) + m) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("distance", ALL)
def test_states_are_compared_as_vectors(distance):
    x, y = normal(20, 6), normal(20, 6, seed=1) + 1
    pictures = [s.view(20, 2, 3, 1) for s in (x, y)]
    parts = [{"a": s[:, :2], "b": {"c": s[:, 2:].view(20, 2, 2)}} for s in (x, y)]
    assert distance(*pictures) == distance(x, y)
    assert distance(*parts) == distance(x, y)
    assert distance(y, x) == pytest.approx(distance(x, y), rel=1e-12)
    assert distance(x.float(), y.float()) == pytest.approx(distance(x, y), rel=1e-6)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, y = normal(50, 3), normal(40, 3, seed=1)
    whole = [squared_mmd(x, y), energy_distance(x, y)]
    monkeypatch.setattr(distances, "BLOCK", 7)
    assert [squared_mmd(x, y), energy_distance(x, y)] == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("distance", ALL)
def test_what_cannot_be_compared_is_refused(distance):
    x = normal(5, 3)
    with pytest.raises(ValueError, match="3 and 2 numbers"):
        distance(x, x[:, :2])
    with pytest.raises(ValueError, match="at least one sample"):
        distance(x, x[:0])
    with pytest.raises(ValueError, match="finite"):
        distance(x, x / 0)


def test_orders_and_bandwidths_outside_their_range_are_refused():
    x = normal(5, 3)
    with pytest.raises(ValueError, match="p >= 1"):
        wasserstein(x, x, 0.5)
    with pytest.raises(ValueError, match="positive"):
        squared_mmd(x, x, [1.0, 0.0])
    with pytest.raises(ValueError, match="bandwidths="):
        squared_mmd(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="unbiased=False"):
        squared_mmd(x[:1], x)


@pytest.mark.filterwarnings("ignore:numItermax")
def test_an_unfinished_transport_is_an_error_not_a_figure(monkeypatch):
    monkeypatch.setattr(distances, "PIVOTS", 10)
    with pytest.raises(ValueError, match="did not converge"):
        wasserstein(normal(200, 2), normal(200, 2, seed=1))
