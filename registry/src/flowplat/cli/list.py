"""``platform list``."""

from dataclasses import asdict

import click

from flowplat.cli.options import as_json, echo_json


@click.command("list")
@click.option("--components", is_flag=True, help="Load each plugin, in a process of its own, and list what it brings.")
@as_json()
def command(components: bool, as_json: bool) -> None:
    """Read from the installed distributions; no plugin is imported unless --components asks for it.

    A plugin's state is ok, disabled, incompatible, duplicate or broken, with the cause.
    """
    from flowplat.probe import plugins

    found = plugins(components)
    if as_json:
        echo_json([{"plugin": one.name} | {k: v for k, v in asdict(one).items() if k != "name"} for one in found])
        return
    if not found:
        click.echo("no plugin is installed; `platform search` lists those there are", err=True)
    for one in found:
        summary = one.summary if one.state == "ok" else f"[{one.state}] {one.cause}"
        click.echo(f"{one.name:13} {one.version:9} {summary}")
        width = max((len(part["name"]) for part in one.components or ()), default=0)
        for part in one.components or ():
            summary = f"[broken] {part['cause']}" if "cause" in part else part["summary"]
            click.echo(f"  {part['kind']:11} {part['name']:{width}} {summary}{' (default)' if part['default'] else ''}")
