"""The masked objective and sampler of a run, by closed forms on joints that are small enough to enumerate."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.guidance import classifier_free, linear_constraint, reward, steered
from flowcore.masked import any_order_bound, bound, linear
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.tokens import confident, masked_path, objective, sampler, strata, unmask, warped

V, L = 3, 4
MASK = V
CPU = torch.device("cpu")
DATA = torch.tensor(list(itertools.product(range(V), repeat=L)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(leaf: Leaf | None = None, condition: Leaf | None = None, drop: float = 0.0) -> Parts:
    leaf = leaf or Leaf((L,), "int64", "token", V)
    null = None if condition is None else 2
    return Parts(Spec(leaf, condition, null), None, CPU, drop_condition=drop)  # type: ignore[arg-type]


P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def fixed(x: Tensor, t: Tensor, condition: None) -> Tensor:
    """Every token by itself, of the law P."""
    return P.log().expand(*x.shape, V)


ROOM = torch.rand(V**L, generator=seeded(1), dtype=torch.float64) + 0.1
ROOM /= ROOM.sum()


def exactly(x: Tensor, t: Tensor, condition: None) -> Tensor:
    """log p(x1^i | x) of the joint ROOM."""
    agrees = ((x[:, None] == DATA) | (x[:, None] == MASK)).all(2).double() * ROOM
    weights = torch.einsum("bd,div->biv", agrees, torch.nn.functional.one_hot(DATA, V).double())
    return (weights / agrees.sum(1)[:, None, None]).log()


def test_the_mask_is_the_first_token_past_the_others_or_the_one_that_is_named():
    assert masked_path(Leaf((4,), "int64", "token", 9)).mask == 9
    assert masked_path(Leaf((4,), "int64", "token", 9, mask=3), "cosine").mask == 3
    for leaf in (Leaf((4,)), Leaf((4,), "int64", "token"), {"a": Leaf((4,), "int64", "token", 9)}):
        with pytest.raises(UsageError, match="one leaf of kind token"):
            masked_path(leaf)


@pytest.mark.parametrize("name", ["any_order", "lambda", "t_dse", "t_dce"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
def test_each_objective_estimates_the_same_bound_in_nats_a_token(name, schedule):
    """Of independent tokens it is their entropy, whatever is masked and when; t_dce's constant is 0 on average."""
    x1 = torch.multinomial(P, 40_000 * L, replacement=True, generator=seeded()).view(-1, L)
    loss = objective(parts(), name, schedule)(fixed, Batch(x1), seeded(1))
    assert loss.shape == (40_000,)
    error = loss.std().item() / math.sqrt(len(loss))
    assert loss.mean().item() == pytest.approx(-(P * P.log()).sum().item(), abs=4 * error)


def test_an_objective_is_the_bound_at_times_spread_over_the_batch():
    x1 = DATA[:20]
    for name, value in (("any_order", any_order_bound), ("lambda", bound)):
        draws = seeded(3)
        by_hand = value(exactly, linear(MASK), x1, strata(20, draws), draws) / L
        assert torch.equal(objective(parts(), name)(exactly, Batch(x1), seeded(3)), by_hand)
    first, other = (objective(parts(), "lambda", one)(exactly, Batch(x1), seeded(3)) for one in ("linear", "cosine"))
    assert torch.equal(first, other)
    u = strata(1000, seeded())
    assert torch.equal((u * 1000).floor(), torch.arange(1000).double())


def test_the_share_of_conditions_that_is_dropped_becomes_null():
    seen = []

    def network(x, t, condition):
        seen.append(condition)
        return torch.zeros(*x.shape, V)

    x1, labels = torch.zeros(4000, L, dtype=torch.long), torch.randint(2, (4000,), generator=seeded())
    objective(parts(condition=Leaf((), "int64", "class", 2), drop=0.25))(network, Batch(x1, labels), seeded(1))
    dropped = seen[0] == 2
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(seen[0][~dropped], labels[~dropped])


@pytest.mark.parametrize("method", ["first_hitting", "ordered"])
@pytest.mark.parametrize("block", [None, 2])
def test_a_sampler_that_knows_no_error_draws_the_joint(method, block):
    drawn = sampler(parts(), method, block=block)(exactly, None, 20_000, L, seeded())
    seen = torch.bincount((drawn.x1 * V ** torch.arange(L - 1, -1, -1)).sum(1), minlength=V**L)
    assert chisquare(seen, ROOM * 20_000).pvalue > 1e-3
    assert drawn.extra["calls"] == L


@pytest.mark.parametrize("method", ["tweedie", "euler", "first_hitting", "ordered", "confidence"])
@pytest.mark.parametrize("block", [None, 3])
def test_no_sampler_leaves_a_mask_or_touches_what_is_given(method, block):
    x = torch.full((50, 10), MASK)
    x[:, 2], x[:, 7] = 1, 2
    free = torch.ones(10, dtype=torch.bool).index_fill(0, torch.tensor([9]), False).expand(50, 10)
    drawn = unmask(fixed, linear(MASK), x, 3, seeded(), None, free, method, block=block)
    assert bool((drawn.x[:, 9] == MASK).all() & (drawn.x[:, :9] != MASK).all())
    assert bool((drawn.x[:, 2] == 1).all() & (drawn.x[:, 7] == 2).all())
    assert bool((drawn.times[:, [2, 7, 9]] == 0).all())
    assert bool((drawn.calls > 0).all())
    again = unmask(fixed, linear(MASK), x, 3, seeded(), None, free, method, block=block)
    assert torch.equal(drawn.x, again.x)


@pytest.mark.parametrize("steps", [1, 3, 10, 50])
def test_ordered_and_confidence_take_no_more_steps_than_they_are_given(steps):
    x = torch.full((6, 10), MASK)
    assert bool((unmask(fixed, linear(MASK), x, steps, seeded(), method="ordered").calls <= steps).all())
    assert bool((unmask(fixed, linear(MASK), x, steps, seeded(), method="confidence").calls == min(steps, 10)).all())


@pytest.mark.parametrize(("order", "first"), [("forward", 0), ("backward", 3)])
def test_an_order_has_its_direction(order, first):
    drawn = unmask(fixed, linear(MASK), torch.full((3, L), MASK), L, seeded(), method="ordered", order=order)
    assert drawn.times.argmin(1).tolist() == [first] * 3


def test_confidence_keeps_the_likeliest_of_what_it_drew():
    """One token a round: the position that is sure first, then the next."""
    sureness = torch.tensor([1.0, 9.0, 5.0, 3.0])

    def network(x, t, condition):
        return sureness[:, None] * torch.tensor([4.0, 0.0, 0.0]).expand(*x.shape, V)

    drawn = unmask(network, linear(MASK), torch.full((1, L), MASK), L, seeded(), method="confidence", temperature=1e-3)
    assert drawn.times.flatten().argsort().tolist() == [1, 2, 3, 0]
    assert torch.equal(drawn.x, torch.zeros(1, L, dtype=torch.long))
    assert drawn.times.sort(1).values.tolist() == [[0.0, 0.25, 0.5, 0.75]]


def test_confidence_asks_for_the_rows_that_miss_something_and_tells_them_their_condition():
    seen = []

    def network(x, t, condition):
        seen.append(condition.tolist())
        return torch.zeros(*x.shape, V)

    x = torch.tensor([[0, 0], [MASK, 0], [MASK, MASK]])
    drawn = confident(network, linear(MASK), x, 2, seeded(), torch.arange(3))
    assert drawn.calls.tolist() == [0, 1, 2]
    assert seen == [[1, 2], [2]]


def test_temperature_and_nucleus_change_the_law_as_they_say():
    logits = P.log()
    cold = warped(temperature=0.5)(logits).softmax(-1)
    torch.testing.assert_close(cold, P.square() / P.square().sum(), rtol=1e-12, atol=0)
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.501, 2), (0.79, 2), (0.81, 3), (1.0, 3)):
        law = warped(top_p=top_p)(logits.flip(0)).softmax(-1).flip(0)
        expected = torch.where(torch.arange(V) < kept, P, 0)
        torch.testing.assert_close(law, expected / expected.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["tweedie", "confidence"])
def test_a_network_that_says_nothing_is_named(method):
    def network(x, t, condition):
        return torch.full((*x.shape, V), math.nan)

    with pytest.raises(FloatingPointError, match="NaN or leave no token"):
        unmask(network, linear(MASK), torch.full((2, L), MASK), 2, seeded(), method=method)


@pytest.mark.parametrize("method", ["tweedie", "confidence"])
def test_a_compiled_network_is_compiled_for_all_counts_of_rows_at_once(method):
    """And for one row, which is a case of its own to torch; not for each count that a round may have."""
    import torch._dynamo

    programs, seen = [], set()

    def backend(graph, examples):
        programs.append(graph)
        return graph.forward

    class Told(torch.nn.Module):
        def forward(self, x, t, condition):
            return torch.nn.functional.one_hot(x, V + 1)[..., :V] + condition[:, None, None] + t[:, None, None]

    network = Told()
    torch._dynamo.reset()
    network.compile(backend=backend, dynamic=False)

    def counted(x, t, condition):
        seen.add(len(x))
        return network(x, t, condition)

    for size in (12, 9):
        x = torch.full((size, L), MASK)
        x[: size // 2, :2] = 0
        unmask(counted, linear(MASK), x, 6, seeded(), torch.zeros(size), method=method)
    assert len(seen) > 3 or method == "confidence"
    assert len(programs) <= 2


# guidance


def told_by_class(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Every token by itself, of a law for each class; class 2 tells nothing."""
    laws = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]], dtype=torch.float64)
    return laws[condition].log()[:, None].expand(*x.shape, V)


def with_guidance(*guidance, condition: Leaf | None = None) -> Parts:
    return replace(parts(condition=condition), guidance=guidance)


def law_of(made: Parts, network, condition: Tensor | None = None, steps: int = L) -> Tensor:
    n = 20_000
    told = None if condition is None else condition.expand(n)
    x = sampler(made, "ordered")(network, told, n, steps, seeded()).x1
    return torch.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1), minlength=V**L)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_free_guidance_of_tokens_is_a_power_of_their_odds(scale):
    made = with_guidance(classifier_free(scale), condition=Leaf((), "int64", "class", 2))
    seen = law_of(made, told_by_class, torch.tensor(0))
    own, empty = (told_by_class(torch.zeros(1, 1), None, torch.tensor([c])).exp()[0, 0] for c in (0, 2))
    p = empty * (own / empty) ** scale
    p /= p.sum()
    assert chisquare(seen, p[DATA].prod(1) * seen.sum()).pvalue > 1e-3


def test_outside_its_interval_it_is_the_condition_alone():
    late = classifier_free(3.0, (0.9, 1.0))
    x, t = torch.full((2, L), MASK), torch.tensor([0.1, 0.95])
    guided = steered(told_by_class, MASK, [late], torch.tensor(2))(x, t, torch.tensor([0, 0]))
    plain = told_by_class(x, t, torch.tensor([0, 0]))
    assert torch.equal(guided[0], plain[0])
    assert not torch.allclose(guided[1].softmax(-1), plain[1].softmax(-1))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_reward_that_adds_up_tilts_independent_tokens_exactly(scale):
    """p(x) exp(R(x)), with R a number for each token in each place."""
    worth = torch.randn(L, V, generator=seeded(5), dtype=torch.float64)
    seen = law_of(with_guidance(reward(lambda p: (p * worth).sum((1, 2)), scale)), fixed)
    tilted = P[DATA].prod(1) * (scale * worth[torch.arange(L), DATA].sum(1)).exp()
    assert chisquare(seen, tilted / tilted.sum() * seen.sum()).pvalue > 1e-3


def test_a_reward_knows_what_is_there_already():
    """A pair is worth something: beside a known token its gradient is the pair's worth with that token."""
    worth = torch.randn(V, V, generator=seeded(6), dtype=torch.float64)
    pairs = reward(lambda p: torch.einsum("bu,uv,bv->b", p[:, 0], worth, p[:, 1]), 2.0)
    x = torch.tensor([[1, MASK], [MASK, MASK]])
    logits = steered(lambda x, t, c: P.log().expand(*x.shape, V), MASK, [pairs])(x, torch.zeros(2), None)
    torch.testing.assert_close(logits[0, 1], P.log() + 2 * worth[1])
    torch.testing.assert_close(logits[1, 0], P.log() + 2 * worth @ P)


def test_a_network_that_names_the_mask_is_guided_without_it():
    leaf = Leaf((L,), "int64", "token", V + 1, mask=1)
    made = replace(parts(leaf), guidance=(reward(lambda p: p[..., 2].sum(1), 1.0),))
    x = sampler(made)(lambda x, t, c: torch.zeros(*x.shape, V + 1), None, 200, 4, seeded()).x1
    assert set(x.unique().tolist()) == {0, 2, 3}
    assert int((x == 2).sum()) > int((x == 0).sum())


def test_guidance_that_says_nothing_of_tokens_is_refused():
    made = with_guidance(linear_constraint(torch.ones(1, L), torch.ones(1)))
    with pytest.raises(ValueError, match="LinearConstraint guides no tokens"):
        sampler(made)(fixed, None, 2, 4, seeded())
    with pytest.raises(ValueError, match="needs conditional data with a null condition"):
        sampler(with_guidance(classifier_free(2.0)))(fixed, None, 2, 4, seeded())
    with pytest.raises(ValueError, match="guides no field"):
        reward(lambda p: p.sum()).velocity(None, torch.zeros(1), torch.zeros(()), 0.1)
