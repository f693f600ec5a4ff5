"""Kill a run with SIGKILL at random moments, from the start of its process through its evaluation, and go on with it
each time: does it end as the run that nothing stopped, to the last bit, with nothing left lying about?

    python tests/kills.py [KILLS] [--seed N] [KEY=VALUE ...]

Prints a table and a verdict; the exit code is 1 where a run differs. Takes about six seconds a kill.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = ("--smoke", "train.schedule=constant", "train.steps=300", "train.checkpoint_every=10", "engine.threads=1")
PATIENCE = 300  # seconds a start may take

Start = Callable[..., Any]
"""``start("run", ...)`` starts the command; what it returns has ``kill(number)`` and ``wait(timeout)``."""


class Command:
    """The installed script in a process of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        script = Path(sysconfig.get_path("scripts")) / "platform"
        self.process = subprocess.Popen([script, *arguments], stdout=subprocess.DEVNULL, start_new_session=True)

    def kill(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, by path: the hash of what is the same each time, otherwise that it is there."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".safetensors", ".npz", ".png") or name == "eval/metrics.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key != "samples_per_s"} for row in rows]
        else:
            found[name] = "there"
    return found


def moment(folder: Path) -> str:
    """How far a run had come."""
    if not (folder / "config.yaml").exists():
        return "before its folder"
    saved = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    half = sorted(path.name for path in folder.rglob(".*.tmp"))
    rows = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    steps = f"{len(rows)} rows, {saved[-1] if saved else 'nothing'} saved"
    stage = "evaluating, " if (folder / "eval").exists() else ""
    return stage + steps + (f", half-written {', '.join(half)}" if half else "")


def torment(start: Start, home: Path, kills: int, seed: int, settings: tuple[str, ...], tell: Any = print) -> list[str]:
    """Kill ``kills`` times; returns what is wrong, a line each. ``home`` is an empty folder."""

    def begin(folder: Path) -> Any:
        return start("run", "images", *settings, "--out", folder, "--resume", "last")

    began = time.monotonic()
    if code := begin(home / "straight").wait(PATIENCE):
        return [f"the run that nothing stopped ended with {code}"]
    whole, wanted = time.monotonic() - began, outcome(home / "straight")
    tell(f"{'kill':>4}  {'after s':>7}  of {whole:.1f} s: how far the run had come")
    draws, faults, done, killed = random.Random(seed), list[str](), 0, 0
    folder = home / "0"
    while killed < kills or done == 0 or folder.exists():
        pause = draws.uniform(0, whole) if killed < kills else PATIENCE
        process, ended = begin(folder), None
        try:
            ended = process.wait(pause)
        except (TimeoutError, subprocess.TimeoutExpired):
            process.kill(signal.SIGKILL)
            process.wait(PATIENCE)
            killed += 1
            tell(f"{killed:>4}  {pause:>7.2f}  {moment(folder)}")
            if pause == PATIENCE:
                return [*faults, f"a start took more than {PATIENCE} s"]
            continue
        if ended:
            return [*faults, f"going on with run {done} ended with {ended}"]
        found = outcome(folder)
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        faults += [f"run {done}: {name} is not as in the run that nothing stopped" for name in differ]
        tell(
            f"{'':>4}  {'':>7}  run {done} is done and " + (f"differs in {', '.join(differ)}" if differ else "the same")
        )
        done += 1
        folder = home / str(done)
    tell(
        f"{killed} kills, {done} runs: " + (f"{len(faults)} differences" if faults else "all the same to the last bit")
    )
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as home:
        faults = torment(Command, Path(home), options.kills, options.seed, (*SETTINGS, *options.settings))
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
