"""Checks of a guidance. ``off()`` builds it with the options that switch it off, ``make()`` with those it is used with.

The field it is tried on is a formula of x, t and the condition, no network: what is checked is the guidance.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowcore.field import Field
from flowcore.guidance import Guidance
from flowcore.paths import linear
from flowcore.plugin.contracts import Data
from flowcore.plugin.testing.trees import apart, must, noisy, same, shapes
from flowcore.seeds import generator
from flowcore.state import State, leaves, tree_map

Make = Callable[[], Guidance]

MOMENTS = ((0.1, 0.1), (0.5, 0.1), (0.9, 0.1), (1.0, 0.0))
"""Times and the lengths of the steps from there, the end of the path among them."""


def stand_in(x: State, t: Tensor, condition: Any) -> State:
    """A smooth velocity that depends on all that a network is told."""
    told = torch.zeros_like(t)
    for leaf in leaves(condition) if condition is not None else ():
        told = told + leaf.reshape(len(leaf), -1).to(t).mean(1)

    def velocity(leaf: Tensor) -> Tensor:
        wide = (-1, *(1,) * (leaf.ndim - 1))
        return (1 + told.reshape(wide)).cos() - torch.sin(leaf) * (1 - t / 2).reshape(wide)

    return tree_map(velocity, x)


def _field(data: Data) -> tuple[Field, State]:
    """The stand-in as a field of this data set, and a state of it."""
    spec, source = data.spec(), data.train()
    draws = generator(0, "check")
    batch = source.batch(torch.arange(6) % len(source), draws)
    field = Field(stand_in, linear(), "velocity", batch.condition, spec.null)
    field.draws = draws
    return field, noisy(spec.state, batch.x1, draws)


def off_it_changes_nothing(off: Make, make: Make, data: Data) -> None:
    """With the options that switch it off, ``velocity`` is the field's own and ``state`` leaves x, to 1e-6, at
    every time and at the end."""
    field, x = _field(data)
    guidance = off()
    for time, dt in MOMENTS:
        t = torch.tensor(time)
        with torch.no_grad():
            moved = apart(field.velocity(x, t), guidance.velocity(field, x, t, dt))
            shifted = apart(x, guidance.state(field, x, t, dt))
        if guidance.needs_steps and dt == 0:
            moved = 0.0  # no solver asks for a step of no length
        line = f"switched off, at t = {time:g}, it changes the {{}} by {{:.3g}}; return what came, or state off= anew"
        must(moved < 1e-6, line.format("velocity", moved))
        must(shifted < 1e-6, line.format("state", shifted))


def what_it_returns_is_a_state(off: Make, make: Make, data: Data) -> None:
    """With the options it is used with, velocity and state are finite and shaped like x."""
    field, x = _field(data)
    guidance = make()
    for time, dt in MOMENTS[:3]:
        t = torch.tensor(time)
        with torch.no_grad():
            for name in ("velocity", "state"):
                out = getattr(guidance, name)(field, x, t, dt)
                must(shapes(out) == shapes(x), f"{name}() returned {shapes(out)} for a state of {shapes(x)}")
                finite = all(bool(leaf.isfinite().all()) for leaf in leaves(out))
                must(finite, f"{name}() is not finite at t = {time:g}; look for a division by what is 0 there")


def it_leaves_its_arguments_alone(off: Make, make: Make, data: Data) -> None:
    """x is not changed in place: a solver of several stages comes back to it."""
    field, x = _field(data)
    guidance, before, t = make(), tree_map(torch.clone, x), torch.tensor(0.5)
    with torch.no_grad():
        guidance.velocity(field, x, t, 0.1)
        guidance.state(field, x, t, 0.1)
    must(same(x, before), "it changed the x it was given; return another tensor")


ALWAYS = (off_it_changes_nothing, what_it_returns_is_a_state, it_leaves_its_arguments_alone)
