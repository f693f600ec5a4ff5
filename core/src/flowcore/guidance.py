"""Guidance changes a sample on its way, in one of two places:

    velocity(field, x, t, dt) -> v      in place of field(x, t), at every stage of the solver
    state(field, x, t, dt) -> x         after every step, and at the end with dt = 0

A guidance object overrides one or both. A list composes: the first is innermost for velocities, and first in order for
states. ``dt`` is the length of the step under way (velocity) or to come (state).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowcore.field import Field
from flowcore.state import State, add, first_leaf, tree_map


class Guidance:
    """No guidance: the identity in both places."""

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        """The guided velocity at (x, t), shaped like x."""
        return field.velocity(x, t)

    def state(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        """The corrected state after a step that arrived at t."""
        return x


class Guided(Field):
    """A field seen through a guidance: its velocity is the guided one, and x1, noise and score follow from that.

    ``dt`` is set by the solver before each step.
    """

    def __init__(self, field: Field, guidance: Guidance) -> None:
        super().__init__(
            field.network, field.path, field.predicts, field.condition, field.null, field.index, field.samples
        )
        self._calls = field._calls
        self.inner = field
        self.guidance = guidance
        self._dt = 0.0

    @property
    def dt(self) -> float:
        """Length of the step under way."""
        return self._dt

    @dt.setter
    def dt(self, value: float) -> None:
        self._dt = value
        if isinstance(self.inner, Guided):
            self.inner.dt = value

    def with_condition(self, condition: Any, index: Any = None, samples: int | None = None) -> "Guided":
        other = Guided(self.inner.with_condition(condition, index, samples), self.guidance)
        other.dt = self.dt
        return other

    def _as(self, wanted: Any, x: State, t: float | Tensor) -> State:
        v = self.guidance.velocity(self.inner, x, torch.as_tensor(t, device=first_leaf(x).device), self.dt)
        return self.path.convert(v, x, t, "velocity", wanted, self.index)


def compose(field: Field, guidance: Sequence[Guidance]) -> Field:
    """``field`` under each guidance in turn; the field itself when there is none."""
    for one in guidance:
        field = Guided(field, one)
    return field


class ClassifierFree(Guidance):
    """v(null) + w (v(c) - v(null)): w = 1 follows the condition, w = 0 ignores it, w > 1 exaggerates it."""

    def __init__(self, scale: float, interval: tuple[float, float]) -> None:
        self.scale = scale
        self.interval = interval

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        if field.condition is None or field.null is None:
            raise ValueError("classifier-free guidance needs a conditional field with a null condition")
        first, last = self.interval
        if self.scale == 1.0 or not first <= float(t.reshape(-1)[0]) <= last:
            return field.velocity(x, t)
        null = field.null_condition()
        if self.scale == 0.0:
            return field.with_condition(null).velocity(x, t)
        conditional, empty = _both(field, x, t, null)
        return add(empty, tree_map(torch.sub, conditional, empty), self.scale)


def _both(field: Field, x: State, t: Tensor, null: Any) -> tuple[State, State]:
    """v under the condition and under the null condition, from one evaluation of a doubled batch."""
    twice = tree_map(lambda leaf: torch.cat([leaf, leaf]), x)
    condition = tree_map(lambda c, n: torch.cat([c, n]), field.condition, null)
    time = t if t.ndim == 0 else torch.cat([t, t])
    v = field.with_condition(condition).velocity(twice, time)
    return tree_map(lambda leaf: leaf.chunk(2)[0], v), tree_map(lambda leaf: leaf.chunk(2)[1], v)


def classifier_free(scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)) -> Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), limited to t in ``interval``.

    The identity at scale 1 (the plain conditional field) and outside the interval (Kynkaanniemi et al. 2024,
    arXiv 2404.07724).
    """
    return ClassifierFree(scale, interval)
