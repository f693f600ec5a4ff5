"""What is quick stays quick: nothing heavy is imported before it is needed."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from flowcore.plugin import GROUP

HEAVY = {"torch", "numpy", "scipy", "matplotlib", "pandas", "sklearn", "PIL", "torchmetrics"}
PLUGINS = {point.name: point.module for point in entry_points(group=GROUP)}


def loaded(code: str, tmp_path: Path) -> set[str]:
    """The top-level modules of others that a fresh process has loaded after ``code``."""
    report = "import sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    return {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names}


def tops(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def command(*arguments: str) -> str:
    call = f"    main({list(arguments)!r})"
    return f"from flowplat.cli import main\ntry:\n{call}\nexcept SystemExit as ended:\n    assert not ended.code"


@pytest.mark.parametrize("code", ["import flowcore", "import flowplat", "import flowcore.plugin.hookspecs, flowplat"])
def test_importing_us_costs_pluggy_and_nothing_else(code: str, tmp_path: Path) -> None:
    already = tops(loaded("pass", tmp_path))  # an environment may load things of its own at start
    assert tops(loaded(code, tmp_path)) - already <= {"flowcore", "flowplat", "pluggy"}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_entry_module_is_light(plugin: str, tmp_path: Path) -> None:
    already = tops(loaded("pass", tmp_path))
    package = PLUGINS[plugin].partition(".")[0]
    assert tops(loaded(f"import {PLUGINS[plugin]}", tmp_path)) - already <= {package, "flowcore", "pluggy"}


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "run --help",
        "sample --help",
        "runs --help",
        "runs prune --help",
        "export --help",
        "publish --help",
        "pull --help",
        "--version",
    ],
)
def test_help_is_light(line: str, tmp_path: Path) -> None:
    found = tops(loaded(command(*line.split()), tmp_path))
    assert "click" in found
    assert not found & {*HEAVY, "pydantic", "yaml", "jinja2"}


def test_list_is_light_and_imports_no_plugin(tmp_path: Path) -> None:
    found = tops(loaded(command("list"), tmp_path))
    assert not found & {*HEAVY, "pydantic"}
    assert not {name for name in found if name.startswith("flowplat_")}


def test_looking_at_runs_is_light(smoke: Any, tmp_path: Path) -> None:
    shutil.copytree(smoke.folder, tmp_path / "runs" / "images" / "digits" / "20260101T000000Z-aaaaaa")
    (tmp_path / "runs" / "images" / "digits" / "20260102T000000Z-bbbbbb").mkdir()
    for line in ("runs list --json", "runs list", "runs show 2026", "runs compare last 2026", "runs prune"):
        found = tops(loaded(command(*line.split()), tmp_path))
        assert "flowplat" in found
        assert not found & {*HEAVY, "pydantic"}


def test_registering_every_plugin_is_light(tmp_path: Path) -> None:
    loads = "\n".join(f"manager.load({plugin!r})" for plugin in PLUGINS)
    found = loaded(f"from flowplat.manager import Manager\nmanager = Manager()\n{loads}", tmp_path)
    assert not tops(found) & {*HEAVY, "pydantic"}
    assert "flowcore.paths" not in found
