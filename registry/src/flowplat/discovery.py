"""Which plugins are installed: read from the entry points of distributions, importing none of them."""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from flowcore.errors import PluginError
from flowcore.plugin import GROUP


@dataclass(frozen=True)
class Installed:
    """An installed plugin: its name, the distribution that brings it, and the module to import."""

    name: str
    distribution: str
    version: str
    summary: str
    entry_point: EntryPoint


def installed() -> dict[str, list[Installed]]:
    """Installed plugins by name; a name with two entries is claimed by two distributions."""
    found: dict[str, list[Installed]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        distribution = point.dist
        if distribution is None:
            continue
        metadata = distribution.metadata
        # a distribution that an interrupted install left without metadata is listed, not stumbled over
        owner, version = metadata["Name"] or point.module.partition(".")[0], metadata["Version"] or "?"
        plugin = Installed(point.name, owner, version, metadata["Summary"] or "", point)
        claims = found.setdefault(point.name, [])
        if all(other.distribution != plugin.distribution for other in claims):  # one found twice on sys.path is one
            claims.append(plugin)
    return found


def find(name: str) -> Installed:
    """The installed plugin called ``name``. Raises ``PluginError`` when there is none, or more than one."""
    known = installed()
    claims = known.get(name, [])
    if len(claims) > 1:
        owners = " and ".join(f"{claim.distribution} {claim.version}" for claim in claims)
        raise PluginError(f"two distributions bring a plugin named {name!r}: {owners}; uninstall one of them")
    if not claims:
        close = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}"
        raise PluginError(f"no plugin named {name!r} is installed; {hint}")
    return claims[0]
