"""report.html: one self-contained page with the samples, the figures beside their floors and baselines, and the run."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flowcore import files
from flowplat.config import to_yaml
from flowplat.rundir import RunDir
from flowplat.settings import RunConfig


def write_report(
    run: RunDir, config: RunConfig, record: dict[str, Any], figures: dict[str, Any], picture: bytes, parameters: int
) -> None:
    """Write ``run.report``, and its pictures beside the samples."""
    (run.samples / "sheet.png").write_bytes(picture)
    pictures = Environment(
        loader=PackageLoader("flowplat"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures.filters["number"] = number
    page = pictures.get_template("report.html").render(
        config=config,
        yaml=to_yaml(config),
        record=record,
        figures=figures,
        rows=table(figures),
        parameters=parameters,
        sheet=_inline(picture, "image/png"),
        loss=_inline(_loss_curve(run.rows()), "image/svg+xml"),
        steps=_inline(_by_steps(figures), "image/svg+xml"),
    )
    files.write(run.report, page)


def number(value: float | None) -> str:
    """Four significant digits, or a dash for what was not measured."""
    return "-" if value is None else f"{value:.4g}"


def table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per figure: name, value by number of steps, floor, baselines."""
    rows: dict[str, dict[str, Any]] = {}
    for column in figures["by_steps"]:
        for name, figure in column["figures"].items():
            row = rows.setdefault(name, {"name": name, "values": {}, **figure})
            row["values"][column["steps"]] = figure["value"]
    return list(rows.values())


def _inline(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _loss_curve(rows: list[dict[str, Any]]) -> bytes:
    """The training loss, and the validation loss where there is one."""
    figure, axes = _axes("step", "loss")
    for key, name, style in (("loss", "training", "-"), ("val_loss", "validation", "o-")):
        if points := [(row["step"], row[key]) for row in rows if row.get(key) is not None]:
            axes.plot(*zip(*points, strict=True), style, linewidth=1.2, markersize=3, label=name)
    axes.legend(frameon=False)
    return _svg(figure)


def _by_steps(figures: dict[str, Any]) -> bytes:
    """The first metric against NFE, with its floor."""
    figure, axes = _axes("network evaluations (NFE)", "")
    rows = table(figures)
    if rows:
        first = rows[0]
        nfe = {column["steps"]: column["nfe"] for column in figures["by_steps"]}
        axes.plot([nfe[steps] for steps in first["values"]], list(first["values"].values()), "o-", color="#c05621")
        axes.set_xscale("log")
        axes.set_ylabel(first["name"])
        lines = dict(first["baselines"]) | ({} if first["floor"] is None else {"floor": first["floor"]})
        for name, value in lines.items():
            axes.axhline(value, color="#718096", linewidth=0.8, linestyle="--")
            axes.text(0.4, value, name, transform=axes.get_yaxis_transform(), fontsize=8, va="bottom", color="#4a5568")
        if all(value > 0 for value in [*first["values"].values(), *lines.values()]):
            axes.set_yscale("log")
    return _svg(figure)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()
