"""``platform publish``."""

import tempfile
from pathlib import Path

import click

from flowplat.cli.options import agreed, as_json, echo_json, license_option, results_only, size


@click.command("publish")
@click.argument("model", metavar="MODEL")
@click.argument("dest", metavar="DEST")
@license_option
@click.option("--private", is_flag=True, help="On the hub, for nobody else to see.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json()
def command(model: str, dest: str, license: str | None, private: bool, yes: bool, as_json: bool) -> None:
    """MODEL is an exported model, or a run, which is exported on the way. DEST is a new folder, or hf://owner/name.

    Every file is verified first. What is on the hub under that name is replaced, if it is a model of flowplat's; its
    history stays.
    """
    from flowcore.errors import UsageError
    from flowplat import hub, modelfolder

    repository = hub.parse(dest)
    folder = modelfolder.find(model)
    exported = modelfolder.is_model(folder)
    if exported and license is not None:
        raise UsageError(f"{folder} is exported already, and its card states its licence; --license is for runs")
    if repository is None:
        if private:
            raise UsageError("--private is for hf://owner/name; a folder is as private as where it is")
        modelfolder.refuse_used(Path(dest))
        with results_only():
            _copy(folder, Path(dest)) if exported else _export(folder, Path(dest), license)
        echo_json({"model": dest}) if as_json else click.echo(dest)
        return
    with tempfile.TemporaryDirectory() as temporary, results_only():
        if exported:
            names = modelfolder.verify(folder)
        there = hub.look(repository)
        hub.refuse(repository, there, private)
        if not exported:
            folder = _export(folder, Path(temporary) / repository.name, license)
            names = modelfolder.verify(folder)
        whole = sum((folder / name).stat().st_size for name in names)
        how = "privately" if private or (there and there["private"]) else "for everyone to see"
        old = ", in place of the model that is there" if there and modelfolder.MANIFEST in there["files"] else ""
        question = (
            f"Publish {model}, {size(whole)}, as {repository}, {how}{old}? "
            "Its config.yaml and provenance.json tell paths, the command line and the hardware."
        )
        if not agreed(question, yes):
            click.echo("nothing was published", err=True)
            return
        address = hub.send(folder, names, repository, there, private)
    echo_json({"model": str(repository), "address": address}) if as_json else click.echo(address)


def _copy(folder: Path, target: Path) -> None:
    from flowplat import modelfolder

    names = modelfolder.verify(folder)
    with modelfolder.placed(target) as place:
        modelfolder.copy(folder, names, place)


def _export(folder: Path, target: Path, license: str | None) -> Path:
    from flowplat.export import export

    return export(folder, target, license)
