"""Write the generated pages of docs/reference: commands, hooks, settings. `make docs` runs this; a test compares."""

import inspect
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from pydantic import BaseModel

from flowcore.plugin import PROJECT, hookspecs
from flowplat.cli.main import COMMANDS, group
from flowplat.config import model_in
from flowplat.settings import CHOICES, DEFAULTS, RunConfig

HERE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; `make docs` renews it. -->\n\n"


def commands() -> str:
    """Every verb's help text."""
    texts = [("platform", ["--help"])]
    for verb in COMMANDS:
        texts.append((f"platform {verb}", [verb, "--help"]))
        command = group.get_command(click.Context(group), verb)
        for below in command.commands if isinstance(command, click.Group) else ():
            texts.append((f"platform {verb} {below}", [verb, below, "--help"]))
    page = "# Commands\n\n" + NOTE
    for title, arguments in texts:
        shown = CliRunner().invoke(group, arguments, prog_name="platform", terminal_width=100).output
        page += f"## {title}\n\n```text\n{shown.rstrip()}\n```\n\n"
    return page.rstrip() + "\n"


def hooks() -> str:
    """Every hook's docstring."""
    page = "# Hooks\n\n" + NOTE + inspect.cleandoc(hookspecs.__doc__ or "") + "\n"
    for name, function in vars(hookspecs).items():
        if hasattr(function, f"{PROJECT}_spec"):
            arguments = ", ".join(inspect.signature(function).parameters)
            page += f"\n## `{name}({arguments})`\n\n{inspect.cleandoc(function.__doc__ or '')}\n"
    return page


def settings() -> str:
    """Every setting, its default and bounds."""
    page = (
        "# Settings\n\n"
        + NOTE
        + "Keys of a config file and of `key=value`. Where a component is named, its own options stand beside its\n"
        "name; `platform info PLUGIN` lists them.\n\n| key | default | |\n|---|---|---|\n"
    )
    for key, default, text in _rows(RunConfig, "", DEFAULTS):
        page += f"| `{key}` | {default} | {text} |\n"
    return page


def _rows(model: type[BaseModel], prefix: str, given: Any) -> list[tuple[str, str, str]]:
    rows = []
    for name, info in model.model_fields.items():
        key, annotation = f"{prefix}{name}", info.annotation
        below = given.get(name) if isinstance(given, dict) else None
        if inner := model_in(annotation):
            if info.description:  # one that most runs do without
                rows.append((key, "`None`", info.description))
            rows += _rows(inner, f"{key}.", below)
            continue
        if isinstance(below, str):
            default = f"`{below}`"
        elif key in CHOICES and info.is_required():
            default = "`heun`" if key.startswith("teacher.") else "in the preset"
        elif info.is_required():
            default = ""
        else:
            default = f"`{info.get_default(call_default_factory=True)}`"
        rows.append((key, default, info.description or ""))
    return rows


PAGES = {"commands.md": commands, "hooks.md": hooks, "settings.md": settings}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make(), encoding="utf-8")
        click.echo(HERE / page)
