"""Where a result comes from: versions, hardware, data, code, command, and how it ended."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from flowplat import discovery
from flowplat.config import chosen
from flowplat.experiment import Experiment

FOUNDATIONS = ("flowplat", "torch", "numpy", "safetensors", "pluggy", "pydantic")


def collect(experiment: Experiment) -> dict[str, Any]:
    """The record written when a run starts; ``finish`` completes it."""
    config = experiment.config
    plugins = {choice.component.plugin for choice in chosen(config)} | {config.plugin}
    owners = [claim.distribution for name in sorted(plugins) for claim in discovery.installed().get(name, [])]
    names = list(dict.fromkeys([*FOUNDATIONS, *owners]))
    return {
        "argv": sys.argv,
        "started": _now(),
        "seed": config.seed,
        "status": "running",
        "data": {"name": config.data.component.full_name, "fingerprint": experiment.data.fingerprint()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in names},
        "sources": {name: state for name in names if (state := _git(name)) is not None},
        "hardware": {
            "machine": platform.platform(),
            "device": str(experiment.device),
            "gpu": torch.cuda.get_device_name(experiment.device) if experiment.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
        },
    }


def finish(record: dict[str, Any], status: str, exit_code: int) -> dict[str, Any]:
    """The record of a run that has ended: ``status`` is done, failed or interrupted."""
    return record | {"ended": _now(), "status": status, "exit_code": exit_code}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _git(name: str) -> dict[str, Any] | None:
    """Commit and cleanness of an editable install's checkout; None for an ordinary install."""
    try:
        folder = _editable(distribution(name))
    except PackageNotFoundError:
        return None
    if folder is None:
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return {"commit": git("rev-parse", "HEAD") or None, "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return None


def _editable(found: Distribution) -> Path | None:
    text = found.read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(origin["url"]).path))
