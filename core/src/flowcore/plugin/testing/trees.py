"""What the checks say and compare: one line, and states leaf by leaf."""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from flowcore.plugin.contracts import Leaf
from flowcore.state import State, branch, leaves, tree_map


def must(holds: bool, line: str) -> None:
    """Raise ``AssertionError`` with ``line`` where something does not hold; unlike ``assert``, under ``-O`` too."""
    if not holds:
        raise AssertionError(line)


def same(a: Any, b: Any) -> bool:
    """Whether two states, or parts of batches, are equal to the last bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return type(a) is type(b) and bool(numpy.all(a == b))


def apart(a: State, b: State) -> float:
    """The largest |a - b|, over the largest |a| where that is above 1; infinite where shapes differ or
    a value is NaN."""
    if isinstance(a, Mapping) != isinstance(b, Mapping) or (isinstance(a, Mapping) and a.keys() != b.keys()):
        return float("inf")
    worst = 0.0
    for one, other in zip(leaves(a), leaves(b), strict=True):
        if one.shape != other.shape:
            return float("inf")
        if one.numel():
            size = max(1.0, one.double().abs().max().item())
            miss = (one.double() - other.double()).abs().max().item() / size
            if not miss < float("inf"):  # NaN is far from everything
                return float("inf")
            worst = max(worst, miss)
    return worst


def shapes(state: Any) -> str:
    """Shapes and types, for a message."""
    if isinstance(state, Mapping):
        return "{" + ", ".join(f"{key}: {shapes(leaf)}" for key, leaf in state.items()) + "}"
    if isinstance(state, Tensor):
        return f"{tuple(state.shape)} {str(state.dtype).removeprefix('torch.')}"
    return type(state).__name__


def fault(described: Leaf | Mapping[str, Any], state: Any, count: int | Mapping[str, Any], where: str) -> str:
    """What is wrong with ``count`` samples that should be as ``described``; empty where nothing is. Of a ragged batch
    ``count`` is the number of rows, of each leaf where they differ."""
    if isinstance(described, Mapping):
        if not isinstance(state, Mapping) or state.keys() != described.keys():
            return f"{where} is {shapes(state)}; the spec has the parts {', '.join(described)}"
        parts = (fault(described[key], state[key], branch(count, key), f"{where}.{key}") for key in described)
        return next(filter(None, parts), "")
    wanted = f"{(count, *described.shape)} {described.dtype}"
    if not isinstance(state, Tensor) or shapes(state) != wanted:
        return f"{where} is {shapes(state)}; the spec asks for {wanted}"
    if state.is_floating_point() and not bool(state.isfinite().all()):
        return f"{where} has values that are not finite; leave them out, or say what is missing in a mask"
    if described.kind == "class" and described.classes is None:
        return f"{where} is of kind class; the spec has to say how many classes there are"
    top = described.classes
    if described.kind in ("class", "token") and top is not None and not bool(((state >= 0) & (state < top)).all()):
        return (
            f"{where} goes from {state.min().item()} to {state.max().item()}; of {top} classes they are 0 to {top - 1}"
        )
    return ""


def all_continuous(described: Leaf | Mapping[str, Any]) -> bool:
    """Whether every leaf of a spec's state is of kind continuous, so that a field moves it."""
    if isinstance(described, Mapping):
        return all(all_continuous(leaf) for leaf in described.values())
    return described.kind == "continuous"


def noisy(described: Leaf | Mapping[str, Any], x1: State, draws: torch.Generator) -> State:
    """A state on its way to the data: half of it noise where it is continuous."""

    def mixed(leaf: Any, x: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {key: mixed(leaf[key], x[key]) for key in leaf}
        return (x + torch.randn(x.shape, generator=draws, dtype=x.dtype)) / 2 if leaf.kind == "continuous" else x

    return mixed(described, x1)


def row(state: Any, rows: Any) -> Any:
    """Some rows of a state, or None of None."""
    return None if state is None else tree_map(lambda leaf: leaf[rows], state)
