"""A run that was stopped, in whatever way, and goes on is the run that was not stopped; and what is refused."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flowcore.files import sha256
from flowcore.training import checkpoints

Probe = Callable[..., Any]
FILES = ("model.safetensors", "ema.safetensors", "optim.safetensors")


def weights(folder: Path) -> dict[str, str]:
    """The sha256 of weights, average and optimiser at the end."""
    newest = checkpoints.latest(folder / "checkpoints")
    return {"step": newest.name} | {name: sha256(newest / name) for name in FILES}


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the speed."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_s"} for row in found]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())


def hidden(folder: Path) -> list[str]:
    """What should not be there after a run."""
    return [path.name for path in folder.rglob(".*")]


def same(folder: Path, straight: Path) -> None:
    """All that the two runs made is equal, but for times."""
    assert weights(folder) == weights(straight)
    assert rows(folder) == rows(straight)
    assert (folder / "eval" / "metrics.json").read_bytes() == (straight / "eval" / "metrics.json").read_bytes()
    for path in (straight / "samples").rglob("*.*"):
        assert (folder / path.relative_to(straight)).read_bytes() == path.read_bytes()
    assert hidden(folder) == []
    assert (record(folder)["status"], record(folder)["exit_code"]) == ("done", 0)


def done(process: Any) -> None:
    assert process.wait() == 0, process.err
    assert process.err == ""


def told(process: Any, code: int) -> str:
    """What stderr says, where the command ended with ``code``, without a traceback and with nothing on stdout."""
    assert process.wait() == code, process.err
    assert process.out == ""
    assert "Traceback" not in process.err
    return process.err


@pytest.fixture(scope="module")
def straight(warm: Any, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of the probe that nothing stopped."""
    home = tmp_path_factory.mktemp("straight")

    @cache
    def run(*settings: str) -> Path:
        folder = home / str(len(list(home.iterdir())))
        done(warm("run", "probe", *settings, "--out", folder, cwd=home, PYTHONPATH=probe))
        return folder

    return run


@pytest.fixture
def run(warm: Any, probe: Path, tmp_path: Path) -> Probe:
    """``run(...)`` is ``platform run probe --out run ...`` in this test's folder; ``start=True`` does not wait."""

    def run(*arguments: str, start: bool = False, out: str | None = "run", **environment: Any) -> Any:
        place = ("--out", out) if out else ()
        how = warm.start if start else warm
        return how("run", "probe", *arguments, *place, cwd=tmp_path, PYTHONPATH=probe, **environment)

    return run


# stopped at a step


def test_40_steps_are_23_and_17(warm: Any, tmp_path: Path) -> None:
    def images(*arguments: str) -> None:
        done(warm("run", "images", *arguments, cwd=tmp_path))

    images("--smoke", "train.schedule=constant", "train.steps=40", "--out", "straight")
    images("--smoke", "train.schedule=constant", "train.steps=23", "--out", "run")
    assert weights(tmp_path / "run")["step"] == "step-00000023"
    images("--resume", "run", "train.steps=40")
    more = [row for row in rows(tmp_path / "run") if row["step"] == 23]  # a run has a row at its end
    assert len(more) == 1
    table = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(row for row in table if '"step": 23' not in row))
    same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize(
    ("stop", "settings", "before", "after"),
    [
        ("INT@17", (), (), ()),
        ("TERM@17", ("train.accumulate=2",), (), ()),
        ("INT@16", (), (), ()),  # 64 samples in batches of 8: the end of an epoch
        ("TERM@20", (), (), ()),  # a checkpoint is due there
        ("INT@40", (), (), ()),  # the last step
        ("INT@13", (), ("engine.workers=2",), ()),
        ("TERM@29", ("train.accumulate=2",), (), ("engine.workers=2",)),
        ("INT@23", ("train.validate_every=4", "train.schedule=cosine", "train.warmup=25"), (), ("train.keep=null",)),
    ],
    ids=[
        "SIGINT",
        "SIGTERM, accumulated",
        "epoch",
        "checkpoint",
        "end",
        "workers before",
        "workers after",
        "validated",
    ],
)
def test_a_signal_and_resume(
    stop: str, settings: tuple[str, ...], before: tuple[str, ...], after: tuple[str, ...],
    run: Probe, straight: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    name, _, step = stop.partition("@")
    code = {"INT": 130, "TERM": 143}[name]
    message = told(run(*settings, *before, PROBE_SIGNAL=stop), code)
    assert f"interrupted: saving step {step}" in message
    assert weights(tmp_path / "run")["step"] == f"step-{int(step):08d}"
    assert (record(tmp_path / "run")["status"], record(tmp_path / "run")["exit_code"]) == ("interrupted", code)
    done(run("--resume", "run", *settings, *after, out=None))
    same(tmp_path / "run", straight(*settings))
    first, second = record(tmp_path / "run")["sessions"]
    assert (first["status"], first["exit_code"], first["from_step"]) == ("interrupted", code, 0)
    assert (second["status"], second["from_step"]) == ("done", int(step))
    assert second["resumed_from"] == f"step-{int(step):08d}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_group_with_workers(
    number: int, code: int, run: Probe, straight: Callable[..., Path], tmp_path: Path
) -> None:
    """A terminal and a batch system signal every process of a run, also those that make batches."""
    settings = ("train.steps=300", "engine.workers=2", "network.sleep=0.01", "train.log_every=1")
    process = run(*settings, start=True)
    process.until((tmp_path / "run" / "metrics.jsonl").exists)
    os.killpg(process.pid, number)
    assert "interrupted: saving step" in told(process, code)
    assert 0 < int(weights(tmp_path / "run")["step"][5:]) < 300
    done(run("--resume", "last", *settings))
    same(tmp_path / "run", straight(*settings))


def test_a_second_signal_within_five_seconds_stops_at_once(run: Probe, tmp_path: Path) -> None:
    process = run("network.sleep=20", start=True)
    process.until((tmp_path / "run" / "provenance.json").exists)
    time.sleep(1)  # the first step is under way, and takes 20 s
    process.kill(signal.SIGINT)
    time.sleep(1)
    began = time.monotonic()
    process.kill(signal.SIGINT)
    told(process, 130)
    assert time.monotonic() - began < 5
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert record(tmp_path / "run")["status"] == "interrupted"


def test_a_second_signal_after_five_seconds_does_not(run: Probe, tmp_path: Path) -> None:
    process = run("network.sleep=8", start=True)
    process.until((tmp_path / "run" / "provenance.json").exists)
    time.sleep(1)
    process.kill(signal.SIGINT)
    time.sleep(5.3)
    process.kill(signal.SIGINT)
    told(process, 130)
    assert weights(tmp_path / "run")["step"] == "step-00000001"


# killed


def test_killed_before_the_first_checkpoint(run: Probe, straight: Callable[..., Path], tmp_path: Path) -> None:
    settings = ("train.checkpoint_every=40", "network.sleep=0.02")
    process = run(*settings, start=True)
    process.until((tmp_path / "run" / "metrics.jsonl").exists)
    process.kill(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert hidden(tmp_path / "run") == [".lock"]
    done(run("--resume", "last"))
    same(tmp_path / "run", straight(*settings))
    assert [session.get("from_step") for session in record(tmp_path / "run")["sessions"]] == [0, 0]


def test_what_a_killed_write_left_is_gone_after_the_next_start(
    run: Probe, straight: Callable[..., Path], tmp_path: Path
) -> None:
    told(run(PROBE_SIGNAL="INT@17"), 130)
    folder = tmp_path / "run"
    half = folder / "checkpoints" / ".step-00000020.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    shutil.copytree(half, folder / "checkpoints" / ".step-00000010.old.tmp")
    (folder / ".lock").touch()
    for name in (".config.yaml.tmp", ".metrics.jsonl.tmp", "checkpoints/.latest.tmp"):
        (folder / name).write_text("half")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "loss": 2.1}\n{"step": 20, "lo')
    done(run("--resume", "last"))
    same(folder, straight())


def test_killed_before_there_was_a_config(run: Probe, straight: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.yaml.tmp").write_text("plugin: pro")
    done(run("--resume", "last"))
    same(tmp_path / "run", straight())


# begun by --resume last


def test_out_and_resume_last_begin_and_go_on(run: Probe, straight: Callable[..., Path], tmp_path: Path) -> None:
    for stop in (11, 23):
        told(run("--resume", "last", PROBE_SIGNAL=f"TERM@{stop}"), 143)
    done(run("--resume", "last"))
    same(tmp_path / "run", straight())
    assert [session["from_step"] for session in record(tmp_path / "run")["sessions"]] == [0, 11, 23]


def test_the_last_run_of_the_plugin(run: Probe, straight: Callable[..., Path], tmp_path: Path) -> None:
    done(run("train.steps=1", out=None))
    told(run(out=None, PROBE_SIGNAL="INT@12"), 130)
    done(run("--resume", "last", out=None))
    folders = sorted((tmp_path / "runs" / "probe" / "probe").iterdir(), key=lambda f: record(f)["started"])
    assert len(folders) == 2
    (resumed,) = (folder for folder in folders if len(record(folder)["sessions"]) == 2)
    same(resumed, straight())


def test_a_finished_run_is_measured_again(run: Probe, straight: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(straight(), tmp_path / "run"))
    shutil.rmtree(folder / "eval")
    shutil.rmtree(folder / "samples")
    (folder / "report.html").unlink()
    done(run("--resume", "run", "eval.metrics=[spread]", out=None))
    assert "spread" in json.loads((folder / "eval" / "metrics.json").read_text())["by_steps"][0]["figures"]
    assert (folder / "samples" / "points.csv").read_bytes() == (straight() / "samples" / "points.csv").read_bytes()
    assert (folder / "report.html").is_file()
    assert (weights(folder), rows(folder)) == (weights(straight()), rows(straight()))


# refused


def test_another_config_is_refused_with_every_key_that_differs(
    run: Probe, straight: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight(), tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changes = {"seed": 3, "train.lr": 0.5, "train.batch_size": 16, "network.width": 8, "path": "cosine"}
    message = told(run("--resume", "last", *(f"{key}={value}" for key, value in changes.items())), 2)
    assert f"{Path('run') / 'config.yaml'} is of another run" in message
    for key, value in changes.items():
        assert any(line.strip().startswith(f"{key}") and str(value) in line for line in message.splitlines()), key
    message = told(run("--resume", "last", "train.schedule=linear", "train.steps=80"), 2)
    assert "train.schedule: it has constant, asked for is linear" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_under_a_schedule_the_number_of_steps_is_fixed(run: Probe, tmp_path: Path) -> None:
    told(run("train.schedule=cosine", PROBE_SIGNAL="INT@2"), 130)
    message = told(run("--resume", "run", "train.steps=80", out=None), 2)
    assert "train.steps: it has 40, asked for is 80; under schedule cosine every step depends on it" in message


def test_a_run_of_another_plugin_is_refused(run: Probe, smoke: Any, tmp_path: Path) -> None:
    shutil.copytree(smoke.folder, tmp_path / "run")
    assert "is a config of plugin 'images', not of 'probe'" in told(run("--resume", "last"), 2)


def test_other_data_are_refused_however_often(run: Probe, straight: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "points").write_text("1")
    data = (f"data.path={tmp_path / 'points'}",)
    told(run(*data, PROBE_SIGNAL="INT@17"), 130)
    (tmp_path / "points").write_text("2")
    for _ in range(2):
        message = told(run("--resume", "run", "train.steps=41", out=None), 2)
        assert "the data is not what the run in run was begun with" in message
    assert "steps: 40" in (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "points").write_text("1")
    done(run("--resume", "run", out=None))
    same(tmp_path / "run", straight(*data))


def test_a_second_process_in_the_folder_is_refused_and_told_of_the_first(
    run: Probe, straight: Callable[..., Path], tmp_path: Path
) -> None:
    process = run("network.sleep=0.1", start=True)
    process.until((tmp_path / "run" / "metrics.jsonl").exists)
    message = told(run("--resume", "last"), 4)
    assert f"run is in use: another process trains in it, number {process.pid} on {os.uname().nodename}" in message
    assert message.count("\n") == 1
    done(process)
    same(tmp_path / "run", straight("network.sleep=0.1"))


# a loss that is not finite


def test_a_loss_that_is_nan_names_the_step_and_keeps_the_last_good_checkpoint(run: Probe, tmp_path: Path) -> None:
    message = told(run("network.nan_at=16"), 1)
    assert message.count("\n") == 1
    assert "the loss is nan at step 17" in message
    assert weights(tmp_path / "run")["step"] == "step-00000010"
    assert [path.name for path in checkpoints.found(tmp_path / "run" / "checkpoints")] == ["step-00000010"]
    assert (record(tmp_path / "run")["status"], record(tmp_path / "run")["exit_code"]) == ("failed", 1)
    assert hidden(tmp_path / "run") == []
    assert told(run("--resume", "last"), 1) == message  # the same again
