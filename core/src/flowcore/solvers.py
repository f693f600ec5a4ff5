"""Solvers: from a source sample to a data sample along the field,

    d x / d t = v(x, t)   from t = 0 to t = 1.

``solve`` is one loop for every method. A method is a function ``step(field, x, t, r) -> x`` from time t to time r,
made fresh for each solve by a factory in ``METHODS``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowcore.guidance import Guidance, Guided, compose
from flowcore.state import State, add, first_leaf, leaves

Velocity = Callable[[State, Tensor], State]
Step = Callable[[Velocity, State, Tensor, Tensor, float], State]
Callback = Callable[[int, float, State], None]


def euler() -> Step:
    """x + h v(x, t): order 1, one evaluation a step."""

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        return add(x, v(x, t), h)

    return step


def midpoint() -> Step:
    """x + h v(x + h/2 v(x, t), t + h/2): order 2, two evaluations a step."""

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        half = add(x, v(x, t), h / 2)
        return add(x, v(half, t + h / 2), h)

    return step


def heun() -> Step:
    """x + h/2 (v(x, t) + v(x + h v(x, t), r)): order 2, two evaluations a step."""

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        first = v(x, t)
        second = v(add(x, first, h), r)
        return add(add(x, first, h / 2), second, h / 2)

    return step


METHODS: dict[str, Callable[[], Step]] = {"euler": euler, "midpoint": midpoint, "heun": heun}


def solve(
    field: Velocity,
    x: State,
    grid: int | Tensor = 100,
    method: str | Step = "euler",
    guidance: Sequence[Guidance] = (),
    callback: Callback | None = None,
) -> State:
    """Carry ``x`` along ``field`` over the time grid and return the state at its end.

    ``field`` is a ``Field``, or any function (x, t) -> velocity when no guidance is asked for. ``grid`` is a number of
    equal steps over the path's [start, stop] ([0, 1] for a plain function), or the times themselves, ascending to
    sample, descending to invert. ``callback(i, t, x)`` sees the state before step i, and the last one. Raises
    ``ValueError`` on an unknown method or a grid without steps, and ``FloatingPointError`` naming the step at which the
    state is no longer finite.
    """
    leaf = first_leaf(x)
    if isinstance(grid, int):
        path = getattr(field, "path", None)
        start, stop = (0.0, 1.0) if path is None else (path.start, path.stop)
        grid = torch.linspace(start, stop, grid + 1, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError("the time grid needs at least one step")
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown solver {method!r}; one of {', '.join(METHODS)}")
        method = METHODS[method]()
    seen = compose(field, guidance)  # type: ignore[arg-type]  # a plain function comes back as it is
    values: list[float] = grid.tolist()
    times = grid.to(device=leaf.device, dtype=leaf.dtype).unbind()
    last = len(times) - 1
    for i in range(last):
        h = values[i + 1] - values[i]
        if callback is not None:
            callback(i, values[i], x)
        if isinstance(seen, Guided):
            seen.dt = h
        x = method(seen, x, times[i], times[i + 1], h)
        if guidance:
            coming = values[i + 2] - values[i + 1] if i + 1 < last else 0.0
            for one in guidance:
                x = one.state(field, x, times[i + 1], coming)  # type: ignore[arg-type]
    if callback is not None:
        callback(last, values[-1], x)
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves(x)):
        raise FloatingPointError("the sample is not finite: the field diverged, or was evaluated at a singular time")
    return x
