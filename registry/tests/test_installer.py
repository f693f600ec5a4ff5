"""installer: which distributions names mean, and which are never removed. The rest is in tests/test_install.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flowcore.errors import PluginError
from flowplat import disabled, installer

Install = Callable[..., Path]
Platform = Callable[..., tuple[int, str, str]]


def test_a_fresh_process_finds_what_is_installed(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    assert "wind" not in installer.found()
    package = install("wind", "raise SystemExit")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    assert installer.found()["wind"] == ["flowplat-wind"]


def test_names_of_plugins_and_distributions(install: Install) -> None:
    install("wind", "")
    package = install("rain", "", distribution="acme-rain")
    (info,) = package.parent.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[flowplat.plugins]\nrain = a\nsnow = b\n")
    assert installer.brings(["wind"]) == {"flowplat-wind": ["wind"]}
    assert installer.brings(["Flowplat_Wind", "wind"]) == {"flowplat-wind": ["wind"]}
    assert installer.brings(["snow"]) == installer.brings(["acme-rain"]) == {"acme-rain": ["rain", "snow"]}
    assert installer.plugins_of(["acme_rain"]) == {"rain", "snow"}
    for name, told in (
        ("wnd", "did you mean 'wind'"),
        ("torch", "torch is installed and no plugin"),
        ("flowplat", "flowplat is installed and no plugin"),
    ):
        with pytest.raises(PluginError, match=told):
            installer.brings(["wind", name])
    install("wind", "", distribution="acme-wind")
    with pytest.raises(PluginError, match=r"say which one: .*acme-wind"):
        installer.brings(["wind"])
    assert installer.brings(["acme-wind"]) == {"acme-wind": ["wind"]}


def test_nobody_to_ask(platform: Platform, install: Install) -> None:
    install("wind", "")
    code, out, err = platform("uninstall", "wind")
    assert (code, out) == (2, "")
    assert "flowplat-wind brings the plugin wind" in err
    assert "--yes" in err
    code, _, err = platform("install")
    assert code == 2
    assert "name what to install" in err


def test_what_pip_cannot_remove_is_told(platform: Platform, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install("wind", "")  # without a RECORD
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    code, out, err = platform("uninstall", "wind", "--yes")
    assert (code, out) == (3, "")
    assert "flowplat-wind" in err.splitlines()[-1]
    assert (package / "plugin.py").exists()


def test_disable_and_enable(
    platform: Platform, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWPLAT_CONFIG", str(tmp_path / "settings"))
    install("wind", "raise SystemExit('imported')")
    for word in ("is disabled; ", "is disabled already; "):
        code, out, err = platform("disable", "wind")
        assert (code, out) == (0, "")
        assert err.startswith(f"wind {word}")
        assert disabled.names() == {"wind"}
    code, _, err = platform("run", "wind")
    assert code == 3
    assert "platform enable wind" in err
    assert "imported" not in err
    for word in ("enabled", "not disabled"):
        assert platform("enable", "wind") == (0, "", f"wind is {word}\n")
        assert disabled.names() == frozenset()
    disabled.disable("gone")
    assert platform("enable", "gone") == (0, "", "gone is enabled; it is not installed\n")
    for verb in ("enable", "disable"):
        code, _, err = platform(verb, "wnd")
        assert code == 3
        assert "did you mean 'wind'?" in err
