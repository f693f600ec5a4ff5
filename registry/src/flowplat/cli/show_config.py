"""``platform show-config``."""

import click

from flowplat.cli.options import as_json, config_source, echo_json


@click.command("show-config")
@config_source
@as_json()
def command(
    plugin: str, overrides: tuple[str, ...], preset: str | None, file: str | None, smoke: bool, as_json: bool
) -> None:
    """Printed as YAML that `platform run PLUGIN -c FILE` takes, every default spelled out."""
    from flowplat.config import plain, resolve, to_yaml

    config = resolve(plugin, overrides, preset, file, smoke)
    if as_json:
        echo_json(plain(config))
    else:
        click.echo(to_yaml(config), nl=False)
