"""``platform doctor``."""

import click

from flowplat.cli.options import as_json, echo_json

COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


@click.command("doctor")
@as_json()
def command(as_json: bool) -> None:
    """Each line is ok, warn or FAIL, with the way out; paste all of it into a report of a fault.

    Every plugin is loaded in a process of its own. The exit code is 4 where the machine or its packages fail, else 3
    where a plugin does. Nothing is changed and no network asked.
    """
    from flowcore.errors import MachineError, PluginError
    from flowplat.doctor import examinations, examine
    from flowplat.progress import progress

    found, looks = [], examinations()
    with progress("examine", len(looks), "part") as bar:
        for look in looks:
            found += examine(look)
            bar.update()
    failed = [one for one in found if one.state == "FAIL"]
    if as_json:
        echo_json({"ok": not failed, "findings": [vars(one) for one in found]})
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            told = f"{one.text}; {one.way_out}" if one.way_out else one.text
            click.echo(f"{click.style(f'{one.state:5}', fg=COLOURS[one.state])} {one.name:{width}}  {told}")
    if failed:
        names = ", ".join(dict.fromkeys(one.name for one in failed))
        kind = MachineError if any(one.area == "machine" for one in failed) else PluginError
        raise kind(f"what fails: {names}; the lines above say what to do")
