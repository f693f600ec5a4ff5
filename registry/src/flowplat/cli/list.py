"""``platform list``."""

import click

from flowplat.cli.options import as_json, echo_json


@click.command("list")
@as_json()
def command(as_json: bool) -> None:
    """Read from the installed distributions; no plugin is imported."""
    from flowplat.discovery import installed

    rows = [
        {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "state": "ok" if len(claims) == 1 else "duplicate",
            "summary": plugin.summary,
        }
        for claims in installed().values()
        for plugin in claims
    ]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("no plugin is installed; `pip install flowplat-images` adds one", err=True)
    for row in rows:
        state = "" if row["state"] == "ok" else f"  [{row['state']}]"
        click.echo(f"{row['plugin']:14}{row['version']:10}{row['summary']}{state}")
