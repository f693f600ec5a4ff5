"""``platform new``."""

from pathlib import Path

import click

from flowplat.cli.options import as_json, echo_json


@click.command("new")
@click.argument("name")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder, a new one; flowplat-NAME if not given.",
)
@click.option("--author", metavar="NAME", help="Who wrote it, for pyproject.toml.")
@click.option(
    "--license", metavar="ID", default="Apache-2.0", show_default=True, help="Its licence, an SPDX identifier."
)
@as_json()
def command(name: str, out: Path | None, author: str | None, license: str, as_json: bool) -> None:
    """NAME is what users will type, as in `platform run NAME`.

    The project has data, a network, guidance, a metric, presets, tests, and workflows that test and release it. It is
    small, complete, and there to be changed.
    """
    from flowplat import catalogue, discovery, scaffold

    out = out or Path(f"flowplat-{name}")
    files = scaffold.write(name, out, author, license)
    if name in discovery.installed():
        click.echo(f"platform: a plugin called {name!r} is installed already; uninstall it to use this one", err=True)
    elif any(entry.plugin == name for entry in catalogue.entries()):
        click.echo(
            f"platform: the catalogue knows a plugin {name!r} already; another name would tell them apart", err=True
        )
    if as_json:
        echo_json({"plugin": name, "folder": str(out), "files": files})
        return
    click.echo(out)
    click.echo(f"next: cd {out} && pip install -e '.[dev]' && platform check {name}", err=True)
