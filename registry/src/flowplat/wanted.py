"""What ``platform install`` is asked for: each word or line of a list, and what pip is to be told for it."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from flowcore import __version__, files
from flowcore.errors import InputError, PluginError, UsageError
from flowcore.plugin import GROUP
from flowplat.catalogue import Entry
from flowplat.pip import KEPT

PREFIX = "flowplat-"


@dataclass(frozen=True)
class Wanted:
    """One thing to install.

    ``told`` is what pip is told: a requirement, or the path of a ``folder``. ``name``, and of a wheel ``url``,
    ``version`` and ``sha256`` are what is known of it beforehand; ``entry`` is the catalogue's, where the word was one
    of its names.
    """

    word: str
    told: str
    name: str | None = None
    url: str | None = None
    version: str | None = None
    sha256: str | None = None
    folder: Path | None = None
    editable: bool = False
    entry: Entry | None = None

    @property
    def arguments(self) -> list[str]:
        return ["-e", self.told] if self.editable else [self.told]


def parse(word: str, entries: Sequence[Entry], editable: bool = False, listed: bool = False) -> Wanted:
    """What ``word`` names: a folder or wheel that exists, a plugin of the catalogue, or a requirement for the index.

    Raises ``UsageError``, ``InputError`` or ``PluginError`` with the way out. An index is asked for a name that does
    not begin with flowplat- only where the version stands with it, or the name is ``listed`` in a file.
    """
    path = Path(word)
    if "://" not in word and _is_path(word, path):
        wanted = _path(word, path, editable)
    else:
        wanted = _url(word, word) if re.match(r"[a-z+]+://", word) else _named(word, entries, listed)
        if editable:
            raise UsageError(f"--editable is for folders, and {word} is none")
    if wanted.name in KEPT:
        raise UsageError(f"{wanted.name} is no plugin, and install never changes it; `pip install` does")
    return wanted


def _is_path(word: str, path: Path) -> bool:
    """A bare word is a folder only where that holds a project: ``images`` may be a folder of pictures."""
    return word.endswith(".whl") or ("@" not in word and "/" in word) or word in (".", "..") or _is_project(path)


def _is_project(path: Path) -> bool:
    return (path / "pyproject.toml").is_file() or (path / "setup.py").is_file()


def _path(word: str, path: Path, editable: bool) -> Wanted:
    if path.is_dir():
        if not _is_project(path):
            raise InputError(f"{word} is no project: it has no pyproject.toml; `platform new` makes one")
        name = project(path).get("name")
        known = canonicalize_name(name) if isinstance(name, str) else None
        return Wanted(word, str(path.resolve()), known, folder=path.resolve(), editable=editable)
    if not path.is_file():
        raise InputError(f"there is no file or folder {word}; name a wheel, a project's folder or a plugin")
    if not word.endswith(".whl"):
        raise InputError(f"{word} is no wheel (.whl), which is what can be looked at before it is installed")
    if editable:
        raise UsageError(f"--editable is for folders, and {word} is none")
    return _wheel(word, path.resolve().as_uri(), files.sha256(path))


def _wheel(word: str, url: str, sha256: str | None) -> Wanted:
    try:
        name, version, _, _ = parse_wheel_filename(unquote(urlsplit(url).path).rpartition("/")[2])
    except InvalidWheelFilename as error:
        raise InputError(f"{word} is no wheel by its name: {error}") from error
    return Wanted(word, f"{name} @ {url}{f'#sha256={sha256}' if sha256 else ''}", name, url, str(version), sha256)


def _url(word: str, url: str) -> Wanted:
    address, _, fragment = url.partition("#")
    if not address.startswith(("https://", "file:///")):
        raise UsageError(f"{word} is neither at https:// nor at file://; nothing else is fetched")
    if not urlsplit(address).path.endswith(".whl"):
        raise UsageError(f"{word} is no wheel (.whl), which is what can be looked at before it is installed")
    found = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if fragment and found is None:
        raise UsageError(
            f"{word}: behind # stands what the file hashes to, as in #sha256= and 64 digits of 0-9 and a-f"
        )
    return _wheel(word, address, found[1] if found else None)


def _named(word: str, entries: Sequence[Entry], listed: bool) -> Wanted:
    try:
        wanted = Requirement(word)
    except InvalidRequirement as error:
        raise UsageError(f"{word!r} names nothing that can be installed; name a plugin, a wheel or a folder") from error
    name = canonicalize_name(wanted.name)
    if wanted.url is not None:
        return _at(word, name, wanted.url)
    for entry in entries:
        if wanted.name == entry.plugin and not wanted.extras:
            return _of_catalogue(word, wanted, entry)
    close = get_close_matches(wanted.name, [entry.plugin for entry in entries], n=1, cutoff=0.7)
    if name in KEPT or name.startswith(PREFIX) or listed or (wanted.specifier and not close):
        return Wanted(word, str(wanted), name)
    if close:
        raise PluginError(f"the catalogue has no plugin {wanted.name!r}; did you mean {close[0]!r}?")
    raise PluginError(
        f"the catalogue has no plugin {wanted.name!r}; `platform search` lists those it has, and {PREFIX}{name} asks "
        "the index"
    )


def _at(word: str, name: str, url: str) -> Wanted:
    """A requirement ``name @ url``, as ``platform freeze`` writes it."""
    if re.match(r"(git|hg|svn|bzr)\+", url):
        return Wanted(word, word, name)
    folder = Path(url2pathname(urlsplit(url).path))
    if url.startswith("file:///") and not url.partition("#")[0].endswith(".whl"):
        if not _is_project(folder):
            raise InputError(f"{word}: {folder} is no project folder; edit the line, or put the project there")
        return Wanted(word, str(folder), name, folder=folder)
    wanted = _url(word, url)
    if wanted.name != name:
        raise UsageError(f"{word}: the wheel is one of {wanted.name}")
    if url.startswith("file:///") and not folder.is_file():
        raise InputError(f"{word}: there is no file {folder}; edit the line, or put the wheel there")
    return wanted


def _of_catalogue(word: str, wanted: Requirement, entry: Entry) -> Wanted:
    if not entry.releases:
        raise PluginError(f"{entry.plugin} has no release yet; `platform install FOLDER` installs it from its source")
    chosen = entry.latest(str(wanted.specifier))
    if chosen is None:
        versions = ", ".join(one.version for one in entry.releases)
        raise PluginError(f"{entry.plugin} has no release {wanted.specifier}; there are {versions}")
    if not chosen.fits:
        raise PluginError(
            f"{entry.plugin} {chosen.version} requires flowplat{chosen.requires}, and flowplat {__version__} is "
            "installed, which install never changes; `pip install --upgrade flowplat` renews it"
        )
    name = canonicalize_name(entry.distribution)
    told = f"{name} @ {chosen.url}#sha256={chosen.sha256}"
    return Wanted(word, told, name, chosen.url, chosen.version, chosen.sha256, entry=entry)


def read_list(file: Path, entries: Sequence[Entry]) -> tuple[list[Wanted], str | None]:
    """What a list such as ``platform freeze`` writes asks for, and the flowplat it was made with if it says so."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"the list {file} cannot be read: {reason}") from error
    found: list[Wanted] = []
    made_with = None
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        if ours := re.fullmatch(r"flowplat\s*==\s*([\w.+!-]+)", line):
            made_with = ours[1]
            continue
        folder = re.fullmatch(r"(?:-e|--editable)[\s=]\s*(.+)", line)
        if line.startswith("-") and folder is None:
            raise UsageError(f"{file}, line {number}: {line.split()[0]} is not for such a list; leave it out")
        try:
            one = parse(folder[1] if folder else line, entries, editable=folder is not None, listed=True)
        except (UsageError, PluginError) as error:
            raise type(error)(f"{file}, line {number}: {error}") from error
        found.append(one)
    if not found and made_with is None:
        raise InputError(f"the list {file} is empty; `platform freeze` writes one")
    return found, made_with


def project(folder: Path) -> dict[str, Any]:
    """The ``[project]`` table of a folder; empty where there is none. Raises ``InputError`` where it is no TOML."""
    file = folder / "pyproject.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    return table if isinstance(table, dict) else {}


def plugins_of_folder(folder: Path) -> tuple[str, ...] | None:
    """The plugins that a project states; None where only building it would tell."""
    table = project(folder)
    if not table or "entry-points" in table.get("dynamic", ()):
        return None
    points = table.get("entry-points", {})
    return tuple(points.get(GROUP, ())) if isinstance(points, dict) else None
