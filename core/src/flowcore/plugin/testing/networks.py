"""Checks of a network. ``make()`` builds it for the spec of ``data``, a small data set, from torch's global seed.

A network may state what it is symmetric under, as an attribute ``symmetries`` of the module, of these:

    permutation     f(P x) = P f(x)                 P permutes the first dimension of a sample
    rotation        f(x R) = f(x) R                 R turns every continuous leaf whose last dimension is 2 or 3
    translation     f(x + c) = f(x) or f(x) + c     c moves these leaves; a velocity stays, an x1 moves along

E(3) is ("rotation", "translation"). A condition is permuted along where its first dimension is that of the state; under
the other two it is left alone. Rows of a ragged batch are not tried.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.plugin.contracts import Data, Leaf, Spec
from flowcore.plugin.testing.trees import all_continuous, apart, must, noisy, row, same, shapes
from flowcore.seeds import generator
from flowcore.state import State, leaves, tree_map

Make = Callable[[], nn.Module]

TOLERANCE = 1e-4
"""Of single precision, over the largest value."""


def _given(data: Data, count: int = 6) -> tuple[State, Tensor, Any]:
    """(x, t, condition) of ``count`` training samples under way."""
    source, draws = data.train(), generator(0, "check")
    batch = source.batch(torch.arange(count) % len(source), draws)
    t = torch.linspace(0.1, 0.9, count)
    return noisy(data.spec().state, batch.x1, draws), t, batch.condition


def _stirred(make: Make) -> nn.Module:
    """A network whose weights are all moved: one whose last layer begins at 0 answers nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
    draws = generator(0, "stir")
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=draws), alpha=0.1)
    return network.eval()


def its_output_has_the_shape_of_the_state(make: Make, data: Data) -> None:
    """forward(x, t, condition) returns a state shaped and typed like x; for discrete states, one that is finite and
    begins like x: (B, n) tokens to (B, n, ...)."""
    x, t, condition = _given(data)
    with torch.no_grad():
        out = make().eval()(x, t, condition)
    if all_continuous(data.spec().state):
        must(
            shapes(out) == shapes(x),
            f"it returned {shapes(out)} for a state of {shapes(x)}; return the state's own shape",
        )
        return
    found = list(leaves(out))
    begins = all(isinstance(leaf, Tensor) and leaf.shape[:1] == t.shape for leaf in found)
    must(
        bool(found) and begins,
        f"it returned {shapes(out)} for a state of {shapes(x)}; the first dimension is the batch",
    )
    finite = all(bool(leaf.isfinite().all()) for leaf in found if leaf.is_floating_point())
    must(finite, "its output is not finite before any training; look at its first weights")


def a_batch_of_one_is_a_row_of_a_larger_one(make: Make, data: Data) -> None:
    """In evaluation a sample's answer depends on no other sample of the batch, and a batch may hold one alone."""
    x, t, condition = _given(data)
    network = _stirred(make)
    with torch.no_grad():
        together = network(x, t, condition)
        alone = network(row(x, slice(0, 1)), t[:1], row(condition, slice(0, 1)))
    miss = apart(row(together, slice(0, 1)), alone)
    must(miss < TOLERANCE, f"a sample alone and the same in a batch of {len(t)} differ by {miss:.3g}; mix no samples")


def its_gradients_are_finite(make: Make, data: Data) -> None:
    """Some weight learns, and no gradient is NaN or infinite."""
    x, t, condition = _given(data)
    network = _stirred(make).train()
    draws = generator(0, "gradients")
    out = [leaf for leaf in leaves(network(x, t, condition)) if leaf.is_floating_point()]
    weighed = [(leaf * torch.randn(leaf.shape, generator=draws, dtype=leaf.dtype)).sum() for leaf in out]
    torch.stack(weighed).sum().backward()
    found = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    strange = [name for name, gradient in found.items() if not bool(gradient.isfinite().all())]
    must(not strange, f"the gradient of {strange[:1]} is not finite; look for a root, a logarithm or a norm at 0")
    must(any(bool((g != 0).any()) for g in found.values()), "no weight has a gradient; nothing of it would learn")


def it_depends_on_t(make: Make, data: Data) -> None:
    """The field at t = 0.1 is not the one at t = 0.9."""
    x, t, condition = _given(data)
    network = _stirred(make)
    with torch.no_grad():
        early, late = (network(x, torch.full_like(t, time), condition) for time in (0.1, 0.9))
    must(
        not same(early, late),
        "it gives the same answer at t = 0.1 and t = 0.9; use t, as by concatenating or embedding",
    )


def it_depends_on_x(make: Make, data: Data) -> None:
    """Two states have two answers."""
    x, t, condition = _given(data)
    network, middle = _stirred(make), torch.full_like(t, 0.5)
    other = row(x, torch.arange(len(t)).roll(1))
    with torch.no_grad():
        must(not same(network(x, middle, condition), network(other, middle, condition)), "its answer ignores x")


def it_depends_on_the_condition(make: Make, data: Data) -> None:
    """Other conditions have other answers, and the null condition, where there is one, is understood."""
    spec = data.spec()
    x, t, condition = _given(data, 16)
    network = _stirred(make)
    with torch.no_grad():
        told = network(x, t, condition)
        others = [network(x, t, row(condition, torch.arange(16).roll(k))) for k in range(1, 16)]
        if spec.null is not None:
            null = tree_map(lambda c, n: torch.as_tensor(n).to(c).expand_as(c), condition, spec.null)
            others.append(network(x, t, null))
            must(shapes(others[-1]) == shapes(told), f"under the null condition it returned {shapes(others[-1])}")
    must(any(not same(told, other) for other in others), "its answer ignores the condition; use it, or leave it out")


def it_draws_nothing_in_evaluation(make: Make, data: Data) -> None:
    """In evaluation the same input has the same answer, and the input is left as it was."""
    x, t, condition = _given(data)
    before = tree_map(torch.clone, x)
    network = _stirred(make)
    with torch.no_grad():
        first = network(x, t, condition)
        must(same(x, before), "it changed the x it was given; work on a copy")
        must(same(first, network(x, t, condition)), "the same input gave two answers in evaluation")


def its_weights_are_all_there_is(make: Make, data: Data) -> None:
    """Its state_dict, loaded into another one built from another seed, gives the same answers: nothing that was drawn
    is left out of it."""
    x, t, condition = _given(data)
    network = _stirred(make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = make()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        told, again = network(x, t, condition), other.eval()(x, t, condition)
    must(same(told, again), "its state_dict loaded elsewhere answers otherwise; register what is drawn as a buffer")


def _movable(described: Leaf | Mapping[str, Any]) -> bool:
    return isinstance(described, Leaf) and described.kind == "continuous" and described.shape[-1:] in ((2,), (3,))


def _each(spec: Spec, state: State, function: Callable[[Tensor], Tensor]) -> State:
    """``function`` of every leaf that points in space, the others as they are."""

    def apply(described: Any, leaf: Any) -> Any:
        if isinstance(described, Mapping):
            return {key: apply(described[key], leaf[key]) for key in described}
        return function(leaf) if _movable(described) else leaf

    return apply(spec.state, state)


def _rotation(size: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator(0, "rotation", size), dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= q.det().sign()  # a rotation, no reflection
    return q.float()


def _moved(symmetry: str, spec: Spec, state: Any) -> Any:
    """``state`` after a random element of the group."""
    if symmetry == "translation":
        step = torch.tensor([0.7, -0.4, 0.2])
        return _each(spec, state, lambda leaf: leaf + step[: leaf.shape[-1]])
    if symmetry == "rotation":
        return _each(spec, state, lambda leaf: leaf @ _rotation(leaf.shape[-1]))
    return _permuted(state, next(leaves(state)).shape[1])


def _permuted(state: Any, count: int) -> Any:
    order = torch.randperm(count, generator=generator(0, "permutation"))
    return tree_map(lambda leaf: leaf[:, order] if leaf.shape[1:2] == order.shape else leaf, state)


def it_is_symmetric_as_it_states(make: Make, data: Data) -> None:
    """The symmetries it states hold for a random element of each, to 1e-4, and that element moves the state."""
    spec = data.spec()
    x, t, condition = _given(data)
    network = _stirred(make)
    stated: Any = network.symmetries
    for symmetry in stated:
        known = symmetry in ("permutation", "rotation", "translation")
        must(known, f"it states {symmetry!r}; a symmetry is permutation, rotation or translation")
        tensors = list(leaves(x))
        fits = tensors[0].ndim > 2 if symmetry == "permutation" else not same(x, _moved("translation", spec, x))
        must(fits, f"it states {symmetry}, and the state {shapes(x)} has no dimension for that")
        moved, told = _moved(symmetry, spec, x), condition
        if symmetry == "permutation" and condition is not None:
            told = _permuted(condition, tensors[0].shape[1])
        with torch.no_grad():
            here, there = network(x, t, condition), network(moved, t, told)
        miss = apart(_moved(symmetry, spec, here), there)
        if symmetry == "translation":
            miss = min(miss, apart(here, there))
        must(miss < TOLERANCE, f"it states {symmetry}, and breaks it by {miss:.3g}")


ALWAYS = (
    its_output_has_the_shape_of_the_state, a_batch_of_one_is_a_row_of_a_larger_one, its_gradients_are_finite,
    it_depends_on_x, it_draws_nothing_in_evaluation, its_weights_are_all_there_is,
)  # fmt: skip
