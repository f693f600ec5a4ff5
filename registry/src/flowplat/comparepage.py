"""Runs side by side as one self-contained page, made of the files in their folders alone: what differs between their
settings, their figures with the best of each, their samples, and their curves in one picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowcore import files
from flowcore.errors import InputError
from flowplat import report
from flowplat.comparison import compare
from flowplat.rundir import RunDir
from flowplat.runs import Run, config_of, shown

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
STYLES = ("-", "--", "-.", ":")  # where there are more runs than colours
POINTS = 300  # of a loss curve
MARK = '<meta name="generator" content="platform runs compare">'


@dataclass(frozen=True, eq=False)
class Side:
    """One of the runs: what its folder tells, and how it is named and drawn."""

    name: str
    run: Run
    config: dict[str, Any]
    figures: dict[str, Any] | None
    colour: str
    style: str

    @property
    def id(self) -> str:
        """Its id as it can be printed."""
        return shown(self.run.id)

    @property
    def folder(self) -> str:
        """Its folder as it can be printed."""
        return shown(self.run.folder)

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Its figures by their names; see ``report.table``."""
        return {row["name"]: row for row in report.table(self.figures)} if self.figures else {}

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of its data, as far as the record tells."""
        data = self.run.record.get("data")
        found = data.get("fingerprint") if isinstance(data, dict) else None
        return found if isinstance(found, str) else None


def write_page(runs: Sequence[Run], page: Path) -> Path:
    """Write the page that compares the runs. Raises ``UsageError`` or ``InputError`` where a config cannot be read or
    where ``page`` is a file that this did not write, ``MachineError`` where it cannot be written.

    What of a run is missing or damaged is missing on the page, which says so.
    """
    _refuse(page)
    sides = _sides(runs)
    blocks = [_block(name, sides) for name in dict.fromkeys(name for side in sides for name in side.rows)]
    shared = [block for block in blocks if len(block["lines"]) > 1]
    text = report.render(
        "comparison.html",
        mark=MARK,
        sides=sides,
        several=len({side.run.plugin for side in sides}) > 1,
        remarks=[(side.name, remark) for side in sides for remark in _remarks(side)],
        config=compare(runs)["config"],
        shared=shared,
        alone=[block for block in blocks if block not in shared],
        paths=_paths(sides),
        sheets=[(side, report.sheet(side.run)) for side in sides],
        first=shared[0]["name"] if shared else None,
        curves=_curves(sides, shared[0]["name"]) if shared else None,
        losses=_losses(sides),
    )
    with files.refusals(f"{page} cannot be written"):
        files.write(page, text)
    return page


def _refuse(page: Path) -> None:
    """Raise ``InputError`` where something else is in the page's place."""
    if page.is_symlink() or page.exists():
        if not page.is_file():
            raise InputError(f"{page} is no file; name the page to write, as in comparison.html")
        with files.refusals(f"{page} cannot be read"), page.open(encoding="utf-8", errors="replace") as file:
            if MARK not in file.read(500):
                raise InputError(f"{page} is there already and is no comparison; name another page, or remove it")


def _sides(runs: Sequence[Run]) -> list[Side]:
    several = len({run.plugin for run in runs}) > 1
    sides = []
    for number, run in enumerate(runs):
        preset = run.preset or "no preset"
        name = shown(f"{number + 1} {run.plugin or '?'} / {preset}" if several else f"{number + 1} {preset}")
        style = STYLES[number // len(COLOURS) % len(STYLES)]
        figures = report.whole(run.figures)
        sides.append(Side(name, run, config_of(run.folder), figures, COLOURS[number % len(COLOURS)], style))
    return sides


def _remarks(side: Side) -> list[str]:
    """What to know of a run before its figures are read."""
    run, found = side.run, [*side.run.faults]
    if side.config.get("smoke") is True:
        found.append("a smoke run: its figures mean nothing")
    if run.status != "done":
        asked = "?" if run.asked is None else run.asked
        found.append(f"not finished: {run.status} at step {run.done} of {asked}; what is shown is of an earlier end")
    if side.figures is None:
        state = "damaged" if RunDir(run.folder).figures.exists() else "missing"
        found.append(f"no figures: eval/metrics.json is {state}")
    return found


def _block(name: str, sides: Sequence[Side]) -> dict[str, Any]:
    """One figure of all runs that measured it, by number of solver steps."""
    found = [(side, side.rows[name]) for side in sides if name in side.rows]
    counts = {side: side.figures["count"] for side, _ in found if side.figures}
    steps = sorted({n for _, row in found for n in row["values"]})
    ranked, apart = _ranked(found, counts)
    best = {n: _best([row["values"].get(n) for side, row in found if side in ranked], found[0][1]) for n in steps}
    lines = []
    for side, row in found:
        nfe = _nfe(side)
        cells = [_cell(row["values"].get(n), best[n], side in ranked) | {"nfe": nfe.get(n)} for n in steps]
        lines.append({"side": side, "cells": cells, "floor": row["floor"], "baselines": row["baselines"]})
    notes = dict.fromkeys(row["note"] for _, row in found)
    return {
        "name": name,
        "unit": found[0][1]["unit"],
        "better": found[0][1]["better"],
        "steps": steps,
        "lines": lines,
        "ranked": ranked,
        "apart": apart,
        "notes": {note: [side for side, row in found if row["note"] == note] for note in notes if note},
        "absent": [side for side in sides if name not in side.rows],
    }


def _paths(sides: Sequence[Side]) -> dict[str, Any]:
    """Straightness, transport cost and whatever else is measured of the paths: a row for each run, a column each."""
    measured = {side: side.figures["paths"] for side in sides if side.figures and side.figures["paths"]}
    heads, cells = [], {side: list[dict[str, Any]]() for side in measured}
    for name in dict.fromkeys(name for paths in measured.values() for name in paths):
        found = [(side, paths[name]) for side, paths in measured.items() if name in paths]
        ranked, apart = _ranked(found, {})
        best = _best([figure["value"] for side, figure in found if side in ranked], found[0][1])
        heads.append({"name": name, "ranked": ranked, "apart": apart, **found[0][1]})
        for side, paths in measured.items():
            figure = paths.get(name, {})
            cells[side].append(_cell(figure.get("value"), best, side in ranked) | {"floor": figure.get("floor")})
    return {"heads": heads, "lines": cells, "absent": [side for side in sides if side not in measured]}


def _ranked(found: Sequence[tuple[Side, dict[str, Any]]], counts: dict[Side, int]) -> tuple[list[Side], list[str]]:
    """The runs whose values of a figure tell which is the better one: the most that were measured alike. And what the
    others differ from them in."""
    alike: dict[tuple[Any, ...], list[Side]] = {}
    for side, figure in found:
        way = (figure["unit"], figure["better"], figure["note"])
        alike.setdefault((counts.get(side), side.fingerprint, way), []).append(side)
    names = ("the number of samples", "the data", "how it is measured")
    apart = [name for name, values in zip(names, zip(*alike, strict=True), strict=True) if len(set(values)) > 1]
    return max(alike.values(), key=len), apart


def _cell(value: float | None, best: float | None, ranked: bool) -> dict[str, Any]:
    return {"value": value, "best": ranked and value is not None and value == best}


def _best(values: Sequence[float | None], figure: dict[str, Any]) -> float | None:
    """The best of two values or more of a figure that are not all the same."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if figure["better"] not in ("lower", "higher") or len(set(known)) < 2:
        return None
    return min(known) if figure["better"] == "lower" else max(known)


def _nfe(side: Side) -> dict[int, float | None]:
    """The network evaluations of each number of solver steps."""
    return {column["steps"]: column["nfe"] for column in side.figures["by_steps"]} if side.figures else {}


def _curves(sides: Sequence[Side], name: str) -> str | None:
    """A figure of all runs against NFE, with their floors: logarithmic where everything is positive; None where there
    is no value."""
    figure, axes = report.drawing("network evaluations (NFE)", _literal(name))
    floors, drawn = dict[float, list[Side]](), list[float]()
    for side in sides:
        if name not in side.rows:
            continue
        row, nfe = side.rows[name], _nfe(side)
        points = sorted((nfe[n] or n, value) for n, value in row["values"].items() if value is not None)
        points = [(x, y) for x, y in points if x > 0 and math.isfinite(y)]
        axes.plot(*_columns(points), f"o{side.style}", color=side.colour, linewidth=1.2, markersize=4,
                  label=_literal(side.name))  # fmt: skip
        drawn += [value for _, value in points]
        if row["floor"] is not None:
            floors.setdefault(row["floor"], []).append(side)
    for number, (floor, owners) in enumerate(floors.items()):
        colour = owners[0].colour if len(floors) > 1 and len(owners) == 1 else "#718096"
        axes.axhline(floor, color=colour, linewidth=0.8, linestyle="--", label=None if number else "floor")
    if not drawn:
        return None
    axes.set_xscale("log")
    if all(value > 0 for value in (*drawn, *floors)):
        axes.set_yscale("log")
    return _with_legend(figure)


def _losses(sides: Sequence[Side]) -> str | None:
    """The training losses of all runs, and dashed the validation losses; None where there are none."""
    figure, axes = report.drawing("step", "loss")
    drawn = list[float]()
    for side in sides:
        rows, named = RunDir(side.run.folder).rows(), False
        for key, style, width in (("loss", side.style, 1.2), ("val_loss", "o--", 0.8)):
            points = thinned([
                (float(row["step"]), float(row[key])) for row in rows
                if all(isinstance(row.get(part), int | float) for part in ("step", key))
            ])  # fmt: skip
            if points:
                label = None if named else _literal(side.name)
                axes.plot(*_columns(points), style, color=side.colour, linewidth=width, markersize=2, label=label)
                drawn, named = drawn + [value for _, value in points], True
    if drawn and all(value > 0 for value in drawn):
        axes.set_yscale("log")
    return _with_legend(figure) if drawn else None


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` points: the means of as many stretches of a curve."""
    size = -(-len(points) // POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _literal(text: str) -> str:
    """A text as it is drawn letter by letter: between dollars matplotlib reads formulas."""
    return text.replace("$", r"\$")


def _with_legend(figure: Any) -> str:
    figure.set_size_inches(8, 3.4)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return report.svg(figure)
