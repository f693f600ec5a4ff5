"""Molecules in files: SDF with fields and a CSV beside it, a row for each molecule, both in the order of the
samples."""

import csv
import gzip
import io
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rdkit import Chem, rdBase

from flowcore.errors import InputError
from flowplat_molecules import chemistry
from flowplat_molecules.chemistry import Verdict

log = logging.getLogger("flowplat")

SDF, TABLE, PICTURE = "molecules.sdf", "molecules.csv", "grid.png"
ENDINGS = (".sdf", ".sd", ".mol", ".sdf.gz", ".sd.gz")
Row = dict[str, Any]


def entries(path: Path) -> Iterator[Chem.Mol | None]:
    """The molecules of an SDF file, packed by gzip or not, V2000 or V3000, as they are there, unsanitised and with
    their hydrogens; None for one that cannot be read. Raises ``InputError`` where the file cannot."""
    if not path.exists():
        raise InputError(f"{path} does not exist; name an SDF file")
    try:
        packed = path.suffix.lower() == ".gz"
        data = (gzip.open if packed else open)(path, "rb").read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not data.strip():
        raise InputError(f"{path} is empty")
    if b"V2000" not in data and b"V3000" not in data:
        raise InputError(f"{path} is no SDF file: no molecule in it is of V2000 or V3000")
    with rdBase.BlockLogs():
        yield from Chem.ForwardSDMolSupplier(io.BytesIO(data), sanitize=False, removeHs=False, strictParsing=False)


def found(folder: Path) -> list[Path]:
    """The SDF files of a folder, ``molecules.sdf`` alone where it is there. Raises ``InputError``."""
    if (folder / SDF).exists():
        return [folder / SDF]
    if folder.is_file():
        return [folder]
    names = sorted(path for path in folder.glob("*") if path.name.lower().endswith(ENDINGS))
    if not names:
        raise InputError(f"{folder} holds no SDF file")
    return names


def rows(checked: Sequence[tuple[Chem.Mol, Verdict]], columns: Mapping[str, Sequence[Any]] | None = None) -> list[Row]:
    """One row of plain values for each molecule: its number, what is true of it, then ``columns``."""
    made = []
    for index, (_, verdict) in enumerate(checked):
        row: Row = {
            "index": index,
            "smiles": verdict.smiles,
            "valid": verdict.valid,
            "stable": verdict.stable,
            "closed_shell": verdict.closed_shell,
            "fragments": verdict.fragments,
            "charge": verdict.charge,
            "atoms": verdict.atoms,
        }
        made.append(row | {name: values[index] for name, values in (columns or {}).items()})
    return made


def write(folder: Path, molecules: Sequence[Chem.Mol], table: Sequence[Row]) -> None:
    """``molecules.sdf``, a record each with the row as its fields, and ``molecules.csv``; record i is row i of both."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(table[0]) if table else ["index"]
    with (folder / SDF).open("w", encoding="utf-8") as file:
        for molecule, row in zip(molecules, table, strict=True):
            file.write(block(molecule, f"{row['index']:05d}"))
            for name in names:
                if (said := text(row[name])) != "":
                    file.write(f">  <{name}>\n{said}\n\n")
            file.write("$$$$\n")
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([text(row[name]) for name in names] for row in table)


def block(molecule: Chem.Mol, title: str) -> str:
    """The molecule as a mol block: in its Kekule form where it is valid, else exactly as it is."""
    whole = chemistry.sanitised(molecule)
    kept = Chem.Mol(molecule) if whole is None else whole
    kept.SetProp("_Name", title)
    strange = {}  # RDKit looks a valence up under Z less the charge, where there is no element
    for atom in kept.GetAtoms():
        if atom.GetFormalCharge() > atom.GetAtomicNum():
            strange[atom.GetIdx() + 1] = atom.GetFormalCharge()
            atom.SetFormalCharge(0)
    with rdBase.BlockLogs():
        kept.UpdatePropertyCache(strict=False)
        text = str(Chem.MolToMolBlock(kept, includeStereo=False, kekulize=whole is not None))
    lines = "".join(f"M  CHG  1 {number:3d} {charge:3d}\n" for number, charge in strange.items())
    return text.replace("M  END", f"{lines}M  END")


def text(value: Any) -> str:
    """A value as a field or a cell has it: nothing for NaN."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value)
