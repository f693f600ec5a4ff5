"""Batches, and where they come from.

A source of data is anything with a length and ``batch(rows, generator) -> Batch``. Rows are drawn by the training loop
as a pure function of (seed, step, rank), so loaders, workers and resumed runs all see the same batches.
"""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from multiprocessing.util import Finalize
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowcore.seeds import generator
from flowcore.state import State, branch, first_leaf, tree_map


@dataclass(frozen=True)
class Batch:
    """Samples of one batch.

    ``x1`` is the data. ``condition`` is what the network is told of each sample, or None. ``x0`` is the source where
    it is given rather than drawn (reflow pairs, paired images), ``weight`` (B,) the weights of those pairs. ``mask``,
    shaped like x1, is 1 where x1 is known and 0 where it stands for nothing; None where all of it is. ``index``
    and ``samples`` belong to ragged batches. ``extra`` holds what metrics and writers want and the network must not
    see: labels, names, units. ``step`` is the training step, counted from 0, that the batch is used in; None outside of
    training.
    """

    x1: State
    condition: Any = None
    x0: State | None = None
    index: Any = None
    samples: int | None = None
    weight: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    mask: State | None = None

    def __len__(self) -> int:
        return first_leaf(self.x1).shape[0] if self.samples is None else self.samples

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with ``function`` applied to every tensor."""

        def apply(value: Any) -> Any:
            return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``; the copy from pinned memory does not wait."""
        device = torch.device(device)
        if device.type == "cpu" and first_leaf(self.x1).device == device:
            return self
        return self.map(lambda leaf: leaf.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch where a GPU reads it without the processor; a loader calls this."""
        return self.map(Tensor.pin_memory)


def head(batch: Batch, count: int) -> Batch:
    """The first ``count`` samples of a batch: of a ragged one the rows of these, by its index."""
    if batch.samples is None:
        return batch.map(lambda leaf: leaf[:count])

    def rows(state: State, index: Any) -> State:
        if isinstance(state, Mapping):
            return {key: rows(state[key], branch(index, key)) for key in state}
        return state[index < count]

    def firsts(value: Any) -> Any:
        return tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, value)

    return replace(
        batch,
        x1=rows(batch.x1, batch.index),
        x0=None if batch.x0 is None else rows(batch.x0, batch.index),
        mask=None if batch.mask is None else rows(batch.mask, batch.index),
        index=tree_map(lambda index: index[index < count], batch.index),
        samples=min(count, batch.samples),
        **{name: firsts(getattr(batch, name)) for name in ("condition", "weight", "extra")},
    )


def end_to_end(parts: Sequence[Batch]) -> Batch:
    """The samples of some batches as one, in order: state, condition, x0 and index. Of what is in ``extra`` tensors are
    laid end to end, anything else is the first one's."""

    def joined(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    def all_of(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else tree_map(joined, *values)

    first, index, samples = parts[0], None, None
    if first.samples is not None:
        starts = [sum(len(part) for part in parts[:number]) for number in range(len(parts))]
        moved = [
            tree_map(lambda leaf, start=start: leaf + start, part.index)
            for part, start in zip(parts, starts, strict=True)
        ]
        index, samples = tree_map(joined, *moved), sum(map(len, parts))
    shared = set.intersection(*(set(part.extra) for part in parts))
    extra = {name: tree_map(joined, *(part.extra[name] for part in parts)) for name in first.extra if name in shared}
    return Batch(all_of("x1"), all_of("condition"), all_of("x0"), index, samples, extra=extra, mask=all_of("mask"))


class Source(Protocol):
    """What ``Data.train()`` and ``Data.val()`` return."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """The samples at ``rows`` (int64, shape (B,)); any augmentation draws from ``generator`` (on the CPU)."""


@runtime_checkable
class Resident(Protocol):
    """A source that can hold its samples on a GPU, so that no batch is copied there."""

    @property
    def nbytes(self) -> int:
        """Memory that all samples take."""

    def to(self, device: torch.device) -> Source | None:
        """The same source with its samples on ``device``, or None where it cannot."""


@runtime_checkable
class Weighed(Protocol):
    """A source whose samples differ in size, and that says what a batch of them may weigh: ``costs`` (M,), int64, one a
    sample, and ``budget`` for the samples of a step together, or None for any."""

    costs: Tensor
    budget: int | None


Transform = Callable[[Batch, torch.Generator], Batch]


class Rows:
    """A source held in memory: row i of every tensor is sample i. ``transform`` augments each batch drawn."""

    def __init__(
        self,
        x1: State,
        condition: Any = None,
        extra: dict[str, Tensor] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.all = Batch(x1, condition, extra=extra or {})
        self.transform = transform

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""

        device = first_leaf(self.all.x1).device
        rows = rows.to(device, non_blocking=True)  # a GPU that holds the samples is not waited for

        def take(value: Any) -> Any:
            return None if value is None else tree_map(lambda leaf: leaf[rows], value)

        batch = Batch(take(self.all.x1), take(self.all.condition), extra=take(self.all.extra))
        return batch if self.transform is None else self.transform(batch, generator)

    @property
    def nbytes(self) -> int:
        """Memory that all samples take."""
        sizes: list[int] = []
        self.all.map(lambda leaf: sizes.append(leaf.nbytes) or leaf)  # type: ignore[func-returns-value]
        return sum(sizes)

    def to(self, device: torch.device) -> "Rows | None":
        """See ``Resident``. A transform works on the CPU, where its generator draws."""
        if self.transform is not None:
            return None
        moved = self.all.to(device)
        return Rows(moved.x1, moved.condition, moved.extra)


def everything(source: Source, limit: int | None = None) -> Batch:
    """The first ``limit`` samples of a source (all of them by default) as one batch, augmentation drawn from seed 0."""
    count = len(source) if limit is None else min(limit, len(source))
    return source.batch(torch.arange(count), generator(0, "everything"))


def rows_of_step(size: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The rows of batch number ``step``: epochs are permutations seeded by (seed, epoch), cut end to end.

    Batches run over the end of an epoch into the next, so every batch is full and every sample is seen equally often,
    also when there are fewer samples than ``batch_size``.
    """
    return _stretch(size, step * batch_size, (step + 1) * batch_size, seed)


def _stretch(size: int, place: int, stop: int, seed: int) -> Tensor:
    """The rows from ``place`` to ``stop`` of all epochs end to end."""
    if size == 0:
        raise ValueError("there are no samples to draw a batch from")
    rows = []
    while place < stop:
        epoch, offset = divmod(place, size)
        rows.append(_epoch(size, seed, epoch)[offset : offset + stop - place])
        place += len(rows[-1])
    return torch.cat(rows)


@lru_cache(maxsize=2)
def _epoch(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "epoch", epoch))


class Cuts:
    """Batches of a ``Weighed`` source: of the same epochs end to end, each batch takes the next rows, ``batch_size`` at
    most, as long as their costs add up to no more than ``budget``; one at least, and a multiple of ``parts``. So every
    sample is seen equally often here, too, and a batch is a function of its step."""

    def __init__(self, costs: Tensor, budget: int, batch_size: int, seed: int, parts: int = 1) -> None:
        self.costs, self.budget, self.batch_size, self.seed, self.parts = costs, budget, batch_size, seed, parts
        self._starts = [0]

    def rows(self, step: int) -> Tensor:
        """The rows of batch number ``step``."""
        while len(self._starts) < step + 2:
            place = self._starts[-1]
            ahead = _stretch(len(self.costs), place, place + self.batch_size, self.seed)
            count = int((self.costs[ahead].cumsum(0) <= self.budget).sum())
            self._starts.append(place + max(count - count % self.parts, self.parts))
        return _stretch(len(self.costs), self._starts[step], self._starts[step + 1], self.seed)


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process makes: ``rank`` of ``world`` processes, each in ``parts`` parts."""

    rank: int = 0
    world: int = 1
    parts: int = 1

    def of(self, rows: Tensor, part: int) -> Tensor:
        """The rows of one part. Raises ``ValueError`` where the batch cannot be cut evenly."""
        if len(rows) % (self.world * self.parts):
            raise ValueError(f"a batch of {len(rows)} cannot be cut into {self.world} x {self.parts} equal parts")
        return rows.reshape(self.world, self.parts, -1)[self.rank, part]


class _Parts(Dataset[Batch]):
    """Part p of the batch of step s is item s * parts + p, as a loader's worker is asked for it."""

    def __init__(self, source: Source, batch_size: int, seed: int, share: Share) -> None:
        self.source, self.batch_size, self.seed, self.share = source, batch_size, seed, share
        self.cuts: Cuts | None = None
        if (budget := getattr(source, "budget", None)) is not None and isinstance(source, Weighed):
            self.cuts = Cuts(source.costs, budget, batch_size, seed, share.world * share.parts)

    def __getitem__(self, item: int) -> Batch:
        step, part = divmod(item, self.share.parts)
        if self.cuts is None:
            whole = rows_of_step(len(self.source), self.batch_size, step, self.seed)
        else:
            whole = self.cuts.rows(step)
        rows = self.share.of(whole, part)
        return self.source.batch(rows, generator(self.seed, "batch", step, self.share.rank, part))


def batches(
    source: Source,
    batch_size: int,
    start: int,
    stop: int,
    seed: int,
    share: Share = Share(),
    workers: int = 0,
    pin: bool = False,
) -> Generator[Batch]:
    """The parts of batches number ``start`` to ``stop - 1`` that ``share`` names, in order.

    Each depends on (seed, step, rank, part) alone, and the rows of a step are the same however they are shared out.
    With ``workers`` they are made in as many processes, ahead of the steps that use them: worth it where a batch takes
    long to read, augment or couple. What comes is the same for any number of workers. ``pin`` puts it where a GPU
    reads it without the processor. Of a ``Weighed`` source with a budget ``batch_size`` is the most samples of a step.
    """
    parts = _Parts(source, batch_size, seed, share)
    items = range(start * share.parts, stop * share.parts)
    if workers == 0:
        made = (parts[item] for item in items)
        return (batch.pin_memory() for batch in made) if pin else made
    # forked where that can be: a source may hold functions, which no pickle carries to a spawned process
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    draws = generator(seed, "loader")  # the loader seeds its workers from it; no batch draws from that
    unwanted = multiprocessing.get_context(context).RawValue("b", 0)
    loader = DataLoader(
        parts,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        generator=draws,
        multiprocessing_context=context,
        pin_memory=pin,
        worker_init_fn=partial(_stay, unwanted),
    )
    return _until_closed(loader, unwanted)


def _until_closed(loader: DataLoader[Batch], unwanted: Any) -> Generator[Batch]:
    # at exit before multiprocessing ends its processes by SIGTERM and waits for them
    end = Finalize(None, setattr, (unwanted, "value", 1), exitpriority=100)
    try:
        yield from loader
    finally:
        end()


def _stay(unwanted: Any, worker: int) -> None:
    """Have a worker live through the Ctrl-C or SIGTERM that a terminal or a batch system sends to every process of a
    run: the step under way still needs its batches, and the run ends its workers when it ends."""

    def obey(number: int, frame: Any) -> None:
        if unwanted.value:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, obey)
