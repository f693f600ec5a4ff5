"""report.html: one self-contained page with the samples, the figures beside their floors and baselines, and the run.

It is made of the files of the run's folder alone, so it can be made again at any time, whatever became of the run.
"""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowcore import files
from flowcore.errors import UsageError
from flowplat.plain_yaml import parse
from flowplat.rundir import RunDir
from flowplat.runs import Run


def write_report(run: Run) -> Path:
    """Write the report of a run, and say where it is. Raises ``MachineError`` where it cannot be written.

    What is missing or damaged is missing on the page, which says so.
    """
    folder = RunDir(run.folder)
    yaml = _read(folder.config).decode("utf-8", "replace")
    figures = whole(run.figures)
    page = render(
        "report.html",
        run=run,
        config=_config(yaml, folder.config),
        yaml=yaml,
        record=run.record,
        figures=figures,
        measured=folder.figures.exists(),
        rows=table(figures) if figures else [],
        sheet=sheet(run),
        loss=_loss_curve(folder.rows()),
        steps=_by_steps(figures) if figures else None,
    )
    with files.refusals(f"{folder.report} cannot be written"):
        files.write(folder.report, page)
    return folder.report


def render(template: str, **values: Any) -> str:
    """A page of one of the templates, everything in it escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("flowplat"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["number"] = number
    return pages.get_template(template).render(**values)


def sheet(run: Run) -> str | None:
    """The picture of a run's samples as a page holds it, if there is one."""
    content = _read(RunDir(run.folder).samples / "sheet.png")
    return _inline(content, "image/png") if content else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _config(yaml: str, path: Path) -> dict[str, Any]:
    """The settings as they were written; none where that cannot be read."""
    try:
        found = parse(yaml, str(path))
    except UsageError:
        return {}
    return found if isinstance(found, dict) else {}


def whole(figures: dict[str, Any]) -> dict[str, Any] | None:
    """Figures that are as ``evaluation.evaluate`` makes them; None of others."""
    try:
        columns = [*(column["figures"] for column in figures["by_steps"] if {"steps", "nfe"} <= set(column))]
        every = [*figures["paths"].values(), *(figure for column in columns for figure in column.values())]
        numbers = [n for one in every for n in (one["value"], one["floor"], *one["baselines"].values())]
        numbers += [column["nfe"] for column in figures["by_steps"]]
        complete = (
            len(columns) == len(figures["by_steps"])
            and all(isinstance(one[key], str) for one in every for key in ("better", "unit", "note"))
            and all(isinstance(column["steps"], int) for column in figures["by_steps"])
            and all(n is None or isinstance(n, int | float) for n in numbers)
            and isinstance(figures["count"], int)
        )
    except (KeyError, TypeError, AttributeError):
        return None
    return figures if complete else None


def number(value: float | None) -> str:
    """Four significant digits, or a dash for what was not measured."""
    return "-" if value is None else f"{value:.4g}"


def table(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per figure: name, value by number of steps, floor, baselines."""
    rows: dict[str, dict[str, Any]] = {}
    for column in figures["by_steps"]:
        for name, figure in column["figures"].items():
            row = rows.setdefault(name, {"name": name, "values": {}, **figure})
            row["values"][column["steps"]] = figure["value"]
    return list(rows.values())


def _inline(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _loss_curve(rows: list[dict[str, Any]]) -> str:
    """The training loss, and the validation loss where there is one."""
    figure, axes = drawing("step", "loss")
    for key, name, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        points = [
            (row["step"], row[key]) for row in rows if all(isinstance(row.get(k), int | float) for k in ("step", key))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, linewidth=1.2, markersize=3, label=name)
    if axes.lines:
        axes.legend(frameon=False)
    return svg(figure)


def _by_steps(figures: Mapping[str, Any]) -> str:
    """The first metric against NFE, with its floor."""
    figure, axes = drawing("network evaluations (NFE)", "")
    rows = table(figures)
    if rows:
        first = rows[0]
        nfe = {column["steps"]: column["nfe"] for column in figures["by_steps"]}
        values = [math.nan if value is None else value for value in first["values"].values()]  # JSON has null for it
        axes.plot([nfe[steps] or steps for steps in first["values"]], values, "o-", color="#c05621")
        axes.set_xscale("log")
        axes.set_ylabel(first["name"])
        lines = {k: v for k, v in {**first["baselines"], "floor": first["floor"]}.items() if v is not None}
        for name, value in lines.items():
            axes.axhline(value, color="#718096", linewidth=0.8, linestyle="--")
            axes.text(0.4, value, name, transform=axes.get_yaxis_transform(), fontsize=8, va="bottom", color="#4a5568")
        if all(value > 0 for value in [*values, *lines.values()]):
            axes.set_yscale("log")
    return svg(figure)


def drawing(x: str, y: str) -> tuple[Any, Any]:
    """A figure and its axes, by the names of these."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Any) -> str:
    """A figure as a page holds it."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "flowplat"}):  # the same page of the same run, to the last byte
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), "image/svg+xml")
