"""``platform install``."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from flowplat.cli.options import agreed
from flowplat.cli.search import catalog_option


@click.command("install")
@click.argument("words", nargs=-1, metavar="[WHAT]...")
@click.option("-r", "file", type=click.Path(path_type=Path), metavar="FILE", help="A list that `freeze` has written.")
@click.option("-e", "--editable", is_flag=True, help="A folder is used where it is, for its author to go on with it.")
@catalog_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(words: tuple[str, ...], file: Path | None, editable: bool, catalog: str | None, yes: bool) -> None:
    """WHAT is a plugin of the catalogue, a wheel or its https:// address, a project's folder, or flowplat-NAME, which
    pip's index is asked for.

    Source, hash, licence and review are shown first. torch, numpy and flowplat stay as they are, and pip verifies the
    hash of every file.
    """
    from packaging.utils import canonicalize_name

    from flowcore import __version__
    from flowcore.errors import UsageError
    from flowplat import catalogue, disabled, installer
    from flowplat.plan import plan
    from flowplat.wanted import parse, read_list

    if not words and file is None:
        raise UsageError(
            "name what to install: a plugin, a wheel, a folder, or a list with -r; `platform search` helps"
        )
    entries = catalogue.entries(catalog)
    wanted = [parse(word, entries, editable) for word in words]
    if file is not None:
        listed, made_with = read_list(file, entries)
        wanted += listed
        if made_with not in (None, __version__):
            click.echo(f"the list {file} was made with flowplat {made_with}, and {__version__} is installed", err=True)
    with tempfile.TemporaryDirectory() as folder:
        _say("asking pip what would come")
        items = plan(wanted, entries, Path(folder)) if wanted else []
        changed = {canonicalize_name(item.name) for item in items}
        present = installer.plugins_of({one.name for one in wanted if one.name} - changed)
        if not items:
            click.echo("all of it is installed already", err=True)
        else:
            _show(items)
            if not agreed(_question(items), yes):
                click.echo("nothing was installed", err=True)
                return
            _say("installing")
            present |= installer.install(items, Path(folder))
    off = disabled.names()
    for name in sorted(present):
        click.echo(name)
        click.echo(f"`platform {'enable' if name in off else 'run'} {name}` is next", err=True)


def _say(what: str) -> None:
    """What goes on while pip is silent, for whoever waits at a terminal."""
    if sys.stderr.isatty():
        click.echo(f"{what} ...", err=True)


def _show(items: Sequence[Any]) -> None:
    """What would be installed, on stderr."""
    for item in items:
        if not item.requested:
            continue
        brings = f"plugin {', '.join(item.plugins)}" if item.plugins else "what it brings shows when it is built"
        click.secho(f"{item}{_instead(item)}", bold=True, err=True)
        source = f"{item.url}, used where it is" if "-e" in item.arguments else item.url
        hashed = item.sha256 or "none: a folder is what it holds at the moment"
        for label, text in (
            ("brings", brings), ("source", source), ("sha256", hashed), ("licence", item.licence),
            ("reviewed", item.review), ("requires", ", ".join(item.requires) or "nothing"),
        ):  # fmt: skip
            click.echo(f"  {label:10}{_plain(text)}", err=True)
    for item in items:
        if not item.requested:
            click.echo(
                f"along with it: {item}{_instead(item)}, licence {_plain(item.licence)}, from {item.url}", err=True
            )


def _plain(text: str) -> str:
    """What a stranger's metadata says, without what would move the cursor or change colours."""
    return "".join(letter for letter in text if letter.isprintable())


def _instead(item: Any) -> str:
    return f" in place of {item.before}" if item.before else ""


def _question(items: Sequence[Any]) -> str:
    asked = " and ".join(str(item) for item in items if item.requested)
    along = sum(not item.requested for item in items)
    return f"Install {asked}" + (f", with {along} more distribution{'s' if along > 1 else ''}?" if along else "?")
