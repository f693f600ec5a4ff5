"""The command table, and the one place where errors become messages and exit codes."""

import inspect
import os
import sys
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

import click

from flowcore import __version__
from flowcore.errors import FlowError, MachineError

COMMANDS = {
    "run": "train a preset of a plugin, evaluate it, sample from it, and report",
    "sample": "draw samples from a trained run or an exported model",
    "eval": "measure a trained run or an exported model again, or samples that are files",
    "apply": "a verb of the plugin's own on your files, such as forecast or harmonize",
    "report": "make the report of a run again, from what is in its folder",
    "runs": "the runs there are: list, show, compare, prune",
    "export": "make a model folder of a run, to keep or to share",
    "publish": "copy a model to a shared folder or to the Hugging Face hub",
    "pull": "fetch a published model and verify it",
    "list": "the plugins that are installed",
    "info": "what a plugin brings: its components and their options",
    "show-config": "the complete config that a run would use",
    "x": "further verbs that a plugin brings",
    "search": "the plugins that the catalogue knows",
    "install": "install plugins: from the catalogue, a wheel, a folder, an index",
    "uninstall": "remove plugins",
    "freeze": "the plugins that are installed, as a list that install -r takes",
    "enable": "switch a disabled plugin on again",
    "disable": "switch a plugin off; it stays installed",
    "new": "write a plugin to begin with: it installs, passes its checks and trains",
    "check": "whether a plugin keeps what its components promise",
    "doctor": "whether everything is there and in order, to paste into a report of a fault",
    "completion": "the script that has a shell complete verbs, plugins, presets and runs",
}
"""Every verb and its help line. A verb's module is imported when the verb is used, so ``--help`` stays quick."""


@cache
def _command(name: str) -> click.Command:
    command: click.Command = import_module(f"flowplat.cli.{name.replace('-', '_')}").command
    command.help = f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.\n\n{inspect.cleandoc(command.help or '')}"
    return command


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem  # click's own would import every verb for its help line

        verbs = [CompletionItem(name, help=line) for name, line in COMMANDS.items() if name.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no verb is called {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Anywhere on the line, --debug shows the traceback of an error.",
)
@click.version_option(__version__, prog_name="platform")
def group() -> None:
    """Flow matching for the sciences: install the plugins you want, and run them."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented code (docs/reference/exit-codes.md)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    for name in ("stdout", "stderr"):  # one that was closed, as by `>&-`, is one that nobody reads
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        if asked := os.environ.get("_PLATFORM_COMPLETE"):  # a shell, by the script of `platform completion`
            from flowplat.cli.completions import answer

            sys.exit(answer(asked))
        with group.make_context("platform", [a for a in arguments if a != "--debug"]) as context:
            group.invoke(context)
        sys.stdout.flush()
        sys.exit(0)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        if not _told_elsewhere():
            click.echo("platform: interrupted", err=True)
        _end(getattr(error.__cause__ or error, "exit_code", 130))  # click makes an Abort of every Ctrl-C
    except BrokenPipeError:  # `platform list | head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(0)
    except (FlowError, OSError) as error:
        if debug:
            raise
        if not getattr(error, "echo", False):
            click.echo(f"platform: {error}", err=True)
        _end(getattr(error, "exit_code", MachineError.exit_code), echo=getattr(error, "echo", False))
    except Exception as error:
        if debug:
            raise
        click.echo(f"platform: {type(error).__name__}: {error} (--debug shows where)", err=True)
        sys.exit(1)


def _told_elsewhere() -> bool:
    """Whether this is one of a run's several processes, and not the first, which speaks for all."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def _end(code: int, echo: bool = True) -> NoReturn:
    """Exit with ``code``; a process that the first one has started leaves the code of what both know to it."""
    started_by_us = "LOCAL_RANK" in os.environ and not {"RANK", "SLURM_STEP_ID"} & set(os.environ)
    sys.exit(0 if echo and started_by_us and _told_elsewhere() else code)
