"""runner: a run from config to report, and what is left when it ends otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest

import flowplat
from flowcore.errors import FlowError, InputError, MachineError, UsageError
from flowcore.files import sha256
from flowplat.plain_yaml import parse


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())


def test_a_run_leaves_everything_in_its_folder(ring: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finished = flowplat.run("ring", "seed=7", out=out)
    assert finished.folder == out
    assert {path.relative_to(out).as_posix() for path in out.iterdir()} == {
        "config.yaml", "provenance.json", "metrics.jsonl", "log.txt", "checkpoints", "samples", "eval", "report.html"
    }  # fmt: skip
    assert json.loads((out / "eval" / "metrics.json").read_text()) == finished.figures
    assert parse((out / "config.yaml").read_text(), "config")["seed"] == 7
    assert len((out / "samples" / "points.csv").read_text().splitlines()) == 8
    assert (out / "samples" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    checkpoints = {path.name for path in (out / "checkpoints").glob("step-*")}
    assert checkpoints == {"step-00000005", "step-00000010", "step-00000012"}
    assert (out / "checkpoints" / "latest").read_text().strip() == "step-00000012"
    assert (record(out)["status"], record(out)["exit_code"]) == ("done", 0)
    assert "status done" in (out / "log.txt").read_text()


@pytest.mark.parametrize("data", ["data.split=false", "data.split=true", "data.conditional=true"])
def test_the_same_config_gives_the_same_files_to_the_last_bit(data: str, ring: Path, tmp_path: Path) -> None:
    def hashes(name: str, *overrides: str) -> list[str]:
        folder = flowplat.run("ring", data, *overrides, out=tmp_path / name).folder
        return [sha256(folder / file) for file in (
            "checkpoints/step-00000012/model.safetensors", "checkpoints/step-00000012/ema.safetensors",
            "checkpoints/step-00000012/optim.safetensors", "samples/points.csv", "eval/metrics.json",
        )]  # fmt: skip

    first = hashes("one")
    assert hashes("two") == first
    assert all(a != b for a, b in zip(hashes("other", "seed=1"), first, strict=True))


def test_a_run_without_a_folder_of_its_own_lies_below_runs(
    ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = flowplat.run("ring", smoke=True).folder
    assert folder.parts[:3] == ("runs", "ring", "ring")
    assert record(folder)["status"] == "done"


@pytest.mark.parametrize(
    ("how", "raised", "status", "code"),
    [
        ("RuntimeError", RuntimeError, "failed", 1),
        ("KeyboardInterrupt", KeyboardInterrupt, "interrupted", 130),
        ("OSError", MachineError, "failed", 4),
        ("SystemExit", FlowError, "failed", 1),  # a plugin has no say in the exit code
    ],
)
def test_a_run_that_ends_otherwise_says_so_and_keeps_what_was_saved(
    how: str, raised: type[BaseException], status: str, code: int, ring: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(raised):
        flowplat.run("ring", f"eval.metrics=[{{name: fails, how: {how}}}]", out=out)
    assert (record(out)["status"], record(out)["exit_code"]) == (status, code)
    assert "ended" in record(out)
    assert "on purpose" in (out / "log.txt").read_text()
    assert (out / "checkpoints" / "step-00000012" / "manifest.json").is_file()
    assert not (out / "report.html").exists()


def test_a_run_that_diverges_names_the_steps(ring: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowError, match=r"the loss is (nan|inf) at step \d+: lower train\.lr"):
        flowplat.run("ring", "train.lr=1e38", "train.clip=null", "train.steps=50", out=tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "failed"


def test_what_is_saved_is_finite(ring: Path, tmp_path: Path) -> None:
    overrides = ["train.lr=1e38", "train.clip=null", "train.steps=50", "train.checkpoint_every=7", "train.log_every=50"]
    with pytest.raises(FlowError):
        flowplat.run("ring", *overrides, out=tmp_path / "run")
    from safetensors.torch import load_file

    for file in (tmp_path / "run" / "checkpoints").rglob("model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file.parent.name


@pytest.mark.parametrize(
    ("overrides", "raised"),
    [
        (["data.count=0"], InputError),
        (["data.conditional=true", "sample.condition=left"], UsageError),
        (["sample.guidance=[classifier_free]"], UsageError),  # the data have no conditions
        (["predicts=noise"], UsageError),  # no velocity at t = 0, where alpha is 0
        (["predicts=x1", "sample.solver=heun"], UsageError),  # none at t = 1, where sigma is 0
    ],
    ids=["data", "condition", "guidance", "singular at 0", "singular at 1"],
)
def test_what_can_be_known_before_training_is_told_before_training(
    overrides: list[str], raised: type[Exception], ring: Path, tmp_path: Path
) -> None:
    with pytest.raises(raised):
        flowplat.run("ring", *overrides, out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_that_is_not_empty_is_told_before_the_data_are_read(ring: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not empty"):
        flowplat.run("ring", "data.count=0", out=tmp_path)


def test_faults_of_the_config_make_no_folder(ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        flowplat.run("ring", "train.lrr=1")
    assert not (tmp_path / "runs").exists()
