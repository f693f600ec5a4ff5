"""Plugins that the user has switched off: one name a line in a file of the user's, read before any is imported."""

import os
from collections.abc import Iterable
from pathlib import Path

from flowcore import files
from flowcore.errors import MachineError


def path() -> Path:
    """The file: ``disabled`` in ``$FLOWPLAT_CONFIG``, else in the user's folder for settings.

    Raises ``MachineError`` where the user has none, as an account of a container may not.
    """
    if own := os.environ.get("FLOWPLAT_CONFIG"):
        return Path(own) / "disabled"
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if home.startswith("~"):
        raise MachineError("there is no home folder to keep settings in; name a folder in FLOWPLAT_CONFIG")
    return Path(home) / "flowplat" / "disabled"


def names() -> frozenset[str]:
    """The plugins that are switched off. Raises ``MachineError`` where the file is there and cannot be read."""
    try:
        file = path()
    except MachineError:
        return frozenset()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise MachineError(f"{file} cannot be read: {error}; it lists the disabled plugins, one a line") from error
    return frozenset(filter(None, map(str.strip, text.splitlines())))


def disable(name: str) -> None:
    """Switch ``name`` off. Raises ``MachineError`` where the file cannot be written."""
    _write(names() | {name})


def enable(name: str) -> None:
    """Switch ``name`` on again."""
    _write(names() - {name})


def _write(these: Iterable[str]) -> None:
    with files.refusals(f"{path()} cannot be written"):
        path().parent.mkdir(parents=True, exist_ok=True)
        files.write(path(), "".join(f"{name}\n" for name in sorted(these)))
