"""Options and arguments that several verbs share."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def as_json() -> Decorator:
    """``--json``: machine-readable output on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def config_source(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a config is made from: the plugin, ``--preset``, ``-c``, ``--smoke`` and ``key=value``."""
    for decorate in reversed(
        (
            click.argument("plugin"),
            click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
            click.option("--preset", metavar="NAME", help="A named config of the plugin; `platform info` lists them."),
            click.option(
                "-c", "--config", "file", metavar="FILE", help="A YAML config laid over the preset; - is stdin."
            ),
            click.option("--smoke", is_flag=True, help="Every part at a tiny size, done in seconds."),
        )
    ):
        function = decorate(function)
    return function


def results_only() -> contextlib.AbstractContextManager[Any]:
    """While it lasts, what plugins print goes to stderr: stdout carries results alone."""
    return contextlib.redirect_stdout(sys.stderr)


def echo_json(data: Any) -> None:
    """Print ``data`` as JSON."""
    from flowplat.rundir import to_json

    click.echo(to_json(data))
