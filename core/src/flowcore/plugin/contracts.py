"""What the registered references resolve to. Protocols only: a plugin inherits from nothing.

This module is light: torch is named for type checkers and not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from flowcore.couplings import Coupling
    from flowcore.data import Batch, Source
    from flowcore.field import Field
    from flowcore.guidance import Guidance
    from flowcore.losses import Metric as Loss
    from flowcore.paths import Affine
    from flowcore.prediction import Prediction
    from flowcore.solvers import Step
    from flowcore.state import State
    from flowcore.times import Times


@dataclass(frozen=True)
class Leaf:
    """One tensor of a sample, without its batch dimension.

    ``kind`` says what the numbers are: ``continuous``, ``class`` (int64 in [0, classes)), ``token`` or ``mask``.
    ``mask`` is the token that stands for "not yet known" where that is one of the ``classes`` tokens, which no data
    hold; None where it is the first one past them.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: Literal["continuous", "class", "token", "mask"] = "continuous"
    classes: int | None = None
    mask: int | None = None


@dataclass(frozen=True)
class Spec:
    """What a network of this data set takes and returns.

    ``state`` describes one sample (a leaf or a dict of them), ``condition`` what the network is told of it, or None.
    ``null`` is the value of a condition that tells nothing, for classifier-free guidance; None if there is no such
    value. A class condition of K classes has null K, so a network embeds K + 1 classes. Where batches are ragged
    (``Batch.index``), a leaf's shape is that of a row, and networks are called with the index as a fourth argument.
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


class Augmenting(Data, Protocol):
    """A data set that draws its training samples in several guises: mirrored, turned.

    What ``train()`` does to its samples, ``augment`` does to a batch of them, noise included: so the pairs of a teacher
    are trained on, whose flow is as symmetric as its data. A data set without guises leaves this out.
    """

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch in another guise, drawn for each sample from ``generator`` (on the CPU); ``x0``, where it is given,
        undergoes what x1 does. The batch itself where the config asks for none."""


class Sourced(Data, Protocol):
    """A data set with samples at both ends, for flows from one set to another: the batches of its ``train()`` and
    ``val()`` bring x0, and a sampler begins at what it draws instead of at noise."""

    def draw_source(self, count: int, generator: torch.Generator) -> State:
        """``count`` samples of the source, shaped like ``spec().state``, every draw from the generator (on any device):
        held-out ones where there are any, so that what is measured was not trained on."""


class Checkable(Data, Protocol):
    """What no run needs, and ``platform check`` uses where a data set has it, one or both; ``platform eval`` measures
    samples that are files with the second."""

    @staticmethod
    def example(folder: Path) -> Mapping[str, Any]:
        """A few samples written to ``folder`` as a user would bring them, and the options that read them: for a data
        set that is nothing without a user's files, which nobody could try otherwise."""

    def read_back(self, folder: Path) -> Batch:
        """The samples that ``write`` wrote into ``folder``, as near as its file formats can tell them."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of, for an objective or a sampler to be built from.

    ``path``, ``coupling``, ``times``, ``loss``, ``predicts``, ``solver`` and ``guidance`` are there where the objective
    or the sampler is registered to use them; else they are None. ``drop_condition`` is the share of conditions that
    training replaces by the null condition. ``seed`` is the run's; what is drawn in training or sampling is drawn from
    the generator that comes with the call. ``teacher`` is the trained model that the run learns from, if any.
    """

    spec: Spec
    data: Data
    device: torch.device
    seed: int = 0
    drop_condition: float = 0.0
    path: Affine = None  # type: ignore[assignment]
    coupling: Coupling = None  # type: ignore[assignment]
    times: Times = None  # type: ignore[assignment]
    loss: Loss = None  # type: ignore[assignment]
    predicts: Prediction = None  # type: ignore[assignment]
    solver: Step = None  # type: ignore[assignment]
    guidance: Sequence[Guidance] = ()
    teacher: Trained | None = None

    def field(
        self, network: Any, condition: State | None = None, index: Any = None, samples: int | None = None
    ) -> Field:
        """``network`` read as a field along ``path``, told ``condition``. Raises ``UsageError`` for a path that is none
        of a single field."""
        import torch

        from flowcore.errors import UsageError
        from flowcore.field import Field
        from flowcore.interpolants import Interpolant
        from flowcore.state import tree_map

        if isinstance(self.path, Interpolant):
            raise UsageError(
                "path=interpolant has two fields, a velocity and a denoiser, which objective=interpolant learns and"
                " sample.sampler=interpolant follows; set both, or another path"
            )

        null = self.spec.null
        on_device = None if null is None else tree_map(lambda n: torch.as_tensor(n, device=self.device), null)
        return Field(network, self.path, self.predicts, condition, on_device, index, samples)


class Objective(Protocol):
    """What is minimised: ``objective(network, batch, generator) -> (B,)``, a loss for each sample of the batch, every
    draw from the generator."""

    def __call__(self, network: Any, batch: Batch, generator: torch.Generator) -> torch.Tensor: ...


class Sampler(Protocol):
    """How ``count`` samples are drawn, every draw from the generator, in ``steps`` steps, whatever a step is.

    ``condition`` holds a condition for each of them, or is None. The batch that is returned is on any device; its
    ``x0`` is what they came from, where that is something, and ``extra["calls"]`` the evaluations of the network (NFE).
    Raises ``flowcore.errors.UsageError`` where it cannot do what the settings ask.
    """

    def __call__(
        self, network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator
    ) -> Batch: ...


class Trained(Protocol):
    """A trained model, as a task sees it."""

    @property
    def data(self) -> Data:
        """The data set it was trained on; where it was exported, what its facts tell of that."""

    @property
    def network(self) -> torch.nn.Module:
        """The network with its averaged weights."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    @property
    def seed(self) -> int:
        """The run's."""

    def parts(self) -> Parts:
        """What the run was made of; its sampler's path, guidance and solver are there, made anew."""

    def sample(
        self, count: int, steps: int | None = None, seed: int | None = None, condition: str | None = None
    ) -> Batch:
        """Samples as the run draws them; what is not given is as in its config."""


class Task(Protocol):
    """``task(trained, inputs, out, **options)``: what the domain does with a model.

    From the command ``inputs`` are paths as the user gave them and ``out`` is where the result belongs: a file or a
    folder, which is not there yet unless the task ``resumes``; what is returned is a summary of plain JSON: counts,
    figures, what was skipped and why. From Python ``inputs`` may be the domain's own objects, and with ``out`` None
    nothing is written and the result is returned. ``trained`` is None where a task registered with ``model=False`` got
    none. Raises ``flowcore.errors.InputError`` naming the file and the way out.
    """

    def __call__(self, trained: Trained | None, inputs: Sequence[Any], out: Path | None) -> Any: ...


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
    fits and wants kept, ``seed`` the only source of its draws. ``trained`` is the model that drew the samples, for what
    is measured of itself, such as a likelihood; None where samples are files of any origin."""

    data: Data
    folder: Path
    seed: int
    device: torch.device
    trained: Trained | None = None


class Metric(Protocol):
    """``metric(samples, measured, **options) -> {name: Figure}``."""

    def __call__(self, samples: Batch, measured: Measured) -> Mapping[str, Figure]: ...


@dataclass(frozen=True)
class Watched:
    """The run that an observer watches: its ``folder``, its ``name``, and its complete ``config`` as plain data."""

    folder: Path
    name: str
    config: Mapping[str, Any]
