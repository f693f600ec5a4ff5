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


license_option = click.option(
    "--license", metavar="ID", help="The licence the card states, as the hub writes it: apache-2.0, mit, cc-by-4.0 ..."
)


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


def agreed(question: str, yes: bool) -> bool:
    """Whether the user agrees, asked on stderr. Raises ``UsageError`` where nobody can be asked."""
    from flowcore.errors import UsageError

    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to answer, so nothing was done; --yes agrees beforehand")
    return click.confirm(question, err=True)


def size(count: int) -> str:
    """Bytes for people, as in 1.2 MB."""
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def results_only() -> contextlib.AbstractContextManager[Any]:
    """See ``flowplat.quiet``."""
    from flowplat.quiet import quiet

    return quiet()


def echo_json(data: Any) -> None:
    """Print ``data`` as JSON."""
    from flowplat.rundir import to_json

    click.echo(to_json(data))


def figures_table(figures: dict[str, Any]) -> None:
    """Print a run's figures: a row each, its value by number of solver steps, its floor and its baselines."""
    from flowplat.report import number, table

    steps = [column["steps"] for column in figures["by_steps"]]
    click.echo(f"{'solver steps':24}" + "".join(f"{n:>10}" for n in steps) + f"{'floor':>10}  baselines")
    for row in table(figures):
        values = "".join(f"{number(row['values'].get(n)):>10}" for n in steps)
        baselines = ", ".join(f"{name} {number(value)}" for name, value in row["baselines"].items())
        click.echo(f"{row['name']:24}{values}{number(row['floor']):>10}  {baselines}")
    for name, figure in figures["paths"].items():
        click.echo(f"{name:24}{number(figure['value']):>10}")
