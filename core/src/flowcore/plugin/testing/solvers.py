"""Checks of a solver, of an objective and of a sampler. ``make()`` builds it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.data import Batch
from flowcore.field import Field
from flowcore.paths import linear
from flowcore.plugin.contracts import Data, Objective, Sampler
from flowcore.plugin.testing.trees import apart, fault, must, same, shapes
from flowcore.seeds import generator
from flowcore.solvers import Step, solve
from flowcore.state import leaves, tree_map

MEAN, SPREAD = 1.5, 0.5


def gaussian_field(condition: Any = None) -> Field:
    """The field from N(0, 1) to N(m, s^2) on straight lines, linear in x, whose solution is x(1) = m + s x(0):

    v(x, t) = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m)
    """

    def velocity(x: Any, t: Tensor, condition: Any) -> Any:
        def part(leaf: Tensor) -> Tensor:
            time = t.reshape(-1, *(1,) * (leaf.ndim - 1))
            slope = (time * SPREAD**2 - (1 - time)) / (time**2 * SPREAD**2 + (1 - time) ** 2)
            return MEAN + slope * (leaf - time * MEAN)

        return tree_map(part, x)

    return Field(velocity, linear(), "velocity")


def straight_field() -> Field:
    """The field of the straight lines from x to m + s x, as reflow of the one above leaves it:
    v(x, t) = m + (s - 1) (x - t m) / (1 - t + t s)."""

    def velocity(x: Any, t: Tensor, condition: Any) -> Any:
        def part(leaf: Tensor) -> Tensor:
            time = t.reshape(-1, *(1,) * (leaf.ndim - 1))
            return MEAN + (SPREAD - 1) * (leaf - time * MEAN) / (1 - time + time * SPREAD)

        return tree_map(part, x)

    return Field(velocity, linear(), "velocity")


def _start(count: int = 64) -> Tensor:
    return torch.randn(count, 2, generator=generator(0, "solver"), dtype=torch.float64)


def _solved(step: Step, x: Any, steps: int) -> Any:
    field = straight_field() if getattr(step, "after_reflow", False) else gaussian_field()
    return solve(field, x, steps, step, generator=generator(1, "solver"))


def its_error_shrinks_with_the_step(make: Callable[[], Step]) -> None:
    """On a linear field whose solution is known, sixteen times the steps leave at most half the error, until 1e-4; one
    that draws noise reaches the law's mean and spread to a tenth. For one that is meant for fields after reflow the
    field's lines are straight."""
    step = make()
    if hasattr(step, "draws"):
        end = _solved(step, _start(4096), 200)
        miss = max(abs(end.mean().item() - MEAN), abs(end.std().item() - SPREAD))
        must(miss < 0.1, f"after 200 steps mean and spread are {miss:.3g} away from those of the data")
        return
    x = _start()
    exact = MEAN + SPREAD * x
    few, many = (apart(exact, _solved(make(), x, steps)) for steps in (10, 160))
    must(
        many < 1e-4 or many < few / 2,
        f"its error is {few:.3g} in 10 steps and {many:.3g} in 160; order 1 leaves a sixteenth",
    )
    must(many < 0.1, f"its error in 160 steps is {many:.3g}; it does not follow the field")


def it_keeps_the_kind_of_state(make: Callable[[], Step]) -> None:
    """A dict state comes back as one, shapes and types kept, and what it began from is left alone."""
    state = {"a": _start()[:, :1].float(), "b": _start().float()}
    before = tree_map(torch.clone, state)
    end = _solved(make(), state, 5)
    must(shapes(end) == shapes(state), f"a state of {shapes(state)} came back as {shapes(end)}")
    must(same(state, before), "it changed the state it began from; work on a copy")


def it_begins_anew_each_time(make: Callable[[], Step]) -> None:
    """The same solver used twice gives the same samples; one that remembers has a ``reset``."""
    step, x = make(), _start()
    must(same(_solved(step, x, 5), _solved(step, x, 5)), "used twice it gives two answers; forget the last in reset()")


def _losses(objective: Objective, network: nn.Module, data: Data) -> tuple[Tensor, int]:
    source = data.train()
    batch = source.batch(torch.arange(8) % len(source), generator(0, "check"))
    return objective(network, batch, generator(1, "check")), len(batch)


def it_gives_a_loss_for_each_sample(make: Callable[[], Objective], network: nn.Module, data: Data) -> None:
    """The loss has shape (B,) and is finite."""
    loss, count = _losses(make(), network, data)
    must(loss.shape == (count,), f"it returned {shapes(loss)}; it should be one loss for each of {count} samples")
    must(bool(loss.isfinite().all()), "its loss is not finite before any training")


def the_network_learns_from_it(make: Callable[[], Objective], network: nn.Module, data: Data) -> None:
    """Its gradient reaches the network's weights and is finite."""
    network.zero_grad()
    _losses(make(), network, data)[0].mean().backward()
    found = [weight.grad for weight in network.parameters() if weight.grad is not None]
    must(
        any(bool((g != 0).any()) for g in found),
        "its gradient reaches no weight of the network; is something detached?",
    )
    must(all(bool(g.isfinite().all()) for g in found), "its gradient is not finite")


def its_loss_is_drawn_from_the_generator(make: Callable[[], Objective], network: nn.Module, data: Data) -> None:
    """The same network, batch and generator give the same loss, whatever the global seed."""
    network.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one, _ = _losses(make(), network, data)
        torch.manual_seed(2)
        other, _ = _losses(make(), network, data)
    must(same(one.detach(), other.detach()), "the same generator gave another loss; draw from it alone")


def _sampled(sampler: Sampler, network: nn.Module, data: Data, count: int = 4) -> Batch:
    network.eval()
    with torch.no_grad():
        return sampler(network, data.condition(count, None), count, 3, generator(0, "check"))


def its_samples_are_as_the_spec_says(make: Callable[[], Sampler], network: nn.Module, data: Data) -> None:
    """As many as were asked for, shaped as the data, finite, with the count of the network's calls."""
    drawn = _sampled(make(), network, data)
    if drawn.samples is None:
        wrong = fault(data.spec().state, drawn.x1, 4, "x1")
        must(not wrong, wrong)
    must(len(drawn) == 4, f"4 samples were asked for, and {len(drawn)} came")
    calls = drawn.extra.get("calls")
    must(
        isinstance(calls, int) and calls > 0, f"extra['calls'] is {calls!r}; it should count the network's evaluations"
    )


def its_samples_are_drawn_from_the_generator(make: Callable[[], Sampler], network: nn.Module, data: Data) -> None:
    """The same network and generator give the same samples, whatever the global seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = _sampled(make(), network, data)
        torch.manual_seed(2)
        other = _sampled(make(), network, data)
    must(same(one.x1, other.x1), "the same generator gave other samples; draw from it alone")
    must(len(list(leaves(one.x1))) > 0, "it drew nothing")


SOLVER = (its_error_shrinks_with_the_step, it_keeps_the_kind_of_state, it_begins_anew_each_time)
OBJECTIVE = (it_gives_a_loss_for_each_sample, the_network_learns_from_it, its_loss_is_drawn_from_the_generator)
SAMPLER = (its_samples_are_as_the_spec_says, its_samples_are_drawn_from_the_generator)
