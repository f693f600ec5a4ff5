"""The density of what a field generates, by the change of variables along its flow:

    log p1(x(1)) = log p0(x(0)) - int_0^1 div v(x(t), t) dt

(Chen et al. 2018, arXiv 1806.07366). The divergence is exact, or an unbiased estimate with one random probe for the
whole solve (Grathwohl et al. 2019, arXiv 1810.01367). Its integral is one more leaf of the state ``solve`` carries.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowcore.paths import gaussian
from flowcore.solvers import METHODS, Step, Velocity, solve, time_grid
from flowcore.state import State, branch, leaves, tree_map

LogDensity = Callable[[State], Tensor]

NEEDS_MORE = ("euler_maruyama", "exponential")
"""Solvers that ask for more than a velocity, so that the divergence cannot ride along."""


class Likelihood(NamedTuple):
    """``log_p`` is log p1(x1) per sample in nats, shape (B,); ``x0`` and ``x1`` are the ends of the path."""

    log_p: Tensor
    x0: State
    x1: State


def log_likelihood(
    field: Velocity,
    x1: State,
    grid: int | float | Tensor = 100,
    method: str | Step = "midpoint",
    generator: torch.Generator | None = None,
    chunk: int = 16,
    differentiable: bool = False,
    log_source: LogDensity | None = None,
) -> Likelihood:
    """log p1(x1) of given data, in nats per sample, from the path that leads back from ``x1`` to its source x0.

    ``field`` is a ``Field`` or any function (x, t) -> velocity, ``x1`` a tensor of any shape (B, ...) or a dict of
    them; in a ragged batch the field's index says which rows make a sample. One sample must not influence another: no
    batch normalisation in training mode. ``grid`` and ``method`` are as for sampling (``solve``), the grid ascending.
    The density is that of what a sampler returns at the end of its grid, having set out from ``path.initial(x0)``.

    Without ``generator`` the divergence is exact: one backward pass for each dimension of a sample, ``chunk`` of them
    at once (1 for networks whose backward pass cannot be vectorised, compiled ones among them). With it, it is
    Hutchinson's estimate from one Rademacher probe drawn from it: one backward pass, unbiased in ``log_p``.
    ``differentiable`` keeps the graph through the whole solve, for gradients with respect to parameters and ``x1``.

    x0 is N(0, I) unless ``log_source(x0) -> (B,)`` gives its log density. Raises ``ValueError`` where the path's
    source is another and no ``log_source`` is given, where the solve sets out from a time at which the field's
    prediction gives no velocity, and for a solver that needs more than a velocity; ``FloatingPointError`` as ``solve``.
    """
    return _follow(field, x1, True, grid, method, generator, chunk, differentiable, log_source)


def sample_with_likelihood(
    field: Velocity,
    x0: State,
    grid: int | float | Tensor = 100,
    method: str | Step = "midpoint",
    generator: torch.Generator | None = None,
    chunk: int = 16,
    differentiable: bool = False,
    log_source: LogDensity | None = None,
) -> Likelihood:
    """The sample x1 that ``x0`` becomes, and log p1(x1), from one solve. All arguments as in ``log_likelihood``."""
    return _follow(field, x0, False, grid, method, generator, chunk, differentiable, log_source)


def bits_per_dimension(log_p: Tensor, dimension: int, scale: float = 256.0) -> Tensor:
    """-log2 p / d + log2(scale): the bits that one number of the data costs, an upper bound in expectation.

    For data on integer levels k, dequantised with u ~ U[0, 1) (Theis et al. 2016, arXiv 1511.01844). ``scale`` is the
    number of levels per unit of x: 256 for x = (k + u) / 256, 128 for x = (k + u) / 128 - 1. ``log_p`` is in nats,
    ``dimension`` the number d of values in a sample.
    """
    return math.log2(scale) - log_p / (dimension * math.log(2))


def exact_divergence(
    field: Velocity, x: State, t: Tensor, chunk: int = 16, differentiable: bool = False
) -> tuple[State, Tensor]:
    """v(x, t), shaped like x, and div v = sum_i d v_i / d x_i per sample, shape (B,).

    One evaluation of the field and one vector-Jacobian product for each dimension of a sample, ``chunk`` at once.
    """
    index, samples = _ragged(field)
    x, v = _evaluate(field, x, t, differentiable)
    total = _per_sample(tree_map(torch.zeros_like, x), index, samples)
    blocks = [
        (output, leaf, rows, dimensions)
        for output, leaf, rows in _leafwise(v, x, index)
        if output.requires_grad  # a velocity that does not depend on x has none
        for dimensions in torch.arange(_dimension(leaf, rows), device=leaf.device).split(chunk)
    ]
    for number, (output, leaf, rows, dimensions) in enumerate(blocks, start=1):
        units = _units(dimensions, leaf, rows)
        (product,) = torch.autograd.grad(
            output,
            leaf,
            units if chunk > 1 else units[0],
            retain_graph=differentiable or number < len(blocks),
            create_graph=differentiable,
            is_grads_batched=chunk > 1,
            allow_unused=True,
            materialize_grads=True,
        )
        total = total + _per_sample((product * units).sum(0), rows, len(total))
    return (v, total) if differentiable else (tree_map(torch.Tensor.detach, v), total.detach())


def estimated_divergence(
    field: Velocity, x: State, t: Tensor, probe: State, differentiable: bool = False
) -> tuple[State, Tensor]:
    """v(x, t) and e^T (d v / d x) e per sample, shape (B,), for a probe e shaped like x with E[e e^T] = I.

    Its mean over probes is div v. One evaluation and one vector-Jacobian product.
    """
    index, samples = _ragged(field)
    x, v = _evaluate(field, x, t, differentiable)
    total = _per_sample(tree_map(torch.zeros_like, x), index, samples)
    parts = [(output, e) for output, e in zip(leaves(v), leaves(probe), strict=True) if output.requires_grad]
    if parts:
        outputs, probes = zip(*parts, strict=True)
        products = iter(
            torch.autograd.grad(
                outputs,
                list(leaves(x)),
                probes,
                create_graph=differentiable,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        total = total + _per_sample(tree_map(lambda e: e * next(products), probe), index, len(total))
    return (v, total) if differentiable else (tree_map(torch.Tensor.detach, v), total.detach())


def rademacher(like: State, generator: torch.Generator) -> State:
    """A probe of independent signs, +1 or -1, shaped like ``like``."""

    def draw(leaf: Tensor) -> Tensor:
        signs = torch.randint(0, 2, leaf.shape, generator=generator, device=generator.device)
        return (2 * signs - 1).to(leaf)

    return tree_map(draw, like)


def gaussian_source(path: Any) -> bool:
    """Whether x0 ~ N(0, I) on this path, on each of its parts where it is a product."""
    parts = getattr(path, "paths", None)
    return getattr(path, "source", None) is gaussian if parts is None else all(map(gaussian_source, parts.values()))


def initial_scale(path: Any, like: State) -> State:
    """What ``path.initial`` multiplies x0 by: one number a leaf, 1 where there is no path or it does not scale."""
    ones = tree_map(lambda leaf: leaf.new_ones(()), like)
    return path.initial(ones) if hasattr(path, "initial") else ones


def _follow(
    field: Velocity,
    x: State,
    backwards: bool,
    grid: int | float | Tensor,
    method: str | Step,
    generator: torch.Generator | None,
    chunk: int,
    differentiable: bool,
    log_source: LogDensity | None,
) -> Likelihood:
    """From ``x``, which is x1 if ``backwards`` and x0 otherwise, to the other end."""
    if isinstance(method, str) and method in NEEDS_MORE:
        possible = ", ".join(name for name in METHODS if name not in NEEDS_MORE)
        raise ValueError(f"solver {method!r} needs more than a velocity: a likelihood takes one of {possible}")
    path: Any = getattr(field, "path", None)
    if log_source is None and path is not None and not gaussian_source(path):
        raise ValueError(f"the source of {_name(path)} is not N(0, I): pass its log density as log_source(x0) -> (B,)")
    times = time_grid(grid) if path is None else time_grid(grid, path.start, path.stop)
    if times[0] > times[-1]:
        raise ValueError("the time grid of a likelihood ascends from source to data, whichever end is given")
    times = times.flip(0) if backwards else times
    _refuse_singular(field, x, times[0])
    probe = None if generator is None else rademacher(x, generator)

    def augmented(state: State, t: Tensor) -> State:
        if probe is None:
            v, divergence = exact_divergence(field, state["x"], t, chunk, differentiable)
        else:
            v, divergence = estimated_divergence(field, state["x"], t, probe, differentiable)
        return {"x": v, "integral": divergence}

    index, samples = _ragged(field)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        scale = initial_scale(path, x)
        begin = {
            "x": x if backwards else tree_map(torch.mul, x, scale),
            "integral": _per_sample(tree_map(torch.zeros_like, x), index, samples),
        }
        end = solve(augmented, begin, times, method)
        x0, x1 = (tree_map(torch.div, end["x"], scale), x) if backwards else (x, end["x"])
        change = end["integral"] if backwards else -end["integral"]
        widened = _per_sample(tree_map(lambda leaf, s: s.log().expand_as(leaf), x0, scale), index, samples)
        log_p0 = _per_sample(tree_map(_log_normal, x0), index, samples) if log_source is None else log_source(x0)
        return Likelihood(log_p0 - widened + change, x0, x1)


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square() + math.log(2 * math.pi))


def _name(path: Any) -> str:
    return f"path {path.name!r}" if hasattr(path, "name") else f"this {type(path).__name__.lower()} of paths"


def _refuse_singular(field: Velocity, x: State, t: Tensor) -> None:
    """Every solver evaluates the field where it sets out; dividing by a vanishing alpha or sigma there is refused."""
    predicts = getattr(field, "predicts", "velocity")
    if predicts == "velocity":
        return
    path: Any = field.path  # type: ignore[attr-defined]
    one, zero = (tree_map(lambda leaf, n=n: torch.full((1,), n, dtype=leaf.dtype), x) for n in (1.0, 0.0))
    for gain in leaves(path.convert(zero, one, t, predicts, "velocity")):
        if not gain.abs() < 1e6:  # infinite, not a number, or a division by the rounding error of 0
            raise ValueError(
                f"{_name(path)} gives no velocity at t = {t.item():g} to a field that predicts {predicts!r}: "
                "pass a grid that keeps clear of it, such as torch.linspace(0.001, 0.999, 101)"
            )


def _ragged(field: Velocity) -> tuple[Any, int | None]:
    return getattr(field, "index", None), getattr(field, "samples", None)


def _evaluate(field: Velocity, x: State, t: Tensor, differentiable: bool) -> tuple[State, State]:
    """(x, v(x, t)) with a graph from x to v; x is a new object, so that no evaluation kept by a field is taken."""

    def ready(leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf) if differentiable and leaf.requires_grad else leaf.detach().requires_grad_()

    with torch.enable_grad():
        x = tree_map(ready, x)
        return x, field(x, t)


def _leafwise(v: State, x: State, index: Any) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The leaves of v and x side by side, each with its index."""
    if isinstance(x, Mapping):
        for key in x:
            yield from _leafwise(v[key], x[key], branch(index, key))
    else:
        yield v, x, index


def _dimension(leaf: Tensor, index: Tensor | None) -> int:
    """Numbers in the largest sample of a leaf."""
    width = leaf.shape[1:].numel()
    return width if index is None else width * int(torch.bincount(index).max())


def _units(dimensions: Tensor, leaf: Tensor, index: Tensor | None) -> Tensor:
    """One unit vector a dimension, the same in every sample: (len(dimensions), *leaf.shape)."""
    width = leaf.shape[1:].numel()
    unit = torch.nn.functional.one_hot(dimensions % width, width).to(leaf.dtype)
    unit = unit.reshape(-1, 1, *leaf.shape[1:]).expand(-1, *leaf.shape)
    if index is None:
        return unit
    here = (dimensions // width)[:, None] == _places(index)
    return unit * here.reshape(*here.shape, *(1,) * (leaf.ndim - 1))


def _places(index: Tensor) -> Tensor:
    """The position of each row among the rows of its sample."""
    order = index.argsort(stable=True)
    counts = torch.bincount(index)
    first = counts.cumsum(0) - counts
    places = torch.empty_like(index)
    places[order] = torch.arange(len(index), device=index.device) - first[index[order]]
    return places


def _per_sample(x: State, index: Any, samples: int | None) -> Tensor:
    """The sum of all numbers of a sample, shape (B,), in single precision or better."""
    if isinstance(x, Mapping):
        return torch.stack([_per_sample(x[key], branch(index, key), samples) for key in x]).sum(0)
    rows = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(len(x), -1).sum(1)
    if index is None:
        return rows
    return rows.new_zeros(int(index.max()) + 1 if samples is None else samples).index_add(0, index, rows)
