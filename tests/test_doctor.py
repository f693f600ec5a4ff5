"""doctor from outside: a machine in order, a plugin that is not, and a folder that hides a module of Python."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import wheels
from conftest import ENVIRONMENT, SCRIPT

BROKEN = "import os\nprint('noise')\nos.abort()"


def doctor(cwd: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [SCRIPT, "doctor", *arguments], cwd=cwd, env=ENVIRONMENT | more, capture_output=True, text=True, timeout=120
    )


def test_a_machine_in_order_is_told_as_such_without_the_name_of_its_user(tmp_path: Path) -> None:
    home = tmp_path / "ada"
    home.mkdir()
    done = doctor(home, "--json", HOME=str(home), TMPDIR=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert "/ada" not in done.stdout
    told = json.loads(done.stdout)
    assert told["ok"]
    found = {one["name"]: one for one in told["findings"]}
    assert {
        "flowplat",
        "Python",
        "numpy",
        "torch",
        "GPU",
        "CPU",
        "runs",
        "TMPDIR",
        "catalogue",
        "plugin images",
    } <= set(found)
    assert found["runs"]["text"].startswith("~, ")
    assert found["TMPDIR"]["text"].startswith("~, ")
    assert not list(home.iterdir())


def test_a_plugin_that_crashes_is_a_line_and_code_3(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels.wheel(tmp_path, "wind", {"plugin.py": BROKEN})) as archive:
        archive.extractall(tmp_path / "site")
    done = doctor(tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 3
    assert done.stderr == "platform: what fails: plugin wind; the lines above say what to do\n"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert line.split(maxsplit=4)[1:4] == ["plugin", "wind", "flowplat-wind"]
    assert "signal 6" in line


@pytest.mark.parametrize("code", ["raise RuntimeError('mine')", "mine = 1"])
def test_a_module_called_platform_that_hides_python_s_is_told(code: str, tmp_path: Path) -> None:
    (tmp_path / "platform.py").write_text(code)
    for command, more in (([SCRIPT], {"PYTHONPATH": str(tmp_path)}), ([sys.executable, "-m", "flowplat"], {})):
        done = subprocess.run(
            [*command, "doctor"], cwd=tmp_path, env=ENVIRONMENT | more, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith(f"platform: {tmp_path / 'platform.py'} hides Python's own module 'platform'; ")
        assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    script = f"mkdir gone && cd gone && rmdir ../gone && {SCRIPT} doctor"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 4
    assert "the folder you are in has been removed; change to another" in done.stdout
    assert "Traceback" not in done.stderr
