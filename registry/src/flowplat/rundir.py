"""The folder of one run: what goes where, and how it is written so that a crash leaves no half file."""

import contextlib
import json
import logging
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowcore import files
from flowcore.errors import InputError, MachineError

log = logging.getLogger("flowplat")


class RunDir:
    """Paths inside a run folder, and the writing of its records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.provenance = folder / "provenance.json"
        self.metrics = folder / "metrics.jsonl"
        self.log = folder / "log.txt"
        self.checkpoints = folder / "checkpoints"
        self.samples = folder / "samples"
        self.eval = folder / "eval"
        self.figures = self.eval / "metrics.json"
        self.report = folder / "report.html"
        self.lock = folder / ".lock"

    @staticmethod
    def refuse_used(out: Path | None) -> None:
        """Raise ``InputError`` when ``out`` holds something already; what a start that was killed left is nothing."""
        if out is not None and out.is_dir() and any(not _left(path) for path in out.iterdir()):
            raise InputError(f"{out} is not empty; name a new folder with --out, or go on with its run by --resume")

    @classmethod
    def create(cls, plugin: str, preset: str, out: Path | None) -> "RunDir":
        """A new folder: ``out`` itself, or runs/<plugin>/<preset>/<UTC>-<hex>. Raises ``MachineError`` or
        ``InputError`` when it cannot be made or holds something already."""
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        folder = out if out is not None else Path("runs") / plugin / preset / stamp
        cls.refuse_used(out)
        with files.refusals(f"the run folder {folder} cannot be made"):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> "RunDir":
        """An existing run. Raises ``InputError`` when the folder is not one."""
        if not (folder / "config.yaml").is_file():
            raise InputError(f"{folder} is no run folder: it has no config.yaml")
        return cls(folder)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process trains in the folder while this lasts; what a killed one left half-written is removed.

        The system lets go of the lock however the process ends. Raises ``MachineError`` where another holds it.
        """
        with contextlib.ExitStack() as lock:
            try:
                ours = lock.enter_context(locked(self.lock, wait=1))  # who only looks holds it for an instant
            except OSError as error:
                raise MachineError(f"the run folder {self.folder} cannot be written: {error}") from error
            if not ours:
                raise MachineError(f"{self.folder} is in use: another process trains in it{self._holder()}")
            for folder in (self.folder, self.eval, self.checkpoints):
                files.tidy(folder)
            yield

    def _holder(self) -> str:
        session = (self.record().get("sessions") or [{}])[-1]
        return f", number {session['pid']} on {session['host']}" if {"pid", "host"} <= set(session) else ""

    def record(self) -> dict[str, Any]:
        """provenance.json, or an empty record where it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.provenance.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def append_metrics(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a crash may have cut the last one off
                row = json.loads(line)
                if isinstance(row, dict):
                    found.append(row)
        return found

    def rewind(self, step: int) -> None:
        """Forget the rows after ``step``: a run that goes on from there makes them again."""
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        files.write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Send the ``flowplat`` log to log.txt while the run lasts."""
        handler = _Quiet(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            with contextlib.suppress(OSError):
                handler.close()


class _Quiet(logging.FileHandler):
    """A log that a full disk cuts off ends the log, and not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def locked(path: Path, wait: float = 0) -> Iterator[bool]:
    """Whether the lock is ours while this lasts, after ``wait`` seconds at most; its file does not stay behind.

    Raises ``OSError`` where the file cannot be made, and what filelock raises where the file system has no locks.
    """
    from filelock import FileLock, Timeout  # a tenth of a second that listing runs need not pay

    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # before it is let go: afterwards it might be another's
        lock.release()


def _left(path: Path) -> bool:
    return path.name == ".lock" or (path.name.startswith(".") and path.name.endswith(".tmp"))


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, whole or not at all."""
    files.write(path, to_json(data) + "\n")


def to_json(data: Any) -> str:
    """``data`` as JSON for people and programs; see ``_finite``."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    """``data`` with null for NaN and infinity, which JSON does not know."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
