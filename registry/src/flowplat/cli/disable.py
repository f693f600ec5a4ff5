"""``platform disable``."""

import click


@click.command("disable")
@click.argument("name")
def command(name: str) -> None:
    """It stays installed, and is neither imported nor run until `platform enable NAME`."""
    from flowplat import disabled, discovery

    if name in disabled.names():
        click.echo(f"{name} is disabled already; `platform enable {name}` switches it on", err=True)
        return
    if name not in discovery.installed():
        discovery.find(name)  # which says that it is not installed, and what is
    disabled.disable(name)
    click.echo(f"{name} is disabled; `platform enable {name}` switches it on again", err=True)
