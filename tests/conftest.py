"""The command as a user runs it: the installed script, in another process, in a folder of its own."""

import os
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(sysconfig.get_path("scripts")) / "platform"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

Platform = Callable[..., "subprocess.CompletedProcess[str]"]


def platform(*arguments: str, cwd: Path, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """``platform ...`` with what it said."""
    return subprocess.run(
        [SCRIPT, *arguments], cwd=cwd, env=ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=180
    )


@pytest.fixture(name="platform")
def _platform(tmp_path: Path) -> Platform:
    """``platform("run", "images")`` runs the command in this test's folder."""

    def run(*arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        return platform(*arguments, cwd=tmp_path, stdin=stdin)

    return run


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """``start("run", "images")`` starts the command and does not wait; what still runs at the end is killed."""
    processes, home = [], tmp_path_factory.mktemp("started")

    def run(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [SCRIPT, *arguments], cwd=home, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Smoke:
    """A finished ``platform run images --smoke``."""

    folder: Path
    done: "subprocess.CompletedProcess[str]"
    seconds: float  # of CPU time


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """One run that many tests look at; none may write into its folder."""
    home = tmp_path_factory.mktemp("smoke")
    before = os.times()
    done = platform("run", "images", "engine.threads=1", "--smoke", "--out", "run", "--json", cwd=home)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return Smoke(home / "run", done, spent)
