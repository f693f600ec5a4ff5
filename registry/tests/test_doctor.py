"""doctor: what is in order is told as such, and each thing that is not by its name, with the way out."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flowcore import __version__
from flowplat import doctor
from flowplat.doctor import Finding, examine

BROKEN = "raise RuntimeError('on purpose')"
MISSING = """
    from flowcore.plugin import hookimpl

    @hookimpl
    def register_networks(register):
        register("net", "flowplat_calm.nothere:net", summary="a module that is not there")
    """
FINE = MISSING.replace("nothere", "plugin")


def told(look: str) -> list[Finding]:
    return examine(getattr(doctor, look))


def states(findings: list[Finding]) -> dict[str, str]:
    return {one.name: one.state for one in findings}


@pytest.fixture
def beside(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``beside("wind", code)`` installs a plugin that other processes find too."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def beside(*arguments: str, **more: str) -> None:
        site = install(*arguments, **more).parent
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))

    return beside


def test_a_plugin_is_told_with_its_state_and_cause(beside: Callable[..., None], tmp_path: Path) -> None:
    beside("wind", BROKEN)
    beside("calm", MISSING)
    beside("fine", FINE.replace("calm", "fine"))
    beside("twice", FINE.replace("calm", "twice"))
    beside("twice", "", distribution="other")
    found = {(one.name, one.state, one.area) for one in told("_plugins")}
    assert found >= {
        ("plugin wind", "FAIL", "plugins"), ("plugin calm", "FAIL", "plugins"), ("plugin fine", "ok", "plugins"),
        ("plugin twice", "FAIL", "plugins"),
    }  # fmt: skip
    texts = {one.name: f"{one.text}; {one.way_out}" for one in told("_plugins")}
    assert "flowplat-wind 1.0 is broken: RuntimeError: on purpose" in texts["plugin wind"]
    assert "network net: " in texts["plugin calm"]
    assert "flowplat_calm.nothere" in texts["plugin calm"]
    assert texts["plugin fine"] == "flowplat-fine 1.0, 1 component; "


def test_a_disabled_plugin_is_in_order(
    beside: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside("wind", BROKEN)
    monkeypatch.setenv("FLOWPLAT_CONFIG", str(tmp_path))
    (tmp_path / "disabled").write_text("wind\n")
    assert states(told("_plugins"))["plugin wind"] == "ok"
    (one,) = told("_user")
    assert (one.state, one.text) == ("ok", f"wind, by {tmp_path / 'disabled'}")
    (tmp_path / "disabled").unlink()
    (tmp_path / "disabled").mkdir()
    (one,) = told("_user")
    assert (one.state, str(tmp_path / "disabled") in one.text) == ("FAIL", True)


def fake(site: Path, *requires: str, version: str = __version__) -> Path:
    """The metadata of another flowplat, in a folder for sys.path."""
    info = site / f"flowplat-{version}.dist-info"
    info.mkdir(parents=True)
    lines = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: flowplat\nVersion: {version}\nRequires-Python: >=99\n{lines}"
    )
    return site


def test_what_flowplat_requires_is_compared_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("numpy>=1", "click>=99", "flowplat-nowhere>=2", "flowplat-nohub>=3; extra == 'hub'",
              "flowplat-nodev; extra == 'dev'", "never; python_version < '3'")  # fmt: skip
    monkeypatch.syspath_prepend(fake(tmp_path, *wanted))
    found = {one.name: one for one in told("_dependencies")}
    assert {name: one.state for name, one in found.items()} == {
        "numpy": "ok", "click": "FAIL", "flowplat-nowhere": "FAIL", "flowplat-nohub": "ok"
    }  # fmt: skip
    assert "and >=99 is required" in found["click"].text
    assert found["click"].way_out == "pip install 'click>=99'"
    assert found["flowplat-nowhere"].text == "not installed, >=2 is required"
    assert "pip install 'flowplat[hub]'" in found["flowplat-nohub"].text
    (python,) = told("_python")
    assert (python.state, python.way_out) == ("FAIL", "flowplat requires Python >=99")


def test_this_environment_is_in_order() -> None:
    assert "FAIL" not in states(told("_dependencies")).values()
    assert [one.state for one in told("_flowplat")] == ["ok"]
    assert [one.state for one in told("_python")] == ["ok"]
    assert [one.state for one in told("_catalogue")] == ["ok"]


def test_two_copies_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowplat").mkdir()
    (tmp_path / "flowplat" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = told("_flowplat")
    assert [one.state for one in found] == ["ok", "FAIL"]
    assert str(tmp_path / "flowplat") in found[1].text
    monkeypatch.undo()
    monkeypatch.syspath_prepend(fake(tmp_path / "other", version="0.0.1"))
    found = told("_flowplat")
    assert found[-1].state == "FAIL"
    assert f"0.0.1 installed in {tmp_path / 'other'}" in found[-1].text


@pytest.mark.parametrize("name", ["platform.py", "platform/__init__.py", "json.py"])
def test_what_hides_a_module_of_python_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "path", tmp_path / "here"
    for folder in (home, here):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("raise RuntimeError('it was imported')")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(home), *(entry for entry in sys.path if entry)])
    found = [one for one in told("_shadows") if one.name == "modules"]
    module = name.partition("/")[0].removesuffix(".py")
    assert [one.state for one in found] == ["FAIL", "warn"]
    assert f"{home} has a module {module!r}" in found[0].text
    assert f"this folder has a module {module!r}" in found[1].text


def test_what_hides_an_installed_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if entry)])
    found = told("_shadows")
    assert [(one.name, one.state) for one in found] == [("modules", "warn"), ("PYTHONPATH", "ok")]
    assert f"{tmp_path} on PYTHONPATH has a 'numpy'" in found[0].text


@pytest.mark.parametrize(
    ("code", "said"),
    [("raise OSError('libcudart.so.12: not found')", "OSError: libcudart.so.12: not found"),
     ("import os; os._exit(7)", "it ends the process with 7"), ("x = 1", "AttributeError"),
     ("import time; time.sleep(60)", "within 2 s")],
)  # fmt: skip
def test_a_torch_that_does_not_work_is_told(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PATIENCE", 2.0)
    (one,) = told("_torch")
    assert (one.name, one.state) == ("torch", "FAIL")
    assert said in one.text


def test_torch_is_told_with_what_it_computes_on() -> None:
    import torch

    found = told("_torch")
    assert found[0].text.startswith(f"{torch.__version__}, built ")
    assert {one.name for one in found} == {"torch", "GPU"}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert states(told("_disk"))["runs"] in ("ok", "warn")
    assert list(tmp_path.iterdir()) == []  # nothing stays behind
    (tmp_path / "runs").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    runs, temporary = told("_disk")
    assert (runs.state, temporary.state) == ("FAIL", "FAIL")
    assert f"{tmp_path / 'runs'} cannot be written: " in runs.text
    assert "--out" in runs.way_out
    assert f"{tmp_path / 'nowhere'} cannot be written: " in temporary.text


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "ROOM", 10**18)
    assert [(one.state, "make room" in one.way_out) for one in told("_disk")] == [("warn", True)] * 2


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert states(told("_processor"))["CPU"] == "warn"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert states(told("_processor"))["CPU"] == "ok"


def test_what_is_told_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ada"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))

    def look():  # type: ignore[no-untyped-def]
        yield Finding(
            "one", "ok", f"{home}/a, {tmp_path / 'link'}:b\nx {home}more", f"see https://ada:secret@host/{home}"
        )
        raise ValueError(f"{home} is\nlost")

    found = examine(look)
    assert [(one.text, one.way_out) for one in found] == [
        (f"~/a, ~:b x {home}more", "see https://host/~"),
        ("ValueError: ~ is lost", "report it with this output"),
    ]
    assert (found[1].name, found[1].state) == ("look", "FAIL")


@pytest.mark.parametrize(
    ("plugin", "machine", "code"), [("ok", "warn", 0), ("FAIL", "ok", 3), ("ok", "FAIL", 4), ("FAIL", "FAIL", 4)]
)
def test_the_exit_code_says_what_fails(
    plugin: str, machine: str, code: int, platform: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding("disk", machine, "as it is", "the way out"),  # type: ignore[arg-type]
        Finding("plugin wind", plugin, "as it is", area="plugins"),  # type: ignore[arg-type]
    ]
    monkeypatch.setattr(doctor, "examinations", lambda: [lambda: iter(findings)])
    found, out, err = platform("doctor")
    assert found == code
    assert out.splitlines()[0] == f"{machine:5} disk         as it is; the way out"
    assert out.splitlines()[1] == f"{plugin:5} plugin wind  as it is"
    assert ("what fails: " in err) == (code != 0)
    told = json.loads(platform("doctor", "--json")[1])
    assert told["ok"] == (code == 0)
    assert [one["name"] for one in told["findings"]] == ["disk", "plugin wind"]
    assert set(told["findings"][0]) == {"name", "state", "text", "way_out", "area"}
