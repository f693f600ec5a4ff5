"""What the documentation says is true: commands and code run, generated pages are current, links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import flowplat
from flowcore import errors
from flowplat import signals
from flowplat.cli.main import group
from flowplat.discovery import State
from flowplat.export import export
from flowplat.manager import HOOKS
from flowplat.runner import Finished

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]
EXIT_CODES = ROOT / "docs" / "reference" / "exit-codes.md"
WRITING = ROOT / "docs" / "guides" / "writing-a-plugin.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def console_lines() -> list[tuple[str, str]]:
    lines = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                assert line.startswith("$ platform "), f"{page.name}: a console block holds commands only, not {line!r}"
                lines.append((page.relative_to(ROOT).as_posix(), line.removeprefix("$ platform ")))
    return lines


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run for commands that want one; conditional, so that --condition means something."""
    out = tmp_path_factory.mktemp("docs") / "run"
    return flowplat.run("images", preset="digits-by-class", out=out, smoke=True)


@pytest.fixture(scope="session")
def smoke_model(smoke_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model exported of it, for commands that want one."""
    return export(smoke_run.folder, tmp_path_factory.mktemp("docs") / "digits")


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working folder, with twelve pictures of two kinds in it."""
    draws = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        folder = tmp_path / "pictures" / kind
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(draws.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "line"), console_lines())
def test_every_command_of_the_docs_runs(
    page: str, line: str, smoke_run: Finished, smoke_model: Path, user_folder: Path
) -> None:
    words = line.replace("RUN", str(smoke_run.folder)).replace("MODEL", str(smoke_model)).split()
    if words[0] == "run" and "--smoke" not in words:
        words.append("--dry-run")  # checks config, data and network; the training itself is tested elsewhere
    result = CliRunner().invoke(group, words, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, f"{page}: {line}\n{result.output}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "README.md"], ids=lambda p: p.name)
def test_every_python_block_of_the_docs_runs(page: Path, user_folder: Path) -> None:
    scope: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        if re.match(r"# \S+\.py\n", block):  # a file of a project, which test_by_hand.py writes and installs
            continue
        exec(compile(block, page.name, "exec"), scope)


def test_the_plugin_of_the_readme_works_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert len(files) == 4
    site = tmp_path / "site"
    for name, content in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    # what `pip install` would write, without the network that its build needs
    info = site / "flowplat_spiral-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowplat-spiral\nVersion: 0.1.0\nSummary: Points\n")
    point = re.search(r"^spiral = \"(.*)\"$", files["pyproject.toml"], re.MULTILINE)
    assert point is not None
    (info / "entry_points.txt").write_text(f"[flowplat.plugins]\nspiral = {point[1]}\n")
    command = [sys.executable, "-m", "flowplat", "run", "spiral", "train.steps=300", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    drawn = np.loadtxt(tmp_path / "run" / "samples" / "points.csv", delimiter=",")
    assert drawn.shape == (100, 2)
    assert 0.5 < np.linalg.norm(drawn, axis=1).mean() < 2  # the spiral's mean radius is 1.1


def test_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, make in generate.PAGES.items():
        assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == make(), f"run `make docs`: {page}"


def test_every_error_and_exit_code_is_documented() -> None:
    page = EXIT_CODES.read_text(encoding="utf-8")
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.FlowError)]
    expected = {(str(kind.exit_code), kind.__name__) for kind in kinds} | {
        (str(getattr(kind, "exit_code", 130)), "KeyboardInterrupt") for kind in signals.KINDS.values()
    }
    assert {*re.findall(r"^\| (\d+) \| (?:`(\w+)` )?\|", page, re.MULTILINE)} == expected | {("0", "")}


def test_every_state_of_a_plugin_is_documented() -> None:
    page = EXIT_CODES.read_text(encoding="utf-8")
    states = page.partition("## States of a plugin")[2]
    assert re.findall(r"^\| `(\w+)` \|", states.partition("| cause |")[0], re.MULTILINE) == [*get_args(State)]


def test_the_guide_to_writing_a_plugin_tells_of_every_hook() -> None:
    """The generated pages have each hook, verb and setting; here each has its place."""
    guide = WRITING.read_text(encoding="utf-8")
    assert [hook for hook in sorted(HOOKS) if not re.search(rf"\b{hook}\b", guide)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
