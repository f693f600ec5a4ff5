"""``platform show-config``."""

import click

from flowplat.cli.options import as_json, config_source, echo_json


@click.command("show-config")
@config_source
@click.option("--origin", is_flag=True, help="Say of each value which layer set it: default, preset, file, --smoke ...")
@as_json()
def command(
    plugin: str, overrides: tuple[str, ...], preset: str | None, file: str | None, smoke: bool, origin: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Printed as YAML that `platform run PLUGIN -c FILE` takes, every default spelled out.

    With --origin each value is followed by a comment: where it comes from. The later of these wins: default, preset,
    file, --smoke, command line.
    """
    from flowplat.config import plain, traced
    from flowplat.plain_yaml import commented, dump
    from flowplat.runs import shown

    config, layers = traced(plugin, overrides, preset, file, smoke)
    settled = plain(config)
    origins = layers.of(settled) if origin else {}
    if as_json:
        echo_json({"config": settled, "origins": origins} if origin else settled)
    elif origin:  # a file's name may hold anything, a comment ends with its line
        click.echo(commented(settled, {key: shown(layer) for key, layer in origins.items()}), nl=False)
    else:
        click.echo(dump(settled), nl=False)
