"""What completes an argument, by its name: read from folders and entry points, importing one plugin at most.

A parameter of any verb is completed when its name stands in ``COMPLETERS``, or its verb and its name do.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

VARIABLE = "_PLATFORM_COMPLETE"
"""The environment variable in which the script of a shell asks."""

Completer = Callable[[click.Context], Iterable[CompletionItem]]
"""Everything that could stand in an argument; what does not begin as it was typed is left out for it."""


def script(shell: str) -> str:
    """What has ``shell`` ask us."""
    from flowplat.cli.main import group

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(group, {}, "platform", VARIABLE).source()


def answer(instruction: str) -> int:
    """Print what could be typed next, as the shell asks; nothing where that cannot be known. The exit code."""
    from flowplat.cli.main import COMMANDS, group

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the user is in the middle of a line
    for verb in COMMANDS.keys() & os.environ.get("COMP_WORDS", "").split():
        command = group.get_command(click.Context(group), verb)
        if command is not None:
            _attach(verb, command)
    return shell_complete(group, {}, "platform", VARIABLE, instruction)


def _attach(verb: str, command: click.Command) -> None:
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        _attach(name, below)
    for parameter in command.params:
        completer = COMPLETERS.get(f"{verb} {parameter.name}", COMPLETERS.get(str(parameter.name)))
        if completer is not None:
            parameter.shell_complete = partial(_complete, completer)  # type: ignore[method-assign]


def _complete(completer: Completer, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    try:
        found = list(completer(ctx))
    except Exception:  # whatever is wrong is told when the command is given
        return []
    if found and found[0].type != "plain":
        return [CompletionItem(incomplete, type=found[0].type)]
    fitting = [item for item in found if item.value.startswith(incomplete)]
    if not fitting and completer is _runs:  # which may be named by their folder, too
        return [CompletionItem(incomplete, type="dir")]
    return fitting


def _plugins(ctx: click.Context) -> Iterator[CompletionItem]:
    from flowplat.discovery import CORE, installed

    for name, (plugin, *_) in installed().items():
        if plugin.state == "ok":
            yield CompletionItem(name, help=plugin.summary)
    if ctx.command.name == "info":
        yield CompletionItem(CORE, help="the platform's own")


def _installed(ctx: click.Context) -> Iterator[CompletionItem]:
    from flowplat.discovery import installed

    return (CompletionItem(name, help=plugin.summary) for name, (plugin, *_) in installed().items())


def _disabled(ctx: click.Context) -> Iterator[CompletionItem]:
    from flowplat.disabled import names

    return (CompletionItem(name) for name in sorted(names()))


def _brought(kind: str | None, ctx: click.Context) -> Iterator[CompletionItem]:
    """The components of the plugin that stands on the line already."""
    from flowplat.discovery import CORE
    from flowplat.manager import Manager

    manager, plugin = Manager(), _plugin(ctx)
    if plugin is None:
        return
    if plugin != CORE:
        manager.load(plugin)
    for component in manager.components.of(kind, plugin):
        yield CompletionItem(component.name, help=component.summary)


def _plugin(ctx: click.Context) -> str | None:
    """The plugin on the line; click knows none where an option still wants its value."""
    from flowplat.discovery import CORE, installed

    words = [ctx.params.get("plugin"), *os.environ["COMP_WORDS"].split()[2:]]
    return next((word for word in words if word == CORE or word in installed()), None)


def _runs(ctx: click.Context) -> Iterator[CompletionItem]:
    from flowplat.runs import ROOT, is_run

    root = Path(ctx.params.get("root") or ROOT)
    plugin = _plugin(ctx) if ctx.command.name == "run" else None
    found = {path for depth in ("*", "*/*", "*/*/*") for path in root.glob(depth) if is_run(path)}
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        below = path.relative_to(root).parts
        if plugin in (None, below[0]):
            yield CompletionItem(path.name, help="/".join(below[:-1]))
    yield CompletionItem("last", help="the one last started")


def _file(ctx: click.Context) -> list[CompletionItem]:
    return [CompletionItem("", type="file")]


COMPLETERS: dict[str, Completer] = {
    "plugin": _plugins,
    "preset": partial(_brought, "preset"),
    "task": partial(_brought, "task"),
    "component": partial(_brought, None),
    "x name": partial(_brought, "command"),
    "enable name": _disabled,
    "disable name": _plugins,
    "uninstall names": _installed,
    "run": _runs,
    "resume": _runs,
    "model": _runs,
    "source": _runs,
    "compare names": _runs,
    "prune names": _runs,
    "pull source": _file,
    "file": _file,
    "apply words": _file,
    "eval words": _file,
    "install words": _file,
}
"""``name`` or ``verb name`` of a parameter, and what completes it."""
