"""What installing would do: what pip would install and change, read whole before anything is.

Nothing of a plugin runs before the user has agreed: only wheels are taken from elsewhere, and they are read, not
imported. (A folder of the user's own is built by pip to learn what it requires.)
"""

import configparser
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from flowcore.errors import IntegrityError, PluginError
from flowcore.plugin import GROUP
from flowplat import discovery, source
from flowplat.catalogue import Entry
from flowplat.pip import KEPT, clash, kept, pip
from flowplat.wanted import Wanted, plugins_of_folder

PINS = "pins.txt"
"""The requirements file that makes pip install what was shown, and no other file."""


@dataclass(frozen=True)
class Item:
    """One distribution that would be installed, from ``url``.

    ``before`` is the version it replaces; ``requested`` is false for what only comes along; ``plugins`` is None where
    only installing it will tell; ``exactly`` is the line that makes pip install this file and no other, or None for a
    folder, whose content nothing fixes.
    """

    name: str
    version: str
    url: str
    sha256: str | None
    licence: str
    requires: tuple[str, ...]
    requested: bool
    before: str | None
    plugins: tuple[str, ...] | None = ()
    review: str = "not reviewed"
    exactly: str | None = None
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def plan(wanted: Sequence[Wanted], entries: Sequence[Entry], scratch: Path) -> list[Item]:
    """What installing ``wanted`` would install and change; empty where all of it is installed.

    Files are downloaded into the folder ``scratch``. Raises ``PluginError`` where something would have to change that
    install never changes, is no plugin, or brings one that another distribution brings; ``IntegrityError`` where a file
    is not what it should be.
    """
    for one in wanted:
        _refuse_other(one)
    constraints, report = scratch / "constraints.txt", scratch / "report.json"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept().items()))
    what = ", ".join(one.word for one in wanted)
    told = [word for one in wanted for word in one.arguments]
    pip(what, "install", "--dry-run", "--report", report, "-c", constraints, "--upgrade", "--only-binary=:all:", *told)
    items = [_item(row, wanted) for row in json.loads(report.read_text(encoding="utf-8"))["install"]]
    if exactly := [item.exactly for item in items if item.exactly]:
        pins = scratch / PINS
        pins.write_text("".join(f"{line}\n" for line in exactly), encoding="utf-8")
        pip(what, "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, "-r", pins)
    wheels = {parse_wheel_filename(path.name)[:2]: path for path in scratch.glob("*.whl")}
    by_name = {(canonicalize_name(name), str(version)): path for (name, version), path in wheels.items()}
    items = [_read(item, by_name.get((canonicalize_name(item.name), item.version)), entries) for item in items]
    _refuse(items, wanted)
    return items


def _refuse_other(wanted: Wanted) -> None:
    """pip would leave a file of the same version in place, though it may be another file."""
    old = there(wanted.name) if wanted.name and wanted.sha256 else None
    if old is None or old.version != wanted.version:
        return
    before = source.sha256(old)
    if before is not None and before != wanted.sha256:
        raise PluginError(
            f"{wanted.name} {old.version} is installed from another file (sha256 {before}, and not {wanted.sha256}); "
            f"`platform uninstall {wanted.name}` makes room for it"
        )


def there(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _item(row: dict[str, Any], wanted: Sequence[Wanted]) -> Item:
    """A row of pip's report."""
    metadata, origin = row["metadata"], row["download_info"]
    name, version, url = metadata["name"], metadata["version"], origin["url"]
    archive = origin.get("archive_info") or {}
    sha256 = (archive.get("hashes") or {}).get("sha256")
    old = there(name)
    item = Item(
        name, version, url, sha256, metadata.get("license_expression") or metadata.get("license") or "",
        tuple(metadata.get("requires_dist", ())), bool(row["requested"]), old.version if old else None,
    )  # fmt: skip
    if sha256 is not None:
        told = f"{name} @ {url}" if row["is_direct"] else f"{name}=={version}"
        return replace(item, exactly=f"{told} --hash=sha256:{sha256}")
    if "archive_info" in origin:
        raise IntegrityError(f"{item} comes from {url} without a sha256; name its wheel instead")
    folders = [one for one in wanted if one.folder is not None and one.folder.as_uri() == url.rstrip("/")]
    if not folders:  # a commit of a version control system: its hash is in its address
        commit = (origin.get("vcs_info") or {}).get("commit_id", "")
        return replace(item, plugins=None, arguments=(f"{name} @ {origin['vcs_info']['vcs']}+{url}@{commit}",))
    (folder, *_) = folders
    assert folder.folder is not None
    return replace(item, plugins=plugins_of_folder(folder.folder), arguments=tuple(folder.arguments))


def _read(item: Item, wheel: Path | None, entries: Sequence[Entry]) -> Item:
    """``item`` with what its wheel, and the catalogue, say of it."""
    metadata = None
    if wheel is not None:
        try:
            metadata, points = _look(wheel)
        except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, configparser.Error, StopIteration) as error:
            raise IntegrityError(f"{item} from {item.url} is no wheel that can be read: {error}") from error
        item = replace(item, plugins=points)
    review = "not reviewed"
    for entry in entries:
        if canonicalize_name(entry.distribution) == canonicalize_name(item.name) and entry.reviewed:
            theirs = item.sha256 is not None and item.sha256 in [one.sha256 for one in entry.releases]
            review = f"{entry.reviewed}" if theirs else f"{review}: this is not the file of the catalogue"
    return replace(item, licence=_licence(metadata, item.licence), review=review)


def _look(wheel: Path) -> tuple[Message, tuple[str, ...]]:
    """The metadata of a wheel, and the plugins it brings."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)).rpartition("/")[0]
        metadata = HeaderParser().parsestr(str(archive.read(f"{info}/METADATA"), "utf-8"))
        points = configparser.RawConfigParser(delimiters="=", strict=False)
        points.optionxform = str  # type: ignore[assignment,method-assign]
        if f"{info}/entry_points.txt" in names:
            points.read_string(str(archive.read(f"{info}/entry_points.txt"), "utf-8"))
    return metadata, tuple(points[GROUP]) if GROUP in points else ()


def _licence(metadata: Message | None, stated: str) -> str:
    """The licence in a few words; what a wheel says in full is cut to its first line."""
    found = (metadata and (metadata["License-Expression"] or metadata["License"])) or stated
    if not found and metadata:
        trove = [one for one in metadata.get_all("Classifier", ()) if one.startswith("License ::")]
        found = ", ".join(one.rpartition(" :: ")[2] for one in trove)
    return str(found or "not stated").strip().splitlines()[0][:80]


def _refuse(items: Sequence[Item], wanted: Sequence[Wanted]) -> None:
    for item in items:
        if canonicalize_name(item.name) in KEPT:  # pip's constraints forbid it; this is the second lock
            raise PluginError(f"{item} would come in place of {item.before}, and install never changes {item.name}")
        for line in item.requires:  # a wheel that pip took although its constraints forbid it
            if unmet := _unmet(line, kept()):
                name = canonicalize_name(unmet.name)
                raise PluginError(clash(str(item), f"{unmet.name}{unmet.specifier}", unmet.name, kept()[name]))
    for item in items:
        if item.requested and item.plugins == ():
            raise no_plugin(item)
    _refuse_twice(items)
    _refuse_broken(items)
    for one in wanted:
        if one.entry is not None:
            for item in items:
                if canonicalize_name(item.name) == one.name and one.entry.plugin not in (item.plugins or ()):
                    brought = " and ".join(item.plugins or ()) or "none"
                    raise PluginError(
                        f"{item} brings no plugin {one.entry.plugin!r}, though the catalogue says so, but {brought}"
                    )


def no_plugin(item: Item) -> PluginError:
    return PluginError(
        f"{item} is no plugin of flowplat: it has no entry point in the group {GROUP}; `pip install` is for such"
    )


def _unmet(line: str, versions: Mapping[str, str]) -> Requirement | None:
    """What the line of a distribution requires, where one of ``versions`` does not meet it."""
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return None
    version = versions.get(canonicalize_name(wanted.name))
    if version is None or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
        return None
    return None if wanted.specifier.contains(version, prereleases=True) else wanted


def _refuse_twice(items: Sequence[Item]) -> None:
    """No two distributions may bring one plugin."""
    coming = {canonicalize_name(item.name) for item in items}
    claims = {
        name: str(plugin.distribution)
        for name, plugins in discovery.installed().items()
        for plugin in plugins
        if canonicalize_name(plugin.distribution) not in coming
    }
    for item in items:
        for name in item.plugins or ():
            if name in claims:
                raise PluginError(
                    f"{item} brings a plugin {name!r}, and so does {claims[name]}; one of them only can be installed, "
                    f"`platform uninstall {claims[name]}` makes room"
                )
            claims[name] = item.name


def _refuse_broken(items: Sequence[Item]) -> None:
    """What comes along may not break flowplat or a plugin that stays: pip looks only at what it installs."""
    coming: dict[str, str] = {canonicalize_name(item.name): item.version for item in items}
    what = " and ".join(str(item) for item in items if item.requested)
    stay = {plugin.distribution for claims in discovery.installed().values() for plugin in claims} | {"flowplat"}
    for name in sorted(stay, key=canonicalize_name):
        old = there(name)
        if old is None or canonicalize_name(name) in coming:
            continue
        for line in old.requires or ():
            if unmet := _unmet(line, coming):
                raise PluginError(
                    f"{what} would put {unmet.name} {coming[canonicalize_name(unmet.name)]} here, and {name} "
                    f"{old.version} requires {unmet.name}{unmet.specifier}; install it in an environment of its own"
                )
