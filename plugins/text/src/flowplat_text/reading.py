"""Texts as a user has them: plain files, lines of JSON, columns of tables, packed or not, or the standard input."""

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from flowcore import files
from flowcore.errors import InputError, MachineError

PLAIN = (".txt", ".md", ".text", ".rst")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst")
STDIN = "-"


def found(paths: Sequence[str]) -> list[str]:
    """The files that paths, folders and patterns name, each in the order of names; "-" is the standard input.

    Of a folder those are taken whose ending is known, hidden ones left out. Raises ``InputError`` for what names none.
    """
    files: list[str] = []
    for path in paths:
        if path == STDIN or Path(path).is_file():
            files.append(path)
            continue
        if Path(path).is_dir():
            inside = sorted(str(one) for one in Path(path).rglob("*") if one.is_file() and _known(one, Path(path)))
            if not inside:
                raise InputError(
                    f"{path} holds no file of text; known are {', '.join((*PLAIN, *TABLES))}, packed or not"
                )
            files += inside
            continue
        named = sorted(one for one in glob.glob(path, recursive=True) if Path(one).is_file())
        if not named:
            what = "names no file" if glob.has_magic(path) else "does not exist"
            raise InputError(f"{path} {what}; a file, a folder, a pattern, or - for the standard input")
        files += named
    return files


def _known(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and ending(str(path)) in (*PLAIN, *TABLES)


def ending(path: str) -> str:
    """The ending that says the format, without that of a packer."""
    name = Path(path)
    return (name.with_suffix("") if name.suffix.lower() in PACKED else name).suffix.lower()


def texts(paths: Sequence[str], field: str = "text") -> Iterator[str]:
    """Every text of some files: a plain file is one, of a table each row is, by the column or key ``field``.

    Raises ``InputError`` naming the file, and the line where there is one: empty, not UTF-8, binary, without the field.
    """
    for path in found(paths):
        for row in rows(path, field):
            yield row[field]


def rows(path: str, field: str) -> Iterator[dict[str, Any]]:
    """The rows of one file, each a dict with text under ``field``; a plain file has one. Raises as ``texts`` does."""
    kind, empty = ending(path), True
    if kind == ".parquet":
        source = _parquet(path, field)
    elif kind in (".jsonl", ".ndjson"):
        source = _lines_of_json(path)
    elif kind in (".csv", ".tsv"):
        source = _table(path, "\t" if kind == ".tsv" else ",")
    else:
        source = iter([(path, {field: _text(path)})])
    for where, row in source:
        if not isinstance(row, dict) or field not in row:
            there = f"; it has {', '.join(map(str, row))}" if isinstance(row, dict) and row else ""
            raise InputError(f"{where} has no {field!r}{there}: name the column or key of the texts with field=NAME")
        if not isinstance(row[field], str):
            raise InputError(f"{where}: {field!r} is {type(row[field]).__name__}, not text")
        if row[field].strip():
            empty = False
            yield row
    if empty:
        raise InputError(f"{'the standard input' if path == STDIN else path} is empty; there is no text in it")


def _open(path: str) -> BinaryIO:
    """A file unpacked as it is read."""
    suffix = Path(path).suffix.lower()
    if path == STDIN:
        return sys.stdin.buffer
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            way_out = "pip install 'flowplat-text[zst]', or unpack it"
            raise MachineError(f"{path}: reading .zst needs the package zstandard; {way_out}") from error
        return zstandard.open(path, "rb")  # type: ignore[no-any-return]
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix, open)
    return opener(path, "rb")  # type: ignore[no-any-return]


def _text(path: str) -> str:
    """A whole file as text."""
    name = "the standard input" if path == STDIN else path
    try:
        with _open(path) as file:
            content = file.read()
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise InputError(f"{name} cannot be read: {error}") from error
        raise
    if (place := content.find(b"\0")) >= 0:
        raise InputError(f"{name} is binary, byte {place} is 0; only text is read, as UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        way_out = "only text is read; save it as UTF-8"
        raise InputError(
            f"{name} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; {way_out}"
        ) from error


def _lines_of_json(path: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise InputError(f"{where} is no JSON: {error}") from error


def _table(path: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    with suppress(OverflowError):
        csv.field_size_limit(2**31 - 1)  # a cell may hold a whole text
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter)
    try:
        for row in reader:
            yield f"{path}, line {reader.line_num}", {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no table: {error}") from error


def _parquet(path: str, field: str) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        way_out = "pip install 'flowplat-text[parquet]'"
        raise MachineError(f"{path}: reading .parquet needs the package pyarrow; {way_out}") from error
    try:
        file = parquet.ParquetFile(path)
        names, number = file.schema_arrow.names, 0
        if field not in names:
            yield path, dict.fromkeys(names)
            return
        for batch in file.iter_batches(columns=names):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error


def stamp(paths: Sequence[str]) -> list[list[Any]]:
    """``flowcore.files.stamp`` of what is found at ``paths``, but for the standard input."""
    return files.stamp(path for path in found(paths) if path != STDIN)
