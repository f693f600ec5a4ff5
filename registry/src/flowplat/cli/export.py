"""``platform export``."""

from pathlib import Path

import click

from flowplat.cli.options import as_json, echo_json, license_option, results_only, size


@click.command("export")
@click.argument("run", metavar="RUN")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The model folder, a new one."
)
@license_option
@as_json()
def command(run: str, out: Path, license: str | None, as_json: bool) -> None:
    """RUN is a run folder, its id or the beginning of it, or `last`.

    The folder holds the averaged weights, the config, a model card and the sha256 of each file, and samples wherever
    the plugin is installed, without the training data.
    """
    from flowplat import modelfolder, runs

    modelfolder.refuse_used(out)
    folder = Path(run) if modelfolder.is_model(Path(run)) else runs.find(run)
    with results_only():
        from flowplat.export import export

        export(folder, out, license)
    whole, names = runs.size_of(out), sorted(path.name for path in out.iterdir())
    if as_json:
        echo_json({"folder": str(out), "size": whole, "files": names})
        return
    if license is None:
        click.echo("no licence is stated; --license apache-2.0, for example, states one", err=True)
    click.echo(f"{size(whole)}: {', '.join(names)}", err=True)
    click.echo(out)
