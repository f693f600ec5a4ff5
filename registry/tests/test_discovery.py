"""discovery: what is installed, read from metadata alone."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import flowcore
from flowcore.errors import PluginError
from flowplat import disabled
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


def requires(package: Path, *lines: str) -> None:
    (metadata,) = package.parent.glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text() + "".join(f"Requires-Dist: {line}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("flowplat>=99", "flowplat>=99"),
        ("flowplat (<0.0.1)", "flowplat<0.0.1"),
        ("FlowPlat>=99,<100", "flowplat<100,>=99"),
        ("flowplat[tensorboard]>=99", "flowplat>=99"),
        ("flowplat>=99; python_version >= '3'", "flowplat>=99"),
        ("flowplat >> 3", "flowplat >> 3"),
    ],
)
def test_one_that_requires_another_flowplat_is_incompatible(line: str, wanted: str, install: Install) -> None:
    requires(install("wind", ""), "torch", line)
    (wind,) = installed()["wind"]
    assert wind.state == "incompatible"
    assert wind.cause == (
        f"it requires {wanted}, and this is flowplat {flowcore.__version__}; install a release for it"
    )
    with pytest.raises(PluginError, match=r"^plugin 'wind' \(flowplat-wind 1\.0\) is incompatible: it requires "):
        find("wind")


@pytest.mark.parametrize(
    "line",
    ["flowplat", f"flowplat=={flowcore.__version__}", "flowplat>=0.0.1", "flowplat-waves>=99", "flowplat.waves>=99",
     "flowplatwaves>=99", "flowplat>=99; python_version < '3'", "flowplat>=99; extra == 'later'"],
)  # fmt: skip
def test_what_is_met_or_of_another_is_in_order(line: str, install: Install) -> None:
    requires(install("wind", ""), line)
    assert find("wind").state == "ok"


@pytest.mark.parametrize("name", ["core", "Wind", "wind farm", "-wind", "wind.farm"])
def test_a_name_that_no_plugin_can_have_is_broken(name: str, install: Install) -> None:
    (install("wind", "").parent / "flowplat_wind-1.0.dist-info" / "entry_points.txt").write_text(
        f"[flowplat.plugins]\n{name} = flowplat_wind.plugin\n"
    )
    (found,) = installed()[name]
    assert found.state == "broken"
    assert found.cause.startswith(repr(name))
    assert found.cause.endswith("its author has to choose another")
    with pytest.raises(PluginError, match="its author has to choose another"):
        find(name)


def test_what_is_switched_off_is_disabled_whatever_else_it_is(install: Install) -> None:
    requires(install("wind", ""), "flowplat>=99")
    install("wind", "", distribution="windflow")
    assert [one.state for one in installed()["wind"]] == ["duplicate", "duplicate"]
    disabled.disable("wind")
    assert [one.state for one in installed()["wind"]] == ["disabled", "disabled"]


def test_the_version_is_the_distributions() -> None:
    import flowplat

    assert flowplat.__version__ == flowcore.__version__
