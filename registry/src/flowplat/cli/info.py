"""``platform info``."""

from typing import Any

import click

from flowplat.cli.options import as_json, echo_json


@click.command("info")
@click.argument("plugin")
@as_json()
def command(plugin: str, as_json: bool) -> None:
    """PLUGIN is an installed plugin, or `core` for the platform's own paths, couplings, times, solvers and guidance."""
    from flowplat.components import CORE
    from flowplat.manager import Manager

    manager = Manager()
    if plugin != CORE:
        manager.load(plugin)
    rows = [
        {
            "kind": component.kind,
            "name": component.name,
            "summary": component.summary,
            "default": component.default,
            "options": [] if component.kind == "preset" else _options(component.model()),
        }
        for component in manager.components.of(plugin=plugin)
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
            click.echo(f"    {option['name']:16}{option['type']:24}{option['default']:14}{option['description']}".rstrip())


def _options(model: Any) -> list[dict[str, str]]:
    def bounds(info: Any) -> str:
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        return "".join(
            f" {sign} {getattr(limit, name)}" for limit in info.metadata for name, sign in signs.items() if hasattr(limit, name)
        )

    return [
        {
            "name": name,
            "type": _type(info.annotation) + bounds(info),
            "default": "required" if info.is_required() else str(info.get_default(call_default_factory=True)),
            "description": info.description or "",
        }
        for name, info in model.model_fields.items()
    ]


def _type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(
        annotation
    ).replace("typing.", "").replace("pathlib.", "")  # fmt: skip
