"""The catalogue: what is known of published plugins, one TOML file each.

The shipped one is read from the package, so that searching needs no network; another is read from where
``--catalog FILE|DIR|URL`` says.
"""

import re
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flowcore import __version__
from flowcore.errors import InputError, MachineError, UsageError
from flowplat.discovery import CORE, NAME

SHIPPED = Path(__file__).with_name("catalog")
LIMIT = 4_000_000
"""The most bytes of a catalogue that are read from a URL."""


def _version(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion:
        raise ValueError(f"{text!r} is no version") from None
    return text


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is no range of versions such as '>=0.1,<0.2'") from None
    return text


def _plugin(text: str) -> str:
    if text == CORE or not NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a plugin: lower-case letters, digits, '-' and '_'")
    return text


def _shaped(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is no {what}")
        return text

    return AfterValidator(check)


Line = Annotated[str, _shaped(r"[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*", "line of text")]


class _Table(BaseModel):
    """Frozen and strict; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Release(_Table):
    """One published wheel: where it is, what it hashes to, and which flowplat it is for."""

    version: Annotated[str, AfterValidator(_version)]
    url: Annotated[str, _shaped(r"(https://[^\s#/]+/|file:///)[^\s#]+\.whl", "https:// or file:// address of a wheel")]
    sha256: Annotated[str, _shaped(r"[0-9a-f]{64}", "sha256: 64 digits of 0-9 and a-f")]
    requires: Annotated[str, AfterValidator(_specifier)]

    @property
    def fits(self) -> bool:
        """Whether it is for the flowplat that is installed."""
        return SpecifierSet(self.requires).contains(__version__, prereleases=True)


class Entry(_Table):
    """One plugin. ``reviewed`` is the day on which somebody of this project last read it; None if nobody has."""

    plugin: Annotated[str, AfterValidator(_plugin)]
    distribution: Annotated[str, _shaped(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", "name of a distribution")]
    summary: Line
    licence: Annotated[str, _shaped(r"[A-Za-z0-9.+() -]*[A-Za-z0-9.+)]", "SPDX licence such as 'Apache-2.0'")]
    homepage: Annotated[str, _shaped(r"https://[^\s]+", "https:// address")] | None = None
    reviewed: date | None = None
    releases: list[Release] = Field(default_factory=list)

    def latest(self, wanted: str = "") -> Release | None:
        """The newest release within ``wanted`` (as in ``>=1,<2``): one for the flowplat that is installed before one
        that is not, and a final one before a preview. None when there is none."""
        within = [one for one in self.releases if SpecifierSet(wanted).contains(one.version, prereleases=True)]
        return max(within, key=_order, default=None)


def _order(release: Release) -> tuple[bool, bool, Version]:
    version = Version(release.version)
    return release.fits, not version.is_prerelease, version


def read(text: str, origin: str) -> list[Entry]:
    """The entries of one file: a plugin's keys, or several plugins as ``[[plugins]]`` tables.

    Raises ``UsageError`` that names ``origin`` and the key.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin} is no TOML: {error}") from error
    tables: Any = content.get("plugins", [content])
    if "plugins" in content and (len(content) > 1 or not isinstance(tables, list)):
        raise UsageError(f"{origin}: a catalogue of several plugins holds [[plugins]] tables and nothing else")
    found = []
    for number, table in enumerate(tables):
        try:
            entry = Entry.model_validate(table)
        except ValidationError as error:
            key = f"plugins.{number}." if "plugins" in content else ""
            raise UsageError(f"{origin}: {_fault(error, key)}") from error
        versions = [Version(release.version) for release in entry.releases]
        if len(set(versions)) < len(versions):
            raise UsageError(f"{origin}: {entry.plugin} has two releases of one version")
        found.append(entry)
    return found


def _fault(error: ValidationError, prefix: str) -> str:
    one = error.errors()[0]
    key = prefix + ".".join(map(str, one["loc"]))
    match one["type"]:
        case "extra_forbidden":
            return f"{key}: there is no such key"
        case "missing":
            return f"{key} is missing"
    return f"{key}: {one['msg'].removeprefix('Value error, ')}".lstrip(": ")


def entries(catalog: str | None = None) -> list[Entry]:
    """All entries, by name: of the shipped catalogue, or of that in a file, a folder or at an https:// or file:// URL.

    Raises ``InputError`` when there is none, ``UsageError`` when it is not as it should be, ``MachineError`` when the
    network fails.
    """
    if catalog is not None and "://" in catalog:
        found = read(_download(catalog), catalog)
    else:
        place = SHIPPED if catalog is None else Path(catalog)
        files = sorted(place.glob("*.toml")) if place.is_dir() else [place]
        if not files:
            raise InputError(f"{place} holds no .toml file; a catalogue has one for each plugin")
        found = [entry for file in files for entry in read(_text(file), str(file))]
    for what in ("plugin", "distribution"):
        names = [canonicalize_name(getattr(entry, what)) for entry in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"{catalog or 'the catalogue'}: the {what} {min(twice)!r} is there twice")
    return sorted(found, key=lambda entry: entry.plugin)


def matching(found: Sequence[Entry], words: Sequence[str]) -> list[Entry]:
    """Those whose name or summary holds every word, in any case of letters."""
    return [
        entry for entry in found
        if all(word.lower() in f"{entry.plugin} {entry.distribution} {entry.summary}".lower() for word in words)
    ]  # fmt: skip


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"the catalogue {file} cannot be read: {reason}") from error


def _download(url: str) -> str:
    from http.client import HTTPException
    from urllib.request import urlopen

    if not url.startswith(("https://", "file://")):
        raise UsageError(f"the catalogue {url} is neither at https:// nor at file://; name one that is, or a file")
    try:
        with urlopen(url, timeout=20) as answer:
            if not answer.geturl().startswith(("https://", "file://")):
                raise UsageError(f"the catalogue {url} leads to {answer.geturl()}, which is not https://")
            content = answer.read(LIMIT + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise MachineError(f"the catalogue {url} cannot be fetched: {' '.join(str(error).split())}") from error
    if len(content) > LIMIT:
        raise UsageError(f"the catalogue {url} has more than {LIMIT // 1_000_000} MB; no catalogue is so large")
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the catalogue {url} is no text") from error
