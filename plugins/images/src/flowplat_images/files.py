"""The files of a folder or a zip: which are pictures, and which class each is of."""

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from flowcore.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg"}
LARGEST = 2**29  # bytes of one file, unpacked: more than a picture within Pillow's own pixel limit needs
Place = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A path that means the same from every working directory, so that a run's config.yaml does too."""

Fault = Callable[[str], None]
"""Told of each fault that concerns one file only; it raises, or returns to go on without that file."""


class Files:
    """The files below a folder or in a zip, by their names inside it; hidden ones are left out.

    Raises ``InputError`` when ``path`` is neither. Use it in a ``with`` statement.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive: zipfile.ZipFile | None = None
        if path.is_dir():
            names = _walk(path)
        elif not path.exists():
            raise InputError(f"{path} does not exist; data.path names a folder or a .zip")
        else:
            try:
                self.archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise InputError(f"{path} is neither a folder nor a zip that can be read: {error}") from error
            names = [name for name in dict.fromkeys(self.archive.namelist()) if not name.endswith("/")]
        self.names = sorted(name for name in names if not _hidden(name))

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *error: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def read(self, name: str) -> bytes:
        """The content of one file. Raises ``InputError`` naming it."""
        try:
            if self.archive is None and not self.path.joinpath(name).is_file():
                raise InputError(f"{self.where(name)} is no file, or a link to nothing")
            if self._size(name) > LARGEST:
                raise InputError(f"{self.where(name)} is larger than {LARGEST >> 20} MiB")
            return self.path.joinpath(name).read_bytes() if self.archive is None else self.archive.read(name)
        except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"{self.where(name)} cannot be read: {reason}") from error

    def _size(self, name: str) -> int:
        return self.path.joinpath(name).stat().st_size if self.archive is None else self.archive.getinfo(name).file_size

    def where(self, name: str) -> str:
        """How a message names a file."""
        return f"{self.path}/{name}"


class Listing(NamedTuple):
    """The pictures to read, the class number of each or None, and the names of the classes."""

    pictures: list[str]
    labels: list[int] | None
    classes: list[str]


def listing(files: Files, fault: Fault) -> Listing:
    """What there is to read, found without opening a picture.

    The root is the deepest folder that all pictures are below, or the one that holds labels.csv: a zip of one folder
    reads like that folder. Classes come from labels.csv, else from the first folder below the root if every picture
    is in one. Raises ``InputError`` when there is no picture.
    """
    pictures = [name for name in files.names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        raise InputError(f"{files.path} holds no .png or .jpg file; name a folder or .zip of pictures")
    root = ""
    while f"{root}labels.csv" not in files.names:
        below = {name.removeprefix(root).partition("/")[:2] for name in pictures}
        if len(below) > 1 or not all(slash for _, slash in below):
            break
        root += "".join(below.pop())
    if f"{root}labels.csv" in files.names:
        table = _table(files, root, set(pictures), fault)
        for name in [name for name in pictures if name not in table]:
            fault(f"{files.where(name)} has no row in {root}labels.csv")
        named = {name: table[name] for name in pictures if name in table}
        if not named:
            raise InputError(f"{files.where(root)}labels.csv labels none of the {len(pictures)} pictures beside it")
    else:
        named = {}
        for name in pictures:
            folder, slash, _ = name.removeprefix(root).partition("/")
            if not slash:
                return Listing(pictures, None, [])
            named[name] = folder
    labels, classes = numbered(list(named.values()))
    return Listing(list(named), labels, classes)


def captions(files: Files, found: Listing, fault: Fault) -> tuple[Listing, list[str]]:
    """The pictures beside which a .txt of the same name lies, and what is in it, with one space between words."""
    kept, texts = [], []
    for row, name in enumerate(found.pictures):
        beside = str(PurePosixPath(name).with_suffix(".txt"))
        if beside not in files.names:
            fault(f"{files.where(name)} has no caption: {beside} is not there")
            continue
        try:
            text = " ".join(files.read(beside).decode("utf-8-sig").split())
        except UnicodeDecodeError:
            fault(f"{files.where(beside)} is not UTF-8 text")
            continue
        if not text:
            fault(f"{files.where(beside)} is empty")
            continue
        kept.append(row)
        texts.append(text)
    labels = None if found.labels is None else [found.labels[row] for row in kept]
    return Listing([found.pictures[row] for row in kept], labels, found.classes), texts


def numbered(labels: list[str]) -> tuple[list[int], list[str]]:
    """The class number of each label, and the classes' names in order; numbers come first and sort as numbers."""
    classes = sorted(set(labels), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    number = {name: i for i, name in enumerate(classes)}
    return [number[label] for label in labels], classes


def _table(files: Files, root: str, pictures: set[str], fault: Fault) -> dict[str, str]:
    """The rows of labels.csv, as picture -> label."""
    where = files.where(f"{root}labels.csv")
    try:
        text = files.read(f"{root}labels.csv").decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        if not {"file", "label"} <= set(reader.fieldnames or []):
            raise InputError(f"{where} should start with the line `file,label`")
        rows = [(reader.line_num, (row["file"] or "").strip(), (row["label"] or "").strip()) for row in reader]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {error}; save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{where} is not a table of commas and lines: {error}") from error
    table: dict[str, str] = {}
    for line, file, label in rows:
        name = root + str(PurePosixPath(file))
        if not file or not label:
            fault(f"{where}, line {line}: a file and a label are needed")
        elif name not in pictures:
            fault(f"{where}, line {line}: there is no picture {file!r}")
        elif name in table:
            fault(f"{where}, line {line}: {file!r} is listed a second time, as {label!r} after {table[name]!r}")
        else:
            table[name] = label
    return table


def _walk(folder: Path) -> list[str]:
    """Every file below ``folder``; a linked folder counts, once."""
    found, seen = [], set()

    def unreadable(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for here, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        found += [Path(here, name).relative_to(folder).as_posix() for name in names]
    return found


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
