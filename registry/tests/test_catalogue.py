"""catalogue: the shipped entries, what a file may hold, and where another catalogue may be."""

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import FlowError, InputError, MachineError, UsageError
from flowplat import catalogue

WIND = """
plugin = "wind"
distribution = "flowplat-wind"
summary = "winds over the sea"
licence = "MIT OR Apache-2.0"
homepage = "https://example.org/wind"
reviewed = 2026-01-31
"""
RELEASE = """
[[releases]]
version = "{version}"
url = "https://example.org/flowplat_wind-{version}-py3-none-any.whl"
sha256 = "{digest}"
requires = "{requires}"
"""


def release(version: str = "1.0", digest: str = "a" * 64, requires: str = ">=0.1") -> str:
    return RELEASE.format(version=version, digest=digest, requires=requires)


def test_the_shipped_catalogue_is_that_of_the_eight_plugins_of_this_repository() -> None:
    entries = catalogue.entries()
    names = ["cells", "gflownet", "images", "molecules", "mri", "pde", "text", "timeseries"]
    assert [entry.plugin for entry in entries] == names
    for entry in entries:
        assert entry.distribution == f"flowplat-{entry.plugin}"
        assert (catalogue.SHIPPED / f"{entry.plugin}.toml").is_file()


def test_an_entry() -> None:
    (entry,) = catalogue.read(WIND + release("1.0") + release("1.1"), "here")
    assert (entry.plugin, entry.licence, entry.reviewed) == ("wind", "MIT OR Apache-2.0", date(2026, 1, 31))
    assert [one.version for one in entry.releases] == ["1.0", "1.1"]


@pytest.mark.parametrize(
    ("releases", "wanted", "best"),
    [
        ([], "", None),
        ([("0.9", ">=0.1"), ("0.10", ">=0.1")], "", "0.10"),  # by number and not by letter
        ([("1.0", ">=0.1"), ("2.0", ">=7")], "", "1.0"),  # the newest that fits what is installed
        ([("1.0", ">=7"), ("2.0", ">=7")], "", "2.0"),
        ([("1.0", ">=0.1"), ("1.1rc1", ">=0.1")], "", "1.0"),
        ([("1.1rc1", ">=0.1")], "", "1.1rc1"),
        ([("1.0", ">=0.1"), ("1.1", ">=0.1")], "<1.1", "1.0"),
        ([("1.0", ">=0.1")], "==3", None),
    ],
)
def test_the_latest_release(releases: list[tuple[str, str]], wanted: str, best: str | None) -> None:
    text = WIND + "".join(release(version, requires=requires) for version, requires in releases)
    (entry,) = catalogue.read(text, "here")
    latest = entry.latest(wanted)
    assert (latest and latest.version) == best


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "plugin is missing"),
        ("plugin = ", "is no TOML"),
        (WIND + "licens = 'MIT'", "licens: there is no such key"),
        (WIND.replace('"MIT OR Apache-2.0"', "3"), "licence: Input should be a valid string"),
        (WIND.replace("MIT OR", "MIT, or"), "licence: 'MIT, or Apache-2.0' is no SPDX licence"),
        (WIND.replace('"wind"', '"Wind"'), "plugin: 'Wind' is no name of a plugin"),
        (WIND.replace('"wind"', '"core"'), "plugin: 'core' is no name of a plugin"),
        (WIND.replace('"flowplat-wind"', '"flowplat wind"'), "distribution: 'flowplat wind' is no name"),
        (WIND.replace("over the", r"\u001b[2J"), "summary: "),
        (WIND.replace("winds over the sea", " "), "summary: "),
        (WIND.replace("https://example.org/wind", "http://example.org"), "homepage: "),
        (WIND.replace("2026-01-31", '"yes"'), "reviewed: "),
        (WIND.replace("2026-01-31", "true"), "reviewed: "),
        (WIND + "releases = 3", "releases: "),
        (WIND + release("one"), "releases.0.version: 'one' is no version"),
        (WIND + release(digest="a" * 63), "releases.0.sha256: "),
        (WIND + release(digest="A" * 64), "releases.0.sha256: "),
        (WIND + release(requires="latest"), "releases.0.requires: 'latest' is no range of versions"),
        (WIND + release().replace("https:", "http:"), "releases.0.url: "),
        (WIND + release().replace("https:", "git+https:"), "releases.0.url: "),
        (WIND + release().replace(".whl", ".tar.gz"), "releases.0.url: "),
        (WIND + release().replace(".whl", ".whl#sha256=1"), "releases.0.url: "),
        (WIND + release().replace("sha256 =", "md5 ="), "releases.0.sha256 is missing"),
        (WIND + release("1.0") + release("1"), "wind has two releases of one version"),
        ("plugins = 3", "[[plugins]]"),
        ("plugins = [3]", "plugins.0"),
        ("[[plugins]]\nplugin = 'x'", "plugins.0.distribution is missing"),
        ("[plugins]\nplugin = 'x'", "[[plugins]]"),
        (WIND + "[[plugins]]\nplugin = 'x'", "[[plugins]]"),
    ],
)
def test_what_an_entry_may_not_be(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        catalogue.read(text, "wind.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("wind.toml")
    assert told in str(caught.value)


def test_where_a_catalogue_may_be(tmp_path: Path) -> None:
    one = tmp_path / "wind.toml"
    one.write_text(WIND)
    several = tmp_path / "more" / "all.toml"
    several.parent.mkdir()
    tables = [WIND, WIND.replace("wind", "rain")]
    several.write_text("".join(f"[[plugins]]{table}" for table in tables))
    for place in (one, tmp_path, one.as_uri()):
        assert [entry.plugin for entry in catalogue.entries(str(place))] == ["wind"]
    for place in (several, several.parent, several.as_uri()):
        assert [entry.plugin for entry in catalogue.entries(str(place))] == ["rain", "wind"]


@pytest.mark.parametrize(
    ("place", "error", "told"),
    [
        ("none.toml", InputError, "none.toml cannot be read: No such file"),
        ("empty", InputError, "empty holds no .toml file"),
        ("binary.toml", InputError, "binary.toml cannot be read: it is no text"),
        ("twice", UsageError, "the plugin 'wind' is there twice"),
        ("taken", UsageError, "the distribution 'flowplat-wind' is there twice"),
        ("http://example.org/catalog.toml", UsageError, "neither at https:// nor at file://"),
        ("ftp://example.org/catalog.toml", UsageError, "neither at https:// nor at file://"),
        ("file:///none.toml", MachineError, "cannot be fetched"),
        ("https://127.0.0.1:9/catalog.toml", MachineError, "cannot be fetched"),
        ("https://[/catalog.toml", MachineError, "cannot be fetched"),
    ],
)
def test_where_none_is(
    place: str, error: type[FlowError], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "twice", "taken"):
        Path(folder).mkdir()
    Path("binary.toml").write_bytes(b"\xff\xfe")
    Path("twice/a.toml").write_text(WIND)
    Path("twice/b.toml").write_text(WIND)
    Path("taken/a.toml").write_text(WIND)
    Path("taken/b.toml").write_text(WIND.replace('"wind"', '"storm"').replace("flowplat-wind", "Flowplat_Wind"))
    with pytest.raises(error) as caught:
        catalogue.entries(place)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_search(platform: Callable[..., tuple[int, str, str]], install: Any, tmp_path: Path) -> None:
    install("wind", "")
    code, out, _ = platform("search")
    assert code == 0
    assert "no release yet, Apache-2.0, not reviewed" in out
    assert "molecules" in out
    (tmp_path / "catalog.toml").write_text(WIND + release("2.0", requires=">=7,<8"))
    at = ("--catalog", str(tmp_path / "catalog.toml"))
    code, out, err = platform("search", "SEA", "wind", *at)
    assert (code, err) == (0, "")
    assert "2.0, for flowplat>=7,<8, MIT OR Apache-2.0, reviewed 2026-01-31, 1.0 installed" in out
    (row,) = json.loads(platform("search", *at, "--json")[1])
    assert row["plugin"] == "wind"
    assert (row["version"], row["fits"], row["installed"]) == ("2.0", False, "1.0")
    assert (row["reviewed"], row["homepage"]) == ("2026-01-31", "https://example.org/wind")
    code, out, err = platform("search", "wind", "desert", *at)
    assert (code, out) == (0, "")
    assert "nothing in the catalogue matches 'wind desert'" in err
    assert json.loads(platform("search", "desert", *at, "--json")[1]) == []


def test_the_example_of_the_guide_is_an_entry() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "installing-plugins.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (entry,) = catalogue.read(example, "the guide")
    assert (entry.plugin, len(entry.releases)) == ("wind", 1)
