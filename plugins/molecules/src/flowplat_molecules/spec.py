"""What a network, an objective and a sampler are told of a data set of molecules."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowcore.plugin.contracts import Leaf, Spec


@dataclass(frozen=True)
class Property:
    """One property as training molecules have it: its unit, how it was computed, and mean, standard deviation, lowest
    and highest value. A network standardises with these; labels of two methods are two properties."""

    name: str
    unit: str
    method: str
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class MoleculeSpec(Spec):
    """``Spec`` with what else is known of molecules.

    ``condition`` is one float32 leaf (K,) in raw units, ``null`` NaN, or None without properties. ``counts`` (M,) and
    ``values`` (M, K), NaN where unknown, are the sizes and properties of training molecules, at most some thousands of
    them: p(N, y), from which a size is drawn for a property asked for.
    """

    properties: tuple[Property, ...] = ()
    counts: Any = field(default=None, compare=False)
    values: Any = field(default=None, compare=False)


def spec_of(
    atoms: int, charges: int, bonds: int, properties: tuple[Property, ...], counts: np.ndarray, values: np.ndarray
) -> MoleculeSpec:
    """The spec of molecules with so many classes of each kind. Rows are atoms, or pairs: a leaf's shape is a row's."""
    state: Mapping[str, Leaf] = {
        "positions": Leaf((3,)),
        "atoms": Leaf((), "int64", "token", atoms),
        "charges": Leaf((), "int64", "token", charges),
        "bonds": Leaf((), "int64", "token", bonds),
    }
    condition = Leaf((len(properties),)) if properties else None
    null = math.nan if properties else None  # the one object, so that specs compare equal
    return MoleculeSpec(
        state, condition, null, properties, np.asarray(counts, np.int64), np.asarray(values, np.float64)
    )
