"""Couplings against sorting, brute force, closed forms for Gaussians, and POT and SciPy."""

import itertools
import math
import warnings

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from flowcore.couplings import (
    Coupled,
    Pairs,
    automatic_eps,
    effective_sample_size,
    entropic,
    exact,
    gibbs,
    independent,
    sinkhorn,
    split,
    squared_distance,
    tilt,
    unbalanced,
)
from flowcore.data import Batch, Rows, batches
from flowcore.losses import matching_loss
from flowcore.paths import linear
from flowcore.seeds import generator
from flowcore.state import leaves, tree_map

inf = math.inf
SHAPES = [(7,), (7, 1), (7, 2), (7, 7), (7, 100), (7, 3, 5, 5), {"a": (7, 2), "b": {"c": (7, 3, 4)}}]


def draws(seed=0):
    return generator(seed, "test")


def normal(shape, seed=0, dtype=torch.float64):
    if isinstance(shape, dict):
        return {key: normal(one, seed + i, dtype) for i, (key, one) in enumerate(shape.items())}
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=dtype)


def gaussians(n, d, seed=0):
    """x0 ~ N(0, I) and x1 ~ N(1, 4 I)."""
    return normal((n, d), seed), 2 * normal((n, d), seed + 1) + 1


def cost_of(pairs):
    return sum((a - b).square().sum().item() for a, b in zip(leaves(pairs.x0), leaves(pairs.x1), strict=True))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def cheapest(cost):
    """The least cost of a one-to-one assignment, by trying all."""
    n = len(cost)
    return min(sum(cost[j, s[j]].item() for j in range(n)) for s in itertools.permutations(range(n)))


def tiled(x):
    """Five samples, each 200 times: the plan between tiled batches is the tiled plan, and one draw shows it."""
    return x.repeat(200, 1)


def frequencies(pairs):
    """How often each of the five tiled x1 met each of the five x0; 4 standard errors are at most 0.14."""
    i, j = (rows % 5 for rows in pairs.index)
    return torch.zeros(5, 5, dtype=torch.float64).index_put((j, i), torch.tensor(1 / 200.0).double(), accumulate=True)


# the cost


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_squared_distance_sums_over_all_entries_of_all_leaves(shape):
    a, b = normal(shape, 1), normal(shape, 5)
    wanted = [[sum((x[i] - y[j]).square().sum().item() for x, y in zip(leaves(a), leaves(b), strict=True))
               for j in range(7)] for i in range(7)]  # fmt: skip
    torch.testing.assert_close(squared_distance(a, b), torch.tensor(wanted, dtype=torch.float64))


def test_squared_distance_keeps_its_digits_far_from_the_origin_and_under_autocast():
    a, b = normal((20, 8), 1, torch.float32), normal((20, 8), 2, torch.float32)
    wanted = torch.cdist(a.double(), b.double()).square()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(squared_distance(a, b), wanted, rtol=1e-12, atol=1e-12)
    far = squared_distance(a.double() + 1e4, b.double() + 1e4)
    torch.testing.assert_close(far, wanted, rtol=1e-5, atol=1e-5)


def test_squared_distance_of_integers_counts_mismatches_and_of_complex_numbers_both_parts():
    tokens = torch.tensor([[1, 5, 9], [1, 5, 2], [7, 0, 2]])
    assert squared_distance(tokens, tokens).tolist() == [[0, 1, 3], [1, 0, 2], [3, 2, 0]]
    z = torch.tensor([1 + 2j, 0 - 1j])
    torch.testing.assert_close(squared_distance(z, z), torch.tensor([[0, 10], [10, 0]], dtype=torch.float64))


# exact


@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("trailing", [(), (1,)])
def test_exact_in_one_dimension_sorts(n, trailing):
    x0, x1 = normal((n, *trailing)), normal((n, *trailing), 1)
    pairs = exact()(x0, x1, None, draws())
    assert torch.equal(pairs.x0[x1.flatten().argsort()].flatten(), x0.flatten().sort().values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_is_the_cheapest_permutation_and_keeps_shapes_and_the_order_of_the_data(shape):
    x0, x1 = normal(shape, 1), normal(shape, 5)
    pairs = exact()(x0, x1, None, draws())
    i, j = pairs.index
    assert sorted(i.tolist()) == j.tolist() == list(range(7))
    assert equal(pairs.x1, x1)
    assert equal(pairs.x0, tree_map(lambda leaf: leaf[i], x0))
    assert cost_of(pairs) == pytest.approx(cheapest(squared_distance(x1, x0)))
    assert pairs.weight is None


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_uses_every_row_once_where_sampling_the_plan_loses_a_third(d, dtype):
    n = 256
    x0, x1 = (x.to(dtype) for x in gaussians(n, d))
    pairs = exact()(x0, x1, None, draws())
    assert pairs.x0.dtype == dtype
    assert len(pairs.x0.unique(dim=0)) == n
    assert cost_of(pairs) < cost_of(Pairs(x0, x1))
    plan = torch.from_numpy(ot.emd([], [], squared_distance(x1, x0).numpy()))
    kept = torch.multinomial(plan.flatten(), n, replacement=True, generator=draws()).unique().numel() / n
    assert kept == pytest.approx(1 - math.exp(-1), abs=0.07)


@pytest.mark.parametrize("d", [2, 64])
def test_exact_is_a_permutation_among_ties(d):
    x0, x1 = normal((60, d)).sign(), normal((60, d), 1).sign()
    x1[:20], x0[:10] = x1[0], x0[0]
    pairs = exact()(x0, x1, None, draws())
    assert sorted(pairs.index[0].tolist()) == list(range(60))
    cost = squared_distance(x1, x0).numpy()
    assert cost_of(pairs) == pytest.approx(cost[linear_sum_assignment(cost)].sum())


def test_exact_is_optimal_where_pots_own_limit_of_pivots_stops_short():
    x0, x1 = normal((2300, 1)), 2 * normal((2300, 1), 1) + 1
    cost = squared_distance(x1, x0).numpy()
    with pytest.warns(UserWarning, match="numItermax"):
        stopped = cost[np.arange(2300), ot.emd([], [], cost).argmax(1)].sum()
    best = (x0.sort(0).values - x1.sort(0).values).square().sum().item()
    assert stopped > best * (1 + 1e-6)
    assert cost_of(exact()(x0, x1, None, draws())) == pytest.approx(best, rel=1e-12)


def kinds(n, d):
    """Batches that are hard for one step or another of the exact coupling."""
    x0, x1 = gaussians(n, d)
    copies = x0.clone(), x1.clone()
    copies[0][: n // 2], copies[1][: n // 3] = x0[0], x1[1]
    return {
        "gaussian": (x0, x1),
        "clusters": (x0, x1.sign() * 5 + x1 / 10),
        "corners": (x0.sign(), x1.sign()),
        "copies": copies,
        "lattice": (x0.round(), x1.round()),
        "one point": (x0, x1[:1].repeat(n, 1)),
        "the same": (x0, x0.flip(0)),
        "outlier": (torch.cat([x0[1:], 1e4 + x0[:1]]), x1),
        "far": (x0, x1 / 100 + 1e4),
        "apart": (x0, x1 + 300),
        "huge": (1e12 * x0, 1e12 * x1),
        "beyond single precision": (1e60 * x0, 1e60 * x1),
        "small": (1e-9 * x0, 1e-9 * x1),
        "below single precision": (1e-60 * x0, 1e-60 * x1),
        "all scales": (x0 * torch.logspace(-6, 6, n)[:, None], x1 * torch.logspace(6, -6, n)[:, None]),
    }


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("d", [1, 2, 3, 64])
@pytest.mark.parametrize("kind", kinds(3, 1))
def test_exact_is_scipys_optimum_of_the_bare_cost(n, d, kind):
    """Neither the start from Sinkhorn's potentials nor the choice of the solver shows, whatever the scale and ties."""
    x0, x1 = kinds(n, d)[kind]
    cost = squared_distance(x1, x0).numpy()
    i, _ = exact()(x0, x1, None, draws()).index
    assert sorted(i.tolist()) == list(range(n))
    a, b = x0 - x0.mean(0), x1 - x1.mean(0)  # the part of the cost that the pairing decides
    ours, theirs = ((a[rows] * b).sum().item() for rows in (i, linear_sum_assignment(cost)[1]))
    assert ours >= theirs - 1e-9 * (a.norm() * b.norm()).item()
    assert cost[range(n), i].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("n", "d", "kind", "simplex"),
    [
        (300, 2, "clusters", True),
        (256, 2, "clusters", False),
        (300, 2, "gaussian", False),
        (300, 64, "gaussian", False),
    ],
)
def test_the_simplex_serves_large_batches_in_which_many_want_the_same_partner(monkeypatch, n, d, kind, simplex):
    calls, emd = [], ot.emd
    monkeypatch.setattr(ot, "emd", lambda *given, **options: calls.append(1) or emd(*given, **options))
    exact()(*kinds(n, d)[kind], None, draws())
    assert bool(calls) == simplex


# the condition


@pytest.mark.parametrize("make", [exact, entropic, unbalanced])
@pytest.mark.parametrize("d", [2, 64])
def test_infinite_condition_weight_pairs_within_classes_only(make, d):
    x0, x1 = gaussians(40, d)
    label = torch.randint(4, (40,), generator=draws())
    told = {"class": label, "view": torch.stack([label % 2, label], 1).double()}
    for condition in (label, told):
        i, j = make(condition_weight=inf)(x0, x1, condition, draws()).index
        assert torch.equal(label[i], label[j])


@pytest.mark.parametrize("d", [2, 64])
def test_exact_within_classes_is_exact_in_each_class(d):
    x0, x1 = gaussians(41, d)
    label = torch.randint(3, (41,), generator=draws())
    label[7] = 9  # a class of one
    pairs = exact(inf)(x0, x1, label, draws())
    for k in label.unique():
        rows = label == k
        cost = squared_distance(x1[rows], x0[rows]).numpy()
        assert cost_of(Pairs(pairs.x0[rows], x1[rows])) == pytest.approx(cost[linear_sum_assignment(cost)].sum())


@pytest.mark.parametrize("make", [exact, entropic, unbalanced])
def test_a_weight_of_the_condition_means_nothing_where_there_is_none(make):
    x0, x1 = gaussians(40, 2)
    plain = make()(x0, x1, None, draws())
    for weight in (0.7, inf):
        assert equal(make(condition_weight=weight)(x0, x1, None, draws()).x0, plain.x0)


def test_plain_ot_skews_the_source_of_a_class_and_conditional_ot_does_not():
    label = torch.arange(400) % 2
    x0, x1 = normal((400, 2)), normal((400, 2), 1) + 4 * (2 * label[:, None] - 1)
    skewed = exact(0.0)(x0, x1, label, draws()).x0[label == 1].mean()
    fair = exact(inf)(x0, x1, label, draws()).x0[label == 1]
    assert skewed > 0.5
    assert torch.equal(fair.sort(0).values, x0[label == 1].sort(0).values)


@pytest.mark.parametrize("weight", [0.0, 0.7, 1e6])
def test_exact_with_a_continuous_condition_minimises_the_sum_of_both_costs(weight):
    x0, x1, c = normal((7, 2)), normal((7, 2), 1), normal((7, 3), 2)
    pairs = exact(weight)(x0, x1, c, draws())
    both = cost_of(pairs) + weight * (c[pairs.index[0]] - c).square().sum().item()
    assert both == pytest.approx(cheapest(squared_distance(x1, x0) + weight * squared_distance(c, c)))
    if weight == 1e6:
        assert equal(pairs.x0, x0)


def test_entropic_adds_the_weighted_distance_of_conditions_to_the_cost():
    x0, x1, c = normal((5, 2)), normal((5, 2), 1), normal((5, 1), 2)
    wanted = sinkhorn(squared_distance(x1, x0) + 3 * squared_distance(c, c), 4.0, tolerance=1e-6).exp() * 5
    pairs = entropic(4.0, condition_weight=3)(tiled(x0), tiled(x1), tiled(c), draws())
    torch.testing.assert_close(frequencies(pairs), wanted, atol=0.14, rtol=0)


@pytest.mark.parametrize("make", [exact, entropic, unbalanced])
def test_a_condition_without_a_weight_is_warned_of_once(make):
    (x0, x1), label = gaussians(8, 2), torch.arange(8) % 2
    couple = make()
    with pytest.warns(UserWarning, match="condition_weight") as caught:
        couple(x0, x1, label, draws())
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        couple(x0, x1, label, draws())
        make()(x0, x1, None, draws())
        make(condition_weight=1.0)(x0, x1, label, draws())
        independent()(x0, x1, label, draws())


# entropic


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("reg", [2.0, 0.5])
def test_entropic_plan_has_its_marginals_and_a_cost_within_reg_log_n_of_exact(d, reg):
    n = 128
    x0, x1 = gaussians(n, d)
    cost = squared_distance(x1, x0)
    plan = sinkhorn(cost, reg).exp()
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64))
    assert (plan.sum(0) - 1 / n).abs().sum() < 1e-3
    best = cost_of(exact()(x0, x1, None, draws())) / n
    assert best * (1 - 1e-3) < (plan * cost).sum() < min(best + reg * math.log(n), 1.4 * best)


@pytest.mark.parametrize(("d", "reg"), [(2, 2.0), (2, 0.5), (64, 20.0)])
def test_entropic_plan_is_pots(d, reg):
    x0, x1 = gaussians(48, d)
    cost = squared_distance(x1, x0)
    theirs = ot.bregman.sinkhorn_log([], [], cost.numpy(), reg, numItermax=20_000, stopThr=1e-12)
    np.testing.assert_allclose(sinkhorn(cost, reg, tolerance=1e-10).exp().numpy(), theirs, atol=1e-10)


@pytest.mark.parametrize("reg_m", [inf, 10.0])
def test_rounds_on_the_kernel_are_rounds_in_the_log_domain(reg_m):
    """Where ``sinkhorn`` stops, it has gone the way of plain updates, with the shift of f and g every ten."""
    x0, x1 = gaussians(40, 8)
    cost, q = squared_distance(x1, x0), 2 / reg_m
    M, r = cost / 2 + math.log(40), 1 / (1 + q)
    f, errors = torch.zeros(40, dtype=torch.float64), []
    for k in range(31):
        g = -r * (f[:, None] - M).logsumexp(0)
        f = -r * (g - M).logsumexp(1)
        plan = (f[:, None] + g - M).exp() / 40
        errors.append(((plan.sum(0) - (-q * g).exp() / 40).abs().sum() / plan.sum()).item())
        if k % 10 == 0 and q > 0:
            f = f + ((-q * f).exp().mean().log() - (-q * g).exp().mean().log()) / (2 * q)
    between = math.sqrt(errors[20] * errors[30])
    assert errors[30] < between < errors[20]
    torch.testing.assert_close(sinkhorn(cost, 2.0, reg_m, tolerance=between), plan.log(), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="after 30 rounds"):
        sinkhorn(cost, 2.0, reg_m, tolerance=between, max_rounds=30)


def test_entropic_stands_where_pots_default_underflows():
    """At d = 64, reg 1/2, POT's plan is empty, and falling back to the uniform plan costs a quarter more."""
    x0, x1 = gaussians(128, 64)
    cost = squared_distance(x1, x0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ot.sinkhorn([], [], cost.numpy(), 0.5)
    assert not 0.5 < theirs.sum() < 2
    best = cost_of(exact()(x0, x1, None, draws())) / 128
    assert cost_of(entropic(0.5)(x0, x1, None, draws())) / 128 == pytest.approx(best, rel=0.02)
    assert (sinkhorn(cost, 0.5).exp() * cost).sum().item() == pytest.approx(best, rel=2e-3)
    assert cost.mean().item() == pytest.approx(128 * 2.5 + 64, rel=0.05)  # independent: 64 (1 + 4 + 1)
    assert cost.mean() > 1.2 * best


def test_entropic_at_reg_to_zero_is_exact_and_at_infinity_independent():
    x0, x1 = gaussians(32, 2)
    cost = squared_distance(x1, x0)
    best = cost_of(exact()(x0, x1, None, draws())) / 32
    assert (sinkhorn(cost, 1e-3, max_rounds=100_000).exp() * cost).sum().item() == pytest.approx(best, rel=2e-3)
    torch.testing.assert_close(sinkhorn(cost, 1e9).exp(), torch.full_like(cost, 1 / 32**2))


def test_entropic_that_does_not_converge_raises_and_names_reg():
    x0, x1 = gaussians(64, 2)
    with pytest.raises(ValueError, match=r"reg=0\.01 still misses .* after 50 rounds"):
        entropic(0.01, max_rounds=50)(x0, x1, None, draws())


def gaussian_plan(n, s0, s1, sigma):
    """E[x0^2], E[x1^2], E[x0 x1] under the plan between quantiles of N(0, s0^2) and N(0, s1^2) at reg = 2 sigma^2."""
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    x0, x1 = s0 * z, s1 * z
    plan = sinkhorn(squared_distance(x1, x0), 2 * sigma**2, tolerance=1e-8).exp()
    return (plan.sum(0) @ x0**2).item(), (plan.sum(1) @ x1**2).item(), (x1 @ plan @ x0).item()


@pytest.mark.parametrize(("s0", "s1", "sigma"), [(1.0, 2.0, 1.0), (1.0, 1.0, 0.5), (2.0, 0.5, 2.0)])
def test_entropic_coupling_of_gaussians_has_the_closed_form_covariance(s0, s1, sigma):
    wanted = (math.sqrt(4 * s0**2 * s1**2 + sigma**4) - sigma**2) / 2  # 1.56155 for (1, 2, 1)
    assert gaussian_plan(600, s0, s1, sigma)[2] == pytest.approx(wanted, rel=0.01)


def test_entropic_at_reg_2_sigma_squared_is_the_schroedinger_bridge():
    """p(x0, x1) = f(x0) h(x1) N(x1; x0, sigma^2): the off-diagonal precision is -1 / sigma^2 whatever the marginals."""
    sigma = 0.8
    v0, v1, c = gaussian_plan(600, 1.0, 1.5, sigma)
    assert -c / (v0 * v1 - c * c) == pytest.approx(-1 / sigma**2, rel=0.02)
    t = 0.3  # the bridge's marginal from the coupling against that from the closed form
    closed = (math.sqrt(4 * 1.5**2 + sigma**4) - sigma**2) / 2
    variance = [(1 - t) ** 2 + t**2 * 1.5**2 + 2 * t * (1 - t) * k + sigma**2 * t * (1 - t) for k in (c, closed)]
    assert variance[0] == pytest.approx(variance[1], rel=0.01)


def test_entropic_draws_the_partner_of_each_data_sample_from_its_row_of_the_plan():
    x0, x1 = gaussians(5, 2)
    pairs = entropic(4.0)(tiled(x0), tiled(x1), None, draws())
    i, j = pairs.index
    assert torch.equal(pairs.x1, tiled(x1))
    assert torch.equal(pairs.x0, tiled(x0)[i])
    assert j.tolist() == list(range(1000))
    wanted = sinkhorn(squared_distance(x1, x0), 4.0, tolerance=1e-6).exp() * 5
    torch.testing.assert_close(frequencies(pairs), wanted, atol=0.14, rtol=0)


# unbalanced


@pytest.mark.parametrize(("reg", "reg_m"), [(1.0, 1.0), (2.0, 30.0), (0.5, 5.0)])
def test_unbalanced_plan_is_pots(reg, reg_m):
    x0, x1 = gaussians(40, 2)
    cost = squared_distance(x1, x0)
    theirs = ot.unbalanced.sinkhorn_knopp_unbalanced(
        [], [], cost.numpy(), reg, reg_m, numItermax=100_000, stopThr=1e-13
    )
    np.testing.assert_allclose(sinkhorn(cost, reg, reg_m, tolerance=1e-11).exp().numpy(), theirs, atol=1e-9)


def test_unbalanced_weighs_each_data_sample_by_its_mass_and_an_outlier_by_next_to_nothing():
    x0, x1 = gaussians(64, 2)
    x1[3] = 100.0
    pairs = unbalanced(1.0, 10.0)(x0, x1, None, draws())
    mass = sinkhorn(squared_distance(x1, x0), 1.0, 10.0).exp().sum(1)
    torch.testing.assert_close(pairs.weight, mass / mass.mean())
    assert pairs.weight.mean().item() == pytest.approx(1)
    assert pairs.weight[3] < 1e-6
    assert torch.equal(pairs.x1, x1)


def test_unbalanced_with_firm_marginals_is_entropic():
    x0, x1 = gaussians(64, 2)
    firm, plain = unbalanced(2.0, inf)(x0, x1, None, draws()), entropic(2.0)(x0, x1, None, draws())
    assert equal(firm.x0, plain.x0)
    assert firm.weight is None
    soft = unbalanced(2.0, 1e5, tolerance=1e-5)(x0, x1, None, draws())
    torch.testing.assert_close(soft.weight, torch.ones(64, dtype=torch.float64), atol=1e-2, rtol=0)


def test_unbalanced_stands_where_the_plan_holds_no_mass_a_float_could_show():
    x0, x1 = gaussians(64, 784)
    log_plan = sinkhorn(squared_distance(x1, x0), 2.0, 1.0)
    assert log_plan.exp().sum() == 0
    weight = unbalanced(2.0, 1.0)(x0, x1, None, draws()).weight
    assert weight.isfinite().all()
    assert weight.mean().item() == pytest.approx(1)


# Gibbs weights


def test_gibbs_joint_on_two_points():
    """x0, x1 uniform on {0, 1} and q = exp(-1 / eps): the joint is [[1, q], [q, 1]] / (2 + 2 q)."""
    x0 = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)[:, None]
    x1 = torch.tensor([0.0, 1, 0, 1], dtype=torch.float64)[:, None]
    joint = gibbs(0.7)(x0, x1, None, draws()).weight.reshape(2, 2) / 4
    q = math.exp(-1 / 0.7)
    wanted = torch.tensor([[1, q], [q, 1]], dtype=torch.float64) / (2 + 2 * q)
    torch.testing.assert_close(joint, wanted)
    torch.testing.assert_close(joint.sum(0), torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gibbs_weights_are_exp_of_minus_the_norm_over_all_leaves(shape):
    x0, x1 = normal(shape, 1), normal(shape, 5)
    pairs = gibbs(2.0)(x0, x1, None, draws())
    wanted = (-squared_distance(x0, x1).diagonal().sqrt() / 2).exp()
    torch.testing.assert_close(pairs.weight, wanted / wanted.mean())
    assert equal(pairs.x0, x0)
    assert equal(pairs.x1, x1)


@pytest.mark.parametrize("n", [3, 49])
def test_gibbs_at_infinite_eps_gives_the_independent_loss_to_the_last_bit(n):
    from flowcore.field import Field

    x0, x1, t = normal((n, 2)), normal((n, 2), 1), torch.rand(n, generator=draws(), dtype=torch.float64)
    field = Field(lambda x, t, c: torch.sin(x), linear())
    losses = [matching_loss(field, make(x0, x1, None, draws()), t) for make in (gibbs(inf), independent())]
    assert torch.equal(*losses)


def test_gibbs_weights_do_not_mind_an_offset_of_all_distances():
    lengths = torch.linspace(0, 3, 20, dtype=torch.float64)[:, None]
    near, far = (gibbs(0.5)(torch.zeros_like(lengths), lengths + c, None, draws()).weight for c in (0, 5e4))
    torch.testing.assert_close(near, far)


def test_gibbs_chooses_the_eps_of_the_effective_sample_size_asked_for():
    for d in (2, 784):
        x0, x1 = gaussians(128, d)
        for ess in (0.5, 0.8, 0.95):
            pairs = gibbs(ess=ess)(x0, x1, None, draws())
            assert effective_sample_size(pairs.weight) == pytest.approx(ess, abs=1e-4)
            fixed = gibbs(automatic_eps(x0, x1, ess))(x0, x1, None, draws())
            torch.testing.assert_close(pairs.weight, fixed.weight)


def test_automatic_eps_of_exponential_distances():
    """|x0 - x1| ~ Exp(1) has ESS (1 + 2 b) / (1 + b)^2 at b = 1 / eps, which is 4/5 at the golden ratio over 2."""
    n = 200_000
    lengths = -torch.log1p(-(torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert 1 / automatic_eps(torch.zeros(n), lengths) == pytest.approx((1 + math.sqrt(5)) / 4, rel=1e-3)
    assert automatic_eps(torch.zeros(n), 7 * lengths) == pytest.approx(7 * automatic_eps(torch.zeros(n), lengths))
    assert automatic_eps(torch.zeros(5, 2), torch.ones(5, 2)) == inf


def test_effective_sample_size():
    assert effective_sample_size(torch.full((10,), 3.0)) == pytest.approx(1)
    assert effective_sample_size(torch.tensor([0.0, 0, 0, 2])) == pytest.approx(1 / 4)
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 20)


def test_tilt_is_the_reweighted_marginal_of_the_data():
    points, q = torch.tensor([0.0, 1.0])[:, None], math.exp(-1 / 0.7)
    torch.testing.assert_close(tilt(points, points, 0.7), torch.ones(2, dtype=torch.float64))  # a symmetric support
    wanted = torch.tensor([2 / (1 + q), 2 * q / (1 + q)], dtype=torch.float64)
    torch.testing.assert_close(tilt(torch.zeros(3, 1), points, 0.7), wanted)
    x0, x1 = gaussians(9, 2)
    all0, all1 = x0.repeat_interleave(9, 0), x1.repeat(9, 1)
    marginal = gibbs(1.3)(all0, all1, None, draws()).weight.reshape(9, 9).mean(0)
    torch.testing.assert_close(tilt(x0, x1, 1.3), marginal)


def test_gibbs_warns_once_of_a_small_effective_sample_size():
    x0, x1 = gaussians(64, 2)
    couple = gibbs(0.05)
    with pytest.warns(UserWarning, match="effective sample size") as caught:
        couple(x0, x1, None, draws())
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        couple(x0, x1, None, draws())
        gibbs(20.0)(x0, x1, None, draws())


# draws, errors


FACTORIES = [independent, exact, entropic, unbalanced, gibbs]


@pytest.mark.parametrize("make", FACTORIES)
def test_a_coupling_depends_on_its_arguments_and_generator_alone(make):
    x0, x1 = gaussians(64, 2)
    couple = make()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = couple(x0, x1, None, draws())
    couple(x1, x0, None, draws(5))  # what came before makes no difference
    torch.manual_seed(2)
    second = couple(x0, x1, None, draws())
    assert equal(first.x0, second.x0)
    assert (first.weight is None and second.weight is None) or torch.equal(first.weight, second.weight)
    torch.manual_seed(1)
    couple(x0, x1, None, draws())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [entropic, unbalanced])
def test_another_generator_draws_other_partners(make):
    x0, x1 = gaussians(64, 2)
    assert not equal(make()(x0, x1, None, draws(0)).x0, make()(x0, x1, None, draws(1)).x0)


@pytest.mark.parametrize("make", [exact, gibbs])
def test_couplings_that_need_no_draws_make_none(make):
    draw, (x0, x1) = draws(), gaussians(8, 2)
    before = draw.get_state()
    make()(x0, x1, None, draw)
    assert torch.equal(draw.get_state(), before)


@pytest.mark.parametrize("make", FACTORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 2), (16, 3, 8, 8), {"a": (16, 4), "b": (16, 2, 3)}], ids=str)
def test_pairs_come_back_in_the_shape_dtype_and_order_they_were_given(make, dtype, shape):
    x0, x1 = normal(shape, 1, dtype), normal(shape, 5, dtype)
    pairs = make()(x0, x1, None, draws())
    assert equal(pairs.x1, x1)
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), pairs.x1, x1)
    for one, given in zip(leaves(pairs.x0), leaves(x0), strict=True):
        assert one.shape == given.shape
        assert one.dtype == given.dtype


@pytest.mark.parametrize("make", [exact, entropic, unbalanced, gibbs])
def test_different_numbers_of_rows_are_named(make):
    with pytest.raises(ValueError, match="7 and 9 rows"):
        make()(normal((7, 2)), normal((9, 2)), None, draws())
    ragged = {"atoms": normal((9, 3)), "cell": normal((7, 3))}
    with pytest.raises(ValueError, match="ragged samples take the independent one"):
        make()(ragged, ragged, None, draws())


@pytest.mark.parametrize("make", [exact, entropic, unbalanced])
@pytest.mark.parametrize("bad", [math.nan, inf])
def test_values_that_are_not_finite_are_named(make, bad):
    x0, x1 = gaussians(8, 2)
    x1[3, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        make()(x0, x1, None, draws())


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (exact, {"condition_weight": -1.0}),
        (entropic, {"reg": 0.0}),
        (entropic, {"condition_weight": math.nan}),
        (entropic, {"tolerance": 0.0}),
        (unbalanced, {"reg_m": -1.0}),
        (gibbs, {"eps": 0.0}),
        (gibbs, {"ess": 1.0}),
    ],
)
def test_options_out_of_range_are_named(make, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        make(**option)


# super-batches and loaders


def test_split_gives_the_batches_of_several_steps_and_everything_follows_through_the_index():
    x0, x1 = {"a": normal((12, 2))}, {"a": normal((12, 2), 1)}
    label = torch.randint(5, (12,), generator=draws())
    whole = unbalanced(2.0, 10.0)(x0, x1, None, draws())
    parts = split(whole, 3)
    assert [len(part.x0["a"]) for part in parts] == [4, 4, 4]
    for k, part in enumerate(parts):
        i, j = part.index
        assert torch.equal(part.x0["a"], x0["a"][i])
        assert torch.equal(part.x1["a"], x1["a"][j])
        assert torch.equal(label[j], label[4 * k : 4 * k + 4])
        assert torch.equal(part.weight, whole.weight[j])
    plain = split(independent()(x0, x1, None, draws()), 2)[1]
    assert plain.weight is None
    assert plain.index[0].tolist() == plain.index[1].tolist() == [6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="12 pairs cannot be split into 5"):
        split(whole, 5)


def test_a_coupled_super_batch_is_straighter_than_the_coupled_batches():
    x0, x1 = gaussians(256, 8)
    large = sum(cost_of(part) for part in split(exact()(x0, x1, None, draws()), 8))
    small = sum(cost_of(exact()(part.x0, part.x1, None, draws())) for part in split(Pairs(x0, x1), 8))
    assert large < 0.95 * small


def test_coupled_source_pairs_what_the_path_draws_and_labels_stay_with_their_data():
    label = torch.arange(100) % 2
    x1 = normal((100, 2)) + 4 * label[:, None]
    source = Rows(x1, label, {"row": torch.arange(100)})
    coupled = Coupled(source, linear().draw_source, exact(inf))
    rows = torch.randperm(100, generator=draws())[:32]
    batch = coupled.batch(rows, draws(3))
    assert len(coupled) == 100
    assert torch.equal(batch.x1, x1[rows])
    assert torch.equal(batch.condition, label[rows])
    assert torch.equal(batch.extra["row"], rows)
    x0 = linear().draw_source(x1[rows], draws(3))
    assert equal(batch.x0, exact(inf)(x0, x1[rows], label[rows], draws()).x0)
    assert equal(batch.x0, coupled.batch(rows, draws(3)).x0)
    assert not equal(batch.x0, coupled.batch(rows, draws(4)).x0)


def test_weights_of_a_coupling_travel_with_the_batch():
    x1 = normal((100, 2))
    batch = Coupled(Rows(x1), linear().draw_source, gibbs(2.0)).batch(torch.arange(32), draws(3))
    assert equal(batch.weight, gibbs(2.0)(batch.x0, batch.x1, None, draws()).weight)
    assert batch.weight.std() > 0.01


@pytest.mark.parametrize("workers", [1, 2])
def test_coupling_in_loader_workers_changes_no_batch(workers):
    coupled = Coupled(Rows(normal((100, 2))), linear().draw_source, exact())
    alone, ahead = (list(batches(coupled, 32, 2, 7, seed=5, workers=w)) for w in (0, workers))
    assert len(alone) == len(ahead) == 5
    assert all(equal(a.x0, b.x0) and equal(a.x1, b.x1) for a, b in zip(alone, ahead, strict=True))


class Fixed:
    """A source of one batch."""

    def __init__(self, batch):
        self.only = batch

    def __len__(self):
        return len(self.only)

    def batch(self, rows, generator):
        return self.only


def reversing(x0, x1, condition, generator):
    rows = torch.arange(len(x1)).flip(0)
    return Pairs(x0, x1[rows], None, (torch.arange(len(x1)), rows))


@pytest.mark.parametrize(
    ("batch", "coupling", "message"),
    [
        (Batch(normal((4, 2)), x0=normal((4, 2))), exact(), "given"),
        (Batch(normal((4, 2)), index=torch.tensor([0, 0, 1, 1]), samples=2), exact(), "ragged"),
        (Batch(normal((4, 2))), reversing, "order of x1"),
    ],
)
def test_coupled_source_names_what_a_batch_cannot_carry(batch, coupling, message):
    with pytest.raises(ValueError, match=message):
        Coupled(Fixed(batch), linear().draw_source, coupling).batch(torch.arange(4), draws())


def test_a_coupling_of_ragged_samples_is_told_the_index_and_may_draw_for_itself():
    def within(x0, x1, condition, generator, index):
        assert x0 is None
        return Pairs(x1 + index[:, None], x1)

    within.ragged = True
    batch = Batch(normal((4, 2)), index=torch.tensor([0, 0, 1, 1]), samples=2)
    paired = Coupled(Fixed(batch), None, within).batch(torch.arange(2), draws())
    assert torch.equal(paired.x0, batch.x1 + batch.index[:, None])
    with pytest.raises(ValueError, match="no path"):
        Coupled(Fixed(Batch(normal((4, 2)))), None, exact()).batch(torch.arange(4), draws())
