"""A state is a tensor, or a (nested) dict of tensors, whose first dimension counts samples.

In a ragged batch (molecules, graphs) the first dimension counts rows (atoms) instead, and an ``index`` tensor of shape
(rows,) says which sample each row belongs to. A dict state takes one index for all leaves or a dict of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any  # Tensor | dict[str, State]; mypy has no recursive narrowing that would help a reader here


def tree_map(function: Callable[..., Any], state: State, *others: State) -> State:
    """Apply ``function`` to each leaf of ``state`` and the leaves at the same place of ``others``."""
    if isinstance(state, Mapping):
        return {key: tree_map(function, leaf, *(other[key] for other in others)) for key, leaf in state.items()}
    return function(state, *others)


def leaves(state: State) -> Iterator[Tensor]:
    """The tensors of a state, in the order of its keys."""
    if isinstance(state, Mapping):
        for leaf in state.values():
            yield from leaves(leaf)
    else:
        yield state


def first_leaf(state: State) -> Tensor:
    """The leaf that stands for the state where only its device, dtype or batch size matter."""
    return state if isinstance(state, Tensor) else next(leaves(state))


def add(x: State, v: State, h: float | Tensor) -> State:
    """x + h v, leaf by leaf."""
    if isinstance(x, Tensor):
        return torch.add(x, v, alpha=h) if isinstance(h, float) else x + h * v
    return tree_map(lambda a, b: add(a, b, h), x, v)


def expand(t: float | Tensor, x: Tensor, index: Tensor | None = None) -> Tensor:
    """Bring ``t`` to a shape that multiplies ``x``.

    ``t`` is a scalar, or one value per sample, shape (B,). With ``index`` (shape (rows,)) each row of ``x`` takes the
    value of its sample. Raises ``ValueError`` when the counts do not match: broadcasting a (B,) time over the wrong
    axis is the classic silent error where B equals the data dimension.
    """
    t = torch.as_tensor(t, dtype=x.dtype if x.is_floating_point() else None, device=x.device)
    if t.ndim == 0:
        return t
    if t.ndim > 1:
        if t.numel() != t.shape[0]:
            raise ValueError(f"t must be a scalar or of shape (batch,), not {tuple(t.shape)}")
        t = t.flatten()
    if index is not None:
        t = t[index]
    if t.shape[0] != x.shape[0]:
        raise ValueError(f"t has {t.shape[0]} values for {x.shape[0]} rows; pass a scalar, one per sample, or an index")
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def branch(index: Any, key: str) -> Any:
    """What leaf ``key`` is given: a dict is looked up, a single value (an index, a kind) serves every leaf."""
    return index.get(key) if isinstance(index, Mapping) else index
