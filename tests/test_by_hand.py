"""A plugin written by hand from docs/guides/writing-a-plugin.md alone, outside the repository, and used by a user."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import wheels
from wheels import Done, Environment

PAGE = wheels.ROOT / "docs" / "guides" / "writing-a-plugin.md"
FILE = re.compile(r"^```\w+\n# ([\w./-]+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = ("train.steps=300", "eval.count=200", "eval.steps=[10]", "eval.paths=16", "sample.count=20", "sample.steps=10")


@dataclass(frozen=True)
class Author:
    """An environment with the platform, the images plugin and the one of the page; a folder with a run of it."""

    environment: Environment
    project: Path
    home: Path
    done: Done

    def platform(self, *arguments: str) -> Done:
        return self.environment.platform(*arguments, cwd=self.home)

    def python(self, code: str) -> str:
        done = self.environment.run(self.environment.python, "-c", code, cwd=self.home)
        assert done.returncode == 0, done.stderr
        return done.stdout


def files() -> dict[str, str]:
    return dict(FILE.findall(PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def author(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Author:
    folder = tmp_path_factory.mktemp("by-hand")
    project = folder / "flowplat-tides"
    for name, text in files().items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "dist").mkdir()
    wheel = wheels.build(project, folder / "dist")
    environment = wheels.environment(folder, ours["flowplat"], ours["flowplat-images"], wheel)
    home = folder / "work"
    home.mkdir()
    done = environment.platform("run", "tides", *SHORT, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    return Author(environment, project, home, done)


def told(done: Done, code: int = 2) -> str:
    """The one line of a command that was refused."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("platform: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_page_has_every_file_that_it_lists() -> None:
    tree = PAGE.read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
    assert {Path(name).name for name in files()} == set(re.findall(r"[\w/]*?(\w+\.\w+)", tree))


def test_it_is_listed_with_what_it_brings(author: Author) -> None:
    rows = {row["plugin"]: row for row in json.loads(author.platform("list", "--components", "--json").stdout)}
    assert set(rows) == {"images", "tides"}
    tides = rows["tides"]
    assert (tides["state"], tides["version"]) == ("ok", "0.1.0")
    assert [f"{part['kind']} {part['name']}" for part in tides["components"]] == [
        "data gauge", "network mlp", "guidance mean_level", "objective smooth", "sampler antithetic",
        "metric tidal_range", "task fill", "preset tides", "preset smooth", "command constituents",
    ]  # fmt: skip
    assert not any("cause" in part for part in tides["components"])


def test_its_run_is_a_run(author: Author) -> None:
    folder = author.home / json.loads(author.done.stdout)["folder"]
    levels = np.loadtxt(folder / "samples" / "levels.csv", delimiter=",")
    assert levels.shape == (20, 24)
    assert 0.2 < levels.std() < 2  # of the days that are made up it is 0.76
    (column,) = json.loads((folder / "eval" / "metrics.json").read_text())["by_steps"]
    figure = column["figures"]["tidal_range"]
    assert figure["value"] < figure["baselines"]["noise"]
    assert (folder / "ended.txt").read_text() == f"tides/tides/{folder.name}: done\n"
    assert (folder / "report.html").is_file()


def test_its_task_on_a_file(author: Author) -> None:
    days = np.cos(2 * np.pi * np.arange(24) / 12.42 + np.array([[0.3], [1.0], [2.0]]))
    gaps = days.copy()
    gaps[0, 5:9] = gaps[2, 20:] = np.nan
    rows = [["" if np.isnan(level) else f"{level:.4f}" for level in day] for day in gaps]
    (author.home / "gaps.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    done = author.platform("apply", "tides", "fill", "gaps.csv", "--model", "last", "-o", "filled.csv", "steps=20")
    assert (done.returncode, done.stdout) == (0, "filled.csv\n"), done.stderr
    assert [line.split() for line in done.stderr.splitlines()] == [["days", "3"], ["filled", "8"]]
    filled = np.loadtxt(author.home / "filled.csv", delimiter=",")
    known = ~np.isnan(gaps)
    np.testing.assert_allclose(filled[known], days[known], atol=1e-4)  # as many digits as are written
    assert np.isfinite(filled).all()
    assert np.abs(filled).max() < 5
    (author.home / "narrow.csv").write_text("1,2,3\n")
    done = author.platform("apply", "tides", "fill", "narrow.csv", "--model", "last", "-o", "other.csv")
    assert "narrow.csv should have 24 levels in every row" in told(done)
    assert not (author.home / "other.csv").exists()


def test_its_task_and_its_sampler_from_python(author: Author) -> None:
    code = """
import flowplat, torch
from flowplat import runs

model = flowplat.load(runs.find("last"))
levels = torch.full((2, 24), torch.nan)
levels[:, ::2] = 0.5
filled = model.apply("fill", levels, steps=20)
assert torch.equal(filled[:, ::2], levels[:, ::2]) and filled.isfinite().all()
assert torch.equal(filled, model.apply("fill", levels, steps=20))  # every draw is seeded

pairs = flowplat.load(model.source.parents[1], "sample.sampler=antithetic").sample(7, steps=3).x0
assert torch.equal(pairs[0:6:2], -pairs[1:6:2])
assert not torch.equal(pairs[0], pairs[2])

smooth = flowplat.run("tides", "train.steps=3", preset="smooth", smoke=True, out="smooth").figures
assert smooth["paths"] == {} and smooth["by_steps"][0]["nfe"] == 2
print("all of it")
"""
    assert author.python(code).splitlines()[-1] == "all of it"


def test_its_command(author: Author) -> None:
    done = author.platform("x", "tides", "constituents")
    assert (done.returncode, done.stdout) == (0, "M2 12.42 1.0\nS2 12.0 0.4\n")
    assert "Usage: platform x tides constituents" in author.platform("x", "tides", "constituents", "--help").stdout


def test_its_guidance_steers_the_pictures_of_another_plugin(author: Author) -> None:
    guidance = "sample.guidance=[{name: tides/mean_level, level: 0.5, scale: 2}]"
    small = ("network.width=32", "network.blocks=1", "eval.metrics=[]", "eval.steps=[4]")
    done = author.platform("run", "images", "--smoke", *small, guidance, "--out", "pictures", "--json")
    assert done.returncode == 0, done.stderr
    code = """
import flowplat, torch

def drawn(guidance):
    return flowplat.load("pictures", f"sample.guidance={guidance}").sample(64, steps=20).x1

plain, off = drawn("[]"), drawn("[{name: tides/mean_level, level: 0.5, scale: 0}]")
assert torch.equal(plain, off)
away = [(drawn(f"[{{name: tides/mean_level, level: 0.5, scale: {w}}}]").mean() - 0.5).abs().item() for w in (0, 1, 3)]
assert away[2] < away[1] / 2 < away[0] / 4, away
print(float(flowplat.load("pictures").sample(16).x1.mean() - drawn("[]")[:16].mean()))
"""
    assert float(author.python(code).splitlines()[-1]) > 0.1  # the run's own guidance is the one that was asked for


def test_it_keeps_what_its_components_promise(author: Author) -> None:
    done = author.platform("check", "tides", "--fast", "--json")
    found = json.loads(done.stdout)
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert done.returncode == 0
    assert set(found["kinds"]) >= {
        "data", "network", "guidance", "objective", "sampler", "metric", "task", "command", "preset",
    }  # fmt: skip


def test_the_tests_of_the_page_pass(author: Author) -> None:
    command = (
        author.environment.python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "levels or data",
        "tests",
    )
    done = author.environment.run(*command, cwd=author.project)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 5  # one of the page's own, and the checks of the data set
