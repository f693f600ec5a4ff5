"""A run from outside: what it leaves, that it can be repeated to the last bit, and that it can be used again."""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flowplat
from flowcore.training import checkpoints

Platform = Callable[..., "subprocess.CompletedProcess[str]"]


def sha256(folder: Path, *patterns: str) -> dict[str, str]:
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in folder.glob(pattern)
    }
    assert found
    return found


def done(finished: "subprocess.CompletedProcess[str]") -> str:
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def pictures(folder: Path) -> list[Path]:
    """The samples, one file each, in order."""
    return sorted(path for path in folder.rglob("*.png") if re.fullmatch(r"\d+", path.stem))


def test_a_smoke_run_takes_seconds_and_tells_json(smoke: Any) -> None:
    told = json.loads(done(smoke.done))
    assert told["folder"] == "run"
    assert told["figures"] == json.loads((smoke.folder / "eval" / "metrics.json").read_text())
    assert smoke.seconds < 30  # of one processor: a busy machine has no say


def test_everything_is_in_its_folder(smoke: Any) -> None:
    names = {path.name for path in smoke.folder.iterdir()}
    assert names == {
        "config.yaml", "provenance.json", "metrics.jsonl", "log.txt", "checkpoints", "samples", "eval", "report.html"
    }  # fmt: skip
    steps = sorted((smoke.folder / "checkpoints").glob("step-*"))
    assert [path.name for path in steps] == ["step-00000015", "step-00000030"]
    for step in steps:
        checkpoints.verify(step)
        assert {path.name for path in step.iterdir()} == {
            "model.safetensors", "ema.safetensors", "optim.safetensors", "state.json", "manifest.json"
        }  # fmt: skip
        assert set(json.loads((step / "manifest.json").read_text())) == {
            "model.safetensors", "ema.safetensors", "optim.safetensors", "state.json"
        }  # fmt: skip
    assert not {path.suffix for path in smoke.folder.rglob("*")} & {".tmp", ".pt", ".pkl"}


def test_the_samples_are_pictures(smoke: Any) -> None:
    images = np.load(smoke.folder / "samples" / "samples.npz", allow_pickle=False)["images"]
    assert images.shape == (16, 8, 8)
    for picture, image in zip(pictures(smoke.folder / "samples"), images, strict=True):
        assert np.array_equal(np.asarray(Image.open(picture)), image)


def test_losses_are_finite_and_fall(smoke: Any) -> None:
    rows = [json.loads(line) for line in (smoke.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(row["samples_per_s"] > 0 and row["grad_norm"] > 0 for row in rows)


def test_the_provenance_is_complete(smoke: Any) -> None:
    record = json.loads((smoke.folder / "provenance.json").read_text())
    assert (record["status"], record["exit_code"], record["seed"]) == ("done", 0, 0)
    assert record["argv"][1:] == ["run", "images", "engine.threads=1", "--smoke", "--out", "run", "--json"]
    assert record["started"] <= record["ended"]
    assert record["data"]["name"] == "images/digits"
    assert re.fullmatch(r"[0-9a-f]{64}", record["data"]["fingerprint"])
    assert {"python", "flowplat", "flowplat-images", "torch", "numpy", "safetensors"} <= set(record["versions"])
    assert all(record["versions"].values())
    assert record["hardware"]["threads"] == 1


def test_each_figure_stands_beside_its_floor(smoke: Any) -> None:
    figures = json.loads((smoke.folder / "eval" / "metrics.json").read_text())
    assert [(column["steps"], column["nfe"]) for column in figures["by_steps"]] == [(1, 1), (4, 4)]
    for column in figures["by_steps"]:
        assert {"frechet", "nearest_distance"} <= set(column["figures"])
        for figure in column["figures"].values():
            assert isinstance(figure["value"], float)
            assert isinstance(figure["floor"], float)
        frechet = column["figures"]["frechet"]
        assert frechet["floor"] < frechet["baselines"]["gaussian"] < frechet["baselines"]["noise"]
        assert frechet["value"] > frechet["floor"]  # 30 steps do not make a perfect model
    page = (smoke.folder / "report.html").read_text(encoding="utf-8")
    assert f"{frechet['floor']:.4g}" in page
    assert f"{frechet['baselines']['noise']:.4g}" in page


def test_the_report_stands_alone(smoke: Any) -> None:
    page = re.sub(r"base64,[\w+/=]+", "", (smoke.folder / "report.html").read_text(encoding="utf-8"))
    assert "http" not in page
    assert set(re.findall(r"src=\"([^\"]*)\"", page)) == {"data:image/png;", "data:image/svg+xml;"}


# again


REPEATED = ("checkpoints/*/model.safetensors", "checkpoints/*/ema.safetensors", "checkpoints/*/optim.safetensors",
            "samples/**/*.npz", "samples/**/*.png", "eval/metrics.json")  # fmt: skip


def test_the_config_of_a_run_repeats_it_to_the_last_bit(smoke: Any, platform: Platform, tmp_path: Path) -> None:
    done(platform("run", "images", "-c", str(smoke.folder / "config.yaml"), "--out", "again"))
    assert (tmp_path / "again" / "config.yaml").read_text() == (smoke.folder / "config.yaml").read_text()
    assert sha256(tmp_path / "again", *REPEATED) == sha256(smoke.folder, *REPEATED)


def test_a_shown_config_runs(platform: Platform, tmp_path: Path) -> None:
    shown = done(platform("show-config", "images", "seed=5", "train.steps=70"))
    plan = json.loads(done(platform("run", "images", "-c", "-", "--smoke", "--dry-run", "--json", stdin=shown)))
    assert (plan["plugin"], plan["preset"], plan["steps"], plan["samples"]) == ("images", "digits", 30, 128)
    assert list(tmp_path.iterdir()) == []  # nothing was trained


def test_a_shown_config_is_the_run_to_the_last_bit(smoke: Any, platform: Platform, tmp_path: Path) -> None:
    shown = done(platform("show-config", "images", "engine.threads=1", "--smoke", "--origin"))
    assert re.search("threads: 1 +# command line\n", shown)
    done(platform("run", "images", "-c", "-", "--out", "again", stdin=shown))
    assert (tmp_path / "again" / "config.yaml").read_text() == (smoke.folder / "config.yaml").read_text()
    assert sha256(tmp_path / "again", *REPEATED) == sha256(smoke.folder, *REPEATED)


@pytest.mark.parametrize(
    ("arguments", "stdin", "origin"),
    [(["-c", "my.yaml"], None, "my.yaml, line 1"), (["-c", "-"], "seed: {tag}\n", "-, line 1"),
     (["seed={tag}"], None, "the value of seed"), (["data={{name: digits, flip: {tag}}}"], None, "the value of data")],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["run", "show-config"])
def test_a_tag_in_a_config_executes_nothing(
    verb: str, arguments: list[str], stdin: str | None, origin: str, platform: Platform, tmp_path: Path
) -> None:
    tag = f"!!python/object/apply:os.mkdir [{tmp_path / 'trap'}]"
    (tmp_path / "my.yaml").write_text(f"seed: {tag}\n")
    words = [word.format(tag=tag) for word in arguments]
    told = platform(verb, "images", *words, stdin=None if stdin is None else stdin.format(tag=tag))
    assert (told.returncode, told.stdout) == (2, "")
    assert len(told.stderr.replace(f"the config has 1 fault:\n  {origin}", origin).splitlines()) == 1
    assert origin in told.stderr
    assert "the tag 'tag:yaml.org,2002:python/object/apply:os.mkdir' is not allowed" in told.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"my.yaml"}


def test_samples_are_the_same_however_often_and_however_many(smoke: Any, platform: Platform, tmp_path: Path) -> None:
    run = str(smoke.folder)
    assert done(platform("sample", run, "-n", "5", "--steps", "3", "-o", "one")) == "one\n"
    told = json.loads(done(platform("sample", run, "-n", "5", "--steps", "3", "-o", "two", "--json")))
    assert told == {"folder": "two", "count": 5, "steps": 3, "nfe": 3, "seed": 0}
    (tmp_path / "more").mkdir()
    model = flowplat.load(smoke.folder)
    model.data.write(model.sample(8, steps=3), tmp_path / "more")
    assert sha256(tmp_path / "one", "**/*.*") == sha256(tmp_path / "two", "**/*.*")
    one, more = ([path.read_bytes() for path in pictures(tmp_path / name)] for name in ("one", "more"))
    assert len(one) == 5
    assert one == more[:5]
    few, many = (np.load(tmp_path / name / "samples.npz")["images"] for name in ("one", "more"))
    assert np.array_equal(few, many[:5])
    assert len(np.unique(many, axis=0)) == 8
