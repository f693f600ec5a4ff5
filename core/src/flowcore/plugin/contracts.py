"""What the registered references resolve to. Protocols only: a plugin inherits from nothing.

This module is light: torch is named for type checkers and not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from flowcore.data import Batch, Source
    from flowcore.state import State


@dataclass(frozen=True)
class Leaf:
    """One tensor of a sample, without its batch dimension.

    ``kind`` says what the numbers are: ``continuous``, ``class`` (int64 in [0, classes)), ``token`` or ``mask``.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: Literal["continuous", "class", "token", "mask"] = "continuous"
    classes: int | None = None


@dataclass(frozen=True)
class Spec:
    """What a network of this data set takes and returns.

    ``state`` describes one sample (a leaf or a dict of them), ``condition`` what the network is told of it, or None.
    ``null`` is the value of a condition that tells nothing, for classifier-free guidance; None if there is no such
    value. A class condition of K classes has null K, so a network embeds K + 1 classes.
    """

    state: Leaf | Mapping[str, Leaf]
    condition: Leaf | Mapping[str, Leaf] | None = None
    null: Any = None


class Data(Protocol):
    """A data set, built as ``Data(config)`` from its config model."""

    def spec(self) -> Spec:
        """Shapes and kinds of one sample and of its condition."""

    def train(self) -> Source:
        """The samples to train on."""

    def val(self) -> Source:
        """Held-out samples; never empty."""

    def tiny(self) -> Data:
        """A small data set of the same spec, offline and in under a second, for smoke runs and tests."""

    def fingerprint(self) -> str:
        """A hex digest of the content, the same on every machine."""

    def condition(self, count: int, wanted: str | None) -> State | None:
        """Conditions for ``count`` samples: those that ``wanted`` asks for in the domain's own words, or a balanced
        set. None for unconditional data. Raises ``flowcore.errors.UsageError`` on a wish it does not understand."""

    def write(self, samples: Batch, folder: Path) -> None:
        """Write samples in the domain's own file formats."""

    def show(self, samples: Batch) -> bytes:
        """One picture of the samples, as PNG bytes."""


class Portable(Data, Protocol):
    """A data set that reads from its files what sampling asks of it: shapes, names of classes, a scale.

    ``facts`` says all of that as plain JSON, and an exported model carries it along. Where the model is then loaded the
    data set is built as ``Data(config, facts)`` and answers ``spec``, ``condition``, ``write`` and ``show`` from it,
    without its files. A data set whose config alone suffices leaves this out.
    """

    def facts(self) -> Any:
        """Plain JSON: dicts, lists, text, finite numbers, booleans, None."""


@dataclass(frozen=True)
class Figure:
    """A measured number, never alone: ``floor`` is what a perfect model scores on this many samples (real data against
    real data), ``baselines`` what simpler ways score."""

    value: float
    better: Literal["lower", "higher", "neither"] = "lower"
    floor: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a metric is measured with: ``data`` is the data set of the run, ``folder`` a place for what the metric
    fits and wants kept, ``seed`` the only source of its draws."""

    data: Data
    folder: Path
    seed: int
    device: torch.device


class Metric(Protocol):
    """``metric(samples, measured, **options) -> {name: Figure}``."""

    def __call__(self, samples: Batch, measured: Measured) -> Mapping[str, Figure]: ...


@dataclass(frozen=True)
class Watched:
    """The run that an observer watches: its ``folder``, its ``name``, and its complete ``config`` as plain data."""

    folder: Path
    name: str
    config: Mapping[str, Any]
