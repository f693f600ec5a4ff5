"""What installing would do: what pip would install and change, read whole before anything is.

Nothing of a stranger's runs before the user has agreed: the wheels that are named are fetched and read, not imported,
and all that comes along has to be a wheel too. A folder is built, to learn what it requires; and pip would build what a
distribution of an index requires by its address, which PyPI forbids and other indexes may not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flowcore import files
from flowcore.errors import InputError, IntegrityError, PluginError
from flowcore.plugin import GROUP
from flowplat import discovery, source, wheel
from flowplat.catalogue import Entry
from flowplat.pip import KEPT, clash, kept, other_file, pip
from flowplat.wanted import Wanted, plugins_of_folder, project

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
    what = ", ".join(one.word for one in wanted)
    fetched = _files(what, {one.told: one.url for one in wanted if one.url is not None}, scratch)
    for one in wanted:
        if one.url is not None:
            _refuse_requirements(_looked_at(fetched[one.told], one.word, one.sha256))
    constraints, report, pins = scratch / "constraints.txt", scratch / "report.json", scratch / PINS
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept().items()))
    told = [word for one in wanted for word in one.arguments]
    pip(what, "install", "--dry-run", "--report", report, "-c", constraints, "--upgrade", "--only-binary=:all:", *told)
    items = [_item(row, wanted) for row in json.loads(report.read_text(encoding="utf-8"))["install"]]
    paths = _files(what, {item.exactly: item.url for item in items if item.exactly}, scratch)
    items = [_told(item, paths.get(item.exactly or ""), entries) for item in items]
    pins.write_text("".join(f"{item.exactly}\n" for item in items if item.exactly), encoding="utf-8")
    _refuse(items, wanted)
    return items


def _files(what: str, urls: Mapping[str, str], scratch: Path) -> dict[str, Path]:
    """Where the wheels of requirements are: those of this machine in their place, the others fetched to ``scratch``."""
    if away := [line for line, url in urls.items() if not url.startswith("file:")]:
        lines = scratch / "away.txt"
        lines.write_text("".join(f"{line}\n" for line in away), encoding="utf-8")
        pip(what, "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, "-r", lines)
    return {line: _path(url) if url.startswith("file:") else scratch / _path(url).name for line, url in urls.items()}


def _path(url: str) -> Path:
    return Path(url2pathname(urlsplit(url).path))


def _looked_at(path: Path, what: str, sha256: str | None) -> wheel.Wheel:
    """What a wheel says, if it is the one that hashes to ``sha256``."""
    found = files.sha256(path) if path.is_file() else None
    if found is None:
        raise InputError(f"{what}: there is no file {path}")
    if sha256 not in (None, found):
        raise other_file(what, str(sha256), found)
    return wheel.read(path)


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


def _refuse_requirements(one: wheel.Wheel) -> None:
    """What needs no resolving: requirements that what stays does not meet, or that name a file somewhere."""
    versions = kept()
    for line in one.requires:
        if unmet := _unmet(line, versions):
            raise PluginError(clash(str(one), unmet, versions[canonicalize_name(unmet.name)]))
        wanted = _parsed(line)
        if wanted is not None and wanted.url is not None:
            raise PluginError(
                f"{one} requires a file at {wanted.url}, which cannot be looked at before it runs; its author can name "
                "a distribution of an index instead"
            )


def there(name: str) -> Distribution | None:
    """A distribution that is installed, or None."""
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
        name, version, url, sha256, metadata.get("license_expression") or metadata.get("license") or "not stated",
        tuple(metadata.get("requires_dist", ())), bool(row["requested"]), old.version if old else None,
    )  # fmt: skip
    if sha256 is not None:
        told = f"{name} @ {url}" if row["is_direct"] else f"{name}=={version}"
        return replace(item, exactly=f"{told} --hash=sha256:{sha256}")
    if "archive_info" in origin:
        raise IntegrityError(f"{item} comes from {url} without a sha256; name its wheel instead")
    if vcs := origin.get("vcs_info"):
        return replace(item, plugins=None, arguments=(f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}",))
    place = _path(url)
    folder = next((one for one in wanted if one.folder == place), None)
    if folder is None:
        raise PluginError(f"{item} would come from the folder {place}, which nobody has named; name it too")
    stated = project(place).get("license")
    licence = stated if isinstance(stated, str) else item.licence  # which an older pip leaves out of its report
    return replace(item, licence=licence, plugins=plugins_of_folder(place), arguments=tuple(folder.arguments))


def _told(item: Item, path: Path | None, entries: Sequence[Entry]) -> Item:
    """``item`` with what its wheel, and the catalogue, say of it."""
    if path is not None:
        said = _looked_at(path, str(item), item.sha256)
        item = replace(item, plugins=said.plugins, licence=said.licence)
    for entry in entries:
        if canonicalize_name(entry.distribution) == canonicalize_name(item.name) and entry.reviewed:
            reviewed = item.sha256 in [one.sha256 for one in entry.releases]
            item = replace(item, review=f"{entry.reviewed}" if reviewed else "not reviewed, it is another file")
    return item


def _refuse(items: Sequence[Item], wanted: Sequence[Wanted]) -> None:
    promised = {one.name: one.entry.plugin for one in wanted if one.entry is not None}
    for item in items:
        name, plugins = canonicalize_name(item.name), item.plugins or ()
        if name in KEPT:
            raise PluginError(f"{item} would come in place of {item.before}, and install never changes {item.name}")
        if item.requested and item.plugins == ():
            raise no_plugin(item)
        for plugin in plugins:
            if plugin == discovery.CORE or not discovery.NAME.fullmatch(plugin):
                raise PluginError(f"{item} brings a plugin {plugin!r}, which none can be called; tell its author")
        if name in promised and promised[name] not in plugins:
            raise PluginError(f"{item} brings {' and '.join(plugins)}, and not {promised[name]} as the catalogue says")
    _refuse_twice(items)
    _refuse_broken(items)


def no_plugin(item: Item) -> PluginError:
    return PluginError(
        f"{item} is no plugin of flowplat: it has no entry point in the group {GROUP}; `pip install` is for such"
    )


def _unmet(line: str, versions: Mapping[str, str]) -> Requirement | None:
    """What the line of a distribution requires, where one of ``versions`` does not meet it."""
    wanted = _parsed(line)
    if wanted is None or canonicalize_name(wanted.name) not in versions:
        return None
    return None if wanted.specifier.contains(versions[canonicalize_name(wanted.name)], prereleases=True) else wanted


def _parsed(line: str) -> Requirement | None:
    """A line of a distribution, unless it is none or applies to other machines or an extra only."""
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return None
    return wanted if wanted.marker is None or wanted.marker.evaluate({"extra": ""}) else None


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
                raise brings_too(item, name, claims[name])
            claims[name] = item.name


def brings_too(item: Item, plugin: str, other: str) -> PluginError:
    return PluginError(
        f"{item} brings a plugin {plugin!r}, and so does {other}; only one of them can be installed, and "
        f"`platform uninstall {other}` makes room"
    )


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
