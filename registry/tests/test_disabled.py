"""disabled: the plugins that the user has switched off, one a line in a file of the user's."""

import pwd
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowcore.errors import MachineError, PluginError
from flowplat import disabled
from flowplat.discovery import find, installed
from flowplat.manager import Manager

Install = Callable[..., Path]


def test_what_is_switched_off_is_off_until_it_is_switched_on_again() -> None:
    assert disabled.names() == frozenset()
    disabled.disable("wind")
    disabled.disable("sea")
    disabled.disable("wind")
    assert disabled.names() == {"sea", "wind"}
    assert disabled.path().read_text() == "sea\nwind\n"
    disabled.enable("wind")
    disabled.enable("nothere")
    assert disabled.names() == {"sea"}
    disabled.enable("sea")
    assert disabled.names() == frozenset()


def test_a_plugin_that_is_switched_off_is_not_imported(install: Install) -> None:
    install("wind", "raise RuntimeError('nobody asked for this module')")
    disabled.disable("wind")
    (wind,) = installed()["wind"]
    assert (wind.state, wind.cause) == ("disabled", "it is disabled; `platform enable wind` switches it on")
    told = r"^plugin 'wind' \(flowplat-wind 1\.0\) is disabled: it is disabled; `platform enable wind` switches it on$"
    for use in (find, Manager().load):
        with pytest.raises(PluginError, match=told):
            use("wind")
    assert "flowplat_wind" not in sys.modules
    disabled.enable("wind")
    assert find("wind").state == "ok"


def test_blank_lines_and_spaces_do_not_count(tmp_path: Path) -> None:
    disabled.disable("sea")
    disabled.path().write_text("\n  wind \n\nsea")
    assert disabled.names() == {"sea", "wind"}


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disabled.path() == tmp_path / "settings" / "disabled"
    monkeypatch.delenv("FLOWPLAT_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert disabled.path() == tmp_path / "xdg" / "flowplat" / "disabled"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert disabled.path() == tmp_path / ".config" / "flowplat" / "disabled"


def test_an_account_without_a_home_has_nothing_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    for name in ("FLOWPLAT_CONFIG", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert disabled.names() == frozenset()
    with pytest.raises(MachineError, match="name a folder in FLOWPLAT_CONFIG"):
        disabled.disable("wind")


@pytest.mark.parametrize("what", ["folder", "bytes"])
def test_a_file_that_cannot_be_read_is_named(what: str) -> None:
    file = disabled.path()
    if what == "folder":
        file.mkdir(parents=True)
    else:
        file.parent.mkdir()
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(MachineError) as caught:
        disabled.names()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("a file where a folder should be")
    assert disabled.names() == frozenset()
    with pytest.raises(MachineError, match=str(disabled.path())):
        disabled.disable("wind")
