"""Run folders on disk: found, named, read. Light, and patient with what a crash, a full disk or a person left there."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from flowcore.errors import InputError, UsageError
from flowplat.rundir import RunDir

ROOT = Path("runs")
DEPTH = 3  # <plugin>/<preset>/<UTC>-<hex>
STATUSES = ("done", "failed", "interrupted", "running", "killed", "damaged")
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Run:
    """A run folder as it is on disk. ``record`` is its provenance.json; ``faults`` says what of it cannot be read."""

    folder: Path
    plugin: str | None
    preset: str | None
    status: str
    asked: int | None
    record: dict[str, Any]
    faults: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name or self.folder.resolve().name

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """One entry each time it was started or resumed; a record without a list of them is one session."""
        found = [one for one in _list(self.record.get("sessions")) if isinstance(one, dict)]
        keys = ("argv", "started", "ended", "status", "exit_code")
        found = found or [{key: self.record[key] for key in keys if key in self.record}]
        last = len(found) - (self.status != "killed")  # those before it are over, and what says otherwise was killed
        return [
            {**one, "status": "killed"} if number < last and one.get("status") == "running" else one
            for number, one in enumerate(found)
        ]

    @cached_property
    def began(self) -> datetime:
        """When it was last started or resumed; where no record says so, when the folder last changed."""
        times = [_time(one.get("started")) for one in (self.record, *self.sessions)]
        return max((t for t in times if t is not None), default=datetime.fromtimestamp(_mtime(self.folder), UTC))

    @property
    def ended(self) -> datetime:
        """When it ended, as far as is known; a killed run ended no later than its files say."""
        times = [_time(one.get("ended")) for one in (self.record, *self.sessions)]
        files = (self.folder / name for name in ("metrics.jsonl", "provenance.json", "."))
        return max(
            (t for t in times if t is not None), default=datetime.fromtimestamp(max(map(_mtime, files), default=0), UTC)
        )

    @cached_property
    def done(self) -> int:
        """Steps trained: those of the last line of metrics.jsonl or of the newest checkpoint."""
        steps = [step for path in self.checkpoints if (step := step_of(path)) is not None]
        return max([_last_step(self.folder / "metrics.jsonl"), *steps])

    @property
    def checkpoints(self) -> list[Path]:
        """Its checkpoint folders, oldest first, whole or not."""
        with suppress(OSError):
            found = (path for path in (self.folder / "checkpoints").iterdir() if step_of(path) is not None)
            return sorted(path for path in found if path.is_dir() and not path.is_symlink())
        return []

    @cached_property
    def figures(self) -> dict[str, Any]:
        """eval/metrics.json, or nothing."""
        return _mapping(self.folder / "eval" / "metrics.json", [])

    @property
    def first_figure(self) -> dict[str, Any] | None:
        """The first figure, at the most solver steps that were measured."""
        columns = [column for column in _list(self.figures.get("by_steps")) if isinstance(column, dict)]
        for column in columns[-1:]:
            for name, figure in _dict(column.get("figures")).items():
                value, floor = _dict(figure).get("value"), _dict(figure).get("floor")
                return {"name": name, "steps": column.get("steps"), "value": value, "floor": floor}
        return None

    @cached_property
    def size(self) -> int:
        """Bytes of all its files."""
        return size_of(self.folder)

    def row(self) -> dict[str, Any]:
        """What `platform runs list` says of it."""
        return {
            "id": shown(self.id),
            "folder": shown(self.folder),
            "plugin": self.plugin,
            "preset": self.preset,
            "status": self.status,
            "started": self.began.isoformat(timespec="seconds"),
            "steps": {"done": self.done, "asked": self.asked},
            "figure": self.first_figure,
            "size": self.size,
        }


def is_run(folder: Path) -> bool:
    """Whether a folder is, or once was, a run's: it has a config.yaml or a provenance.json, and is no model."""
    names = ("config.yaml", "provenance.json")
    exported = folder / "manifest.json"
    return folder.is_dir() and any((folder / name).is_file() for name in names) and not exported.exists()


def read(folder: Path) -> Run:
    """The run of a folder. What is damaged becomes a fault, and the status ``damaged`` where it is the record."""
    files, faults = RunDir(folder), list[str]()
    record = _mapping(files.provenance, faults)
    settings = _settings(files.config, faults)
    status = record.get("status")
    if status not in STATUSES:
        if record:
            faults.append(f"{shown(files.provenance)} states no status")
        status = "running" if held(folder) else "damaged"
    elif status == "running" and not held(folder):
        status = "killed"  # nobody was left to write how it ended
    above = folder.absolute().parts[-DEPTH:-1]
    plugin, preset = settings.get("plugin"), settings.get("preset")
    if not settings and len(above) == DEPTH - 1:
        plugin, preset = above
    asked = settings.get("train.steps", "")
    steps = int(asked) if re.fullmatch(r"[0-9]{1,18}", asked) else None
    return Run(folder, plugin, None if preset == "null" else preset, status, steps, record, faults)


def scan(root: Path = ROOT) -> tuple[list[Run], list[str]]:
    """The runs up to three folders below ``root``, the one last started first, and a line for each thing that is none.

    Raises ``InputError`` when ``root`` is no folder; the default one need not be there.
    """
    if not root.is_dir():
        if root != ROOT or root.exists():
            raise InputError(f"{root} is no folder; --root names the one that runs are in")
        return [], []
    notes: list[str] = []
    found = [read(folder) for folder in _folders(root, DEPTH, notes)]
    for run in found:
        notes += run.faults
    return sorted(found, key=lambda run: (run.began, _mtime(run.folder / "provenance.json")), reverse=True), notes


def find(text: str | Path, root: Path = ROOT, plugin: str | None = None) -> Path:
    """The folder of the run called ``text``: a folder, an id below ``root`` or the one beginning of it, or ``last``.

    ``last`` is the run (of ``plugin``) that was last started or resumed. Raises ``InputError`` where there is none, or
    with the candidates where there are several.
    """
    name, folder = str(text), Path(text)
    if name != "last" and name and is_run(folder):
        return folder
    below = [run for run in (scan(root)[0] if root.is_dir() else ()) if plugin in (None, run.plugin)]
    whose = f" of {plugin}" if plugin else ""
    if name == "last":
        whole = [run for run in below if run.status != "damaged"]
        if not whole:
            raise InputError(f"there is no last run{whose}: {root} holds none")
        return whole[0].folder
    matches = [run for run in below if run.id == name] or [run for run in below if name and run.id.startswith(name)]
    if len(matches) == 1:
        return matches[0].folder
    if matches:
        several = ", ".join(shown(run.folder) for run in matches[:5]) + (", ..." if len(matches) > 5 else "")
        raise InputError(f"{name!r} could be {len(matches)} runs: {several}; write more of the id, or the folder")
    if (folder / "manifest.json").exists():
        raise InputError(f"{folder} is an exported model, not the folder of a run")
    if folder.is_dir():
        raise InputError(f"{name or '.'} is no run folder: it has no config.yaml")
    raise InputError(f"no run is called {name!r}: neither a folder nor the beginning of a run's id below {root}")


def config_of(folder: Path) -> dict[str, Any]:
    """The config of a run, read whole; an empty one where it cannot be read."""
    from flowplat.plain_yaml import parse

    try:
        found = parse((folder / "config.yaml").read_text(encoding="utf-8"), str(folder))
    except (OSError, UnicodeDecodeError, UsageError):
        return {}
    return found if isinstance(found, dict) else {}


def held(folder: Path) -> bool:
    """Whether a process holds the folder's lock. Where that cannot be told, as in a folder of somebody else, it is."""
    lock = folder / ".lock"
    if not os.path.lexists(lock):
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError, RuntimeError, NotImplementedError):
        return True


def shown(path: str | Path) -> str:
    """A name as it can be printed: what is no UTF-8, and line breaks and the like, as question marks."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; None for what is not called like one."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits != checkpoint.name and digits.isascii() and digits.isdecimal() else None


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what a symlink leads to is not counted."""
    return sum(_size(Path(place, name)) for place, _, names in os.walk(folder) for name in names)


def files_of(folder: Path) -> dict[str, int]:
    """Bytes by path, of every file below a folder."""
    return {
        Path(place, name).relative_to(folder).as_posix(): _size(Path(place, name))
        for place, _, names in os.walk(folder)
        for name in sorted(names)
    }


def _folders(folder: Path, depth: int, notes: list[str]) -> Iterator[Path]:
    """Run folders below ``folder``; a symlink is another name of something, and is not followed."""
    try:
        below = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        notes.append(f"{shown(folder)} cannot be read: {error.strerror}")
        return
    for path in below:
        if path.is_symlink() and path.is_dir():
            notes.append(f"{shown(path)} is a symlink, which is not followed")
        elif is_run(path):
            yield path
        elif path.is_dir() and depth > 1:
            yield from _folders(path, depth - 1, notes)
        elif path.is_dir():
            notes.append(f"{shown(path)} is no run folder: it has neither config.yaml nor provenance.json")


def _mapping(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        faults.append(f"{shown(path)} is damaged: it holds no record")
    except (OSError, ValueError, RecursionError) as error:
        faults.append(_fault(path, error))
    return {}


def _settings(path: Path, faults: list[str]) -> dict[str, str]:
    """Plugin, preset and train.steps of a config, read off the lines that ``plain_yaml.dump`` writes: a list of a
    thousand runs would wait ten seconds for a YAML parser, and the quick one in C crashes on deep nesting."""
    found, section = {}, ""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        faults.append(_fault(path, error))
        return {}
    for line in lines:
        if matched := re.fullmatch(r"( *)(\w+):(?: (.*))?", line):
            indent, key, value = matched.groups()
            section = key if not indent else section
            name = key if not indent else f"{section}.{key}" if len(indent) == 2 else ""
            if name in ("plugin", "preset", "train.steps") and value:
                found[name] = value.strip("'\"")
    if "plugin" not in found:
        faults.append(f"{shown(path)} is damaged: it names no plugin")
    return found


def _fault(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{shown(path)} is missing"
    if isinstance(error, OSError):
        return f"{shown(path)} cannot be read: {error.strerror}"
    return f"{shown(path)} is damaged: {' '.join(str(error).split())}"


def _last_step(metrics: Path) -> int:
    """The step of the last whole line; 0 if there is none."""
    with suppress(OSError), metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 8192))
        for line in reversed(file.read().splitlines()):
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and type(row.get("step")) is int:
                    return int(row["step"])
    return 0


def _time(text: Any) -> datetime | None:
    with suppress(ValueError, TypeError):
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None


def _mtime(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
