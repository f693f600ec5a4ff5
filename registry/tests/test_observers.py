"""observers: who watches a run, what they are told, and that none of them can end it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import flowplat
from flowcore.errors import FlowError, MachineError, PluginError

HEAD = """
from flowcore.plugin import hookimpl
SEEN = []
"""
LOGGER = (
    HEAD
    + """
@hookimpl
def run_started(run):
    SEEN.append(("started", run.folder.name, run.name, run.config["seed"]))

@hookimpl
def after_step(run, step, row):
    SEEN.append(("step", step, row))

@hookimpl
def checkpoint_saved(run, step, folder):
    assert (folder / "manifest.json").is_file()
    SEEN.append(("saved", step, folder.name))

@hookimpl
def run_finished(run, status, figures):
    SEEN.append(("finished", status, figures))
"""
)
CALLS = {
    "run_started": "run",
    "after_step": "run, step",
    "checkpoint_saved": "run, folder",
    "run_finished": "run, status",
}


def seen() -> list[tuple[Any, ...]]:
    return sys.modules["flowplat_logger.plugin"].SEEN


def raising(hook: str, what: str) -> str:
    return (
        HEAD
        + f"""
@hookimpl
def {hook}({CALLS[hook]}):
    SEEN.append("{hook}")
    {what}
"""
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_observer_is_told_everything_in_order(ring: Path, install: Any, tmp_path: Path) -> None:
    install("logger", LOGGER)
    done = flowplat.run("ring", "observers=[logger]", "seed=3", out=tmp_path / "run")
    assert seen()[0] == ("started", "run", "ring/ring/run", 3)
    assert [call[1] for call in seen() if call[0] == "step"] == list(range(1, 13))
    assert [call[2] for call in seen() if call[0] == "step" and call[2]] == rows(done.folder)
    assert [call[1:] for call in seen() if call[0] == "saved"] == [
        (step, f"step-{step:08d}") for step in (5, 10, 12)
    ]  # fmt: skip
    assert seen().index(("saved", 5, "step-00000005")) < seen().index(("step", 5, None))  # as it is on the disk by then
    assert seen()[-1] == ("finished", "done", done.figures)


def test_a_plugin_watches_its_own_runs(install: Any, tmp_path: Path) -> None:
    presets = {"ring.yaml": "data: ring\nnetwork: dense\n", "halves.yaml": ""}
    install("logger", Path(__file__).with_name("ring.py").read_text(encoding="utf-8") + LOGGER, presets)
    few = ("train.steps=2", "eval.count=8", "eval.paths=4", "eval.steps=[1]", "sample.count=2", "sample.steps=1")
    flowplat.run("logger", *few, out=tmp_path / "run")
    assert [call[0] for call in seen()] == ["started", "step", "saved", "step", "finished"]


def test_one_that_goes_on_is_started_again(ring: Path, install: Any, tmp_path: Path) -> None:
    install("logger", LOGGER)
    for steps in (5, 9):
        flowplat.run("ring", "observers=[logger]", f"train.steps={steps}", out=tmp_path / "run", resume="last")
    steps = [call[1] for call in seen() if call[0] == "step"]
    assert steps == list(range(1, 10))
    assert [call[0] for call in seen()].count("started") == 2


def test_a_run_that_fails_says_so(ring: Path, install: Any, tmp_path: Path) -> None:
    install("logger", LOGGER)
    with pytest.raises(FlowError):
        flowplat.run("ring", "observers=[logger]", "train.lr=1e38", "train.clip=null", out=tmp_path / "run")
    assert seen()[-1] == ("finished", "failed", None)


@pytest.mark.parametrize("hook", CALLS)
def test_one_that_raises_is_named_once_and_dropped(
    hook: str, ring: Path, install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("logger", raising(hook, "raise ValueError('no more\\nroom')"))
    install("other", LOGGER)
    out = tmp_path / "run"
    flowplat.run("ring", "observers=[logger, other]", out=out)
    assert seen() == [hook]
    said = f"observer logger is dropped, its {hook} failed: "
    err = capsys.readouterr().err
    assert err.count(said) == 1
    assert err.count("\n") == 1
    assert "ValueError" in err
    assert (out / "log.txt").read_text().count(said) == 1
    assert sys.modules["flowplat_other.plugin"].SEEN[-1][:2] == ("finished", "done")
    assert json.loads((out / "provenance.json").read_text())["status"] == "done"


def test_one_that_exits_does_not_end_the_run(ring: Path, install: Any, tmp_path: Path) -> None:
    install("logger", raising("after_step", "raise SystemExit(7)"))
    flowplat.run("ring", "observers=[logger]", out=tmp_path / "run")
    assert seen() == ["after_step"]


def test_what_one_prints_is_no_result(
    ring: Path, install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("logger", raising("run_started", "print('watching')"))
    flowplat.run("ring", "observers=[logger]", out=tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "watching" in captured.err


def test_ctrl_c_in_an_observer_is_ctrl_c(ring: Path, install: Any, tmp_path: Path) -> None:
    install("logger", raising("run_started", "raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        flowplat.run("ring", "observers=[logger]", out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["exit_code"] == 130


def test_one_that_there_is_not_is_told_before_anything_is_done(ring: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="loggerr"):
        flowplat.run("ring", "observers=[loggerr]", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# tensorboard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_shows_what_the_run_logs(ring: Path, tmp_path: Path) -> None:
    done = flowplat.run("ring", "observers=[tensorboard]", out=tmp_path / "run")
    shown = events(done.folder)
    for name in ("loss", "grad_norm", "lr", "samples_per_s"):
        drawn = [(event.step, event.value) for event in shown.Scalars(f"train/{name}")]
        assert drawn == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows(done.folder)]
    figures = {column["steps"]: column["figures"]["radius"]["value"] for column in done.figures["by_steps"]}
    assert {event.step: event.value for event in shown.Scalars("eval/radius")} == pytest.approx(figures)
    assert len(shown.Images("samples")) == 1


def test_tensorboard_shows_each_step_once_when_a_killed_run_goes_on(
    ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 8, with a checkpoint of step 5: steps from 6 on are made again."""
    import flowplat.observers

    class Killed(KeyboardInterrupt):
        pass

    def kill(self: Any, hook: str, _call: Any = flowplat.observers.Observers.__call__, **what: Any) -> None:
        _call(self, hook, **what)
        if hook == "after_step" and what["step"] == 8:
            raise Killed

    settings = ("observers=[tensorboard]", "train.log_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(flowplat.observers.Observers, "__call__", kill)
        with pytest.raises(Killed):
            flowplat.run("ring", *settings, out=tmp_path / "run")
    done = flowplat.run("ring", *settings, out=tmp_path / "run", resume="last")
    assert [row["step"] for row in rows(done.folder)] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in events(done.folder).Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]
    assert len(list((done.folder / "tensorboard").iterdir())) == 2


def test_tensorboard_that_is_not_installed_is_named_with_the_way_out(
    ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "flowplat.tensorboard", raising=False)
    with pytest.raises(MachineError, match=r"pip install 'flowplat\[tensorboard\]'"):
        flowplat.run("ring", "observers=[tensorboard]", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
