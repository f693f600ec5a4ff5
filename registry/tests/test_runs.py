"""runs: finding and reading run folders, whole or not, and the verbs that show them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flowcore.errors import InputError
from flowplat import runs
from flowplat.comparison import compare, flat, measured

Make = Callable[..., Path]
Said = tuple[int, str, str]


# reading


def test_what_is_read_of_a_run(make: Make) -> None:
    folder = make("20260101T000000Z-aaaaaa")
    run = runs.read(folder)
    assert (run.id, run.plugin, run.preset, run.status) == ("20260101T000000Z-aaaaaa", "ring", "small", "done")
    assert (run.done, run.asked, run.faults) == (40, 40, [])
    assert run.first_figure == {"name": "radius", "steps": 4, "value": 0.25, "floor": 0.125}
    assert run.size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert [path.name for path in run.checkpoints] == ["step-00000020", "step-00000040"]


def test_a_real_run(trained: Path) -> None:
    run = runs.read(trained)
    assert (run.plugin, run.preset, run.status, run.done, run.asked) == ("ring", "ring", "done", 12, 12)
    assert run.faults == []
    assert run.first_figure is not None
    assert (run.first_figure["name"], run.first_figure["steps"], run.first_figure["floor"]) == ("radius", 2, 0.0)
    assert "checkpoints/step-00000012/ema.safetensors" in runs.files_of(trained)


def test_sessions_are_the_records_own_or_the_one_there_was(make: Make) -> None:
    one = runs.read(make("20260101T000000Z-aaaaaa", argv=["platform", "run"], exit_code=0))
    assert one.sessions == [
        {"argv": ["platform", "run"], "started": "2026-01-01T00:00:00+00:00", "status": "done", "exit_code": 0}
    ]
    sessions = [{"started": "2026-01-01T00:00:00+00:00"}, {"started": "2026-01-09T00:00:00+00:00", "from_step": 20}]
    resumed = runs.read(make("20260101T000000Z-bbbbbb", sessions=sessions))
    assert resumed.sessions == sessions
    assert resumed.began.day == 9
    for status, last in (("done", "done"), ("running", "killed")):
        sessions = [{"status": "running", "pid": 1}, {"status": "interrupted"}, {"status": status, "pid": 2}]
        killed = runs.read(make(f"20260102T000000Z-{status}", status=status, sessions=sessions))
        assert [one["status"] for one in killed.sessions] == ["killed", "interrupted", last]


def test_a_run_that_says_running_is_only_while_its_lock_is_held(make: Make, in_use: Any) -> None:
    folder = make("20260101T000000Z-aaaaaa", status="running")
    assert runs.read(folder).status == "killed"
    assert not (folder / ".lock").exists()
    with in_use(folder):
        assert runs.held(folder)
        assert runs.read(folder).status == "running"
    assert (folder / ".lock").exists()  # which a process that is killed leaves
    assert runs.read(folder).status == "killed"
    with FileLock(folder / ".lock", timeout=0):  # looking has not taken it
        assert runs.held(folder)


SPOILT = {
    "empty": b"",
    "half": b'{"status": "do',
    "list": b"[1, 2]",
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "nothing": None,
}


@pytest.mark.parametrize("name", ["provenance.json", "config.yaml", "eval/metrics.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT)
def test_a_file_that_is_spoilt_stops_nothing(
    name: str, content: bytes | None, make: Make, platform: Callable[..., Said]
) -> None:
    folder = make("20260101T000000Z-aaaaaa")
    make("20260102T000000Z-bbbbbb", day=2)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    run = runs.read(folder)
    assert run.status == ("damaged" if name == "provenance.json" else "done")
    assert (run.plugin, run.preset) == ("ring", "small")  # as its place says
    assert run.done == 40
    code, out, err = platform("runs", "list", "--json")
    assert code == 0
    assert {row["id"] for row in json.loads(out)} == {"20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb"}
    if name in ("provenance.json", "config.yaml"):
        assert f"{folder / name} is" in err
        assert len(err.splitlines()) == 1
    assert platform("runs", "show", str(folder))[0] == 0
    assert platform("runs", "show", str(folder), "--json")[0] == 0


def test_values_of_the_wrong_kind_stop_nothing(make: Make, platform: Callable[..., Said]) -> None:
    wrong: list[Any] = [None, 3, "text", [], {}, [3], {"by_steps": 3}]
    for number, value in enumerate(wrong):
        record = dict.fromkeys(("argv", "started", "sessions", "versions", "sources", "data", "hardware"), value)
        folder = make(f"20260101T000000Z-aaaaa{number}", config="train: [1]\n", **record)
        (folder / "eval" / "metrics.json").write_text(json.dumps({"by_steps": value, "paths": value}))
        (folder / "metrics.jsonl").write_text(json.dumps(value) + "\n")
        for flag in ((), ("--json",)):
            assert platform("runs", "show", str(folder), *flag)[0] == 0
    for value in wrong:
        folder = make(f"20260101T000000Z-bbbb{wrong.index(value):02}", status=value)
        assert runs.read(folder).status == "damaged"
    assert platform("runs", "list")[0] == 0


# finding


def test_list_shows_the_last_one_first(make: Make, platform: Callable[..., Said]) -> None:
    make("20260101T000000Z-aaaaaa", day=1)
    make("20260103T000000Z-cccccc", day=3, status="failed", config="train:\n  steps: 900\n")
    make("20260102T000000Z-bbbbbb", day=2, plugin="wind", preset="storm")
    code, out, err = platform("runs", "list")
    assert (code, err) == (0, "")
    head, *lines = [line.split() for line in out.splitlines()]
    assert head == ["id", "plugin", "preset", "status", "started", "steps", "figure", "size"]
    assert [line[0][-6:] for line in lines] == ["cccccc", "bbbbbb", "aaaaaa"]
    assert lines[0][1:4] == ["ring", "small", "failed"]
    assert "40/900  radius 0.25 (0.125)" in out
    rows = json.loads(platform("runs", "list", "--json", "--plugin", "wind")[1])
    assert [(row["plugin"], row["preset"], row["steps"]) for row in rows] == [
        ("wind", "storm", {"done": 40, "asked": 40})
    ]
    assert rows[0]["figure"] == {"name": "radius", "steps": 4, "value": 0.25, "floor": 0.125}
    rows = json.loads(platform("runs", "list", "--json", "--status", "failed,killed")[1])
    assert [row["status"] for row in rows] == ["failed"]
    code, _, err = platform("runs", "list", "--status", "faild")
    assert code == 2
    assert "did you mean 'failed'?" in err


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: Callable[..., Said]) -> None:
    monkeypatch.chdir(tmp_path)
    assert platform("runs", "list") == (0, "", "no run below runs\n")
    assert json.loads(platform("runs", "list", "--json")[1]) == []
    assert platform("runs", "list", "--root", "typo")[0] == 2  # what was typed should be there
    code, _, err = platform("runs", "show", "last")
    assert code == 2
    assert "runs holds none" in err


def test_what_is_no_run_is_named_and_passed_over(make: Make, tmp_path: Path, platform: Callable[..., Said]) -> None:
    make("20260101T000000Z-aaaaaa")
    small = Path("runs/ring/small")
    (small / "notes").mkdir()
    (small / "notes" / "thesis.tex").write_text("years of work")
    (small / "best").symlink_to("20260101T000000Z-aaaaaa")
    (small / ".hidden").mkdir()
    (small / "loop").symlink_to(tmp_path)
    Path("runs/readme.txt").write_text("a file")
    Path("runs/empty").mkdir()
    code, out, err = platform("runs", "list", "--json")
    assert code == 0
    assert [row["id"] for row in json.loads(out)] == ["20260101T000000Z-aaaaaa"]
    assert sorted(err.splitlines()) == [
        "platform: runs/ring/small/best is a symlink, which is not followed",
        "platform: runs/ring/small/loop is a symlink, which is not followed",
        "platform: runs/ring/small/notes is no run folder: it has neither config.yaml nor provenance.json",
    ]


def test_names_of_every_kind(make: Make, platform: Callable[..., Said]) -> None:
    make("my run", plugin="ring", preset="größe 8", day=1)
    make("二つ", day=2)
    raw = Path(os.fsdecode(b"runs/ring/small/\xff\nx"))
    shutil.copytree("runs/ring/small/二つ", raw)
    code, out, err = platform("runs", "list")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 4
    assert "größe 8" in out
    names = {row["id"] for row in json.loads(platform("runs", "list", "--json")[1])}
    assert names == {"my run", "二つ", "??x".replace("??", "\ufffd?")}
    assert runs.find("my") == Path("runs/ring/größe 8/my run")
    assert platform("runs", "show", "二")[0] == 0
    assert platform("runs", "show", str(raw))[0] == 0


def test_a_folder_that_cannot_be_read_is_named(
    make: Make, platform: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("20260101T000000Z-aaaaaa")
    Path("runs/wind").mkdir()
    iterdir = Path.iterdir

    def refused(folder: Path) -> Iterator[Path]:  # root, as whom tests may run, can read everything
        if folder.name == "wind":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    code, out, err = platform("runs", "list", "--json")
    assert (code, len(json.loads(out))) == (0, 1)
    assert "runs/wind cannot be read: Permission denied" in err


def test_a_run_is_found_by_folder_id_beginning_or_last(make: Make) -> None:
    first = make("20260101T000000Z-aaaaaa", day=1)
    second = make("20260101T000000Z-bbbbbb", day=2, plugin="wind")
    for text in (str(first), f"{first}/", first, first.absolute()):
        assert runs.find(text) == Path(text)
    assert runs.find("20260101T000000Z-a") == first
    assert runs.find("20260101T000000Z-bbbbbb") == second
    assert runs.find("2026", plugin="ring") == first
    assert runs.find("last") == second
    assert runs.find("last", plugin="ring") == first
    with pytest.raises(InputError, match=r"could be 2 runs: .*bbbbbb, .*aaaaaa; write more"):
        runs.find("2026")
    for text in ("2027", "", "runs", "elsewhere", "a/b"):
        with pytest.raises(InputError, match="no run"):
            runs.find(text)
    with pytest.raises(InputError, match="no last run of lakes"):
        runs.find("last", plugin="lakes")


def test_the_last_run_is_the_one_last_worked_on(make: Make) -> None:
    make("20260102T000000Z-bbbbbb", day=2)
    resumed = make("20260101T000000Z-aaaaaa", day=1, sessions=[{"started": "2026-01-05T00:00:00+00:00"}])
    assert runs.find("last") == resumed
    (make("20260109T000000Z-cccccc", day=9) / "provenance.json").write_text("")  # of which nothing is known
    assert runs.find("last") == resumed


def test_a_beginning_that_is_a_whole_id_is_that_run(make: Make) -> None:
    short, _ = make("one"), make("one-more")
    assert runs.find("one") == short


# show and compare


def test_show_tells_where_a_run_came_from(make: Make, platform: Callable[..., Said]) -> None:
    sessions = [
        {"argv": ["platform", "run", "ring"], "started": "2026-01-01T00:00:00+00:00", "status": "interrupted"},
        {"argv": ["platform", "run", "--resume", "last"], "from_step": 20, "host": "node7", "status": "done"},
    ]
    make(
        "20260101T000000Z-aaaaaa", sessions=sessions, exit_code=0, seed=7, versions={"flowplat": "0.1.0"},
        sources={"flowplat": {"commit": "f00d", "changed": True}}, data={"name": "ring/ring", "fingerprint": "beef"},
    )  # fmt: skip
    code, out, err = platform("runs", "show", "last")
    assert (code, err) == (0, "")
    for told in ("40 of 40", "ring/ring beef", "from step 20", "on node7", "platform run --resume last",
                 "flowplat 0.1.0, commit f00d with changes", "step 20, 100 B", "metrics.jsonl", "noise 3"):  # fmt: skip
        assert told in out
    told = json.loads(platform("runs", "show", "last", "--json")[1])
    assert told["sessions"] == sessions
    assert [one["whole"] for one in told["checkpoints"]] == [None, None]
    assert told["figures"]["by_steps"][1]["figures"]["radius"]["baselines"] == {"noise": 3.0}
    assert told["files"]["checkpoints/step-00000040/model.safetensors"] == 100


def test_show_verifies_checkpoints_when_asked(trained: Path, platform: Callable[..., Said]) -> None:
    weights = trained / "checkpoints" / "step-00000010" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    told = json.loads(platform("runs", "show", str(trained), "--verify", "--json")[1])
    whole = {one["step"]: one["whole"] for one in told["checkpoints"]}
    assert (whole[10], whole[12]) == (False, True)
    out = platform("runs", "show", str(trained), "--verify")[1]
    assert "ema.safetensors is damaged" in out


def test_compare_shows_the_keys_that_differ_and_every_figure(make: Make, platform: Callable[..., Said]) -> None:
    one = make("20260101T000000Z-aaaaaa", config="train: {steps: 40, lr: 1e-3}\nsample: {guidance: []}\n")
    guided = "train: {steps: 40, lr: 1e-2, clip: null}\nsample: {guidance: [{name: g, scale: 2}]}\n"
    other = make("20260102T000000Z-bbbbbb", config=guided)
    (other / "eval" / "metrics.json").write_text(
        json.dumps({"by_steps": [{"steps": 4, "figures": {"radius": {"value": 0.5}}}]})
    )
    told = compare([runs.read(one), runs.read(other)])
    assert {row["key"]: row["values"] for row in told["config"]} == {
        "train.lr": [1e-3, 1e-2], "train.clip": [None, None], "sample.guidance": [[], None],
        "sample.guidance.0.name": [None, "g"], "sample.guidance.0.scale": [None, 2],
    }  # fmt: skip
    assert {(row["name"], row["steps"]): (row["values"], row["floors"]) for row in told["figures"]} == {
        ("radius", 1): ([0.25, None], [0.125, None]), ("away", 1): ([0.25, None], [0.125, None]),
        ("radius", 4): ([0.25, 0.5], [0.125, None]), ("away", 4): ([0.25, None], [0.125, None]),
    }  # fmt: skip
    code, out, err = platform("runs", "compare", "20260101", "20260102")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines() if line.startswith("train.lr")] == [["train.lr", "0.001", "0.01"]]
    assert "0.25 (0.125)" in out
    assert json.loads(platform("runs", "compare", str(one), str(other), "--json")[1]) == told
    assert platform("runs", "compare", str(one), str(one))[2] == "the configs are equal\n"
    assert platform("runs", "compare", str(one))[0] == 2


def test_a_config_that_cannot_be_compared_is_named(make: Make, platform: Callable[..., Said]) -> None:
    one, other = make("20260101T000000Z-aaaaaa"), make("20260102T000000Z-bbbbbb")
    for content in (b"", b"train: [", b"\xff"):
        (other / "config.yaml").write_bytes(content)
        code, out, err = platform("runs", "compare", str(one), str(other))
        assert (code, out) == (2, "")
        assert f"{other}/config.yaml" in err


def test_flat_and_measured() -> None:
    assert dict(flat({"a": {"b": 1, "c": [2, {"d": None}]}, "e": {}})) == {
        "a.b": 1, "a.c.0": 2, "a.c.1.d": None, "e": {}
    }  # fmt: skip
    rows = measured({"by_steps": [{"steps": 2, "figures": {"f": {"value": 1.0}}}], "paths": {"p": {"value": None}}})
    assert [(row["name"], row["steps"], row["value"], row["floor"]) for row in rows] == [
        ("f", 2, 1.0, None), ("p", None, None, None)
    ]  # fmt: skip
