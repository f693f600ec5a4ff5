"""Installing what a plan shows, and removing plugins; after each, a fresh process looks what is there."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from flowcore.errors import MachineError, PluginError
from flowplat import discovery
from flowplat.pip import pip
from flowplat.plan import PINS, Item, brings_too, no_plugin, there


def install(items: Sequence[Item], scratch: Path) -> set[str]:
    """Install what ``plan`` showed, every file by its hash, and return the plugins that are there now.

    A fresh process looks whether they are. Raises ``PluginError`` where one is not, when it has been removed again.
    """
    what = ", ".join(str(item) for item in items if item.requested)
    if any(item.exactly for item in items):
        told: list[str | Path] = ["--find-links", scratch, "-r", scratch / PINS]  # what plan has fetched is not again
        pip(what, "install", "--no-deps", "--only-binary=:all:", *told, changes=True)
    if loose := [word for item in items for word in item.arguments]:
        pip(what, "install", "--no-deps", *loose, changes=True)
    try:
        present = found()
    except MachineError as error:
        undo = [f"{item.name}=={item.before}" for item in items if item.before]
        way_out = f"pip install {' '.join(undo)}" if undo else f"pip uninstall {' '.join(item.name for item in items)}"
        raise MachineError(f"{error}; `python -m {way_out}` undoes what {what} changed") from error
    for item in items:
        name = canonicalize_name(item.name)
        brought = {plugin: owners for plugin, owners in present.items() if name in owners}
        twice = [(plugin, other) for plugin, owners in brought.items() for other in owners if other != name]
        if item.requested and not brought:
            fault = no_plugin(item)
        elif twice:
            fault = brings_too(item, *twice[0])
        else:
            continue
        uninstall([item.name])
        raise PluginError(f"{fault}; {item} was removed again")
    names = {canonicalize_name(item.name) for item in items}
    return {name for name, owners in present.items() if names & set(owners)}


def found() -> dict[str, list[str]]:
    """Plugins by name with the distributions that bring them, as a fresh process sees them."""
    code = (
        "import json; from flowplat.discovery import installed; "
        "print(json.dumps({name: [one.distribution for one in claims] for name, claims in installed().items()}))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise MachineError(f"the platform does not start any more: {done.stderr.strip().rpartition(chr(10))[2]}")
    return {
        name: [canonicalize_name(one) for one in owners]
        for name, owners in json.loads(done.stdout.splitlines()[-1]).items()
    }


def plugins_of(distributions: Iterable[str]) -> set[str]:
    """The plugins that distributions of these names bring, as far as they are installed."""
    names = set(map(canonicalize_name, distributions))
    known = discovery.installed()
    return {
        name for name, claims in known.items() if any(canonicalize_name(one.distribution) in names for one in claims)
    }


def brings(names: Iterable[str]) -> dict[str, list[str]]:
    """The distributions that ``names`` (of plugins or of distributions) mean, with all plugins each brings.

    Raises ``PluginError`` where a name is of none, or of a plugin that two bring.
    """
    known = discovery.installed()
    owners: dict[str, list[str]] = {}
    for plugin, claims in known.items():
        for claim in claims:
            owners.setdefault(claim.distribution, []).append(plugin)
    meant: dict[str, list[str]] = {}
    for name in names:
        by_name = [owner for owner in owners if canonicalize_name(owner) == canonicalize_name(name)]
        claims = known.get(name, [])
        if len(claims) > 1:
            which = " or ".join(claim.distribution for claim in claims)
            raise PluginError(f"two distributions bring the plugin {name!r}; say which one: {which}")
        if not by_name and not claims:
            if there(name) is not None:
                raise PluginError(f"{name} is installed and no plugin; `pip uninstall` is for such")
            discovery.find(name)  # which says that it is not installed, and what is
        owner = claims[0].distribution if claims else by_name[0]
        meant[owner] = owners[owner]
    return meant


def uninstall(distributions: Sequence[str]) -> None:
    """Remove distributions, and look in a fresh process that their plugins are gone."""
    what = ", ".join(distributions)
    said = pip(what, "uninstall", "--yes", *distributions, changes=True)
    gone = {canonicalize_name(name) for name in distributions}
    left = sorted(name for name, owners in found().items() if gone & set(owners))
    if left:
        reason = " ".join(said.split())[-200:]
        raise PluginError(f"{what} cannot be removed by pip, and {', '.join(left)} is still there: {reason}")
