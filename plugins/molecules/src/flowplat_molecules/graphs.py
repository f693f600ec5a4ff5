"""Molecules as one ragged batch: every molecule a fully connected graph, all of them laid end to end.

    positions (sum N, 3)   atoms (sum N,)   charges (sum N,)   bonds (sum P,),  P = N (N - 1) / 2

Bonds are one class for each unordered pair i < j, the upper triangle row by row, molecule after molecule. Rows of atoms
are numbered over the whole batch, and so are the ends of pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcore.data import Batch
from flowcore.state import State

ATOMWISE = ("positions", "atoms", "charges")
LEAVES = (*ATOMWISE, "bonds")


@dataclass(frozen=True)
class Graph:
    """Who belongs where: ``sizes`` (B,) atoms of each molecule; the molecule of each atom ``atom`` (N,) and of each
    pair ``pair`` (P,); the atoms ``i`` < ``j`` of each pair, (P,) both."""

    sizes: Tensor
    atom: Tensor
    pair: Tensor
    i: Tensor
    j: Tensor

    @property
    def samples(self) -> int:
        """The number of molecules."""
        return len(self.sizes)

    @property
    def index(self) -> dict[str, Tensor]:
        """The molecule of each row of each leaf, as ``Batch.index`` has it."""
        return {**dict.fromkeys(ATOMWISE, self.atom), "bonds": self.pair}


def graph(sizes: Tensor) -> Graph:
    """The graph of molecules of ``sizes`` (B,) atoms each, on the device of ``sizes``."""
    numbers = torch.arange(len(sizes), device=sizes.device)
    pairs = sizes * (sizes - 1) // 2
    return _graph(sizes, numbers.repeat_interleave(sizes), numbers.repeat_interleave(pairs))


def of_index(index: Mapping[str, Tensor], samples: int) -> Graph:
    """The graph that a ``Batch.index`` tells, without waiting for a GPU."""
    atom = index["positions"]
    sizes = torch.zeros(samples, dtype=torch.long, device=atom.device).index_add_(0, atom, torch.ones_like(atom))
    return _graph(sizes, atom, index["bonds"])


def _graph(sizes: Tensor, atom: Tensor, pair: Tensor) -> Graph:
    pairs = sizes * (sizes - 1) // 2
    n = sizes[pair]
    k = torch.arange(len(pair), device=pair.device) - (pairs.cumsum(0) - pairs)[pair]
    # row i of the triangle begins at i (2 n - i - 1) / 2; the root finds it, whole numbers correct a last bit
    row = (n - 0.5 - ((n - 0.5).double().square() - 2 * k).clamp(min=0).sqrt()).floor().long()
    row = row + (k >= (row + 1) * (2 * n - row - 2) // 2).long()
    row = row - (k < row * (2 * n - row - 1) // 2).long()
    column = k - row * (2 * n - row - 1) // 2 + row + 1
    first = (sizes.cumsum(0) - sizes)[pair]
    return Graph(sizes, atom, pair, first + row, first + column)


def centred(positions: Tensor, atom: Tensor, samples: int) -> Tensor:
    """Positions with the unweighted mean of each molecule removed."""
    total = positions.new_zeros(samples, 3).index_add(0, atom, positions)
    count = positions.new_zeros(samples).index_add(0, atom, positions.new_ones(len(positions)))
    return positions - (total / count.clamp(min=1)[:, None])[atom]


def joined(molecules: Sequence[State], condition: Tensor | None = None, extra: dict[str, Any] | None = None) -> Batch:
    """Molecules, each a dict of the four leaves, as one batch."""
    x1 = {name: torch.cat([one[name] for one in molecules]) for name in LEAVES}
    sizes = torch.tensor([len(one["atoms"]) for one in molecules], device=x1["atoms"].device)
    return Batch(x1, condition, index=graph(sizes).index, samples=len(molecules), extra=extra or {})


def split(batch: Batch) -> list[State]:
    """The molecules of a batch, each a dict of the four leaves; what ``joined`` undoes."""
    parts = {}
    for name in LEAVES:
        counts = torch.bincount(batch.index[name], minlength=len(batch)).tolist()
        parts[name] = batch.x1[name].split(counts)
    return [{name: parts[name][number] for name in LEAVES} for number in range(len(batch))]


def matrix(bonds: Tensor, size: int) -> Tensor:
    """The (N, N) symmetric matrix of the (P,) bonds of one molecule; 0 on the diagonal."""
    i, j = torch.triu_indices(size, size, 1, device=bonds.device)
    full = bonds.new_zeros(size, size)
    full[i, j] = bonds
    full[j, i] = bonds
    return full


class Molecules:
    """A source of molecules held in memory, laid end to end: ``batch(rows)`` picks some. ``condition`` (M, K) are their
    properties, ``extra`` tensors of a row a molecule, ``budget`` the directed edges that a training batch has at most.
    See ``flowcore.data.Source``, ``Resident`` and ``Weighed``."""

    def __init__(
        self,
        x1: State,
        sizes: Tensor,
        condition: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
        budget: int | None = None,
    ) -> None:
        self.x1, self.sizes, self.condition, self.extra = x1, sizes, condition, dict(extra or {})
        self.costs, self.budget = sizes * (sizes - 1), budget
        self._atoms = sizes.cumsum(0) - sizes
        self._pairs = self.costs.cumsum(0) // 2 - self.costs // 2

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Memory that all molecules take."""
        return sum(leaf.nbytes for leaf in (*self.x1.values(), *self.extra.values()))

    def to(self, device: torch.device) -> "Molecules":
        """The same source with its molecules on ``device``; sizes stay where batches are laid out, on the CPU."""
        return Molecules(
            {name: leaf.to(device) for name, leaf in self.x1.items()},
            self.sizes,
            None if self.condition is None else self.condition.to(device),
            {name: leaf.to(device) for name, leaf in self.extra.items()},
            self.budget,
        )

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``flowcore.data.Source.batch``."""
        laid = graph(self.sizes[rows])
        device = self.x1["positions"].device

        def taken(starts: Tensor, counts: Tensor, whose: Tensor) -> Tensor:
            within = torch.arange(len(whose)) - (counts.cumsum(0) - counts)[whose]
            return (starts[rows][whose] + within).to(device, non_blocking=True)

        atoms = taken(self._atoms, laid.sizes, laid.atom)
        pairs = taken(self._pairs, laid.sizes * (laid.sizes - 1) // 2, laid.pair)
        x1 = {name: self.x1[name][pairs if name == "bonds" else atoms] for name in LEAVES}
        index = {name: leaf.to(device, non_blocking=True) for name, leaf in laid.index.items()}
        picked = rows.to(device, non_blocking=True)
        return Batch(
            x1,
            None if self.condition is None else self.condition[picked],
            index=index,
            samples=len(rows),
            extra={name: leaf[picked] for name, leaf in self.extra.items()},
        )
