"""What a wheel says of itself, read from the file: nothing of it is installed, imported or run."""

import configparser
import re
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from flowcore.errors import IntegrityError
from flowcore.plugin import GROUP


@dataclass(frozen=True)
class Wheel:
    """A distribution's name and version, its licence in a few words, what it requires, and the plugins it brings."""

    name: str
    version: str
    licence: str
    requires: tuple[str, ...]
    plugins: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def read(path: Path) -> Wheel:
    """Read a wheel. Raises ``IntegrityError`` when it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            (info,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            metadata = HeaderParser().parsestr(str(archive.read(info), "utf-8"))
            points = info.replace("METADATA", "entry_points.txt")
            plugins = _plugins(str(archive.read(points), "utf-8")) if points in archive.namelist() else ()
            name, version = metadata["Name"].strip(), metadata["Version"].strip()
    except (zipfile.BadZipFile, ValueError, AttributeError, configparser.Error) as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(f"{path.name} is no wheel, or a damaged one ({reason}); fetch it again") from error
    return Wheel(name, version, _licence(metadata), tuple(metadata.get_all("Requires-Dist", ())), plugins)


def _plugins(text: str) -> tuple[str, ...]:
    points = configparser.RawConfigParser(delimiters="=", strict=False)
    points.optionxform = str  # type: ignore[assignment,method-assign]
    points.read_string(text)
    return tuple(points[GROUP]) if GROUP in points else ()


def _licence(metadata: Message) -> str:
    """As it is stated first: an SPDX expression, the first line of a text, or a classifier's last word."""
    trove = [one for one in metadata.get_all("Classifier", ()) if one.startswith("License ::")]
    found = metadata["License-Expression"] or metadata["License"] or ", ".join(t.rpartition(" :: ")[2] for t in trove)
    return (found or "").strip().partition("\n")[0][:80] or "not stated"
