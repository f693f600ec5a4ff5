"""Where a result comes from: versions, hardware, data, code, command, and how it ended.

A run that went on after an interruption has a session for each time it was started; the top level is the last one's.
"""

import json
import os
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from flowplat import discovery, teacher
from flowplat.config import chosen
from flowplat.experiment import Experiment

SESSION = ("argv", "started", "ended", "status", "exit_code", "from_step", "resumed_from", "host", "pid", "hardware")
"""What may differ each time a run is started."""


def collect(experiment: Experiment, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record written when a run starts, or goes on from what ``before`` records; ``finish`` completes it."""
    config, engine = experiment.config, experiment.engine
    plugins = {choice.component.plugin for choice in chosen(config)} | {config.plugin, *config.observers}
    owners = [claim.distribution for name in sorted(plugins) for claim in discovery.installed().get(name, [])]
    names = _closure(["flowplat", *owners])
    earlier = before or {}
    record = {
        "argv": sys.argv,
        "started": _now(),
        "seed": config.seed,
        "status": "running",
        "from_step": 0,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "data": {"name": config.data.component.full_name, "fingerprint": experiment.data.fingerprint()},
        "teacher": teacher.record(experiment.teacher),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in names},
        "sources": {name: state for name in ["flowplat", *owners] if (state := _git(name)) is not None},
        "hardware": {
            "machine": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "device": str(experiment.device),
            "gpu": torch.cuda.get_device_name(experiment.device) if experiment.device.type == "cuda" else None,
            "cuda": torch.version.cuda,
            "processes": engine.world,
            "precision": config.engine.precision,
            "threads": torch.get_num_threads(),
        },
        "sessions": earlier.get("sessions") or [],
    }
    return _with_session(record, new=True)


def resumed(record: dict[str, Any], step: int, checkpoint: Path | None) -> dict[str, Any]:
    """The record of a run that goes on at ``step``, from ``checkpoint`` if there is one."""
    return _with_session(record | {"from_step": step, "resumed_from": checkpoint.name if checkpoint else None})


def finish(record: dict[str, Any], status: str, exit_code: int) -> dict[str, Any]:
    """The record of a run that has ended: ``status`` is done, failed or interrupted."""
    return _with_session(record | {"ended": _now(), "status": status, "exit_code": exit_code})


def _with_session(record: dict[str, Any], new: bool = False) -> dict[str, Any]:
    session = {key: record[key] for key in SESSION if key in record}
    return record | {"sessions": [*(record["sessions"] if new else record["sessions"][:-1]), session]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _closure(names: list[str]) -> list[str]:
    """``names`` and every installed distribution they need, directly or not."""
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            if name in names:
                found[key] = None
            continue
        found[key] = None
        for need in needs:
            if "extra ==" not in need and (match := re.match(r"[\w.-]+", need)):
                waiting.append(match[0])
    return list(found)


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
