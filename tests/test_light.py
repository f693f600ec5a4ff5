"""What is quick stays quick: nothing heavy is imported before it is needed."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import wheels

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
        "eval --help",
        "runs --help",
        "runs prune --help",
        "export --help",
        "publish --help",
        "pull --help",
        "info --help",
        "show-config --help",
        "doctor --help",
        "report --help",
        "completion --help",
        "completion bash",
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


def test_making_a_report_again_needs_neither_torch_nor_the_plugin(smoke: Any, tmp_path: Path) -> None:
    shutil.copytree(smoke.folder, tmp_path / "run")
    for line in ("report run", "runs compare run run --html page.html"):
        found = tops(loaded(command(*line.split()), tmp_path))
        assert "matplotlib" in found
        assert not found & {"torch", "pydantic", "flowplat_images"}
    assert (tmp_path / "page.html").stat().st_size > 20_000


def test_the_doctor_keeps_what_is_heavy_in_other_processes(tmp_path: Path) -> None:
    found = loaded("from flowplat.doctor import *\nfor look in examinations():\n    examine(look)", tmp_path)
    assert not tops(found) & HEAVY
    assert not {name for name in found if name.startswith("flowplat_")}


def test_registering_every_plugin_is_light(tmp_path: Path) -> None:
    loads = "\n".join(f"manager.load({plugin!r})" for plugin in PLUGINS)
    found = loaded(f"from flowplat.manager import Manager\nmanager = Manager()\n{loads}", tmp_path)
    assert not tops(found) & {*HEAVY, "pydantic"}
    assert "flowcore.paths" not in found


LIGHT = """
    from flowcore.plugin import hookimpl

    @hookimpl
    def register_networks(register):
        register("net", "{package}.network:net", summary="a network")

    @hookimpl
    def register_presets(register):
        register("small", "{package}:small.yaml", summary="a preset", default=True)
    """


@pytest.fixture(scope="module")
def crowded(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> wheels.Environment:
    """flowplat with the plugin of each of eight domains, and a stranger's that imports torch at once."""
    folder = tmp_path_factory.mktemp("crowded")
    names = ("images", "molecules", "mri", "cells", "timeseries", "pde", "text", "gflownet")
    made = [ours["flowplat"]]
    for name in names:
        code = LIGHT.format(package=f"flowplat_{name}")
        made.append(wheels.wheel(folder, name, {"plugin.py": code, "network.py": "import torch", "small.yaml": ""}))
    stranger = "import torch\n" + dedent(LIGHT).format(package="stranger")
    made.append(wheels.wheel(folder, "stranger", {"plugin.py": stranger}, distribution="stranger"))
    return wheels.environment(folder / "environment", *made)


def spent(environment: wheels.Environment, *arguments: str) -> float:
    """CPU seconds of a command, of the user and of the system."""
    before = os.times()
    assert environment.platform(*arguments).returncode == 0
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


@pytest.mark.parametrize(
    ("line", "most"), [("--help", 0.15), ("list", 0.25), ("run --help", 0.15), ("--version", 0.15)]
)
def test_a_crowd_of_plugins_costs_nothing_until_one_is_used(
    line: str, most: float, crowded: wheels.Environment
) -> None:
    assert min(spent(crowded, *line.split()) for _ in range(5)) <= most


@pytest.mark.parametrize("line", ["--help", "run --help", "list", "list --json", "search", "freeze"])
def test_nothing_of_a_crowd_of_plugins_is_imported(line: str, crowded: wheels.Environment) -> None:
    report = "import sys; print('\\n' + ' '.join(sys.modules), file=sys.stderr)"
    done = crowded.run(crowded.python, "-c", f"{command(*line.split())}\n{report}")
    assert done.returncode == 0, done.stderr
    found = tops(set(done.stderr.splitlines()[-1].split()))
    assert "flowplat" in found
    assert not found & {*HEAVY, "stranger"}
    assert not {name for name in found if name.startswith("flowplat_")}


def test_the_stranger_is_imported_when_it_is_asked_for_and_nobody_else(crowded: wheels.Environment) -> None:
    assert "stranger" in crowded.platform("list").stdout
    report = "import sys; print('\\n' + ' '.join(sys.modules), file=sys.stderr)"
    for plugin in ("stranger", "images"):
        code = f"from flowplat.manager import Manager\nManager().load({plugin!r})\n{report}"
        found = tops(set(crowded.run(crowded.python, "-c", code).stderr.splitlines()[-1].split()))
        assert ("torch" in found) == (plugin == "stranger")
        ours = {name for name in found if name.startswith("flowplat_")}
        assert ours == ({"flowplat_images"} if plugin == "images" else set())
