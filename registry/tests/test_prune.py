"""prune: what goes, what stays, and that nothing else is touched."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import InputError, MachineError
from flowplat import prune, runs

Make = Callable[..., Path]
Platform = Callable[..., tuple[int, str, str]]

A, B, C, D = (f"2026010{n}T000000Z-{letter * 6}" for n, letter in enumerate("abcd", 1))
ROOT = Path("runs")


def names(root: Path = ROOT) -> set[str]:
    return {path.name for path in root.glob("*/*/*")}


def test_by_default_the_runs_that_did_not_finish_go(make: Make, in_use: Any, platform: Platform) -> None:
    make(A, status="done")
    make(B, status="failed")
    make(C, status="running")  # and its process is gone
    other = make(D, status="interrupted", plugin="wind")
    size = sum(runs.read(folder).size for folder in ROOT.glob("*/*/*") if folder.name != A)
    code, out, err = platform("runs", "prune", "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["deleted"], told["size"]) == (0, False, size)
    assert {(Path(run["folder"]).name, run["status"]) for run in told["runs"]} == {
        (B, "failed"), (C, "killed"), (D, "interrupted")
    }  # fmt: skip
    assert names() == {A, B, C, D}
    code, out, err = platform("runs", "prune")  # stdin is no terminal
    assert (code, out) == (2, "")
    assert "Delete 3 runs, " in err
    assert "--yes" in err
    assert str(other) in err
    assert names() == {A, B, C, D}
    code, out, err = platform("runs", "prune", "--yes", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, True)
    assert names() == {A}
    assert sorted(path.name for path in ROOT.iterdir()) == ["ring"]  # of wind nothing was left
    assert platform("runs", "prune", "--yes") == (0, "", "there is nothing to delete\n")


def test_the_user_is_asked(make: Make, monkeypatch: pytest.MonkeyPatch, platform: Platform) -> None:
    make(A, status="failed")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr("click.confirm", lambda question, **_: asked.append(question))
    code, out, err = platform("runs", "prune")
    assert (code, out) == (0, "")
    assert "nothing was deleted" in err
    assert asked[0].startswith("Delete 1 run, ")
    assert names() == {A}
    monkeypatch.setattr("click.confirm", lambda question, **_: True)
    assert platform("runs", "prune")[0] == 0
    assert list(ROOT.iterdir()) == []


def test_status_age_and_names_choose(make: Make) -> None:
    for number, (name, status) in enumerate(((A, "failed"), (B, "failed"), (C, "done"))):
        make(name, status=status, ended=(datetime.now(UTC) - timedelta(days=10 * number)).isoformat())

    def chosen(*arguments: Any, **keywords: Any) -> set[str]:
        return {one.run.id for one in prune.choose(ROOT, *arguments, **keywords)[0]}

    assert chosen() == {A, B}
    assert chosen(older_than=5) == {B}
    assert chosen(statuses=["done"]) == {C}
    assert chosen(statuses=["done", "failed"], older_than=5) == {B, C}
    assert chosen([C]) == {C}
    assert chosen([C[:10], str(ROOT / "ring" / "small" / A)]) == {A, C}
    assert chosen([A, C], older_than=5) == {C}
    assert chosen([A, C], ["failed"]) == {A}
    assert chosen(["last", "last"]) == {C}


def test_a_run_in_use_is_never_touched(make: Make, in_use: Any, platform: Platform) -> None:
    make(A, status="failed")
    folder = make(B, status="failed")  # and being resumed: its record is the old one
    with in_use(folder):
        code, _, err = platform("runs", "prune", "--yes")
        assert code == 0
        assert f"{folder} is in use" in err
        assert names() == {B}
        code, _, err = platform("runs", "prune", B, "--yes")
        assert code == 4
        assert "in use" in err
        doomed = [prune.Doomed(runs.read(folder), [folder], 1)]  # chosen before it was resumed
        with pytest.raises(MachineError, match="in use"):
            prune.delete(doomed, ROOT)
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "provenance.json", "checkpoints"}


def test_a_run_that_was_resumed_while_the_user_thought_stays(make: Make) -> None:
    folder = make(A, status="interrupted")
    doomed, _ = prune.choose(ROOT)
    record = folder / "provenance.json"
    record.write_text(record.read_text().replace("interrupted", "done"))
    with pytest.raises(MachineError, match="has changed meanwhile"):
        prune.delete(doomed, ROOT)
    assert runs.read(folder).status == "done"


def test_what_a_person_named_goes_only_by_name(make: Make, platform: Platform) -> None:
    folder = make("thesis", status="failed")
    code, _, err = platform("runs", "prune", "--yes")
    assert code == 0
    assert "runs/ring/small/thesis was named by hand; name it to delete it" in err
    assert folder.exists()
    assert platform("runs", "prune", "thesis", "--yes")[0] == 0
    assert not folder.exists()


def test_nothing_but_a_run_folder_is_deleted(make: Make, tmp_path: Path, platform: Platform) -> None:
    run = make(A, status="failed")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (ROOT / "ring" / "small" / B).symlink_to(tmp_path / "thesis")
    (ROOT / "ring" / "small" / C).symlink_to(run.absolute())
    for text in ("thesis", str(tmp_path), "runs", str(ROOT / "ring" / "small" / B), ".."):
        assert platform("runs", "prune", text, "--yes")[0] == 2
    with pytest.raises(InputError, match="is a symlink"):
        prune.choose(ROOT, [str(ROOT / "ring" / "small" / C)])
    code, _, _ = platform("runs", "prune", "--yes")
    assert code == 0
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
    assert not run.exists()


def test_symlinks_in_a_run_are_not_followed(make: Make, tmp_path: Path, platform: Platform) -> None:
    run = make(A, status="failed")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_text("a picture")
    (run / "samples").symlink_to(tmp_path / "pictures")
    (run / "checkpoints" / "link").symlink_to(tmp_path / "pictures" / "one.png")
    shutil.rmtree(run / "eval")
    (run / "eval").symlink_to(tmp_path)
    assert platform("runs", "prune", "--yes")[0] == 0
    assert not run.exists()
    assert (tmp_path / "pictures" / "one.png").read_text() == "a picture"


def test_the_folder_one_works_in_is_not_deleted(
    make: Make, monkeypatch: pytest.MonkeyPatch, platform: Platform
) -> None:
    run = make(A, status="failed").absolute()
    monkeypatch.chdir(run / "checkpoints")
    code, _, err = platform("runs", "prune", str(run), "--yes")
    assert code == 2
    assert "you are working in" in err
    assert run.exists()


def test_a_disk_that_refuses_is_told_and_the_rest_goes(
    make: Make, monkeypatch: pytest.MonkeyPatch, platform: Platform
) -> None:
    stuck = make(A, status="failed")
    make(B, status="failed")
    rmtree = shutil.rmtree

    def refused(path: Any, *arguments: Any, **keywords: Any) -> None:
        if str(path).startswith(str(stuck)):
            raise PermissionError(1, "Operation not permitted", str(path))
        rmtree(path, *arguments, **keywords)

    scandir = os.scandir

    def files_first(path: Any) -> Any:
        return sorted(scandir(path), key=lambda one: one.is_dir()) if path == stuck else scandir(path)

    monkeypatch.setattr(shutil, "rmtree", refused)
    monkeypatch.setattr(os, "scandir", files_first)
    code, out, err = platform("runs", "prune", "--yes")
    assert (code, out) == (4, "")
    assert f"{stuck} cannot be deleted: Operation not permitted" in err
    assert names() == {A}
    assert not (stuck / ".lock").exists()
    assert {"config.yaml", "provenance.json"} <= set(os.listdir(stuck))  # which go last
    monkeypatch.undo()
    os.chdir(stuck.absolute().parents[3])
    assert platform("runs", "prune", "--yes")[0] == 0  # half gone, it is a run still
    assert names() == set()


def test_damaged_runs_go_when_asked_for(make: Make, platform: Platform) -> None:
    run = make(A)
    (run / "provenance.json").write_text("{")
    assert platform("runs", "prune", "--yes")[0] == 0
    assert run.exists()
    assert platform("runs", "prune", "--status", "damaged", "--yes")[0] == 0
    assert not run.exists()


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_finished_runs_are_thinned_to_their_last_checkpoint(trained: Path, platform: Platform) -> None:
    root = trained.parent / "runs"
    for name in (A, B):
        shutil.copytree(trained, root / "ring" / "ring" / name)
    interrupted = root / "ring" / "ring" / B
    record = interrupted / "provenance.json"
    record.write_text(record.read_text().replace('"done"', '"interrupted"'))
    thinned = root / "ring" / "ring" / A
    before = steps(thinned)
    assert before == ["latest", "step-00000005", "step-00000010", "step-00000012"]
    code, out, _ = platform("runs", "prune", "--root", str(root), "--checkpoints", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0
    assert [(Path(run["folder"]).name, run["checkpoints"]) for run in told["runs"]] == [(A, before[1:3])]
    assert steps(thinned) == before
    code, _, err = platform("runs", "prune", "--root", str(root), "--checkpoints", "--yes")
    assert code == 0
    assert "freed" in err
    assert steps(thinned) == ["latest", "step-00000012"]
    assert steps(interrupted) == before
    assert not (thinned / ".lock").exists()
    assert platform("sample", str(thinned), "-n", "2", "-o", str(trained.parent / "drawn"))[0] == 0
    assert platform("runs", "prune", str(interrupted), "--checkpoints", "--yes")[0] == 0
    assert steps(interrupted) == ["latest", "step-00000012"]


def test_the_best_and_the_last_whole_checkpoint_stay(trained: Path, platform: Platform) -> None:
    folder = trained / "checkpoints"
    state = folder / "step-00000005" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"score": 0.5}))
    weights = folder / "step-00000012" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert platform("runs", "prune", str(trained), "--checkpoints", "--yes")[0] == 0
    assert steps(trained) == ["latest", "step-00000005", "step-00000010"]
    assert (folder / "latest").read_text() == "step-00000010\n"
    for weights in folder.rglob("ema.safetensors"):
        weights.write_bytes(b"")
    code, _, err = platform("runs", "prune", str(trained), "--checkpoints", "--yes")
    assert code == 0
    assert "of which none is whole" in err
    assert steps(trained) == ["latest", "step-00000005", "step-00000010"]
