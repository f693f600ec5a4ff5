"""Couplings: which source sample is paired with which data sample.

    couple(x0, x1, condition, generator) -> Pairs(x0, x1, weight, index)

The data keep their order, the source is permuted or drawn again, so labels and masks stay aligned with x1; ``index``
says which rows of the arguments the pairs are, for anything else that must follow.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowcore.state import State


class Pairs(NamedTuple):
    """n coupled samples; ``weight`` (n,) or None for equal weights; ``index`` = (rows of x0, rows of x1) or None."""

    x0: State
    x1: State
    weight: Tensor | None = None
    index: tuple[Tensor, Tensor] | None = None


Coupling = Callable[[State, State, State | None, torch.Generator], Pairs]


def independent() -> Coupling:
    """(x0, x1) ~ p0 x p1: the pairs as they come. Also right for pairs that are given, as in reflow."""

    def couple(x0: State, x1: State, condition: State | None, generator: torch.Generator) -> Pairs:
        return Pairs(x0, x1)

    return couple
