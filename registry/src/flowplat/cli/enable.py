"""``platform enable``."""

import click


@click.command("enable")
@click.argument("name")
def command(name: str) -> None:
    """It is imported and run again. A plugin that was never disabled stays as it is."""
    from flowplat import disabled, discovery

    known = discovery.installed()
    if name in disabled.names():
        disabled.enable(name)
        gone = "" if name in known else "; it is not installed"
        click.echo(f"{name} is enabled{gone}", err=True)
        return
    if name not in known:
        discovery.find(name)  # which says that it is not installed, and what is
    click.echo(f"{name} is not disabled", err=True)
