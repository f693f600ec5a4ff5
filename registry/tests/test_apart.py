"""apart: a run in processes of its own, here a stand-in for the command that says and does what is asked."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import FlowError, IntegrityError, MachineError, PluginError, UsageError
from flowplat import apart
from flowplat.config import resolve

CALLS: list[list[str]] = []


@pytest.fixture
def stand_in(ring: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stand_in(code)`` has Python code run in place of the command, and does a run of ring apart."""
    CALLS.clear()
    started = subprocess.Popen

    def run(code: str, out: Path | None = None, resume: bool = False) -> Any:
        def start(command: list[str], **how: Any) -> Any:
            CALLS.append(command)
            return started([sys.executable, "-c", "import sys, os, signal, time\n" + code], **how)

        monkeypatch.setattr(subprocess, "Popen", start)
        return apart.run_apart(resolve("ring", ["engine.devices=2"]), out, resume)

    return run


def test_it_returns_what_the_command_tells(stand_in: Any, capsys: pytest.CaptureFixture[str]) -> None:
    done = stand_in("""print('{"folder": "runs/x", "figures": {"count": 3}}'); sys.stderr.write("going on\\n")""")
    assert (done.folder, done.figures, done.first) == (Path("runs/x"), {"count": 3}, True)
    assert capsys.readouterr() == ("", "going on\n")
    (command,) = CALLS
    assert command[:5] == [sys.executable, "-m", "flowplat", "run", "ring"]
    assert "--resume" not in command
    assert "--out" not in command


def test_it_goes_on_with_a_run_in_its_folder(stand_in: Any, tmp_path: Path) -> None:
    stand_in("""print('{"folder": "run", "figures": {}}')""", out=tmp_path, resume=True)
    assert CALLS[0][-4:] == ["--out", str(tmp_path), "--resume", "last"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1, FlowError), (2, UsageError), (3, PluginError), (4, MachineError), (5, IntegrityError), (77, FlowError)],
)
def test_an_exit_code_is_the_error_it_stands_for_with_its_whole_message(
    code: int, kind: type[Exception], stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "platform: a checkpoint is damaged; going on\nplatform: this is wrong:\n  train.lr: too high\n"
    with pytest.raises(kind) as raised:
        stand_in(f"sys.stderr.write({said!r}); sys.exit({code})")
    assert type(raised.value) is kind
    assert str(raised.value) == "this is wrong:\n  train.lr: too high"
    assert capsys.readouterr().err == said


def test_a_process_that_is_killed_is_a_failed_run(stand_in: Any) -> None:
    with pytest.raises(FlowError, match="the run ended with code -9"):
        stand_in("os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.parametrize("code", [130, 143])
def test_an_interrupted_run_is_a_ctrl_c(code: int, stand_in: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        stand_in(f"sys.exit({code})")


def test_ctrl_c_is_passed_on_and_waited_for(stand_in: Any, tmp_path: Path) -> None:
    """The run saves, which takes its time, and leaves no process behind."""
    file = tmp_path / "saved"
    code = f"""
if not os.fork():
    time.sleep(60)
    os._exit(0)
def save(*_):
    time.sleep(1)
    open({str(file)!r}, "w").write("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, save)
open({str(file)!r}, "w").write(str(os.getpgid(0)))
time.sleep(60)
"""

    def interrupt() -> None:
        while not file.exists() or not file.read_text():
            time.sleep(0.01)
        groups.append(int(file.read_text()))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    groups: list[int] = []
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stand_in(code)
    assert file.read_text() == "saved"
    assert time.monotonic() - began < 30
    thread.join()
    patience = time.monotonic() + 10
    while Path("/proc").exists() and any(group(path) == groups[0] for path in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < patience
        time.sleep(0.05)


def group(process: Path) -> int | None:
    """The process group of a process that is no zombie."""
    try:
        state, _, number = process.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return None
    return None if state == "Z" else int(number)
