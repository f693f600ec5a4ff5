"""probe: what every installed plugin is and brings, each asked in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowplat
from flowplat import disabled
from flowplat.probe import Report, plugins

Install = Callable[..., Path]

HEAD = "from flowcore.plugin import hookimpl\n"
HOOK = (
    HEAD
    + """
@hookimpl
def register_networks(register):
    register("mlp", f"{__package__}.parts:mlp", summary="a network")

@hookimpl
def register_presets(register):
    register("calm", f"{__package__}:calm.yaml", summary="no wind", default=True)
"""
)
WHOLE = {"parts.py": "", "calm.yaml": ""}

SAYS = {
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "ends the process": ("import os\nos._exit(7)", "its import ended the process, exit code 7"),
    "ends it well": ("import os\nos._exit(0)", "its import ended the process, exit code 0"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)", "its import ended the process, signal 6"),
    "closes stdout": ("import os, sys\nsys.stdout.close()\nos.close(1)\nraise ValueError('on purpose')", "ValueError"),
    "two lines": ("raise ValueError('on\\npurpose')", "ValueError: on purpose"),
    "hangs": ("import time\ntime.sleep(60)", "it was not imported within 3 s"),
}


@pytest.fixture
def put(install: Install, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install``, for the processes that this one starts too."""

    def put(*arguments: Any, **keywords: Any) -> Path:
        package = install(*arguments, **keywords)
        before = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(package.parent), before))))
        return package

    return put


def report(name: str, **how: Any) -> Report:
    (found,) = [one for one in plugins(**how) if one.name == name]
    return found


def test_without_components_nothing_is_imported_and_states_are_those_of_metadata(put: Install, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()"
    for name in ("wind", "sea"):
        put(name, code)
    put("sea", code, distribution="seaflow")
    disabled.disable("wind")
    assert report("wind") == Report(
        "wind", "flowplat-wind", "1.0", "a test", "disabled", "it is disabled; `platform enable wind` switches it on"
    )
    assert [one.state for one in plugins() if one.name == "sea"] == ["duplicate", "duplicate"]
    assert not (tmp_path / "imported").exists()
    plugins(components=True, patience=20)
    assert not (tmp_path / "imported").exists()  # neither is in order


def test_components_with_what_is_wrong_with_them(put: Install) -> None:
    put("wind", HOOK, WHOLE)
    put("sea", HOOK)
    wind, sea = report("wind", components=True), report("sea", components=True)
    assert (wind.state, wind.cause) == ("ok", "")
    assert wind.components == (
        {"kind": "network", "name": "mlp", "summary": "a network", "default": False},
        {"kind": "preset", "name": "calm", "summary": "no wind", "default": True},
    )
    assert (sea.state, sea.components is not None) == ("ok", True)
    assert [part["cause"] for part in sea.components or ()] == [
        "there is no module 'flowplat_sea.parts'", "there is no file 'flowplat_sea:calm.yaml'",
    ]  # fmt: skip


def test_a_package_that_raises_where_its_module_is_looked_for(put: Install) -> None:
    code = HOOK.replace("{__package__}.parts", "{__package__}.deep.parts")
    put("wind", code, {"calm.yaml": "", "deep.py": "raise SystemExit('not\\nhere')"})
    network, preset = report("wind", components=True).components or ()
    assert network["cause"] == "SystemExit: not here"
    assert "cause" not in preset


@pytest.mark.parametrize(("code", "cause"), SAYS.values(), ids=SAYS)
def test_one_that_cannot_be_loaded_is_broken_and_the_next_is_not(code: str, cause: str, put: Install) -> None:
    put("bad", code)
    put("wind", HOOK, WHOLE)
    start = time.monotonic()
    found = {one.name: one for one in plugins(components=True, patience=3)}
    assert time.monotonic() - start < 20
    assert found["bad"].state == "broken"
    assert cause in found["bad"].cause
    assert "\n" not in found["bad"].cause
    assert found["bad"].components is None
    assert found["wind"].state == "ok"


def test_one_that_prints_or_leaves_something_running_is_in_order(put: Install) -> None:
    noise = "import os, subprocess\nprint('{}')\nos.write(1, b'noise')\nsubprocess.run(['echo', 'noise'])\n"
    lasting = (
        "import threading, time\nsubprocess.Popen(['sleep', '20'])\n"
        "threading.Thread(target=time.sleep, args=(20,)).start()\n"
    )
    deep = HOOK.replace("{__package__}.parts", "{__package__}.deep.parts")
    package = put("wind", noise + lasting + deep, {"calm.yaml": ""})
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").write_text(noise)  # imported where it is looked for parts
    (package / "deep" / "parts.py").write_text("")
    start = time.monotonic()
    assert report("wind", components=True, patience=15).state == "ok"
    assert time.monotonic() - start < 12  # neither the process nor the thread is waited for


def test_one_that_hangs_does_not_outlive_who_asked(put: Install, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    put("bad", f"import time\nwhile True:\n    open({str(alive)!r}, 'w').close()\n    time.sleep(0.05)")
    code = "import flowplat\nflowplat.plugins(components=True, patience=2)"
    asking = subprocess.Popen([sys.executable, "-c", code])
    while not alive.exists():
        assert asking.poll() is None
        time.sleep(0.05)
    asking.kill()
    asking.wait()
    time.sleep(0.3)
    assert time.time() - alive.stat().st_mtime < 0.3  # it goes on
    time.sleep(3.5)
    assert time.time() - alive.stat().st_mtime > 0.3


def test_no_file_in_the_users_folder_is_taken_for_a_module(
    put: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("wind", HOOK, WHOLE)
    (tmp_path / "pluggy.py").write_text("raise RuntimeError('a note of the user, called as a module is')")
    monkeypatch.chdir(tmp_path)
    assert report("wind", components=True).state == "ok"


def test_it_is_there_from_python() -> None:
    assert flowplat.plugins is plugins
