"""``platform info``."""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from flowplat.cli.options import as_json, echo_json, results_only

if TYPE_CHECKING:
    from flowplat.components import Component

KINDS = (
    "preset", "task", "data", "network", "guidance", "metric", "objective", "sampler", "path", "coupling", "times",
    "loss", "solver", "command",
)  # fmt: skip


@click.command("info")
@click.argument("plugin")
@click.argument("component", required=False)
@as_json()
def command(plugin: str, component: str | None, as_json: bool) -> None:
    """PLUGIN is an installed plugin, or `core` for the platform's own paths, couplings, times, solvers and guidance.

    COMPONENT is the name of one, or kind/name, as in network/unet; only that is told then, with its documentation. A
    component that cannot be loaded is told with the cause, and the exit code is 3.
    """
    from flowcore.errors import PluginError
    from flowplat.discovery import CORE
    from flowplat.manager import Manager
    from flowplat.progress import progress

    manager = Manager()
    if plugin != CORE:
        manager.load(plugin)
    found = sorted(manager.components.of(plugin=plugin), key=lambda one: KINDS.index(one.kind))
    if component is not None:
        found = _called(component, plugin, found)
    rows = []
    with results_only(), progress("load", len(found), "component") as bar:
        for one in found:
            rows.append(_row(one, documented=component is not None))
            bar.update()
    if as_json:
        plain = [row | {"options": [option.plain() for option in row["options"]]} for row in rows]
        echo_json({"plugin": plugin, "components": plain})
    else:
        _show(rows)
    if broken := [f"{row['kind']} {row['name']!r}" for row in rows if row["cause"]]:
        raise PluginError(f"plugin {plugin!r} brings what cannot be loaded: {', '.join(broken)}; tell its author")


def _called(text: str, plugin: str, components: Sequence["Component"]) -> list["Component"]:
    """Those called ``text``: name, kind/name or plugin/name. Raises ``UsageError`` where there is none."""
    from flowcore.errors import UsageError

    found = [one for one in components if text in (one.name, f"{one.kind}/{one.name}", one.full_name)]
    if not found:
        names = list(dict.fromkeys(word for one in components for word in (one.name, f"{one.kind}/{one.name}")))
        close = get_close_matches(text, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"`platform info {plugin}` lists what it brings"
        raise UsageError(f"plugin {plugin!r} brings nothing called {text!r}; {hint}")
    return found


def _row(component: "Component", documented: bool) -> dict[str, Any]:
    """All that is known of a component; ``cause`` is why it cannot be loaded, or None."""
    from flowplat.components import one_line

    row: dict[str, Any] = {
        "kind": component.kind,
        "name": component.name,
        "summary": component.summary,
        "default": component.default,
        "reference": component.reference,
        "uses": list(component.uses),
        "cause": None,
        "options": [],
    }
    if component.kind == "task":
        row |= {"model": component.model_needed, "resumes": component.resumes}
    try:
        if component.kind == "preset":
            from flowplat.plain_yaml import parse

            text = component.file().read_text(encoding="utf-8")
            parse(text, component.reference)
        else:
            text = component.load().__doc__ or ""
            if component.kind != "command":
                from flowplat.schema import options

                row["options"] = list(options(component.model()))
        if documented:
            row["documentation"] = text if component.kind == "preset" else inspect.cleandoc(text)
    except Exception as error:  # whatever a plugin's module, signature or model raises
        row["cause"] = one_line(error)
    return row


def _show(rows: Sequence[dict[str, Any]]) -> None:
    kind, width = None, max((len(row["name"]) for row in rows), default=0) + 2
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            click.secho(kind, bold=True)
        notes = ["default"] if row["default"] else []
        if "model" in row:
            notes += ["needs a model" if row["model"] else "needs no model"] + ["resumes"] * row["resumes"]
        click.echo(f"  {row['name']:{width}}{row['summary']}" + (f" ({', '.join(notes)})" if notes else ""))
        if row["cause"]:
            click.secho(f"    broken: {row['cause']}", fg="red")
        said = [option.said() for option in row["options"]]
        widths = [max((len(texts[place]) for texts in said), default=0) for place in range(3)]
        for texts in said:
            columns = [text.ljust(min(width, 40)) for text, width in zip(texts, widths, strict=False)]
            click.echo(f"    {'  '.join([*columns, texts[3]])}".rstrip())
        if documentation := row.get("documentation"):
            click.echo()
            click.echo("\n".join(f"    {line}".rstrip() for line in documentation.splitlines()))
