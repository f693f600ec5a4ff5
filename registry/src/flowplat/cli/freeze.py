"""``platform freeze``."""

import click

from flowplat.cli.options import as_json, echo_json


@click.command("freeze")
@as_json()
def command(as_json: bool) -> None:
    """Printed as lines that `platform install -r FILE` takes: a wheel's address with its sha256, or name==version.

    A folder is listed by its path, and its content is not fixed.
    """
    from flowplat import source

    rows = source.frozen()
    if as_json:
        echo_json(rows)
        return
    for line in source.freeze(rows):
        click.echo(line)
