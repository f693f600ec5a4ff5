"""``platform report``."""

import click

from flowplat.cli.options import as_json, echo_json


@click.command("report")
@click.argument("run", metavar="RUN")
@as_json()
def command(run: str, as_json: bool) -> None:
    """RUN is a run folder, its id or the beginning of it, or `last`.

    Made of the files of the run, which may be unfinished: nothing is trained, sampled or measured. The page before it
    is replaced.
    """
    from flowplat import runs
    from flowplat.report import write_report

    found = runs.read(runs.find(run))
    for fault in found.faults:
        click.echo(f"platform: {fault}", err=True)
    path = write_report(found)
    echo_json({"report": str(path)}) if as_json else click.echo(path)
