"""Batches, and where they come from.

A source of data is anything with a length and ``batch(rows, generator) -> Batch``. Rows are drawn by the training loop
as a pure function of (seed, step, rank), so loaders, workers and resumed runs all see the same batches.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowcore.seeds import generator
from flowcore.state import State, first_leaf, tree_map


@dataclass(frozen=True)
class Batch:
    """Samples of one batch.

    ``x1`` is the data. ``condition`` is what the network is told of each sample, or None. ``x0`` is the source where
    it is given rather than drawn (reflow pairs, paired images), ``weight`` (B,) the weights of those pairs. ``index``
    and ``samples`` belong to ragged batches. ``extra`` holds what metrics and writers want and the network must not
    see: labels, names, units.
    """

    x1: State
    condition: Any = None
    x0: State | None = None
    index: Any = None
    samples: int | None = None
    weight: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return first_leaf(self.x1).shape[0] if self.samples is None else self.samples

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``."""

        def move(value: Any) -> Any:
            return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


class Source(Protocol):
    """What ``Data.train()`` and ``Data.val()`` return."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """The samples at ``rows`` (int64, shape (B,)); any augmentation draws from ``generator`` (on the CPU)."""


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

        def take(value: Any) -> Any:
            return None if value is None else tree_map(lambda leaf: leaf[rows], value)

        batch = Batch(take(self.all.x1), take(self.all.condition), extra=take(self.all.extra))
        return batch if self.transform is None else self.transform(batch, generator)


def everything(source: Source, limit: int | None = None) -> Batch:
    """The first ``limit`` samples of a source (all of them by default) as one batch, augmentation drawn from seed 0."""
    count = len(source) if limit is None else min(limit, len(source))
    return source.batch(torch.arange(count), generator(0, "everything"))


def rows_of_step(size: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The rows of batch number ``step``: epochs are permutations seeded by (seed, epoch), cut end to end.

    Batches run over the end of an epoch into the next, so every batch is full and every sample is seen equally often,
    also when there are fewer samples than ``batch_size``.
    """
    if size == 0:
        raise ValueError("there are no samples to draw a batch from")
    place, stop = step * batch_size, (step + 1) * batch_size
    rows = []
    while place < stop:
        epoch, offset = divmod(place, size)
        rows.append(_epoch(size, seed, epoch)[offset : offset + stop - place])
        place += len(rows[-1])
    return torch.cat(rows)


@lru_cache(maxsize=2)
def _epoch(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "epoch", epoch))


class _Steps(Dataset[Batch]):
    """The batch of each step, as a loader's worker is asked for it."""

    def __init__(self, source: Source, batch_size: int, seed: int, rank: int) -> None:
        self.source, self.batch_size, self.seed, self.rank = source, batch_size, seed, rank

    def __getitem__(self, step: int) -> Batch:
        rows = rows_of_step(len(self.source), self.batch_size, step, self.seed)
        return self.source.batch(rows, generator(self.seed, "batch", step, self.rank))


def batches(
    source: Source, batch_size: int, start: int, stop: int, seed: int, rank: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Batches number ``start`` to ``stop - 1``; each depends on (seed, step, rank) alone.

    With ``workers`` they are made in as many processes, ahead of the steps that use them: worth it where a batch takes
    long to read, augment or couple. What comes is the same for any number of workers.
    """
    steps = _Steps(source, batch_size, seed, rank)
    if workers == 0:
        return (steps[step] for step in range(start, stop))
    # forked where that can be: a source may hold functions, which no pickle carries to a spawned process
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    draws = generator(seed, "loader")  # the loader seeds its workers from it; no batch draws from that
    return iter(
        DataLoader(
            steps,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            generator=draws,
            multiprocessing_context=context,
        )
    )
