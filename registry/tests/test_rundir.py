"""rundir: where a run lies, and that what is written is whole or not there."""

import json
import logging
import re
from pathlib import Path

import pytest

from flowcore.errors import InputError, MachineError
from flowcore.files import write as write_text
from flowplat.rundir import RunDir, write_json


def test_a_run_lies_below_its_plugin_and_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (RunDir.create("images", "digits", None) for _ in range(2))
    assert one.folder.is_dir()
    assert re.fullmatch(r"runs/images/digits/\d{8}T\d{6}Z-[0-9a-f]{6}", one.folder.as_posix())
    assert one.folder != other.folder


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert RunDir.create("images", "digits", folder).folder == folder
        assert folder.is_dir()


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))} is not empty; "):
        RunDir.create("images", "digits", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MachineError, match=f"^the run folder {re.escape(str(folder))} cannot be made: "):
            RunDir.create("images", "digits", folder)


def test_only_a_run_is_opened(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=f"^{re.escape(str(folder))} is no run folder: "):
            RunDir.open(folder)
    (tmp_path / "config.yaml").write_text("plugin: images\n")
    assert RunDir.open(tmp_path).folder == tmp_path


def test_rows_are_appended_and_read_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.rows() == []
    rows = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1e-30}]
    for row in rows:
        run.append_metrics(row)
    assert run.rows() == rows
    assert len(run.metrics.read_text().splitlines()) == 2


def test_a_row_that_a_crash_cut_off_hides_no_other(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_metrics({"step": 1})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.rows() == [{"step": 1}]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "provenance.json"
    write_json(path, {"größe": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": 1.5}
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": 1.5}
    with path.open(encoding="utf-8") as reader:
        write_text(path, "new")
        assert "größe" in reader.read()  # who reads the old file goes on reading the old file
    assert path.read_text() == "new"


def test_json_is_json_whatever_was_measured(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    write_json(tmp_path / "metrics.json", {"value": float("nan"), "best": [float("inf"), 1.0]})
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert read == {"value": None, "best": [None, 1.0]}


def test_the_log_goes_to_the_folder_while_the_run_lasts(tmp_path: Path) -> None:
    log, run = logging.getLogger("flowplat"), RunDir(tmp_path)
    before = list(log.handlers), log.level
    with run.logging():
        log.info("step 5")
    with pytest.raises(ZeroDivisionError), run.logging():
        log.info("%d", 1 // 0)
    log.info("after")
    text = run.log.read_text()
    assert "INFO step 5" in text
    assert "after" not in text
    assert (list(log.handlers), log.level) == before
