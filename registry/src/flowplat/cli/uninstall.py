"""``platform uninstall``."""

import click

from flowplat.cli.options import agreed


@click.command("uninstall")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(names: tuple[str, ...], yes: bool) -> None:
    """NAME is a plugin, or the distribution that brings it, such as flowplat-images.

    What it required stays, for others may use it. Runs and models stay too.
    """
    from flowplat import installer

    meant = installer.brings(names)
    for distribution, plugins in meant.items():
        several = (
            f" brings the plugins {', '.join(plugins)}" if len(plugins) > 1 else f" brings the plugin {plugins[0]}"
        )
        click.echo(f"{distribution}{several}", err=True)
    if not agreed(f"Remove {' and '.join(meant)}?", yes):
        click.echo("nothing was removed", err=True)
        return
    installer.uninstall(list(meant))
    for distribution in meant:
        click.echo(distribution)
