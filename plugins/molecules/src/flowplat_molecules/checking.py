"""The plugin's verbs on molecules that are there: what xTB or density functional theory says of them, and the judge."""

import csv
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from rdkit import Chem

from flowcore.errors import InputError, UsageError
from flowcore.files import refusals
from flowcore.plugin.contracts import Trained
from flowplat_molecules import chemistry, dft, drawing, evaluators, heat, metrics, records, xtb
from flowplat_molecules.data import Collection
from flowplat_molecules.graphs import joined
from flowplat_molecules.progress import counted, counter
from flowplat_molecules.sdf import LeftOutError, usable
from flowplat_molecules.tasks import METRICS, PARITY, JudgeFolder, JudgeSteps

log = logging.getLogger("flowplat")

UNITS = xtb.UNITS | {"cv": heat.UNIT}


def validate(
    trained: Trained | None,
    inputs: Sequence[Any],
    out: Path | None,
    by: Annotated[str, Field(description="xtb, or dft:20 for density functional theory of 20 molecules")] = "xtb",
    properties: Annotated[
        list[str] | None, Field(description="of mu, alpha, homo, lumo, gap, cv; null for all but cv, and DFT's alpha")
    ] = None,
    grid: Annotated[int, Field(ge=0, le=9, description="PySCF's level of the integration grid")] = 3,
    processes: Annotated[
        int | None, Field(ge=1, description="molecules at once for dft, one a core; null for all cores there are")
    ] = None,
) -> Any:
    """What GFN2-xTB, or B3LYP/6-31G(2df,p) by PySCF, says of molecules at the geometry that they have.

    Inputs are SDF files or the folders of ``generate``. Writes ``validated.csv``, a row for each record with its file
    and ``index``, and ``metrics.json``; and ``parity.png`` where a record has what was asked of it (``asked_NAME``).
    ``dft:N`` takes the first N that are neutral, in one piece, valid, with an even number of electrons, of elements up
    to argon; ``processes`` of them at once. What is not
    computed has no value and its reason in ``note``. From Python it returns the rows. Needs no model. Raises
    ``InputError`` naming the file.
    """
    method, limit, names = _method(by, properties)
    found: list[dict[str, Any]] = []
    chosen: list[tuple[dict[str, Any], dft.Job]] = []
    for path, index, raw in _entries(inputs):
        row: dict[str, Any] = {"file": str(path), "index": index, "smiles": "", "note": ""}
        found.append(row)
        if raw is None:
            row["note"] = "not readable"
            continue
        verdict = chemistry.judged(raw)
        row["smiles"] = verdict.smiles
        row |= {name: _number(raw, name) for name in _asked_of(raw)}
        row |= {f"{method}_{name}": math.nan for name in names}
        row["note"] = _unfit(raw, verdict, method)
        if row["note"]:
            continue
        if limit is not None and len(chosen) >= limit:
            row["note"] = f"past the first {limit}"
            continue
        numbers = [atom.GetAtomicNum() for atom in raw.GetAtoms()]
        chosen.append((row, dft.Job(numbers, raw.GetConformer().GetPositions(), verdict.charge)))
    jobs = [job for _, job in chosen]
    if method == "xtb":
        values = [xtb.properties(*job, cv="cv" in names) for job in counted(method, jobs)]
    else:
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        values = dft.several(jobs, "alpha" in names, grid, "cv" in names, processes or here, counter(method, len(jobs)))
    for (row, _), told in zip(chosen, values, strict=True):
        row |= {f"{method}_{name}": told.get(name, math.nan) for name in names}
        if all(math.isnan(told.get(name, math.nan)) for name in names):
            row["note"] = "no convergence" if told else "its process failed"
    summary = _errors(found, method, names)
    if out is None:
        return found
    with refusals(f"{out} cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
        _table(out / "validated.csv", found)
        for name in names:
            pairs = [(row.get(f"asked_{name}", math.nan), row.get(f"{method}_{name}", math.nan)) for row in found]
            if any(a == a and c == c for a, c in pairs):
                said = "GFN2-xTB" if method == "xtb" else "B3LYP"
                unit = UNITS[name]
                picture = drawing.parity([a for a, _ in pairs], [c for _, c in pairs], name, unit, said)
                (out / PARITY).write_bytes(picture)
                break
        (out / METRICS).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def score(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    judge: JudgeFolder = "",
    judge_steps: JudgeSteps = evaluators.STEPS,
    add_hydrogens: Annotated[bool, Field(description="add and place hydrogens that the files leave out")] = False,
) -> Any:
    """What the model's judge says of molecules in SDF files: ``scores.csv``, a row for each record with its file and
    ``index``, and ``metrics.json``.

    The judge is a network of its own, trained on molecules that the generator never saw; with ``judge`` it is kept
    there and used again. It is trained for one kind of labels, and what it says is on their scale. Where a record has a
    property's value in a field of its name, the error is told. From Python it returns the rows. Raises ``InputError``
    naming a file that is flat or without hydrogens.
    """
    data = cast(Collection, trained.data)
    if not isinstance(data, Collection):
        raise UsageError("this task works on models of molecules")
    known = data.outline.properties
    found: list[dict[str, Any]] = []
    states, scored = [], []
    for path, index, raw in _entries(inputs):
        row: dict[str, Any] = {"file": str(path), "index": index, "smiles": "", "note": ""}
        found.append(row)
        try:
            if raw is None:
                raise LeftOutError("not readable")
            molecule = usable(raw, f"{path}, record {index}", add_hydrogens)
            states.append(chemistry.tensors(molecule, data.vocabulary))
        except (LeftOutError, chemistry.UnfitError) as error:
            row["note"] = str(error)
            continue
        row["smiles"] = chemistry.smiles_of(molecule)
        row |= {f"label_{one.name}": _number(raw, one.name) for one in known}
        scored.append(row)
    if not scored:
        why = Counter(row["note"] for row in found).most_common(1)[0][0]
        raise InputError(f"none of {len(found)} records can be scored; the most are {why}")
    judging = evaluators.trained(data, Path(judge) if judge else None, trained.seed, trained.device, judge_steps)
    values = evaluators.by_judge(judging, joined(states), [True] * len(states))
    for row, told in zip(scored, values.tolist(), strict=True):
        row |= {f"judge_{one.name}": value for one, value in zip(known, told, strict=True)}
    if out is None:
        return found
    summary: dict[str, Any] = {"records": len(found), "scored": len(scored)}
    for one in known:
        pairs = [(row[f"label_{one.name}"], row[f"judge_{one.name}"]) for row in scored]
        pairs = [(a, c) for a, c in pairs if a == a]
        if pairs:
            apart = sum(abs(a - c) for a, c in pairs) / len(pairs)
            summary[one.name] = {"labelled": len(pairs), "mean_error": round(apart, 5), "unit": one.unit}
    with refusals(f"{out} cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
        _table(out / "scores.csv", found)
        (out / METRICS).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _method(by: str, properties: list[str] | None) -> tuple[str, int | None, list[str]]:
    method, colon, count = by.partition(":")
    if method not in ("xtb", "dft") or (method == "xtb" and colon) or (method == "dft" and not count.isdecimal()):
        raise UsageError(f"by={by} is neither by=xtb nor by=dft:20, 20 being how many molecules may take their minute")
    names = properties or [name for name in xtb.UNITS if method == "xtb" or name != "alpha"]
    if unknown := [name for name in names if name not in UNITS]:
        raise UsageError(f"{method} computes {', '.join(UNITS)}, and no {unknown[0]!r}")
    return method, int(count) if colon else None, names


def _entries(inputs: Sequence[Any]) -> list[tuple[Path, int, Chem.Mol | None]]:
    """Every record of the files and folders, with its file and its number there."""
    if not inputs:
        raise InputError("there are no molecules: name an SDF file, or a folder that generate wrote")
    return [
        (path, index, raw)
        for one in inputs
        for path in records.found(Path(one))
        for index, raw in enumerate(records.entries(path))
    ]


def _unfit(raw: Chem.Mol, verdict: chemistry.Verdict, method: str) -> str:
    """Why a molecule is not computed; empty where it is."""
    if raw.GetNumConformers() == 0 or not raw.GetNumAtoms():
        return "without coordinates"
    if verdict.masked:
        return "with atoms that are no element"
    if verdict.fragments != 1:
        return "in pieces"
    if not verdict.closed_shell:
        return "an odd number of electrons"
    if method == "dft" and max(atom.GetAtomicNum() for atom in raw.GetAtoms()) > dft.HEAVIEST:
        return "with an element that the basis has not"
    if method == "dft" and (verdict.charge or not verdict.valid):
        return "charged" if verdict.charge else "not valid"
    return ""


def _asked_of(raw: Chem.Mol) -> list[str]:
    return [name for name in raw.GetPropNames() if name.startswith("asked_")]


def _number(raw: Chem.Mol, name: str) -> float:
    try:
        return float(raw.GetProp(name)) if raw.HasProp(name) else math.nan
    except ValueError:
        return math.nan


def _errors(rows: list[dict[str, Any]], method: str, names: Sequence[str]) -> dict[str, Any]:
    """Counts, and how far values are from what was asked."""
    done = [row for row in rows if not row["note"]]
    summary: dict[str, Any] = {
        "records": len(rows),
        "computed": len(done),
        "method": dft.METHOD if method == "dft" else xtb.METHOD,
    }
    if left := Counter(row["note"] for row in rows if row["note"]):
        summary["left_out"] = dict(left)
    for name in names:
        pairs = [(row.get(f"asked_{name}", math.nan), row[f"{method}_{name}"]) for row in done]
        pairs = [(a, c) for a, c in pairs if a == a and c == c]
        if pairs:
            a, c = torch.tensor(pairs, dtype=torch.float64).T
            rank = metrics.spearman(a, c)
            summary[name] = {
                "molecules": len(pairs),
                "mean_error": round(float((a - c).abs().mean()), 5),
                "shuffled": round(metrics.shuffled(a, c), 5),
                "spearman": None if rank != rank else round(rank, 4),
                "unit": UNITS[name],
            }
    return summary


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in columns if name != "note"] + ["note"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({name: records.text(value) for name, value in row.items()} for row in rows)
