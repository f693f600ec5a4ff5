"""What is said of whole fields, against those whose paths, couplings and posteriors are known."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from flowcore import diagnostics, jacobian
from flowcore.closed_form import mixture
from flowcore.couplings import Pairs
from flowcore.diagnostics import Transport, denoising_loss, diagnose, normalised_path_energy, transport
from flowcore.distances import wasserstein
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.paths import Product, cosine, linear, vp
from flowcore.seeds import generator
from flowcore.solvers import solve
from flowcore.state import tree_map


def test_the_first_order_defect_is_0_where_the_noise_is_constant():
    """On a curved path too, where straightness is not: N(m, sd^2) with one point of data, whatever the network says."""
    for path in (vp(), cosine(), linear()):
        field = mixture(path, normal(1, 3), 0.0)  # all ways lead to the one point
        x0 = path.initial(normal(6, 3, seed=1))
        assert diagnostics.first_order_defect(field, x0, 20) < 1e-20
        straight = transport(field, x0, 20).straightness
        assert straight < 1e-20 if path.name == "linear" else straight > 0.1


def test_the_first_order_defect_by_hand():
    """e(x, t) = t on the linear path: e - e(0) = t at t = 0, 1/4, 1/2, 3/4, whatever the trajectory."""
    field = Field(lambda x, t, c: t[:, None].expand_as(x), replace(linear(), start=0.2), "noise")
    found = diagnostics.first_order_defect(field, normal(5, 3), 4)
    assert found == pytest.approx(sum((0.2 * i) ** 2 for i in range(4)) / 4)
    parts = Field(lambda x, t, c: {key: t[:, None].expand_as(leaf) for key, leaf in x.items()}, field.path, "noise")
    assert diagnostics.first_order_defect(parts, {"a": normal(5, 3), "b": normal(5, 1)}, 4) == pytest.approx(found)
    with pytest.raises(ValueError, match="affine"):
        diagnostics.first_order_defect(Field(field.network, Product({"a": linear()})), normal(5, 3))


TIMES = [0.05, 0.2, 0.5, 0.8, 0.95]


def draws(seed=0):
    return generator(seed, "test")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=torch.float64)


def quadrature(function, start=0.0, stop=1.0, n=2000):
    """The mean of ``function`` over an interval, by the midpoint rule."""
    return function(start + (stop - start) * (torch.arange(n).double() + 0.5) / n).mean().item()


@pytest.mark.parametrize(
    "path", [linear(), cosine(), vp(), replace(cosine(), start=0.2, stop=0.9)], ids=["linear", "cosine", "vp", "cut"]
)
@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (5, 1, 2, 3)])
def test_energy_is_cost_plus_straightness_for_the_euler_sums(path, steps, shape):
    field = mixture(path, 2 * normal(3, *shape[1:]), 0.5)
    found = transport(field, normal(*shape, seed=1), steps)
    assert found.energy == pytest.approx(found.cost + found.straightness, rel=1e-12)
    assert found.dimension == math.prod(shape[1:])


def test_the_three_sums_are_what_their_names_say():
    field, x0, N = mixture(linear(), 2 * normal(3, 2), 0.5), normal(6, 2, seed=1), 8
    x, velocities = x0, []
    for i in range(N):
        velocities.append(field(x, torch.tensor(i / N).double()))
        x = x + velocities[-1] / N
    v, move = torch.stack(velocities), x - x0
    found = transport(field, x0, N)
    assert found.cost == pytest.approx(move.square().sum(1).mean().item())
    assert found.energy == pytest.approx(v.square().sum(2).mean().item())
    assert found.straightness == pytest.approx((move - v).square().sum(2).mean().item())


def test_a_shift_is_straight_and_costs_its_length():
    shift = {"a": normal(1, 2), "b": normal(1, 2, 2, seed=1)}
    x0 = {"a": normal(5, 2), "b": normal(5, 2, 2)}
    found = transport(lambda x, t: tree_map(lambda leaf, s: s.expand_as(leaf), x, shift), x0, 4)
    length = sum(s.square().sum().item() for s in shift.values())
    assert found == Transport(pytest.approx(length), pytest.approx(length), pytest.approx(0, abs=1e-12), 6)


def test_the_paths_to_a_gaussian_have_the_cost_and_curvature_of_the_closed_form():
    # x_t = t m + c(t) x0 with c^2 = t^2 S^2 + (1 - t)^2, for the very x0 that are passed
    m, S, x0 = torch.tensor([[3.0, -1.0]]).double(), 2.0, normal(200, 2)
    found = transport(mixture(linear(), m, S), x0, 1000)
    size = x0.square().sum(1).mean().item()
    assert found.cost == pytest.approx((m + (S - 1) * x0).square().sum(1).mean().item(), rel=1e-2)
    curved = quadrature(lambda t: ((t * S**2 - (1 - t)) / (t**2 * S**2 + (1 - t) ** 2).sqrt() - (S - 1)).square())
    assert found.straightness == pytest.approx(size * curved, rel=1e-2)


def test_the_flow_between_gaussians_is_coupled_optimally_but_curved():
    field, x0 = mixture(linear(), torch.tensor([[3.0, -1.0]]).double(), 2.0), normal(100, 2)
    paths, w2 = transport(field, x0, 20), wasserstein(x0, solve(field, x0, 20))
    found = normalised_path_energy(paths, w2)
    assert found.miscoupled == pytest.approx(0, abs=1e-10)  # a monotone map is the optimal one, between samples too
    assert found.curved == pytest.approx(paths.straightness / paths.cost)
    assert found.npe == pytest.approx(abs(paths.energy - w2**2) / w2**2)
    assert found.npe > 0.1


def test_a_rotation_is_miscoupled():
    # half a turn at constant speed: N(m, I) goes to N(-m, I), whose W2 is 2 |m|
    m = torch.tensor([2.0, 0.0]).double()
    turn = torch.tensor([[0.0, -math.pi], [math.pi, 0.0]]).double()
    paths = transport(lambda x, t: x @ turn.T, normal(4000, 2) + m, 2000)
    found = normalised_path_energy(paths, 2 * m.norm().item())
    assert found.npe * 16 == pytest.approx(paths.straightness + paths.cost - 16)
    assert found.miscoupled == pytest.approx(4 * (4 + 2) / 16 - 1, rel=0.1)
    assert found.npe == pytest.approx(math.pi**2 * (4 + 2) / 16 - 1, rel=0.1)


def test_a_cost_below_the_wasserstein_distance_shows_as_negative():
    found = normalised_path_energy(Transport(cost=6.0, energy=7.0, straightness=1.0, dimension=2), math.sqrt(8.0))
    assert found == pytest.approx((1 / 8, 1 / 8, -1 / 4))
    with pytest.raises(ValueError, match="normalised by W2"):
        normalised_path_energy(Transport(1.0, 1.0, 0.0, 2), 0.0)


@pytest.mark.parametrize("path", [linear(), cosine(), vp()], ids=["linear", "cosine", "vp"])
def test_the_denoising_loss_of_the_exact_field_is_the_posterior_variance(path):
    S = 1.5
    field = mixture(path, torch.tensor([[1.0, -2.0]]).double(), S)
    pairs = Pairs(normal(4000, 2), S * normal(4000, 2, seed=1) + field.network.m)
    found = denoising_loss(field, pairs, draws(), bins=5)
    edges = torch.linspace(path.start, path.stop, 6).double()
    torch.testing.assert_close(found.edges, edges, rtol=0, atol=1e-6)

    def variance(t):
        noise = path.sigma(t).square()
        return S**2 * noise / (path.alpha(t).square() * S**2 + noise)

    expected = [quadrature(variance, a.item(), b.item()) for a, b in pairwise(edges)]
    torch.testing.assert_close(found.loss, torch.tensor(expected).double(), rtol=0.05, atol=0)


def test_the_denoising_loss_averages_numbers_and_weighs_pairs():
    x1 = {"a": normal(6, 2), "b": normal(6, 2, 2)}
    field = Field(lambda x, t, c: tree_map(torch.zeros_like, x), linear(), "x1")  # it always predicts 0
    errors = torch.cat([x1["a"], x1["b"].flatten(1)], 1).square().mean(1)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0, 4.0]).double()
    pairs = Pairs(tree_map(torch.ones_like, x1), x1)
    torch.testing.assert_close(denoising_loss(field, pairs, draws(), 3).loss, errors.mean().expand(3))
    weighed = denoising_loss(field, pairs._replace(weight=weight), draws(), 3).loss
    torch.testing.assert_close(weighed, ((errors * weight).sum() / 10).expand(3))


def test_every_pair_is_denoised_once_in_every_bin():
    seen = []

    def network(x, t, condition):
        seen.append(t.sort().values)
        return x

    denoising_loss(Field(network, linear(), "x1"), Pairs(normal(50, 2), normal(50, 2)), draws(), bins=4)
    strata = torch.stack([50 * (4 * t - i) for i, t in enumerate(seen)])
    assert torch.equal(strata.floor(), torch.arange(50).double().expand(4, 50))


def test_a_field_learned_from_digits_is_no_gradient_where_the_exact_one_is():
    data = torch.as_tensor(load_digits().data[:500]) / 8 - 1
    exact = mixture(linear(), data)
    layers = nn.Sequential(nn.Linear(65, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64)).double()
    for p in layers.parameters():
        p.data = torch.randn(p.shape, generator=draws(p.numel())).double() / math.sqrt(p.shape[-1])
    learned = Field(lambda x, t, c: layers(torch.cat([x, t[:, None]], 1)), linear())
    optimiser, draw = torch.optim.Adam(layers.parameters(), 2e-3), draws(1)
    for _ in range(300):
        x1 = data[torch.randint(500, (64,), generator=draw)]
        x0 = torch.randn(x1.shape, generator=draw, dtype=x1.dtype)
        loss = matching_loss(learned, Pairs(x0, x1), torch.rand(64, generator=draw, dtype=x1.dtype)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    truth, found = (diagnose(field, data[:16], TIMES, draws(2)) for field in (exact, learned))
    assert [row.t for row in found] == TIMES
    for known, row in zip(truth, found, strict=True):
        assert known.asymmetry < 1e-5
        assert known.loop < 1e-4
        assert known.negative < 1e-10
        assert row.asymmetry > max(1e-2, 1e3 * known.asymmetry)
        assert row.loop > 10 * known.loop
    assert found[0].negative > 1e-2


def test_a_curled_field_is_diagnosed_by_its_jacobian_or_by_probes():
    R = normal(3, 3) - normal(3, 3).T
    field = mixture(linear(), 2 * normal(4, 3, seed=1), 0.5)
    curled = Field(lambda x, t, c: field(x, t) + 0.5 * field.score(x, t) @ R.T, linear())
    data = normal(20, 3, seed=2)
    exact = diagnose(curled, data, [0.3, 0.7], draws())
    assert min(row.asymmetry for row in exact) > 0.1
    assert min(row.loop for row in exact) > 0.1
    probed = diagnose(curled, data, [0.3, 0.7], draws(), probes=64)
    for row, estimate in zip(exact, probed, strict=True):
        assert estimate.asymmetry == pytest.approx(row.asymmetry, rel=0.3)
        assert estimate.negative is None
        assert row.negative is not None
    assert exact == diagnose(curled, data, [0.3, 0.7], draws())


def test_the_jacobian_is_formed_up_to_its_largest_dimension(monkeypatch):
    field, data = mixture(linear(), 2 * normal(4, 3), 0.5), normal(5, 3)
    for largest in (2, 3):
        monkeypatch.setattr(diagnostics, "EXACT", largest)
        monkeypatch.setattr(jacobian, "EXACT", largest)
        (row,) = diagnose(field, data, [0.5], draws(), probes=None if largest == 3 else 8)
        assert (row.negative is None) == (largest == 2)
