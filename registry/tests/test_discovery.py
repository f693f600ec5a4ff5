"""discovery: what is installed, read from metadata alone."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import flowcore
from flowcore.errors import PluginError
from flowplat.discovery import find, installed

Install = Callable[..., Path]


def test_an_installed_plugin_with_its_distribution(install: Install) -> None:
    install("wind", "raise RuntimeError('nobody asked for this module')")
    (wind,) = installed()["wind"]
    assert (wind.name, wind.distribution, wind.version, wind.summary) == ("wind", "flowplat-wind", "1.0", "a test")
    assert find("wind") == wind
    assert "flowplat_wind" not in sys.modules


def test_plugins_are_listed_by_name(install: Install) -> None:
    install("wind", "")
    install("air", "")
    names = list(installed())
    assert names == sorted(names)
    assert {"air", "wind"} <= set(names)


def test_a_distribution_found_twice_on_the_path_is_one(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install("wind", "").parent
    leftover = site.parent / "leftover"  # as an uninstall that was interrupted leaves it
    (leftover / "~lowplat_wind-1.0.dist-info").mkdir(parents=True)
    for file in (site / "flowplat_wind-1.0.dist-info").iterdir():
        (leftover / "~lowplat_wind-1.0.dist-info" / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(leftover)
    assert len(installed()["wind"]) == 1


def test_a_name_that_two_distributions_bring(install: Install) -> None:
    install("wind", "")
    install("wind", "", distribution="windflow")
    assert len(installed()["wind"]) == 2
    with pytest.raises(PluginError, match=r"^two distributions bring a plugin named 'wind': "):
        find("wind")


def test_a_distribution_without_metadata_hides_no_other(install: Install, ring: Path) -> None:
    site = install("wind", "").parent
    (site / "flowplat_wind-1.0.dist-info" / "METADATA").unlink()
    (wind,) = installed()["wind"]
    assert installed()["ring"][0].version == "1.0"
    assert f"{wind.distribution:14}{wind.version:10}{wind.summary}".strip()  # as `platform list` prints it


def test_an_unknown_plugin_has_a_suggestion_or_a_list(ring: Path) -> None:
    with pytest.raises(PluginError, match=r"^no plugin named 'rings' is installed; did you mean 'ring'\?; "):
        find("rings")
    with pytest.raises(PluginError, match=r"^no plugin named 'zzz' is installed; .*\bring\b"):
        find("zzz")


def test_the_version_is_the_distributions() -> None:
    import flowplat

    assert flowplat.__version__ == flowcore.__version__
