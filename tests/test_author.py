"""A plugin author's day: write a plugin, build it, install it, check it, run it, test it, take it away again."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import wheels
from wheels import Environment


@dataclass(frozen=True)
class Author:
    """An author's machine: what is installed there, and the project of a plugin called sea-ice."""

    machine: Environment
    project: Path

    def test(self, *words: str) -> wheels.Done:
        """``pytest ...`` in the project, against what is installed."""
        command = [self.machine.python, "-m", "pytest", "-p", "no:cacheprovider", *words]
        return self.machine.run(*command, cwd=self.project)


@pytest.fixture(scope="module")
def author(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Author:
    folder = tmp_path_factory.mktemp("author")
    machine = wheels.environment(folder, ours["flowplat"])
    done = machine.platform("new", "sea-ice", "--author", "A. Author", "--license", "MIT")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "flowplat-sea-ice\n"
    project = machine.home / "flowplat-sea-ice"
    machine.pip("install", "-q", "--no-deps", wheels.build(project, folder))
    return Author(machine, project)


def test_it_is_listed_once_it_is_installed(author: Author) -> None:
    done = author.machine.platform("list", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["plugin"], row["distribution"], row["state"]) == ("sea-ice", "flowplat-sea-ice", "ok")


def test_every_check_passes_and_they_are_counted(author: Author) -> None:
    done = author.machine.platform("check", "sea-ice")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == f"{len(lines)} checks, 0 failed"
    assert len(lines) > 40
    assert all(line.startswith("ok      ") for line in lines)
    for kind in (
        "plugin",
        "data/rose",
        "network/mlp",
        "guidance/towards",
        "metric/distance",
        "preset/smoke",
        "run/smoke",
    ):
        assert any(line.startswith(f"ok      {kind}: ") for line in lines), kind


def test_its_smoke_preset_trains_untouched_and_draws_its_roses(author: Author) -> None:
    done = author.machine.platform("run", "sea-ice", "--preset", "smoke", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    figure = json.loads(done.stdout)["figures"]["by_steps"][-1]["figures"]["distance"]
    assert figure["floor"] < figure["value"] < figure["baselines"]["normal"]
    assert (author.machine.home / "run" / "report.html").is_file()
    assert len((author.machine.home / "run" / "samples" / "vectors.csv").read_text().splitlines()) == 65


def test_its_own_tests_pass_and_hold_the_checks(author: Author) -> None:
    done = author.test("-v", "-k", "not run")
    assert done.returncode == 0, done.stdout
    assert "tests/test_conforms.py::test_it_conforms[network/mlp: it depends on t] PASSED" in done.stdout
    assert done.stdout.count("PASSED") > 40


def test_its_own_tests_fail_where_a_check_does(author: Author) -> None:
    (installed,) = author.machine.folder.glob("lib/*/site-packages/flowplat_sea_ice/networks.py")
    text = installed.read_text()
    installed.write_text(text.replace("nn.Linear(width, size)", "nn.Linear(width, size + 1)"))
    try:
        done = author.test("-k", "mlp and shape")
    finally:
        installed.write_text(text)
    assert done.returncode == 1
    assert "it returned (6, 3) float32 for a state of (6, 2) float32" in done.stdout


def test_taken_away_it_is_unknown_and_the_way_out_is_told(author: Author) -> None:
    author.machine.pip("uninstall", "-q", "-y", "flowplat-sea-ice")
    for words in (["run", "sea-ice"], ["check", "sea-ice"]):
        done = author.machine.platform(*words)
        assert done.returncode == 3
        assert done.stderr.startswith("platform: no plugin named 'sea-ice' is installed; ")
        assert "platform search" in done.stderr
    assert "no plugin named 'sea-ice' is installed" in author.test("tests/test_conforms.py").stdout
