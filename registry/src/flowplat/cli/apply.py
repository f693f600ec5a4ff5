"""``platform apply``."""

import os.path
import re
from pathlib import Path

import click

from flowplat.cli.options import as_json, echo_json, results_only


@click.command("apply")
@click.argument("plugin")
@click.argument("task")
@click.argument("words", nargs=-1, metavar="[INPUT]... [KEY=VALUE]...")
@click.option("-m", "--model", metavar="MODEL", help="A run (folder, id, or last) or an exported model.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="OUT", help="The file or folder to write."
)
@as_json()
def command(plugin: str, task: str, words: tuple[str, ...], model: str | None, out: Path, as_json: bool) -> None:
    """TASK is one of PLUGIN's, which `platform info PLUGIN` lists, INPUT a file or folder in the domain's own formats.

    KEY=VALUE sets an option of the task; a word that is the name of a file is always an input.
    """
    from flowcore.errors import InputError, UsageError
    from flowplat import modelfolder
    from flowplat.tasks import carry_out, find, ready, settings

    component = find(plugin, task)
    inputs = [Path(word) for word in words if os.path.exists(word) or not re.match(r"[A-Za-z_][\w.]*=", word)]
    options = settings([word for word in words if Path(word) not in inputs])
    for path in inputs:
        if not os.path.exists(path) and str(path) != "-":
            raise InputError(f"{path} is not there; an option of the task is written key=value")
    folder = None if model is None else modelfolder.find(model)
    with results_only():
        ready(component, folder is not None, out, options)
        trained = None
        if folder is not None:
            from flowplat.model import load

            trained = load(folder)
            owner = trained.experiment.config.plugin
            if owner != plugin:
                raise UsageError(f"{folder} is a model of plugin {owner!r}, not of {plugin!r}")
        summary = carry_out(component, trained, inputs, out, options)
    told = {"out": str(out)} | (summary if isinstance(summary, dict) else {})
    if as_json:
        echo_json(told)
        return
    for key, value in told.items():
        if key != "out":
            click.echo(f"{key:20}{value}", err=True)
    click.echo(out)
