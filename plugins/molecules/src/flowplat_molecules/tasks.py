"""The plugin's first verb: molecules for a property that is asked for."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from rdkit import Chem
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowcore.files import refusals
from flowcore.guidance import classifier_free
from flowcore.plugin.contracts import Trained
from flowcore.seeds import generator
from flowplat_molecules import chemistry, drawing, evaluators, metrics, records, xtb
from flowplat_molecules.chemistry import Verdict
from flowplat_molecules.data import Collection
from flowplat_molecules.formulas import atoms_of
from flowplat_molecules.graphs import joined, split
from flowplat_molecules.progress import counter
from flowplat_molecules.sampler import Eta, Temperature, draw, draw_sizes
from flowplat_molecules.spec import Property

log = logging.getLogger("flowplat")

CHUNK = 64
TRIES = 20  # molecules drawn for each that is wanted, at most
METRICS, PARITY = "metrics.json", "parity.png"
Values = Literal["auto", "xtb", "judge", "both", "none"]
Checked = list[tuple[Chem.Mol, Verdict]]
JudgeFolder = Annotated[
    str, Field(description="folder of a judge trained before; without one it is trained and kept there")
]
JudgeSteps = Annotated[int, Field(ge=1, description="steps that a new judge is trained for, 64 molecules each")]


@dataclass(frozen=True)
class Kept:
    """Molecules and what is known of each: verdicts, and values (B, K) by who says them."""

    batch: Batch
    checked: Checked
    values: dict[str, Tensor]


def generate(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    property: Annotated[str, Field(description="the property asked for; the first that the model was told")] = "",
    target: Annotated[
        str | float,
        Field(description="its value, several as 0.5|1|2, a range as 2..4, mu=3,gap=0.2; empty: as in the data"),
    ] = "",
    number: Annotated[int, Field(ge=1, description="molecules")] = 100,
    only_valid: Annotated[bool, Field(description="draw on until so many are valid and in one piece")] = False,
    n_atoms: Annotated[int | None, Field(ge=2, le=512, description="atoms of each, hydrogens counted")] = None,
    formula: Annotated[str, Field(description="the atoms of each, as C4H8O")] = "",
    steps: Annotated[int, Field(ge=1, description="steps of the sampler")] = 100,
    eta: Eta = 10.0,
    temperature: Temperature = None,
    guidance: Annotated[
        float | None,
        Field(ge=0, description="classifier-free scale: 1 follows the property, more insists on it; null: the run's"),
    ] = None,
    values: Annotated[Values, Field(description="who says what they have; auto is xTB where it is installed")] = "auto",
    judge: JudgeFolder = "",
    judge_steps: JudgeSteps = evaluators.STEPS,
    seed: Annotated[int, Field(ge=0, description="the source of every draw")] = 0,
) -> Any:
    """``molecules.sdf`` and ``molecules.csv`` with a record and a row for each molecule, in one order, valid ones
    first, and numbered by ``index`` as they were drawn, ``grid.png``, ``parity.png`` (asked against what they have) and
    ``metrics.json``.

    Sizes are drawn from p(N | y) where neither ``n_atoms`` nor ``formula`` is given. All that is drawn is written,
    valid or not, unless ``only_valid``; then ``acceptance`` says what share was kept. From Python it returns the
    ``Batch``, with the rows in ``extra["rows"]``. Raises ``UsageError`` for a property that the model was not told.
    """
    if inputs:
        raise UsageError(f"generate takes no files: leave {inputs[0]} out")
    data = cast(Collection, trained.data)
    if not isinstance(data, Collection):
        raise UsageError("this task works on models of molecules")
    known = data.outline.properties
    if formula and n_atoms is not None:
        raise UsageError("a formula says how many atoms there are; leave n_atoms or formula out")
    atoms = atoms_of(formula, data.vocabulary) if formula else None
    size = n_atoms if atoms is None else len(atoms)
    _warn(size, data)
    wish = _wish(property, target, known)
    told = data.condition(number, wish)
    evaluating = _evaluators(values, known)
    given = _Drawing(trained, steps, eta, temperature, guidance, seed, size, atoms)
    batch, checked, drawn = _valid(given, told, number, data) if only_valid else _all(given, told, number, data)
    found = _values(trained, data, Kept(batch, checked, {}), evaluating, judge, judge_steps)
    columns: dict[str, Any] = dict(data.asked(batch))
    for source, part in found.values.items():
        for k, one in enumerate(known):
            columns[f"{source}_{one.name}"] = part[:, k].tolist()
    rows = records.rows(checked, columns)
    summary = _summary(found, data, drawn)
    if out is None:
        return replace(batch, extra={**batch.extra, "rows": rows, "summary": summary})
    order = sorted(range(len(rows)), key=lambda row: not rows[row]["valid"])  # `index` says where each was
    words = legends(rows, known, found)
    with refusals(f"{out} cannot be written"):
        records.write(out, [checked[row][0] for row in order], [rows[row] for row in order])
        grid = drawing.grid([checked[row][0] for row in order], [words[row] for row in order])
        (out / records.PICTURE).write_bytes(grid)
        if (picture := _parity(found, known, wish)) is not None:
            (out / PARITY).write_bytes(picture)
        (out / METRICS).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _wish(name: str, target: str | float, known: Sequence[Property]) -> str | None:
    """The words of ``asked`` for a property and a target."""
    if str(target) == "":
        if name:
            raise UsageError(f"property={name} asks for no value; set target=3, target=0.5|1|2 or target=2..4")
        return None
    if not known:
        raise UsageError("this model was told no property; train it with data.properties=[mu] to ask for one")
    if "=" in str(target):  # several properties at once
        if name:
            raise UsageError(f"target={target} names its properties itself; leave property={name} out")
        return str(target)
    return f"{name or known[0].name}={target}"


def _warn(size: int | None, data: Collection) -> None:
    counts = data.outline.counts
    if size is not None and not counts.min() <= size <= counts.max():
        log.warning("%d atoms: the model was trained on molecules of %d to %d", size, counts.min(), counts.max())


def _evaluators(values: Values, known: Sequence[Property]) -> tuple[str, ...]:
    """Who is asked: of ``auto`` xTB, where it is installed and computes one of the properties, else the judge."""
    if values == "none" or not known:
        return ()
    if values == "auto":
        able = bool({one.name for one in known} & set(xtb.UNITS)) and find_spec("tblite") and find_spec("dftd4")
        return ("xtb",) if able else ("judge",)
    return ("xtb", "judge") if values == "both" else (values,)


@dataclass(frozen=True)
class _Drawing:
    """How molecules are drawn."""

    trained: Trained
    steps: int
    eta: float
    temperature: float | None
    guidance: float | None
    seed: int
    size: int | None
    atoms: Tensor | None

    def chunk(self, number: int, condition: Tensor | None, count: int) -> Batch:
        """The molecules of chunk ``number``, which depends on the seed and its number alone."""
        trained, parts = self.trained, self.trained.parts()
        if self.guidance is not None and condition is not None:
            parts = replace(parts, guidance=(classifier_free(self.guidance),))
        categories = getattr(trained.network, "categories", "masked")
        trained.network.eval()
        draws = generator(self.seed, "generate", number, device=trained.device)
        told = None if condition is None else condition.to(trained.device)
        drawn = draw_sizes(parts.spec, told, count, draws)  # in any case, so that a size changes no other draw
        sizes = drawn if self.size is None else torch.full((count,), self.size)
        atoms = None if self.atoms is None else self.atoms.repeat(count).to(trained.device)
        batch = draw(
            parts, trained.network, sizes, told, self.steps, draws, categories, self.eta, self.temperature,
            atoms=atoms,
        )  # fmt: skip
        return batch.map(lambda leaf: leaf.cpu())


def _all(how: _Drawing, told: Tensor | None, number: int, data: Collection) -> tuple[Batch, Checked, int]:
    states, count = [], counter("molecules", number)
    for place, start in enumerate(range(0, number, CHUNK)):
        mine = None if told is None else told[start : start + CHUNK]
        states += split(how.chunk(place, mine, min(CHUNK, number - start)))
        count(len(states))
    batch = joined(states, told)
    return batch, list(chemistry.verdicts(batch, data.vocabulary)), number


def _valid(how: _Drawing, told: Tensor | None, number: int, data: Collection) -> tuple[Batch, Checked, int]:
    """As ``_all``, what is not valid or in pieces drawn anew under the same condition. Raises ``UsageError`` where it
    is not to be had."""
    states: dict[int, Any] = {}
    kept: dict[int, tuple[Chem.Mol, Verdict]] = {}
    drawn, place, missing, count = 0, 0, list(range(number)), counter("valid molecules", number)
    while missing:
        if drawn >= TRIES * number:
            raise UsageError(
                f"{len(kept)} of {drawn} molecules drawn are valid and in one piece, and {number} are wanted: train"
                " longer, ask for another target, or leave only_valid out"
            )
        rows = missing[:CHUNK]
        batch = how.chunk(place, None if told is None else told[rows], len(rows))
        for row, state, one in zip(rows, split(batch), chemistry.verdicts(batch, data.vocabulary), strict=True):
            if one[1].valid and one[1].fragments == 1:
                states[row], kept[row] = state, one
        drawn, place = drawn + len(rows), place + 1
        missing = [row for row in missing if row not in kept]
        count(len(kept))
    return joined([states[row] for row in range(number)], told), [kept[row] for row in range(number)], drawn


def _values(trained: Trained, data: Collection, kept: Kept, who: Sequence[str], judge: str, judge_steps: int) -> Kept:
    names, found = [one.name for one in data.outline.properties], {}
    if "xtb" in who:
        found["xtb"] = evaluators.by_xtb(kept.checked, names)
    if "judge" in who:
        folder = Path(judge) if judge else None
        judging = evaluators.trained(data, folder, trained.seed, trained.device, judge_steps)
        found["judge"] = evaluators.by_judge(judging, kept.batch, [not one.masked for _, one in kept.checked])
    return Kept(kept.batch, kept.checked, found)


def _summary(kept: Kept, data: Collection, drawn: int) -> dict[str, Any]:
    """Counts and shares, and the errors of what was asked, as plain JSON."""
    told = [one for _, one in kept.checked]
    count, unique = len(told), {one.smiles for one in told if one.valid}
    summary: dict[str, Any] = {
        "molecules": count,
        "drawn": drawn,
        "acceptance": round(count / drawn, 4),
        "valid": round(sum(one.valid for one in told) / count, 4),
        "stable": round(sum(one.stable for one in told) / count, 4),
        "closed_shell": round(sum(one.closed_shell for one in told) / count, 4),
        "one_piece": round(sum(one.fragments == 1 for one in told) / count, 4),
        "unique": round(len(unique) / count, 4),
        "left_masked": sum(one.masked for one in told),
    }
    try:
        summary["novel"] = round(len(unique - data.training_smiles()) / max(1, sum(one.valid for one in told)), 4)
    except InputError as error:  # an exported model without its data
        log.warning("novel is not told: %s", error)
    if kept.batch.condition is None:
        return summary
    wanted = kept.batch.condition.double()
    for source, values in kept.values.items():
        for k, one in enumerate(data.outline.properties):
            both = ~(wanted[:, k].isnan() | values[:, k].isnan())
            if not bool(both.any()):
                continue
            a, c = wanted[both, k], values[both, k]
            rank = metrics.spearman(a, c)
            summary[f"{one.name}_{source}"] = {
                "molecules": len(a),
                "mean_error": round(float((a - c).abs().mean()), 5),
                "shuffled": round(metrics.shuffled(a, c), 5),
                "spearman": None if rank != rank else round(rank, 4),
                "mean": round(float(c.mean()), 5),
                "unit": one.unit,
            }
    return summary


def legends(rows: Sequence[records.Row], known: Sequence[Property], kept: Kept) -> list[str]:
    """What stands under each structure: what it has beside what was asked, and what is wrong with it."""
    source, made = next(iter(kept.values), None), []
    for row, (_, one) in zip(rows, kept.checked, strict=True):
        words = []
        for prop in known[:1]:
            wanted, came = row.get(f"asked_{prop.name}"), row.get(f"{source}_{prop.name}")
            if wanted is not None and wanted == wanted:
                words.append(f"asked {wanted:.3g}")
            if came is not None and came == came:
                words.append(f"{source} {came:.3g}")
        if (fault := one.fault) != "":
            words.append(fault)
        made.append(", ".join(words))
    return made


def _parity(kept: Kept, known: Sequence[Property], wish: str | None) -> bytes | None:
    """Asked against had, of the property that was asked for, or the first."""
    if not kept.values or kept.batch.condition is None:
        return None
    source, values = next(iter(kept.values.items()))
    name = known[0].name if wish is None else wish.partition("=")[0].strip()
    k = [one.name for one in known].index(name)
    said = {"xtb": "GFN2-xTB", "judge": "judge"}[source]
    return drawing.parity(kept.batch.condition[:, k].tolist(), values[:, k].tolist(), name, known[k].unit, said)
