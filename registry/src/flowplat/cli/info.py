"""``platform info``."""

import types
from collections.abc import Callable
from typing import Any, get_origin

import click

from flowplat.cli.options import as_json, echo_json

KINDS = (
    "preset", "task", "data", "network", "guidance", "metric", "objective", "sampler", "path", "coupling", "times",
    "loss", "solver", "command",
)  # fmt: skip


@click.command("info")
@click.argument("plugin")
@as_json()
def command(plugin: str, as_json: bool) -> None:
    """PLUGIN is an installed plugin, or `core` for the platform's own paths, couplings, times, solvers and guidance."""
    from flowplat.discovery import CORE
    from flowplat.manager import Manager

    manager = Manager()
    if plugin != CORE:
        manager.load(plugin)
    rows: list[dict[str, Any]] = [
        {
            "kind": component.kind,
            "name": component.name,
            "summary": component.summary,
            "default": component.default,
            "options": [] if component.kind == "preset" else _options(component.model()),
        }
        for component in sorted(manager.components.of(plugin=plugin), key=lambda c: KINDS.index(c.kind))
    ]
    if as_json:
        echo_json({"plugin": plugin, "components": rows})
        return
    kind = None
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            click.secho(kind, bold=True)
        click.echo(f"  {row['name']:18}{row['summary']}{' (default)' if row['default'] else ''}")
        for option in row["options"]:
            kind_of = f"{option['type']}{option['bounds']}"
            click.echo(f"    {option['name']:18}{kind_of:22}{option['default']:12}{option['description']}".rstrip())


def _options(model: Any) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "type": _type(info.annotation),
            "bounds": _bounds(info),
            "default": "required" if info.is_required() else str(info.get_default(call_default_factory=True)),
            "description": info.description or "",
        }
        for name, info in model.model_fields.items()
    ]


def _type(annotation: Any) -> str:
    """A type as a user would say it; functions, which no config can hold, are left out of a union."""
    if isinstance(annotation, types.UnionType):
        return " | ".join(_type(part) for part in annotation.__args__ if get_origin(part) is not Callable)
    if annotation is type(None):
        return "null"
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def _bounds(info: Any) -> str:
    """A field's limits, such as " >= 1"."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [(sign, getattr(one, name)) for one in info.metadata for name, sign in signs.items() if hasattr(one, name)]
    return "".join(f" {sign} {limit}" for sign, limit in limits)
