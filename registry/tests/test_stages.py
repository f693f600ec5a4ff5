"""stages: a teacher named by its preset is found, or trained first, or gone on with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import flowplat
from flowcore.errors import UsageError
from flowplat import runs
from flowplat.config import resolve
from flowplat.stages import look_for, wanted_by

SHORT = ("engine.threads=1", "teacher.config={eval: {metrics: []}, train: {steps: 3}}")


@pytest.fixture(autouse=True)
def _here(ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    return iter(())


def student(*overrides: str) -> Path:
    return flowplat.run("ring", *SHORT, *overrides, preset="straight").folder


def teachers() -> list[Path]:
    return sorted(Path("runs/ring/ring").glob("*"))


def taught_by(folder: Path) -> str:
    return runs.config_of(folder)["teacher"]["model"]


def test_the_teacher_is_trained_first_and_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    one = student()
    (teacher,) = teachers()
    assert "the teacher, preset ring, is trained first" in capsys.readouterr().err
    two = student("train.lr=1e-4", "eval.count=8", "train.steps=2")
    assert teachers() == [teacher]
    assert taught_by(one) == taught_by(two) == str(teacher)
    assert "teacher" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", ["seed=1", "data.count=32", "network.width=8", "teacher.config={train: {steps: 4}, eval: {metrics: []}}"]
)
def test_a_teacher_that_would_be_another_is_trained_anew(change: str) -> None:
    first = taught_by(student())
    second = taught_by(student(change))
    assert first != second
    assert {Path(first), Path(second)} == set(teachers())


def test_a_student_with_a_network_of_its_own_needs_no_other_teacher() -> None:
    student()
    student("teacher.start=null", "network.width=24")
    student("teacher.start=null", "network.width=8")
    assert len(teachers()) == 1


def test_a_teacher_that_was_interrupted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import flowplat.runner as runner

    real = runner.draw

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        student()
    (teacher,) = teachers()
    monkeypatch.setattr(runner, "draw", real)
    student()
    assert teachers() == [teacher]
    assert runs.read(teacher).status == "done"
    assert len(runs.read(teacher).sessions) == 2


def test_a_teacher_under_torchrun_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="the teacher, preset ring of plugin ring, has to be trained first"):
        student()
    assert not Path("runs").exists()


def test_the_teacher_has_the_students_data_and_seed_and_not_its_training() -> None:
    config = resolve("ring", ["data.count=20", "seed=4", "train.lr=0.5"], preset="straight")
    wanted = wanted_by(config)
    assert wanted is not None
    assert (wanted.data.options.count, wanted.seed, wanted.preset) == (20, 4, "ring")  # type: ignore[attr-defined]
    assert wanted.train.lr != 0.5
    assert look_for(wanted) == (None, None)


def test_a_fault_in_the_teachers_config_is_told_with_its_origin() -> None:
    with pytest.raises(UsageError, match=r"train\.lrr \(teacher\.config\): no such key; did you mean train\.lr\?"):
        student("teacher.config={train: {lrr: 1}}")
    with pytest.raises(UsageError, match="no preset is called 'rign'"):
        student("teacher.preset=rign")


def test_a_smoke_run_is_taught_by_a_smoke_run() -> None:
    folder = flowplat.run("ring", "engine.threads=1", preset="straight", smoke=True).folder
    (teacher,) = teachers()
    assert runs.config_of(teacher)["smoke"] is True
    assert runs.config_of(folder)["teacher"]["pairs"]["count"] == 64
