"""How the command ends when something is wrong: its exit code, one line on stderr, and what the run folder says."""

import json
import re
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Platform = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

SCRIPT = Path(sysconfig.get_path("scripts")) / "platform"
SMALL = ("network.width=16", "network.blocks=1", "train.batch_size=8", "train.warmup=0", "eval.metrics=[]")


def told(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """What stderr says, where the command ended with ``code``, without a traceback and with nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())


def test_2_faults_of_the_config_all_at_once(platform: Platform, tmp_path: Path) -> None:
    message = told(platform("run", "images", "train.lrr=1", "train.steps=-3"), 2)
    assert "train.lrr" in message
    assert "did you mean train.lr?" in message
    assert "train.steps" in message
    assert "-3" in message
    assert list(tmp_path.iterdir()) == []


def test_2_an_unknown_verb(platform: Platform) -> None:
    assert "did you mean 'run'" in told(platform("rnu", "images"), 2)


def test_2_a_config_file_that_is_not_there(platform: Platform) -> None:
    assert "missing.yaml" in told(platform("run", "images", "-c", "missing.yaml"), 2)


def test_2_an_output_folder_that_is_not_empty(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    assert "thesis is not empty" in told(platform("run", "images", "--smoke", "--out", "thesis"), 2)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("line", "code"), [("list >&-", 0), ("list 2>&-", 0), ("rnu 2>&-", 2), ("list | true", 0)])
def test_an_end_that_is_closed_changes_no_exit_code(line: str, code: int) -> None:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"'{SCRIPT}' {line}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.partition("Traceback")[1]) == (code, "")


def test_3_an_unknown_plugin(platform: Platform) -> None:
    assert "did you mean 'images'?" in told(platform("run", "image"), 3)


def test_1_a_run_that_diverges_names_the_step(platform: Platform, tmp_path: Path) -> None:
    message = told(platform("run", "images", *SMALL, "train.steps=60", "train.lr=1e30", "--out", "run"), 1)
    assert re.search(r"the loss is nan at step \d+: lower train\.lr", message)
    assert (record(tmp_path / "run")["status"], record(tmp_path / "run")["exit_code"]) == ("failed", 1)
    assert "FlowError" in (tmp_path / "run" / "log.txt").read_text()


SIGNALS = {130: signal.SIGINT, 143: signal.SIGTERM}


@pytest.fixture(scope="module")
def interrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[int, str, str, Path]]:
    """By the code it should end with: code, stdout, stderr and folder of a run that got its signal while it trained."""
    home = tmp_path_factory.mktemp("interrupted")
    endless = (*SMALL, "train.steps=1000000", "train.log_every=1", "train.checkpoint_every=1000000")
    processes = {code: start("run", "images", *endless, "--out", str(home / str(code))) for code in SIGNALS}
    found = {}
    for code, process in processes.items():
        patience = time.monotonic() + 120
        while not (home / str(code) / "metrics.jsonl").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.05)
        process.send_signal(SIGNALS[code])
        out, err = process.communicate(timeout=60)
        found[code] = (process.returncode, out, err, home / str(code))
    return found


@pytest.mark.parametrize("code", SIGNALS)
def test_a_run_that_is_interrupted_says_so(code: int, interrupted: dict[int, tuple[int, str, str, Path]]) -> None:
    ended, out, err, folder = interrupted[code]
    assert (ended, out) == (code, "")
    assert "Traceback" not in err
    assert "interrupted" in err
    assert (record(folder)["status"], record(folder)["exit_code"]) == ("interrupted", code)


@pytest.mark.parametrize("code", SIGNALS)
def test_a_run_that_is_interrupted_saves_first(code: int, interrupted: dict[int, tuple[int, str, str, Path]]) -> None:
    folder = interrupted[code][3]
    trained = [json.loads(row)["step"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert trained == list(range(1, len(trained) + 1))
    (saved,) = (folder / "checkpoints").glob("step-*")  # none was due
    assert abs(int(saved.name.removeprefix("step-")) - trained[-1]) <= 1
