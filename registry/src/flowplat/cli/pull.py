"""``platform pull``."""

from pathlib import Path

import click

from flowplat.cli.options import as_json, echo_json, results_only


@click.command("pull")
@click.argument("source", metavar="SRC")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="A new folder; models/<name> if not given."
)
@as_json()
def command(source: str, out: Path | None, as_json: bool) -> None:
    """SRC is a model folder, or hf://owner/name, with @revision behind it if need be.

    Every file is verified before the model folder appears; of what else is there nothing is fetched.
    """
    from flowcore.errors import InputError
    from flowplat import hub, modelfolder

    repository, folder = hub.parse(source), Path(source)
    if repository is None and not modelfolder.is_model(folder):
        raise InputError(f"{source} is no model folder: it has no {modelfolder.MANIFEST}; `platform export` makes one")
    name = repository.name if repository else folder.resolve().name
    target = out if out is not None else Path("models") / name
    with results_only(), modelfolder.placed(target) as place:
        if repository is None:
            modelfolder.copy(folder, modelfolder.verify(folder), place)
        else:
            hub.fetch(repository, place)
        modelfolder.verify(place)
    echo_json({"folder": str(target)}) if as_json else click.echo(target)
