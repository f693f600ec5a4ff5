"""Files that are whole or not there: written beside their place, synced, renamed; what tells them apart; endings."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowcore.errors import MachineError, UsageError


def sha256(path: Path) -> str:
    """The hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(paths: Iterable[str | Path]) -> list[list[Any]]:
    """What tells whether files are as they were: path, size and time of change of each. Plain JSON."""
    stats = [(str(path), os.stat(path)) for path in paths]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def refuse_ending(out: Path | None, *known: str) -> None:
    """Raise ``UsageError`` for an output whose ending is none of ``known``, such as ``.csv``; a folder has none."""
    if out is not None and out.suffix.lower() not in ("", *known):
        raise UsageError(f"{out.name}: its ending is none of {', '.join(known)}; name one of these, or a folder")


def write(path: Path, content: bytes | str) -> None:
    """Write ``content`` whole or not at all, also when the machine stops; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(folder: Path) -> Path:
    """``folder`` renamed to what ``tidy`` removes, to be deleted there: never is half of it under its own name."""
    gone = folder.with_name(f".{folder.name}.old.tmp")
    folder.rename(gone)
    return gone


def tidy(folder: Path) -> None:
    """Remove what writes that were killed have left in ``folder``: everything named ``.<name>.tmp``."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """A disk that refuses, full or read-only, is a ``MachineError`` that begins with ``what``.

    safetensors has an exception of its own for it, which is no OSError.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise MachineError(f"{what}: {error}") from error
