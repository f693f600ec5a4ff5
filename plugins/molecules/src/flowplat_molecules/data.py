"""What every data set of molecules shares: the split, what a network and a sampler are told, files and pictures."""

import dataclasses
import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowcore.files import refusals
from flowcore.seeds import generator
from flowcore.state import State
from flowplat_molecules import asked, chemistry, drawing, records
from flowplat_molecules.graphs import LEAVES, Molecules, graph, joined
from flowplat_molecules.spec import MoleculeSpec, Property, spec_of
from flowplat_molecules.vocabulary import Vocabulary, from_facts

log = logging.getLogger("flowplat")

TINY = 128
TOLD = 5000  # training molecules whose size and properties travel with a model


class MoleculesConfig(BaseModel):
    """What every data set of molecules can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    properties: list[str] = Field([], description="what the network is told of each molecule, by name")
    aromatic: bool = Field(
        True, description="aromatic bonds are a class of their own; false has single and double in turn"
    )
    holdout: float = Field(
        0.1, ge=0, lt=1, description="share held out for validation; 0 validates on training molecules"
    )
    judge_share: float = Field(
        0.5, ge=0, lt=1, description="share of the rest that only the judge of properties learns from"
    )
    edges: int | None = Field(
        None,
        ge=2,
        description="directed edges of a training batch at most, which then has fewer molecules; null for any",
    )


@dataclass(frozen=True)
class Known:
    """A property as a data set has it: what it is in, and how it was computed or measured."""

    unit: str
    method: str


@dataclass(frozen=True)
class Loaded:
    """Molecules laid end to end as in ``graphs``, their ``sizes`` (M,), property ``values`` (M, K) with NaN where
    unknown, canonical ``smiles`` and the ``names`` they had."""

    x1: State
    sizes: Tensor
    values: Tensor
    smiles: list[str]
    names: list[str]

    def some(self, rows: Tensor) -> "Loaded":
        """The molecules at ``rows``."""
        batch = Molecules(self.x1, self.sizes, self.values).batch(rows, torch.Generator())
        chosen = rows.tolist()
        return Loaded(
            batch.x1,
            self.sizes[rows],
            self.values[rows],
            [self.smiles[i] for i in chosen],
            [self.names[i] for i in chosen],
        )


def gathered(states: Sequence[State], values: Sequence[Sequence[float]], smiles: list[str], names: list[str]) -> Loaded:
    """Molecules, each a dict of the four leaves, as one ``Loaded``."""
    told = torch.tensor([list(row) for row in values], dtype=torch.float32).reshape(len(states), -1)
    sizes = torch.tensor([len(one["atoms"]) for one in states])
    return Loaded({name: torch.cat([one[name] for one in states]) for name in LEAVES}, sizes, told, smiles, names)


class Collection:
    """What the data sets share; each says only how it is read. Satisfies ``flowcore.plugin.contracts.Portable``."""

    def __init__(self, config: MoleculesConfig, facts: Any = None) -> None:
        self.config = config
        self._facts = None if facts is None else told(facts)

    @abstractmethod
    def read(self) -> Loaded:
        """Read everything."""

    @abstractmethod
    def known(self) -> Mapping[str, Known]:
        """What is known of each property that there is."""

    @cached_property
    def loaded(self) -> Loaded:
        """Everything, read once."""
        return self.read()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes of atoms, charges and bonds."""
        return self._vocabulary() if self._facts is None else self._facts.vocabulary

    @abstractmethod
    def _vocabulary(self) -> Vocabulary: ...

    @cached_property
    def outline(self) -> "Facts":
        """All that sampling needs to know."""
        if self._facts is not None:
            return self._facts
        rows = self.parts[0]
        sizes, values = self.sizes_and_values()
        return outline(self.vocabulary, self.config.properties, self.known(), sizes[rows], values[rows])

    def sizes_and_values(self) -> tuple[Tensor, Tensor]:
        """(M,) and (M, K) of all molecules."""
        return self.loaded.sizes, self.loaded.values

    def _groups(self) -> Sequence[str]:
        """What says that two molecules are one, which no split parts: the conformers of one, a duplicate."""
        return self.loaded.smiles

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows to train on, to hold out, and for the judge alone; the latter two may be none."""
        groups = list(dict.fromkeys(self._groups()))
        number = {smiles: place for place, smiles in enumerate(groups)}
        order = torch.randperm(len(groups), generator=generator(0, "holdout")).tolist()
        held = round(len(groups) * self.config.holdout)
        own = round((len(groups) - held) * self.config.judge_share) if self.config.properties else 0
        held, own = min(held, len(groups) - 1), min(own, max(0, len(groups) - 1 - held))
        part = torch.zeros(len(groups), dtype=torch.long)
        part[order[:held]], part[order[held : held + own]] = 1, 2
        mine = part[torch.tensor([number[smiles] for smiles in self._groups()])]
        train, val, judge = ((mine == which).nonzero().flatten() for which in range(3))
        return train, val, judge

    def facts(self) -> dict[str, Any]:
        """See ``Portable.facts``."""
        return self.outline.facts()

    def spec(self) -> MoleculeSpec:
        """See ``Data.spec``."""
        known = self.outline
        sizes = known.vocabulary.sizes
        return spec_of(sizes["atoms"], sizes["charges"], sizes["bonds"], known.properties, known.counts, known.values)

    def _part(self, rows: Tensor) -> Molecules:
        part, told = self.loaded.some(rows), bool(self.config.properties)
        given = part.values if told else None
        return Molecules(part.x1, part.sizes, given, {"number": rows}, self.config.edges)

    def train(self) -> Molecules:
        """See ``Data.train``."""
        return self._part(self.parts[0])

    def val(self) -> Molecules:
        """See ``Data.val``; the training molecules where none are held out."""
        return self._part(self.parts[1] if len(self.parts[1]) else self.parts[0])

    def judge(self) -> Molecules:
        """What a judge of the properties learns from, of which ``train()`` has nothing; the training molecules where no
        share was set aside."""
        return self._part(self.parts[2] if len(self.parts[2]) else self.parts[0])

    @property
    def holds_out(self) -> bool:
        """Whether ``val()`` are molecules that ``train()`` has not."""
        return len(self.parts[1]) > 0

    def training_smiles(self) -> set[str]:
        """What a new molecule is not among."""
        return {self.loaded.smiles[i] for i in self.parts[0].tolist()}

    def tiny(self) -> "Collection":
        """128 of the molecules, spread over all there are, with the facts of all."""
        count = len(self.loaded.sizes)
        rows = torch.linspace(0, count - 1, min(TINY, count)).round().long()
        return Fixed(self.config, self.loaded.some(rows), self.known(), self.facts())

    def fingerprint(self) -> str:
        """sha256 of labels, positions, sizes, properties, SMILES and vocabulary."""
        whole = self.loaded
        digest = hashlib.sha256(repr((self.vocabulary.facts(), self.config.properties)).encode())
        for leaf in (*whole.x1.values(), whole.sizes, whole.values):
            digest.update(leaf.numpy().tobytes())
        digest.update("\n".join(whole.smiles).encode())
        return digest.hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor | None:
        """(count, K) properties in their own units: as ``wanted`` says (see ``asked``), or those of training
        molecules."""
        known = self.outline
        if wanted is not None:
            return asked.conditions(wanted, known.properties, count)
        if not known.properties:
            return None
        order = torch.randperm(len(known.values), generator=generator(0, "condition"))
        return torch.from_numpy(known.values).float()[order[torch.arange(count) % len(order)]]

    def asked(self, samples: Batch) -> dict[str, list[float]]:
        """The columns ``asked_NAME`` of samples that something was asked of."""
        if samples.condition is None:
            return {}
        told = samples.condition.double().tolist()
        return {f"asked_{one.name}": [row[k] for row in told] for k, one in enumerate(self.outline.properties)}

    def write(self, samples: Batch, folder: Path) -> None:
        """``molecules.sdf`` and ``molecules.csv``, a record and a row for each sample in its order, valid or not, and
        ``grid.png``; see ``records``."""
        checked = list(chemistry.verdicts(samples, self.vocabulary))
        with refusals(f"{folder} cannot be written"):
            records.write(folder, [raw for raw, _ in checked], records.rows(checked, self.asked(samples)))
            (folder / records.PICTURE).write_bytes(self.show(samples))

    def read_back(self, folder: Path) -> Batch:
        """See ``Checkable.read_back``: the molecules of ``molecules.sdf``, or else of every SDF file in the folder."""
        states, told, names = [], [], [f"asked_{one.name}" for one in self.outline.properties]
        for path in records.found(folder):
            for number, entry in enumerate(records.entries(path)):
                where = f"{path}, record {number}"
                if entry is None:
                    raise InputError(f"{where} cannot be read as a molecule")
                whole = chemistry.sanitised(entry)
                try:
                    states.append(chemistry.tensors(entry if whole is None else whole, self.vocabulary))
                except ValueError as error:
                    raise InputError(f"{where} is no molecule of this model's: {error}") from error
                told.append([_number(entry.GetProp(name)) if entry.HasProp(name) else math.nan for name in names])
        condition = torch.tensor(told, dtype=torch.float32) if names else None
        return joined(states, condition)

    def show(self, samples: Batch) -> bytes:
        """Two dozen structures, and what was asked for under each."""
        some = first(samples, drawing.SHOWN)
        checked = list(chemistry.verdicts(some, self.vocabulary))
        properties, legends = self.outline.properties, []
        for number, (_, verdict) in enumerate(checked):
            words = []
            if some.condition is not None:
                row = some.condition[number].tolist()
                words = [
                    f"{one.name} {value:.3g}" for one, value in zip(properties, row, strict=True) if value == value
                ]
            legends.append(", ".join([*words[:2], *([verdict.fault] if verdict.fault else [])]))
        return drawing.grid([raw for raw, _ in checked], legends)


def first(samples: Batch, count: int) -> Batch:
    """The first molecules of a batch."""
    if len(samples) <= count:
        return samples
    sizes = torch.bincount(samples.index["atoms"], minlength=len(samples))
    atoms, pairs = int(sizes[:count].sum()), int((sizes[:count] * (sizes[:count] - 1) // 2).sum())
    x1 = {name: leaf[: pairs if name == "bonds" else atoms] for name, leaf in samples.x1.items()}
    told = None if samples.condition is None else samples.condition[:count]
    return Batch(x1, told, index=graph(sizes[:count]).index, samples=count)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


class Fixed(Collection):
    """Molecules that are in memory already, with the facts of those that they stand for."""

    def __init__(self, config: MoleculesConfig, loaded: Loaded, known: Mapping[str, Known], facts: Any) -> None:
        super().__init__(config, facts)
        self._given, self._known = loaded, known

    def read(self) -> Loaded:
        """What was given."""
        return self._given

    def known(self) -> Mapping[str, Known]:
        """What was given."""
        return self._known

    def _vocabulary(self) -> Vocabulary:
        raise AssertionError("the facts say it")


@dataclass(frozen=True)
class Facts:
    """The vocabulary, the properties, and sizes (T,) and values (T, K) of training molecules."""

    vocabulary: Vocabulary
    properties: tuple[Property, ...]
    counts: np.ndarray
    values: np.ndarray

    def facts(self) -> dict[str, Any]:
        """Plain JSON, which ``told`` reads."""
        from rdkit import __version__

        return {
            "vocabulary": self.vocabulary.facts(),
            "properties": [dataclasses.asdict(one) for one in self.properties],
            "counts": self.counts.tolist(),
            "values": [[None if value != value else value for value in row] for row in self.values.tolist()],
            "rdkit": __version__,
        }


def told(facts: Any) -> Facts:
    """What ``Facts.facts`` says. Raises ``ValueError``, ``KeyError`` or ``TypeError`` where it does not."""
    properties = tuple(Property(**one) for one in facts["properties"])
    values = [[math.nan if value is None else float(value) for value in row] for row in facts["values"]]
    counts = np.array(facts["counts"], np.int64)
    if not len(counts) or counts.min() < 2:
        raise ValueError("its `counts` are sizes of molecules, of two atoms at least")
    shaped = np.array(values, np.float64).reshape(len(counts), len(properties))
    return Facts(from_facts(facts["vocabulary"]), properties, counts, shaped)


def outline(
    vocabulary: Vocabulary, names: Sequence[str], known: Mapping[str, Known], sizes: Tensor, values: Tensor
) -> Facts:
    """The facts of training molecules. Raises ``UsageError`` for a property there is none of, or that never varies."""
    made = []
    for place, name in enumerate(names):
        if name not in known:
            there = ", ".join(known) or "none"
            raise UsageError(f"data.properties: there is no property {name!r}; these are known: {there}")
        column = values[:, place].double()
        column = column[~column.isnan()]
        if len(column) == 0 or column.std(unbiased=False) == 0:
            what = f"{len(column)} training molecules with a value" if len(column) == 0 else "one value alone"
            raise UsageError(f"data.properties: {name!r} has {what}, of which nothing is to be learnt; leave it out")
        numbers = (column.mean(), column.std(unbiased=False), column.min(), column.max())
        made.append(Property(name, known[name].unit, known[name].method, *(float(number) for number in numbers)))
    rows = torch.linspace(0, len(sizes) - 1, min(TOLD, len(sizes))).round().long()
    shaped = values[rows].double().numpy().reshape(len(rows), len(names))
    return Facts(vocabulary, tuple(made), sizes[rows].numpy(), shaped)
