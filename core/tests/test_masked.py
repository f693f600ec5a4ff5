"""Everything is checked against joints small enough to enumerate: their exact posteriors, and the exact law of each
sampler under them."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor, nn

from flowcore.masked import (
    Masked,
    any_order_bound,
    bound,
    categorical,
    chain_rule,
    concrete_score,
    cosine,
    euler,
    euler_step,
    first_hitting,
    generate,
    geometric,
    in_blocks,
    linear,
    ordered,
    polynomial,
    score_cross_entropy,
    tweedie,
)
from flowcore.times import uniform

V, L = 3, 3
MASK = V
KAPPAS = [linear(MASK), polynomial(MASK), cosine(MASK)]
each_kappa = pytest.mark.parametrize("path", KAPPAS, ids=lambda path: path.name)
EXACT = {
    "first hitting": lambda length: first_hitting(),
    "random order": lambda length: ordered(),
    "left to right": lambda length: ordered(torch.arange(length)),
    "right to left": lambda length: ordered(-torch.arange(length)),
}
PLANS = EXACT | {
    "tweedie": lambda length: tweedie(5),
    "euler": lambda length: euler(5),
    "pairs": lambda length: ordered(size=2),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
each_exact_plan = pytest.mark.parametrize("plan", EXACT.values(), ids=EXACT.keys())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def enumerate_tokens(values: int, length: int = L) -> Tensor:
    """Every sequence, (values^length, length), the last token varying fastest."""
    return torch.tensor(list(itertools.product(range(values), repeat=length)))


def number(x: Tensor, values: int) -> Tensor:
    """The row of ``x`` in ``enumerate_tokens(values)``."""
    return (x * values ** torch.arange(x.shape[1] - 1, -1, -1)).sum(1)


STATES, DATA = enumerate_tokens(V + 1), enumerate_tokens(V)
JOINT = torch.rand(V**L, generator=seeded(1), dtype=torch.float64).square() + 0.02
JOINT /= JOINT.sum()
LOGITS = torch.randn(len(STATES), L, V, generator=seeded(2), dtype=torch.float64)  # consistent with no joint


def posteriors(joint: Tensor) -> Tensor:
    """log p(x1^i | x) of every state x, (states, L, V): the exact network."""
    agrees = ((STATES[:, None] == DATA) | (STATES[:, None] == MASK)).all(2).double() * joint  # (states, data)
    weights = torch.einsum("sd,div->siv", agrees, nn.functional.one_hot(DATA, V).double())
    return (weights / agrees.sum(1)[:, None, None]).log()


def tabulated(logits: Tensor):
    return lambda x, t, condition: logits[number(x, V + 1)]


EXACTLY, WRONGLY = tabulated(posteriors(JOINT)), tabulated(LOGITS)


def draw_data(joint: Tensor, count: int, seed: int = 3) -> Tensor:
    return DATA[torch.multinomial(joint, count, replacement=True, generator=seeded(seed))]


def blank(count: int, length: int = L) -> Tensor:
    return torch.full((count, length), MASK)


def counts(x: Tensor) -> Tensor:
    return torch.bincount(number(x, V), minlength=V**L)


def follows(x: Tensor, law: Tensor) -> bool:
    possible = law > 1e-12
    seen = counts(x)
    return bool(seen[~possible].sum() == 0) and chisquare(seen[possible], law[possible] * len(x)).pvalue > 1e-3


def close(samples: Tensor, mean: float | Tensor, errors: float = 4) -> bool:
    return bool(((samples.mean(0) - mean).abs() <= errors * samples.std(0) / math.sqrt(len(samples)) + 1e-12).all())


def jump_law(logits: Tensor, reveal: list[float], hide: float = 0.0) -> Tensor:
    """The law over DATA after steps that reveal a masked token with the given chances, and hide others but at last."""
    p, state = logits.softmax(2), torch.zeros(len(STATES), dtype=torch.float64)
    state[-1] = 1  # all MASK
    for k, chance in enumerate(reveal):
        back = hide if k + 1 < len(reveal) else 0.0
        to = nn.functional.one_hot(STATES, V + 1).double()  # (states, L, V + 1)
        stays = (1 - back) * to + back * torch.eye(V + 1, dtype=torch.float64)[MASK]
        shown = torch.cat([chance * p, torch.full((*p.shape[:2], 1), 1 - chance, dtype=torch.float64)], 2)
        one = torch.where((STATES == MASK)[..., None], shown, stays)
        every = torch.stack([one[:, i, STATES[:, i]] for i in range(L)]).prod(0)  # (from, to)
        state = state @ every
    return state[number(DATA, V + 1)]


def order_nats(logits: Tensor, order: tuple[int, ...], size: int = 1) -> Tensor:
    """-log q of DATA where the tokens appear in ``order``, ``size`` at a time."""
    nats = torch.zeros(len(DATA), dtype=torch.float64)
    for first in range(0, L, size):
        x = DATA.clone()
        x[:, order[first:]] = MASK
        log_p = logits[number(x, V + 1)].log_softmax(2)
        for i in order[first : first + size]:
            nats -= log_p[torch.arange(len(DATA)), i, DATA[:, i]]
    return nats


ORDERS = list(itertools.permutations(range(L)))


# the path


@pytest.mark.parametrize("path", [*KAPPAS, geometric(MASK)], ids=lambda path: path.name)
def test_kappa_rises_from_0_to_1_with_the_derivative_and_the_inverse_it_states(path: Masked) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    kappa = path.kappa(t)
    (slope,) = torch.autograd.grad(kappa.sum(), t)
    torch.testing.assert_close(path.dkappa(t), slope, rtol=0, atol=1e-12)
    torch.testing.assert_close(kappa[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(path.inverse(kappa), t, rtol=0, atol=1e-7)


@each_kappa
@pytest.mark.parametrize("shape", [(4, 50_000), (4, 4), (4, 50, 20, 20)])
def test_the_share_of_masked_tokens_is_1_minus_kappa(path: Masked, shape: tuple[int, ...]) -> None:
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    x1 = torch.randint(V, shape, generator=seeded())
    x = path.sample(x1, t, seeded(1))
    share = (x == MASK).flatten(1).double().mean(1)
    kappa = path.kappa(t.double())
    error = (kappa * (1 - kappa) / x[0].numel()).sqrt()
    assert bool(((share - (1 - kappa)).abs() <= 4 * error).all())
    assert bool(((x == x1) | (x == MASK)).all())
    assert torch.equal(x, path.sample(x1, t, seeded(1)))


def test_a_ragged_batch_takes_the_time_of_each_sample() -> None:
    index = torch.tensor([0, 0, 1, 1, 1])
    x1 = torch.zeros(5, 3, dtype=torch.long)
    x = linear(MASK).sample(x1, torch.tensor([0.0, 1.0]), seeded(), index=index)
    assert torch.equal(x == MASK, (index == 0)[:, None].expand(5, 3))
    with pytest.raises(ValueError, match="2 values for 5 rows"):
        linear(MASK).sample(x1, torch.tensor([0.0, 1.0]), seeded())


def test_tokens_that_are_not_free_are_never_masked() -> None:
    x1 = draw_data(JOINT, 500)
    free = torch.rand(x1.shape, generator=seeded()) < 0.5
    assert torch.equal(linear(MASK).sample(x1, 0.0, seeded(), free) == MASK, free)


def test_a_geometric_schedule_needs_noise_that_grows() -> None:
    with pytest.raises(ValueError, match="0 < low < high, not 2 and 1"):
        geometric(MASK, 2, 1)


# the bounds


def expected(value, x1: Tensor, known: float) -> Tensor:
    """E of value(x) over x, in which each token of x1 (B, L) is known with chance ``known``, else MASK: (B,)."""
    total = torch.zeros(len(x1), dtype=torch.float64)
    for kept in itertools.product([False, True], repeat=L):
        chance = math.prod(known if k else 1 - known for k in kept)
        total += chance * value(torch.where(torch.tensor(kept), x1, MASK))
    return total


def tanh_sinh(function, start: float = 0.0, stop: float = 1.0, half: int = 80) -> Tensor:
    """The integral of ``function``, whose ends may be singular."""
    total, h = torch.zeros(()), 3.1 / half
    for k in range(-half, half + 1):
        u = math.pi / 2 * math.sinh(k * h)
        where = 1 / (1 + math.exp(-2 * u))  # in (0, 1)
        slope = math.pi / 2 * math.cosh(k * h) / (2 * math.cosh(u) ** 2)
        total = total + h * slope * (stop - start) * function(start + (stop - start) * where)
    return total


def forms(path: Masked, x1: Tensor, start: float = 0.0, stop: float = 1.0) -> dict[str, Tensor]:
    """The three integrals of Ou et al. for the wrong network, of each x1, over t from ``start`` to ``stop``."""

    def nats(x: Tensor) -> Tensor:
        log_p = WRONGLY(x, None, None).log_softmax(2).gather(2, x1[..., None]).squeeze(2)
        return -(log_p * (x == MASK)).sum(1)

    def odds(t: float) -> tuple[float, float, float]:
        time = torch.tensor(t, dtype=torch.float64)
        kappa, slope = path.kappa(time).item(), path.dkappa(time).item()
        return kappa, kappa / (1 - kappa), slope / kappa  # sigma dt is -d log kappa

    def score_entropy(t: float) -> Tensor:
        kappa, r, sigma = odds(t)

        def value(x: Tensor) -> Tensor:
            s = concrete_score(path, WRONGLY(x, None, None), t)
            mine = s.gather(2, x1[..., None]).squeeze(2)
            return (((s.sum(2) - r * mine.log() + r * (math.log(r) - 1)) * (x == MASK)).sum(1)) * sigma

        return expected(value, x1, kappa)

    def cross_entropy(t: float) -> Tensor:
        kappa, r, sigma = odds(t)
        return expected(lambda x: sigma * r * (nats(x) - math.log(r) * (x == MASK).sum(1)), x1, kappa)

    ends = [path.kappa(torch.tensor(t, dtype=torch.float64)).item() for t in (start, stop)]
    return {
        "t_dse": tanh_sinh(score_entropy, start, stop),
        "t_dce": tanh_sinh(cross_entropy, start, stop),
        "lambda": tanh_sinh(lambda k: expected(nats, x1, k) / (1 - k), *ends),
    }


@pytest.mark.parametrize("path", [linear(MASK), cosine(MASK)], ids=lambda path: path.name)
def test_the_four_losses_are_one_number(path: Masked) -> None:
    """Of any network: RADD's t-DSE, lambda-DCE and the mean over all orders to 1e-10; t-DCE, whose log is singular
    at both ends of time, as near as the quadrature comes to these."""
    x1 = DATA[::4]
    order = torch.stack([chain_rule(WRONGLY, path, x1, torch.tensor(o).argsort()) for o in ORDERS]).mean(0)
    for name, value in forms(path, x1).items():
        rtol = 2e-8 if name == "t_dce" else 1e-10
        torch.testing.assert_close(value, order, rtol=rtol, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_the_losses_of_a_part_of_time_differ_by_the_entropy_of_its_ends() -> None:
    def entropy(k: float) -> float:
        return -k * math.log(k) - (1 - k) * math.log(1 - k)

    part = forms(linear(MASK), DATA[::4], 1e-3, 0.9)
    torch.testing.assert_close(part["t_dse"], part["lambda"], rtol=1e-10, atol=0)
    constant = L * (entropy(0.9) - entropy(1e-3))
    torch.testing.assert_close(part["t_dce"], part["lambda"] + constant, rtol=1e-8, atol=0)


@each_kappa
def test_score_cross_entropy_is_the_bound_and_a_part_no_network_changes(path: Masked) -> None:
    x1, t = draw_data(JOINT, 200), uniform()(200, seeded())
    kappa, masked = path.kappa(t), (path.sample(x1, t, seeded(5)) == MASK).sum(1)
    constant = path.rate(t) * masked * torch.log(kappa / (1 - kappa))
    value = score_cross_entropy(WRONGLY, path, x1, t, seeded(5))
    torch.testing.assert_close(value, bound(WRONGLY, path, x1, t, seeded(5)) - constant, rtol=1e-10, atol=1e-10)
    for end in (0.0, 1.0):
        assert bool((score_cross_entropy(WRONGLY, path, x1, end, seeded()) == 0).all())


@each_kappa
def test_the_concrete_score_is_a_ratio_of_marginals(path: Masked) -> None:
    """p_t(x with i set to j) / p_t(x), both summed over the joint."""
    t = 0.3
    kappa = path.kappa(torch.tensor(t, dtype=torch.float64)).item()
    marginal = torch.zeros(len(STATES), dtype=torch.float64)
    for kept in itertools.product([False, True], repeat=L):
        chance = math.prod(kappa if k else 1 - kappa for k in kept)
        marginal.index_add_(0, number(torch.where(torch.tensor(kept), DATA, MASK), V + 1), chance * JOINT)
    score = concrete_score(path, posteriors(JOINT), t)
    for state, x in enumerate(STATES):
        for i, j in itertools.product((x == MASK).nonzero().flatten().tolist(), range(V)):
            there = x.clone()
            there[i] = j
            ratio = marginal[number(there[None], V + 1)[0]] / marginal[state]
            assert score[state, i, j].item() == pytest.approx(ratio.item(), rel=1e-12)


@each_kappa
def test_the_chain_rule_in_an_order_is_exact(path: Masked) -> None:
    for order in ORDERS:  # position order[k] is drawn k-th
        nats = chain_rule(WRONGLY, path, DATA, torch.tensor(order).argsort())
        torch.testing.assert_close(nats, order_nats(LOGITS, order), rtol=1e-12, atol=0)
    exact = chain_rule(EXACTLY, path, DATA, torch.arange(L))
    torch.testing.assert_close(exact, -JOINT.log(), rtol=1e-12, atol=0)


def test_the_chain_rule_pays_for_free_tokens_alone() -> None:
    free = torch.ones_like(DATA, dtype=torch.bool)
    free[:, 1] = False
    free[::5] = False
    nats = chain_rule(EXACTLY, linear(MASK), DATA, torch.arange(L), free=free)
    middle = torch.stack([JOINT[DATA[:, 1] == v].sum() for v in range(V)])[DATA[:, 1]]
    expected_nats = middle.log() - JOINT.log()
    expected_nats[::5] = 0
    torch.testing.assert_close(nats, expected_nats, rtol=1e-12, atol=1e-12)


@each_kappa
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_for_independent_tokens_the_bound_is_the_sum_of_their_entropies(path: Masked, t: float) -> None:
    """At time t it is kappa'(t) sum_i H_i, and kappa' integrates to 1."""
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.05, 0.05, 0.9]], dtype=torch.float64)
    n = 100_000
    x1 = torch.multinomial(p, n, replacement=True, generator=seeded()).T
    nats = bound(lambda x, t, c: p.log().expand(*x.shape, V), path, x1, t, seeded(1))
    entropy = -(p * p.log()).sum()
    assert nats.shape == (n,)
    assert close(nats, path.dkappa(torch.tensor(t, dtype=torch.float64)) * entropy)


@each_kappa
def test_the_bound_is_the_weighted_cross_entropy_of_the_masked_tokens(path: Masked) -> None:
    x1, t = draw_data(JOINT, 200), uniform()(200, seeded())
    x = path.sample(x1, t, seeded(5))
    log_p = WRONGLY(x, t, None).log_softmax(2).gather(2, x1[..., None]).squeeze(2)
    expected = path.dkappa(t) / (1 - path.kappa(t)) * -(log_p * (x == MASK)).sum(1)
    torch.testing.assert_close(bound(WRONGLY, path, x1, t, seeded(5)), expected, rtol=1e-12, atol=0)


@each_kappa
def test_all_bounds_have_one_mean_the_chain_rule_over_all_orders(path: Masked) -> None:
    exact = torch.stack([order_nats(LOGITS, order) for order in ORDERS]).mean(0)
    mixture = -torch.stack([-order_nats(LOGITS, order) for order in ORDERS]).logsumexp(0) + math.log(len(ORDERS))
    assert bool((exact > mixture).all())  # Jensen: it bounds what the random-order sampler draws
    n = 6000
    x1 = DATA.repeat(n, 1)
    u = uniform()(len(x1), seeded())
    in_time = bound(WRONGLY, path, x1, u, seeded(1)).view(n, -1)
    in_order = any_order_bound(WRONGLY, path, x1, u, seeded(2)).view(n, -1)
    assert close(in_order, exact)
    assert close((in_time - exact).mean(1), 0)


def test_with_the_exact_posterior_every_order_gives_the_log_likelihood() -> None:
    n = 2000
    x1 = DATA.repeat(n, 1)
    nats = any_order_bound(EXACTLY, linear(MASK), x1, uniform()(len(x1), seeded()), seeded(1)).view(n, -1)
    assert close(nats, -JOINT.log())
    assert (nats.mean(0) @ JOINT).item() == pytest.approx(-(JOINT * JOINT.log()).sum().item(), rel=0.01)


@pytest.mark.parametrize(("share", "masked"), [(0.0, 1), (0.32, 1), (0.34, 2), (0.67, 3), (1.0, 3)])
def test_any_order_masks_an_exact_number_of_tokens(share: float, masked: int) -> None:
    path, seen = polynomial(MASK), []

    def network(x: Tensor, t: Tensor, condition: None) -> Tensor:
        seen.append((x, t))
        return torch.zeros(*x.shape, V, dtype=torch.float64)

    nats = any_order_bound(network, path, DATA, share, seeded())
    x, t = seen[0]
    assert bool(((x == MASK).sum(1) == masked).all())
    torch.testing.assert_close(path.kappa(t), torch.full((len(DATA),), 1 - masked / L), rtol=0, atol=1e-6)
    torch.testing.assert_close(nats, torch.full_like(nats, L * math.log(V)))  # L / n of n times log V


@pytest.mark.parametrize("value", [bound, any_order_bound])
def test_only_free_tokens_are_paid_for(value) -> None:
    """Padding and prompts: with one free token it is that token's -log p given the rest, with none it is 0."""
    for i in range(L):
        free = torch.zeros_like(DATA, dtype=torch.bool)
        free[:, i] = True
        free[::5] = False
        alone = DATA.clone()
        alone[:, i] = MASK
        nats = -WRONGLY(alone, None, None).log_softmax(2)[torch.arange(len(DATA)), i, DATA[:, i]]
        nats[::5] = 0
        torch.testing.assert_close(value(WRONGLY, linear(MASK), DATA, 0.0, seeded(), free=free), nats)


@pytest.mark.parametrize("value", [bound, any_order_bound])
@pytest.mark.parametrize("t", [0.0, 1e-12, 1 - 1e-12, 1.0])
@each_kappa
def test_at_the_ends_of_time_bound_and_gradient_are_finite(value, t: float, path: Masked) -> None:
    logits = LOGITS.clone().requires_grad_()
    nats = value(tabulated(logits), path, DATA, t, seeded())
    nats.sum().backward()
    assert bool(nats.isfinite().all() & logits.grad.isfinite().all())
    if value is bound and t == 1.0:
        assert bool((nats == 0).all() & (logits.grad == 0).all())


def test_only_masked_tokens_and_never_the_mask_are_predicted() -> None:
    """Logits of visible tokens and of MASK change nothing and get no gradient."""
    path, x1 = linear(MASK), draw_data(JOINT, 100)
    logits = torch.randn(100, L, V + 2, generator=seeded(), dtype=torch.float64, requires_grad=True)
    nats = bound(lambda x, t, c: logits, path, x1, 0.4, seeded(1))
    nats.sum().backward()
    visible = path.sample(x1, 0.4, seeded(1)) != MASK
    assert bool((logits.grad[visible] == 0).all() & (logits.grad[..., MASK] == 0).all())
    assert bool((logits.grad[~visible][:, [0, 1, 2, 4]] != 0).all())
    other = torch.where(visible[..., None], 7.0, logits.detach())
    other[..., MASK] = 100
    assert torch.equal(nats.detach(), bound(lambda x, t, c: other, path, x1, 0.4, seeded(1)))


def test_half_precision_logits_are_summed_in_single() -> None:
    nats = bound(lambda x, t, c: LOGITS.bfloat16()[number(x, V + 1)], linear(MASK), DATA, 0.1, seeded())
    rounded = tabulated(LOGITS.bfloat16().double())
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.double(), bound(rounded, linear(MASK), DATA, 0.1, seeded()), rtol=1e-5, atol=1e-5)


def test_data_that_hold_the_mask_and_logits_of_another_shape_are_refused() -> None:
    path, x1 = linear(MASK), DATA.clone()
    x1[0, 0] = MASK
    for value in (bound, any_order_bound):
        with pytest.raises(ValueError, match="x1 holds the mask token 3"):
            value(WRONGLY, path, x1, 0.5, seeded())
        assert bool(value(WRONGLY, path, x1, 0.5, seeded(), free=x1 != MASK).isfinite().all())
    with pytest.raises(ValueError, match=r"returned \(27, 1, 3\) for tokens of \(27, 3\)"):
        bound(lambda x, t, c: WRONGLY(x, t, c)[:, :1], path, DATA, 0.5, seeded())
    with pytest.raises(ValueError, match=r"order has shape \(4,\), the tokens have \(2, 3\)"):
        generate(WRONGLY, path, blank(2), ordered(torch.arange(4)), seeded())


# the samplers


@each_exact_plan
def test_one_token_at_a_time_draws_the_joint(plan) -> None:
    drawn = generate(EXACTLY, cosine(MASK), blank(30_000), plan(L), seeded())
    assert follows(drawn.x, JOINT)
    assert bool((drawn.calls == L).all())


@pytest.mark.parametrize("name", EXACT)
def test_each_order_draws_its_own_chain_rule(name: str) -> None:
    orders = {"left to right": [(0, 1, 2)], "right to left": [(2, 1, 0)]}.get(name, ORDERS)
    law = torch.stack([(-order_nats(LOGITS, order)).exp() for order in orders]).mean(0)
    assert follows(generate(WRONGLY, linear(MASK), blank(30_000), EXACT[name](L), seeded()).x, law)


def test_two_tokens_a_round_draw_what_enumeration_says() -> None:
    law = torch.stack([(-order_nats(LOGITS, order, 2)).exp() for order in ORDERS]).mean(0)
    drawn = generate(WRONGLY, linear(MASK), blank(30_000), ordered(size=2), seeded())
    assert follows(drawn.x, law)
    assert bool((drawn.calls == 2).all())


def reveals(path: Masked, plan, steps: int) -> list[float]:
    """The chance of each step that a token still masked is revealed in it."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kappa = path.kappa(t)
    exact = (kappa[1:] - kappa[:-1]) / (1 - kappa[:-1])
    first_order = (path.dkappa(t[:-1]) / (1 - kappa[:-1]) / steps).clamp(max=1)
    first_order[-1] = 1
    return (exact if plan is tweedie else first_order).tolist()


@each_kappa
@pytest.mark.parametrize("plan", [tweedie, euler])
@pytest.mark.parametrize("steps", [1, 4])
def test_tweedie_and_euler_draw_what_their_steps_say(path: Masked, plan, steps: int) -> None:
    law = jump_law(posteriors(JOINT), reveals(path, plan, steps))
    assert follows(generate(EXACTLY, path, blank(30_000), plan(steps), seeded()).x, law)


def test_euler_is_tweedie_on_the_linear_path_only() -> None:
    def drawn(path: Masked, plan) -> Tensor:
        return generate(EXACTLY, path, blank(1000), plan(8), seeded()).x

    assert torch.equal(drawn(linear(MASK), tweedie), drawn(linear(MASK), euler))
    assert not torch.equal(drawn(cosine(MASK), tweedie), drawn(cosine(MASK), euler))


@pytest.mark.parametrize("remask", [0.0, 1.5])
@each_kappa
def test_euler_steps_draw_what_their_chances_say(path: Masked, remask: float) -> None:
    steps = 5
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kappa = path.kappa(t[:-1])
    reveal = ((path.dkappa(t[:-1]) + remask * kappa) / (1 - kappa) / steps).clamp(max=1)
    reveal[-1] = 1
    x, draws = blank(30_000), seeded()
    for now, then in itertools.pairwise(t.tolist()):
        x = euler_step(path, x, EXACTLY(x, None, None), now, then, draws, remask)
    assert follows(x, jump_law(posteriors(JOINT), reveal.tolist(), remask / steps))


def test_samples_of_a_ragged_batch_take_steps_of_their_own() -> None:
    """Reveal chance h / (1 - t) of each row's own sample: 0, 1/2 and 1."""
    path, index = linear(MASK), torch.tensor([0, 1, 2]).repeat_interleave(20_000)
    x = torch.full((60_000,), MASK)
    t = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    r = torch.tensor([0.4, 0.75, 1.0], dtype=torch.float64)
    after = euler_step(path, x, torch.zeros(60_000, V, dtype=torch.float64), t, r, seeded(), index=index)
    shares = (after != MASK).view(3, -1).double().mean(1)
    assert shares.tolist() == pytest.approx([0, 0.5, 1], abs=0.015)


def test_masking_again_keeps_the_marginals_and_what_is_not_free() -> None:
    """At eta = 10 the share of masked tokens stays 1 - kappa, to the order of the step."""
    path, p, steps, eta = linear(MASK), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 400, 10.0
    x, draws = blank(2000, 10), seeded()
    x[:, 0] = 1
    free = x == MASK
    masked_again = 0
    for k in range(steps):
        before = x
        x = euler_step(path, x, p.log().expand(*x.shape, V), k / steps, (k + 1) / steps, draws, eta, free)
        masked_again += int(((before != MASK) & (x == MASK)).sum())
        if (k + 1) % 100 == 0:
            share = (x[:, 1:] == MASK).double().mean().item()
            assert share == pytest.approx(1 - (k + 1) / steps, abs=0.015)
    assert masked_again > 2000 * 9 * 3  # eta integrated over kappa is 5 a token
    assert bool((x[:, 0] == 1).all())
    assert chisquare(torch.bincount(x[:, 1:].flatten(), minlength=V), p * 18_000).pvalue > 1e-3


def test_two_tokens_that_are_always_equal() -> None:
    """Drawn one after the other no pair is broken; drawn in one step half the pairs are."""

    def network(x: Tensor, t: Tensor, condition: None) -> Tensor:
        other = x.flip(1)[..., None]
        return torch.where(other == 2, 0.0, torch.where(other == torch.arange(2), 0.0, -math.inf))

    def broken(plan) -> float:
        x = generate(network, linear(2), torch.full((4000, 2), 2), plan, seeded()).x
        return (x[:, 0] != x[:, 1]).double().mean().item()

    assert broken(first_hitting()) == broken(ordered()) == 0
    assert broken(tweedie(1)) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert broken(tweedie(10)) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_the_error_of_tweedie_is_of_first_order() -> None:
    """The total variation from the joint, exactly: it halves as the steps double, and more slowly at first."""

    def apart(steps: int) -> float:
        law = jump_law(posteriors(JOINT), reveals(linear(MASK), tweedie, steps))
        return (law - JOINT).abs().sum().item() / 2

    tv = [apart(n) for n in (1, 2, 4, 8, 16, 32)]
    assert all(0.45 < after / before < 0.58 for before, after in itertools.pairwise(tv[2:]))
    assert tv[0] > tv[1] > tv[2]


def test_in_blocks_one_block_is_finished_before_the_next() -> None:
    path, n = cosine(MASK), 30_000
    for plan in (ordered(), first_hitting()):
        blocks = generate(EXACTLY, path, blank(n), in_blocks(plan, 2), seeded())
        assert follows(blocks.x, JOINT)
        assert bool((blocks.calls == L).all())
        assert bool((blocks.times[:, :2].amax(1) < blocks.times[:, 2]).all())
    law = torch.stack([(-order_nats(LOGITS, order)).exp() for order in [(0, 1, 2), (1, 0, 2)]]).mean(0)
    assert follows(generate(WRONGLY, path, blank(n), in_blocks(ordered(), 2), seeded()).x, law)
    share = path.kappa(generate(EXACTLY, path, blank(5), in_blocks(ordered(), 2), seeded()).times).sort(1).values
    torch.testing.assert_close(share, (torch.arange(L).double() / L).expand(5, L), rtol=0, atol=1e-7)
    x = torch.tensor([[MASK, 0, MASK], [0, 1, 2]])
    drawn = generate(EXACTLY, path, x, in_blocks(ordered(), 1), seeded())
    assert drawn.calls.tolist() == [2, 0]


def test_what_is_not_free_stays_masked() -> None:
    """And the law of the rest is that of the joint with it summed out."""
    free = torch.tensor([True, False, True]).expand(30_000, L)
    drawn = generate(EXACTLY, linear(MASK), blank(30_000), ordered(), seeded(), free=free)
    assert bool((drawn.x[:, 1] == MASK).all() & (drawn.calls == 2).all())
    pairs = torch.zeros(V, V, dtype=torch.float64).index_put_((DATA[:, 0], DATA[:, 2]), JOINT, accumulate=True)
    seen = torch.bincount(drawn.x[:, 0] * V + drawn.x[:, 2], minlength=V * V)
    assert chisquare(seen, pairs.flatten() * 30_000).pvalue > 1e-3


@each_plan
def test_given_tokens_stay_and_the_rest_is_drawn_given_them(plan) -> None:
    x = blank(20_000)
    x[:, 1] = 2
    drawn = generate(EXACTLY, linear(MASK), x, plan(L), seeded())
    assert bool((drawn.x[:, 1] == 2).all() & (drawn.x != MASK).all() & (drawn.times[:, 1] == 0).all())
    assert torch.equal(x, torch.tensor([MASK, 2, MASK]).expand(20_000, L))  # the argument is not written to
    if plan in EXACT.values():
        law = JOINT * (DATA[:, 1] == 2)
        assert follows(drawn.x, law / law.sum())
        assert bool((drawn.calls == 2).all())


@each_plan
@each_kappa
def test_no_mask_is_left_and_none_is_drawn_however_the_network_likes_it(path: Masked, plan) -> None:
    favourite = torch.tensor([0.0, 0.0, 0.0, 50.0, 0.0])
    x = generate(lambda x, t, c: favourite.expand(*x.shape, 5), path, blank(500), plan(L), seeded()).x
    assert set(x.unique().tolist()) == {0, 1, 2, 4}


class Mixer(nn.Module):
    """A small network in which every token depends on all others and on the condition."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(V + 1, 8)
        self.mix = nn.Linear(8 * length, length * V)
        self.told = nn.Linear(1, length * V)
        self.rows = 0
        with torch.no_grad():
            for number, p in enumerate(self.parameters()):
                p.normal_(generator=seeded(number))

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        self.rows += len(x)
        assert t.shape == (len(x),)
        return (self.mix(self.embed(x).flatten(1)) + self.told(condition["level"][:, None])).view(*x.shape, V)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_plan
def test_leaving_samples_out_changes_no_draw(plan, dtype: torch.dtype) -> None:
    """Evaluating every sample in every round, needed or not, draws the same tokens and takes more evaluations."""
    length, path = 12, cosine(MASK)
    network, plan = Mixer(length).to(dtype), plan(length)
    x = draw_data(torch.ones(V**L), 40 * 4).view(40, length)
    x[torch.rand(x.shape, generator=seeded(1)) < 0.6] = MASK
    x[0] = 0  # nothing to draw
    condition = {"level": torch.randn(40, generator=seeded(2), dtype=dtype)}
    drawn = generate(network, path, x, plan, seeded(3), condition)
    assert network.rows == drawn.calls.sum()
    assert drawn.calls[0] == 0

    literal, draws = x, seeded(3)
    rounds, times = plan(path, x == MASK, draws)
    u = torch.rand(x.shape, generator=draws, dtype=torch.float64)
    for k in range(int(rounds[x == MASK].max()) + 1):
        logits = network(literal, times[:, 0], condition)
        literal = torch.where((x == MASK) & (rounds == k), categorical(logits, u), literal)
    assert torch.equal(drawn.x, literal)
    assert network.rows > 2 * drawn.calls.sum()


@each_kappa
@pytest.mark.parametrize("plan", [tweedie, euler])
@pytest.mark.parametrize(("missing", "steps"), [(16, 4), (16, 16), (5, 32)])
def test_the_number_of_evaluations_is_the_expected_one(path: Masked, plan, missing: int, steps: int) -> None:
    """E[NFE] = sum_k 1 - (1 - r_k)^l, r_k the chance that a token appears in step k; l counts the missing ones."""
    left, r = 1.0, []
    for chance in reveals(path, plan, steps):
        r.append(left * chance)
        left *= 1 - chance
    x = torch.full((2000, 16), MASK)
    x[:, missing:] = 0
    drawn = generate(lambda x, t, c: torch.zeros(*x.shape, V), path, x, plan(steps), seeded())
    assert close(drawn.calls.double(), sum(1 - (1 - chance) ** missing for chance in r))
    assert bool((drawn.calls <= min(missing, steps)).all())


@each_kappa
def test_first_hitting_times_follow_kappa(path: Masked) -> None:
    drawn = generate(lambda x, t, c: torch.zeros(*x.shape, V), path, blank(2000, 10), first_hitting(), seeded())
    assert kstest(path.kappa(drawn.times).flatten(), "uniform").pvalue > 1e-3
    assert bool((drawn.calls == 10).all())


@each_kappa
def test_a_network_that_uses_t_is_told_the_time_of_the_draw(path: Masked) -> None:
    """One token that is 0 with probability t: its bound is int kappa' (-log t) dt, its law E[t] at the draws."""

    def network(x: Tensor, t: Tensor, condition: None) -> Tensor:
        p = t.double()[:, None].expand(x.shape)
        return torch.stack([p, 1 - p], 2).log()

    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    n, only = 40_000, torch.full((40_000, 1), MASK)
    exact = (path.dkappa(middle) * -middle.log()).mean().item()
    nats = bound(network, path, torch.zeros_like(only), uniform()(n, seeded()), seeded(1))
    assert close(nats, exact)

    def zeros(plan) -> Tensor:
        return (generate(network, path, only, plan, seeded()).x == 0).double()

    mean_time = (path.dkappa(middle) * middle).mean().item()
    assert -math.log(mean_time) < exact
    assert close(zeros(first_hitting()), mean_time)
    coarse = path.kappa(torch.linspace(0, 1, 5, dtype=torch.float64)).diff() @ torch.arange(4).double() / 4
    assert close(zeros(tweedie(4)), coarse)
    assert zeros(ordered()).sum() == 0  # asked at t = 0


@each_kappa
def test_ordered_tells_the_time_at_which_kappa_is_the_share_drawn(path: Masked) -> None:
    x = torch.tensor([[MASK] * 4, [MASK, 0, MASK, 0]])
    drawn = generate(lambda x, t, c: torch.zeros(*x.shape, V), path, x, ordered(torch.arange(4)), seeded())
    share = torch.tensor([[0, 0.25, 0.5, 0.75], [0, 0, 0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(path.kappa(drawn.times), share, rtol=0, atol=1e-12)
    pairs = generate(lambda x, t, c: torch.zeros(*x.shape, V), path, x, ordered(torch.arange(4), 2), seeded())
    share = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(path.kappa(pairs.times), share, rtol=0, atol=1e-12)


@each_plan
@each_kappa
def test_each_sample_is_told_rising_times_and_they_are_the_ones_returned(path: Masked, plan) -> None:
    told: list[list[float]] = [[] for _ in range(20)]

    def network(x: Tensor, t: Tensor, row: Tensor) -> Tensor:
        for number, time in zip(row.tolist(), t.tolist(), strict=True):
            told[number].append(time)
        return torch.zeros(*x.shape, V)

    drawn = generate(network, path, blank(20, 8), plan(8), seeded(), torch.arange(20))
    for times, row in zip(told, drawn.times.float(), strict=True):
        assert times == row.unique().tolist()  # unique sorts
    assert [len(times) for times in told] == drawn.calls.tolist()


def test_tokens_may_have_any_shape_and_each_sample_its_own_order() -> None:
    order = torch.stack([torch.arange(6), -torch.arange(6)]).view(2, 2, 3)

    def network(x: Tensor, t: Tensor, condition: None) -> Tensor:  # the token drawn n-th is n
        drawn = (x != 9).flatten(1).sum(1)[:, None, None, None]
        return torch.where(torch.arange(9) == drawn, 0.0, -math.inf).expand(*x.shape, 9)

    drawn = generate(network, linear(9), torch.full((2, 2, 3), 9), ordered(order), seeded())
    assert drawn.x.flatten(1).tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    pairs = generate(network, linear(9), torch.full((2, 2, 3), 9), ordered(torch.zeros(2, 3), size=2), seeded())
    assert pairs.x.flatten(1).tolist() == [[0, 0, 2, 2, 4, 4]] * 2  # equal keys go left to right


def test_a_warp_sees_the_logits_of_the_tokens_to_draw_and_no_others() -> None:
    shapes = []

    def coldly(logits: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        return logits / 1e-3

    network = tabulated(LOGITS)
    x = generate(network, linear(MASK), blank(10), ordered(torch.arange(L), size=2), seeded(), warp=coldly).x
    assert shapes == [(20, V), (10, V)]
    assert torch.equal(x[:, :2], LOGITS[-1, :2].argmax(1).expand(10, 2))


def test_tokens_in_any_order_of_memory_are_drawn_and_none_where_none_is_missing() -> None:
    x = blank(3, 5).T
    x[2] = 1
    assert not x.is_contiguous()
    drawn = generate(EXACTLY, linear(MASK), x, ordered(), seeded())
    assert torch.equal(drawn.x, generate(EXACTLY, linear(MASK), x.contiguous(), ordered(), seeded()).x)
    assert drawn.calls.tolist() == [3, 3, 0, 3, 3]
    again = generate(EXACTLY, linear(MASK), drawn.x, ordered(), seeded())
    assert torch.equal(again.x, drawn.x)
    assert again.calls.tolist() == [0] * 5


def test_generating_uses_its_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(EXACTLY, linear(MASK), blank(50), first_hitting(), seeded()).x
    bound(EXACTLY, linear(MASK), first, 0.5, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, generate(EXACTLY, linear(MASK), blank(50), first_hitting(), seeded()).x)


@pytest.mark.parametrize(
    "make",
    [lambda: tweedie(0), lambda: euler(0), lambda: ordered(size=0), lambda: in_blocks(ordered(), 0)],
)
def test_a_plan_without_steps_is_refused(make) -> None:
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        make()


# draws


def test_a_draw_is_the_inverse_of_the_distribution_function_to_double_precision() -> None:
    """A token 1e-11 likely is drawn for that share of u; single precision Gumbel noise, in [-2.9, 16.7], never does."""
    p = 1e-11
    logits = torch.tensor([math.log1p(-p), math.log(p)], dtype=torch.float64)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        drawn = categorical(logits, torch.tensor(middle, dtype=torch.float64))
        low, high = (middle, high) if drawn == 1 else (low, middle)
    assert high == pytest.approx(p, rel=1e-4)
    gumbel = [-math.log(-math.log(u)) for u in (2.0**-24, 1 - 2.0**-24)]  # the extremes of torch.rand in float32
    assert gumbel[1] + logits[1] < gumbel[0] + logits[0]


def test_equally_unlikely_tokens_are_drawn_equally_often() -> None:
    """1000 tokens of 2e-9 each, over a fine grid of those u that draw one of them; float32 tells 35 of the u apart."""
    logits = torch.full((1001,), -20.0)
    logits[0] = 0
    tail = 1000 * math.exp(-20) / (1 + 1000 * math.exp(-20))
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000 * tail
    seen = torch.bincount(categorical(logits.expand(10_000, 1001), u), minlength=1001)
    assert seen[0] == 0
    assert bool(((seen[1:] - 10).abs() <= 1).all())


@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2.0**-53])
def test_an_impossible_token_is_never_drawn(u: float) -> None:
    for possible in itertools.product([False, True], repeat=4):
        if any(possible):
            logits = torch.where(torch.tensor(possible), torch.tensor([0.1, 0.2, 0.3, 0.4]), -math.inf)
            assert possible[categorical(logits, torch.tensor(u, dtype=torch.float64))]


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_logits_one_cannot_draw_from_are_named(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="NaN or leave no token"):
        generate(lambda x, t, c: torch.full((*x.shape, V), bad), linear(MASK), blank(2), ordered(), seeded())
