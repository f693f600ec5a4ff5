"""Where an installed distribution came from, as pip has noted it (PEP 610), and the line that installs it again."""

import json
import platform
from importlib.metadata import Distribution
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.utils import canonicalize_name

from flowcore import __version__
from flowplat.discovery import installed
from flowplat.pip import kept


def note(distribution: Distribution) -> dict[str, Any]:
    """pip's note on a distribution that came from a URL, a file or a folder; empty for one of an index."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("url"), str) else {}


def sha256(distribution: Distribution) -> str | None:
    """What the wheel of a distribution hashed to, where pip has noted that."""
    archive = note(distribution).get("archive_info") or {}
    hashes = archive.get("hashes") or dict([str(archive.get("hash", "")).partition("=")[::2]])
    return hashes.get("sha256")


def line(distribution: Distribution) -> str:
    """The requirement that installs the same again; only a wheel's hash and a commit fix the content."""
    name, version, noted = distribution.metadata["Name"], distribution.version, note(distribution)
    if not noted:
        return f"{name}=={version}"
    url = noted["url"]
    if "dir_info" in noted:
        where = url2pathname(urlsplit(url).path)
        return f"-e {where}" if noted["dir_info"].get("editable") else f"{name} @ {url}"
    if "vcs_info" in noted:
        return f"{name} @ {noted['vcs_info']['vcs']}+{url}@{noted['vcs_info']['commit_id']}"
    found = sha256(distribution)
    return f"{name} @ {url}#sha256={found}" if found else f"{name} @ {url}"


def frozen() -> list[dict[str, Any]]:
    """Each distribution that brings plugins: its plugins, version, the line that installs it, whether that is exact."""
    found: dict[str, dict[str, Any]] = {}
    for name, claims in installed().items():
        for plugin in claims:
            distribution = plugin.entry_point.dist
            assert distribution is not None  # discovery leaves such entry points out
            row = found.setdefault(canonicalize_name(plugin.distribution), {
                "distribution": plugin.distribution,
                "version": plugin.version,
                "plugins": [],
                "requirement": line(distribution),
                "exact": "dir_info" not in note(distribution),
            })  # fmt: skip
            row["plugins"].append(name)
    return [found[key] for key in sorted(found)]


def freeze(rows: list[dict[str, Any]]) -> list[str]:
    """``frozen`` as lines of a requirements file."""
    versions = ", ".join(f"{name} {version}" for name, version in kept().items() if name != "flowplat")
    lines = ["# plugins of flowplat; `platform install -r FILE` installs them again"]
    lines += [f"# made with Python {platform.python_version()}, {versions}", f"flowplat=={__version__}"]
    for row in rows:
        if not row["exact"]:
            lines.append(f"# {row['distribution']} {row['version']} is a folder, and whatever it holds by then")
        lines.append(row["requirement"])
    return lines
