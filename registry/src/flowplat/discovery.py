"""Which plugins are installed and in what state: read from the metadata of distributions, importing none of them."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Literal

from flowcore import __version__
from flowcore.errors import PluginError
from flowcore.plugin import GROUP
from flowplat import disabled

State = Literal["ok", "disabled", "incompatible", "duplicate", "broken"]

CORE = "core"
"""The name under which the platform's own components are; no plugin can have it."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""Names of plugins: they are typed on command lines, and name folders."""


@dataclass(frozen=True)
class Installed:
    """An installed plugin: its name, the distribution that brings it, and the module to import.

    ``state`` is what can be known without importing it, and ``cause``, where that is not ok, says why in one line with
    the way out.
    """

    name: str
    distribution: str
    version: str
    summary: str
    entry_point: EntryPoint
    state: State = "ok"
    cause: str = ""

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"


def installed() -> dict[str, list[Installed]]:
    """Installed plugins by name; a name with two entries is claimed by two distributions."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.dist is not None:
            # one found twice on sys.path is one
            found.setdefault(point.name, {}).setdefault(_owner(point, point.dist), point)
    off = disabled.names()
    return {
        name: [_installed(name, owner, point, claims.values(), name in off) for owner, point in claims.items()]
        for name, claims in found.items()
    }


def _owner(point: EntryPoint, distribution: Distribution) -> str:
    # a distribution that an interrupted install left without metadata is listed, not stumbled over
    return str(distribution.metadata["Name"] or point.module.partition(".")[0])


def _installed(name: str, owner: str, point: EntryPoint, claims: Collection[EntryPoint], off: bool) -> Installed:
    assert point.dist is not None
    metadata = point.dist.metadata
    version = metadata["Version"] or "?"
    wanted = _unmet(point.dist)
    state: State = "ok"
    cause = ""
    if name == CORE or not NAME.fullmatch(name):
        reserved = (
            "is the platform's own name" if name == CORE else "is no name: lower-case letters, digits, '-' and '_'"
        )
        state, cause = "broken", f"{name!r} {reserved}; its author has to choose another"
    elif off:
        state, cause = "disabled", f"it is disabled; `platform enable {name}` switches it on"
    elif len(claims) > 1:
        owners = " and ".join(f"{_owner(one, one.dist)} {one.dist.version}" for one in claims if one.dist)
        state, cause = "duplicate", f"two distributions bring a plugin named {name!r}: {owners}; uninstall one of them"
    elif wanted is not None:
        state, cause = (
            "incompatible",
            f"it requires {wanted}, and this is flowplat {__version__}; install a release for it",
        )
    return Installed(name, owner, version, metadata["Summary"] or "", point, state, cause)


def _unmet(distribution: Distribution) -> str | None:
    """What a distribution requires of flowplat, whose version is that of the plugin interface, where this is not it."""
    for line in distribution.requires or ():
        if re.match(r"flowplat(?![\w.-])", line, re.IGNORECASE):
            from packaging.requirements import InvalidRequirement, Requirement

            try:
                wanted = Requirement(line)
            except InvalidRequirement:
                return line
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if applies and not wanted.specifier.contains(__version__, prereleases=True):
                return f"flowplat{wanted.specifier}"
    return None


def find(name: str) -> Installed:
    """The installed plugin called ``name``. Raises ``PluginError`` when there is none, or it is not ok."""
    known = installed()
    claims = known.get(name, [])
    if not claims:
        close = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}"
        raise PluginError(f"no plugin named {name!r} is installed; {hint}; `platform search` knows more")
    plugin = claims[0]
    if plugin.state == "duplicate":
        raise PluginError(plugin.cause)
    if plugin.state != "ok":
        raise PluginError(f"{plugin} is {plugin.state}: {plugin.cause}")
    return plugin
