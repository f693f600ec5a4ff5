"""A user's molecules: SDF files, with properties in their fields or in a table beside them."""

import csv
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field
from rdkit import Chem, __version__

from flowcore import files
from flowcore.errors import InputError
from flowplat_molecules import cache, chemistry, records
from flowplat_molecules.chemistry import UnfitError
from flowplat_molecules.data import Collection, Known, Loaded, MoleculesConfig, gathered
from flowplat_molecules.progress import counted
from flowplat_molecules.vocabulary import Vocabulary, of_elements

log = logging.getLogger("flowplat")

NAMED = 5  # entries that a message names
Place = Annotated[str, AfterValidator(lambda text: str(Path(text).expanduser().absolute()))]


class SdfConfig(MoleculesConfig):
    """A user's molecules."""

    path: Annotated[list[Place], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)] = Field(
        description="SDF files, packed by gzip or not, V2000 or V3000, or folders of them"
    )
    csv: Place | None = Field(None, description="a table with the properties, where they are no fields of the SDF")
    key: str = Field(
        "index", description="column of that table: index counts the records from 0, any other is their title or field"
    )
    units: dict[str, str] = Field({}, description="what each property is in, for tables and pictures")
    method: str = Field("as given", description="how the properties were computed or measured")
    add_hydrogens: bool = Field(False, description="add and place hydrogens that the files leave out")
    max_atoms: int = Field(64, ge=2, le=512, description="leave larger molecules out, hydrogens counted")
    cache: Place | None = Field(None, description="a folder to keep in what was read, for the next run")


class Entry(NamedTuple):
    """A molecule of a file: where it is, and what it is."""

    where: str
    molecule: Chem.Mol
    values: list[float]


class LeftOutError(Exception):
    """Why an entry is left out, in words that serve many: "not sanitisable"."""


class Sdf(Collection):
    """See the module. What cannot be used is left out, counted and named in the log; an entry that is flat or without
    hydrogens, which says that the file is of another kind, is refused."""

    config: SdfConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: sixteen of the package's molecules, and their dipoles."""
        from flowplat_molecules.builtin import Builtin, BuiltinConfig

        small = Builtin(BuiltinConfig())
        batch = small.tiny().train().batch(torch.arange(16), torch.Generator())
        small.write(batch, folder)
        (folder / records.TABLE).unlink()
        (folder / records.PICTURE).unlink()
        return {"path": str(folder), "properties": ["asked_mu"], "units": {"asked_mu": "D"}}

    def known(self) -> Mapping[str, Known]:
        """Whatever the config asks for, as it says."""
        return {name: Known(self.config.units.get(name, ""), self.config.method) for name in self.config.properties}

    def _vocabulary(self) -> Vocabulary:
        return self._kept[1]

    def read(self) -> Loaded:
        """Every entry that can be used."""
        return self._kept[0]

    @cached_property
    def _kept(self) -> tuple[Loaded, Vocabulary]:
        if self.config.cache is None:
            return self._all()
        config = self.config.model_dump(mode="json", exclude={"holdout", "judge_share", "cache"})
        return cache.kept(Path(self.config.cache), [__version__, config, files.stamp(self.origin())], self._all)

    def origin(self) -> list[Path]:
        """The files that everything is read from."""
        return [*self._files(), *([] if self.config.csv is None else [Path(self.config.csv)])]

    def _all(self) -> tuple[Loaded, Vocabulary]:
        vocabulary, entries = self.own_vocabulary(), self.entries()
        if vocabulary is None:  # what there is is known when all is read
            entries = iter(found := list(entries))
            there = {one for entry in found for one in chemistry.symbols(entry.molecule)}
            vocabulary = of_elements(there, self.config.aromatic)
        left: dict[str, list[str]] = defaultdict(list)
        states, values, smiles, names = [], [], [], []
        for entry in counted("molecules read", entries):
            try:
                states.append(chemistry.tensors(entry.molecule, vocabulary))
            except UnfitError as error:
                left[str(error)].append(entry.where)
                continue
            values.append(entry.values)
            smiles.append(chemistry.smiles_of(entry.molecule))
            names.append(entry.where)
        self._tell(left, len(states) + sum(map(len, left.values())), len(states))
        if not states:
            raise InputError(f"{self._name} holds no molecule that can be used: {_most(self._reasons)}")
        if len(set(smiles)) < len(smiles):
            log.info(
                "%s: %d molecules in %d entries; conformers and duplicates of one are trained on or held out together",
                self._name, len(set(smiles)), len(smiles),
            )  # fmt: skip
        return gathered(states, values, smiles, names), vocabulary

    def own_vocabulary(self) -> Vocabulary | None:
        """The vocabulary, where it does not depend on what is read."""
        return None

    @cached_property
    def _reasons(self) -> Counter[str]:
        return Counter()

    @property
    def _name(self) -> str:
        paths = self.config.path
        return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"

    def _files(self) -> Iterator[Path]:
        for one in self.config.path:
            place = Path(one)
            if not place.exists():
                raise InputError(f"{place} does not exist; data.path names SDF files or folders of them")
            yield from records.found(place)

    def entries(self) -> Iterator[Entry]:
        """The entries that are molecules with all that is asked of them; what else there is is told in the log."""
        left: dict[str, list[str]] = defaultdict(list)
        used: set[str] = set()
        table, number, count = self._table(), 0, 0
        for path in self._files():
            for place, raw in enumerate(records.entries(path)):
                where = f"{path}, record {place}"
                try:
                    if raw is None:
                        raise LeftOutError("not readable")
                    values = self._values(raw, number, table, used)
                    molecule = usable(raw, where, self.config.add_hydrogens, self.config.max_atoms, "data.")
                    yield Entry(where, molecule, values)
                    count += 1
                except LeftOutError as why:
                    left[str(why)].append(where)
                number += 1
        if table is not None and (spare := len(set(table) - used)):
            if not used:
                lost = next(iter(table))
                raise InputError(
                    f"{self.config.csv}: no {self.config.key!r} in it is that of a record, as {lost!r} is not;"
                    " data.key names the column that both have"
                )
            log.warning("%s: %d rows of it belong to no record", self.config.csv, spare)
        self._tell(left, number, count)

    def _tell(self, left: Mapping[str, list[str]], of: int, used: int) -> None:
        self._reasons.update({why: len(places) for why, places in left.items()})
        if not left:
            return
        parts = []
        for why, places in left.items():
            more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
            numbers = ", ".join(place.rpartition(" ")[2] for place in places[:NAMED])
            parts.append(f"{len(places)} {why} (record {numbers}{more})")
        log.warning("%s: %d of %d records used; left out: %s", self._name, used, of, "; ".join(parts))

    def _values(
        self, raw: Chem.Mol, number: int, table: Mapping[str, Mapping[str, str]] | None, used: set[str]
    ) -> list[float]:
        """The properties of a record, from its fields or the row of the table that is its own. Raises
        ``LeftOutError``."""
        if table is None:
            told: Mapping[str, str] = raw.GetPropsAsDict(autoConvertStrings=False)
        else:
            own = self._key(raw, number)
            if own is None or own not in table:
                raise LeftOutError(f"without a row in {Path(self.config.csv or '').name}")
            used.add(own)
            told = table[own]
        values = []
        for name in self.config.properties:
            text = told.get(name, "").strip()
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                hint = "" if name in told else f" among {', '.join(list(told)[:NAMED]) or 'no fields'}"
                raise LeftOutError(f"without a number for {name}{hint}")
            values.append(value)
        return values

    def _key(self, raw: Chem.Mol, number: int) -> str | None:
        key = self.config.key
        if key == "index":
            return str(number)
        if raw.HasProp(key):
            return str(raw.GetProp(key)).strip()
        return str(raw.GetProp("_Name")).strip() if raw.HasProp("_Name") else None

    def _table(self) -> dict[str, Mapping[str, str]] | None:
        """The rows of the table by their key. Raises ``InputError``."""
        if self.config.csv is None:
            return None
        path, key = Path(self.config.csv), self.config.key
        if not path.exists():
            raise InputError(f"{path} does not exist; data.csv names the table of the properties")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                rows, columns = list(reader), reader.fieldnames or []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} cannot be read as a table: {error}") from error
        for name in (key, *self.config.properties):
            if name not in columns:
                raise InputError(f"{path} has no column {name!r}; its columns are {', '.join(columns) or 'none'}")
        table: dict[str, Mapping[str, str]] = {}
        for row in rows:
            own = (row[key] or "").strip()
            if own in table:
                raise InputError(f"{path} has two rows with {key}={own}; each record has one")
            table[own] = {name: value or "" for name, value in row.items() if name is not None}
        if not table:
            raise InputError(f"{path} holds no rows")
        return table


def _most(reasons: Counter[str]) -> str:
    """The commonest reason why entries are left out."""
    return "; ".join(f"{count} {why}" for why, count in reasons.most_common(2)) or "there is none"


def usable(
    raw: Chem.Mol, where: str, add_hydrogens: bool = False, max_atoms: int | None = None, options: str = ""
) -> Chem.Mol:
    """The molecule, sanitised, with its hydrogens. Raises ``LeftOutError`` for one that is no use, or ``InputError``
    where the file is of a kind that no model can learn from: flat, or without hydrogens."""
    if raw.GetNumAtoms() == 0:
        raise LeftOutError("without atoms")
    if any(atom.GetAtomicNum() == 0 or atom.HasQuery() for atom in raw.GetAtoms()):
        raise LeftOutError("with atoms that are no element")
    molecule = chemistry.sanitised(raw)
    if molecule is None:
        raise LeftOutError("not sanitisable")
    if flat(molecule):
        raise InputError(
            f"{where} has no coordinates in three dimensions; make them first, as RDKit's EmbedMolecule does"
        )
    if any(atom.GetTotalNumHs() for atom in molecule.GetAtoms()):
        if not add_hydrogens:
            raise InputError(
                f"{where} leaves hydrogens out; set {options}add_hydrogens=true to have them added and placed"
            )
        molecule = Chem.AddHs(molecule, addCoords=True)
    if molecule.GetNumAtoms() < 2:
        raise LeftOutError("of one atom")
    if max_atoms is not None and molecule.GetNumAtoms() > max_atoms:
        raise LeftOutError(f"of more than max_atoms={max_atoms} atoms")
    return molecule


def flat(molecule: Chem.Mol) -> bool:
    """Whether its coordinates are a drawing: none, or all in the plane of the paper and not said to be
    three-dimensional, with bonds to hydrogen as long as others, or none."""
    if molecule.GetNumConformers() == 0:
        return True
    conformer = molecule.GetConformer()
    positions = conformer.GetPositions()
    if molecule.GetNumAtoms() > 1 and np.ptp(positions, 0).max() == 0:
        return True
    if conformer.Is3D() or np.abs(positions[:, 2]).max() > 1e-3:
        return False
    lengths = [
        float(np.linalg.norm(positions[bond.GetBeginAtomIdx()] - positions[bond.GetEndAtomIdx()]))
        for bond in molecule.GetBonds()
        if 1 in (bond.GetBeginAtom().GetAtomicNum(), bond.GetEndAtom().GetAtomicNum())
    ]
    return not lengths or max(lengths) > 1.25
