"""The command as a user runs it: the installed script, in another process, in a folder of its own."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import wheels

os.environ["FLOWPLAT_CONFIG"] = os.devnull  # no test reads what the user has switched off
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


class Started:
    """A command that was started warm: ``pid``, ``out``, ``err``; ``wait()`` gives its exit code."""

    def __init__(self, address: str, request: dict[str, object]) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._line())
        self.files = Path(str(request["out"])), Path(str(request["err"]))
        self.code: int | None = None

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; negative for the signal that killed it. Raises ``TimeoutError``."""
        if self.code is None:
            if not select.select([self.socket], [], [], timeout)[0]:
                raise TimeoutError(f"it still runs after {timeout} s: {self.err}")
            self.code = int(self._line())
            self.socket.close()
        return self.code

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self.socket.recv(1) or b"\n"
        return line

    def kill(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def until(self, condition: Callable[[], object], timeout: float = 60) -> None:
        """Wait for a condition, while the command runs."""
        patience = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < patience, f"{timeout} s are over: {self.err}"
            ready = select.select([self.socket], [], [], 0.002)[0]
            assert not ready, f"it has ended with {self.wait()}: {self.err}"

    @property
    def out(self) -> str:
        return self.files[0].read_text()

    @property
    def err(self) -> str:
        return self.files[1].read_text()


class Warm:
    """``warm("run", "images", cwd=folder)`` is ``platform`` without the seconds of its imports; see warm.py."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder, self.started = address, folder, list[Started]()

    def start(self, *arguments: str | Path, cwd: Path, **environment: str | Path | int) -> Started:
        """Start it and do not wait; ``environment`` adds to this one's."""
        said = self.folder / str(len(self.started))
        extra = {name: str(value) for name, value in environment.items()}
        request = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "environment": ENVIRONMENT | extra}
        self.started.append(Started(self.address, {**request, "out": f"{said}.out", "err": f"{said}.err"}))
        return self.started[-1]

    def __call__(self, *arguments: str | Path, cwd: Path, **environment: str | Path | int) -> Started:
        """The command when it has ended."""
        process = self.start(*arguments, cwd=cwd, **environment)
        process.wait()
        return process


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Many commands for the imports of one."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 100 letters at most
        address = f"{short}/warm"
        server = subprocess.Popen([sys.executable, Path(__file__).with_name("warm.py"), address], env=ENVIRONMENT)
        while not Path(address).exists():
            assert server.poll() is None
            time.sleep(0.05)
        warm = Warm(address, tmp_path_factory.mktemp("said"))
        yield warm
        for process in warm.started:
            if process.code is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the plugin of probe.py is installed: a folder for PYTHONPATH."""
    site = tmp_path_factory.mktemp("site")
    package, info = site / "flowplat_probe", site / "flowplat_probe-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(Path(__file__).with_name("probe.py").read_text())
    (package / "probe.yaml").write_text(PROBE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowplat-probe\nVersion: 1.0\nSummary: a test\n")
    (info / "entry_points.txt").write_text("[flowplat.plugins]\nprobe = flowplat_probe.plugin\n")
    return site


PROBE = """
data: points
network: dense
train: {steps: 40, batch_size: 8, lr: 1e-2, log_every: 5, checkpoint_every: 10}
sample: {count: 8, steps: 2}
eval: {count: 16, steps: [1], metrics: [], paths: 4}
engine: {threads: 1}
"""


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of this repository by distribution: flowplat, and each plugin."""
    out = tmp_path_factory.mktemp("wheels")
    projects = [wheels.ROOT, *(path.parent for path in sorted(wheels.ROOT.glob("plugins/*/pyproject.toml")))]
    built = [wheels.build(project, out) for project in projects]
    return {path.name.partition("-")[0].replace("_", "-"): path for path in built}
