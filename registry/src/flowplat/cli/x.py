"""``platform x``."""

import click

from flowplat.cli.options import as_json, echo_json


@click.command("x", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@as_json()
@click.argument("plugin")
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def command(as_json: bool, plugin: str, name: str | None, arguments: tuple[str, ...]) -> None:
    """NAME is a verb that PLUGIN brings; without a name they are listed. What follows NAME is the verb's."""
    if name in ("-h", "--help"):
        click.echo(click.get_current_context().get_help())
        return
    from flowcore.errors import PluginError, UsageError
    from flowplat.manager import Manager

    manager = Manager()
    manager.load(plugin)
    verbs = {component.name: component for component in manager.components.of("command", plugin)}
    if name is None:
        if as_json:
            echo_json([{"name": verb.name, "summary": verb.summary} for verb in verbs.values()])
            return
        width = max(map(len, verbs), default=0) + 2
        for verb in verbs.values():
            click.echo(f"{verb.name:{width}}{verb.summary}")
        if not verbs:
            click.echo(f"plugin {plugin!r} brings no verb of its own", err=True)
        return
    if name.startswith("-"):
        raise UsageError(f"options of the verb `x` stand before the plugin: platform x {name} {plugin}")
    if name not in verbs:
        raise UsageError(f"plugin {plugin!r} brings no verb {name!r}; there are {', '.join(verbs) or 'none'}")
    verb = verbs[name].load()
    if not isinstance(verb, click.Command):
        raise PluginError(f"{verbs[name]} is no click.Command but {type(verb).__name__}")
    with verb.make_context(f"platform x {plugin} {name}", [*arguments]) as context:
        verb.invoke(context)
