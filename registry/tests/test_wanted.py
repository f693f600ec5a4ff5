"""wanted: what each word of an install means, and which are refused before pip is asked."""

from pathlib import Path

import pytest
import wheels

from flowcore import files
from flowcore.errors import FlowError, InputError, PluginError, UsageError
from flowplat import catalogue, wanted

DIGEST = "a" * 64
SHELF = "https://example.org"
ENTRIES = catalogue.read(
    f"""
[[plugins]]
plugin = "wind"
distribution = "flowplat-wind"
summary = "winds"
licence = "MIT"
releases = [
    {{version = "1.0", url = "{SHELF}/flowplat_wind-1.0-py3-none-any.whl", sha256 = "{DIGEST}", requires = ">=0.1"}},
    {{version = "2.0", url = "{SHELF}/flowplat_wind-2.0-py3-none-any.whl", sha256 = "{DIGEST}", requires = ">=7"}},
]
[[plugins]]
plugin = "rain"
distribution = "flowplat-rain"
summary = "rains"
licence = "MIT"
""",
    "here",
)
ADDRESS = "https://example.org/a%20b/flowplat_wind-1.0-py3-none-any.whl"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a project, a folder of other things, both named like plugins, and a wheel."""
    monkeypatch.chdir(tmp_path)
    Path("breeze").mkdir()
    Path("breeze/pyproject.toml").write_text(
        '[project]\nname = "Flowplat_Breeze"\n[project.entry-points."flowplat.plugins"]\nbreeze = "b"\nsea = "s"\n'
    )
    Path("wind").mkdir()
    wheels.wheel(tmp_path, "wind", {})
    return tmp_path


def test_what_words_name(folder: Path) -> None:
    def parse(word: str, **keywords: bool) -> wanted.Wanted:
        return wanted.parse(word, ENTRIES, **keywords)

    one = parse("wind")  # the folder of that name is no project
    assert one.told == f"flowplat-wind @ https://example.org/flowplat_wind-1.0-py3-none-any.whl#sha256={DIGEST}"
    assert (one.name, one.version, one.sha256, one.entry) == ("flowplat-wind", "1.0", DIGEST, ENTRIES[0])
    assert parse("wind==1.0") == wanted.Wanted(**vars(one) | {"word": "wind==1.0"})

    wheel = folder / "flowplat_wind-1.0-py3-none-any.whl"
    digest = files.sha256(wheel)
    for word in (wheel.name, str(wheel), f"./{wheel.name}"):
        one = parse(word)
        assert one.told == f"flowplat-wind @ {wheel.as_uri()}#sha256={digest}"
        assert (one.name, one.version, one.sha256, one.entry) == ("flowplat-wind", "1.0", digest, None)

    for word in ("breeze", "./breeze", str(folder / "breeze"), f"flowplat-breeze @ {(folder / 'breeze').as_uri()}"):
        one = parse(word)
        assert (one.arguments, one.name, one.folder) == ([str(folder / "breeze")], "flowplat-breeze", folder / "breeze")
    assert parse("breeze", editable=True).arguments == ["-e", str(folder / "breeze")]

    for word in ("flowplat-sea", "Flowplat_Sea==1.0", "flowplat-sea[deep]<2,>=1", "acme-sea==1.0"):
        assert parse(word) == wanted.Wanted(word, word, "acme-sea" if "acme" in word else "flowplat-sea")
    assert parse("acme", listed=True).told == "acme"

    assert parse(ADDRESS).told == f"flowplat-wind @ {ADDRESS}"
    one = parse(f"{ADDRESS}#sha256={DIGEST}")
    assert (one.told, one.sha256) == (f"flowplat-wind @ {ADDRESS}#sha256={DIGEST}", DIGEST)
    assert parse(f"flowplat-wind @ {ADDRESS}#sha256={DIGEST}").told == one.told
    git = "flowplat-sea @ git+https://example.org/sea@0123456"
    assert parse(git).told == git


@pytest.mark.parametrize(
    ("word", "error", "told"),
    [
        ("rain", PluginError, "rain has no release yet; `platform install FOLDER`"),
        ("wind==2.0", PluginError, "wind 2.0 requires flowplat>=7, and flowplat 0."),
        ("wind==3.0", PluginError, "wind has no release ==3.0; there are 1.0, 2.0"),
        ("wnd", PluginError, "did you mean 'wind'?"),
        ("wnd==1.0", PluginError, "did you mean 'wind'?"),
        ("storms", PluginError, "flowplat-storms asks the index"),
        ("", UsageError, "names nothing"),
        ("a b", UsageError, "names nothing"),
        ("--pre", UsageError, "names nothing"),
        ("flowplat", UsageError, "install never changes it"),
        ("torch==2.0", UsageError, "install never changes it"),
        ("NumPy", UsageError, "install never changes it"),
        ("./wind", InputError, "has no pyproject.toml"),
        (".", InputError, "has no pyproject.toml"),
        ("./none", InputError, "there is no file or folder ./none"),
        ("none.whl", InputError, "there is no file or folder none.whl"),
        ("./breeze/pyproject.toml", InputError, "is no wheel"),
        ("odd.whl", InputError, "is no wheel by its name"),
        ("http://example.org/flowplat_wind-1.0-py3-none-any.whl", UsageError, "neither at https:// nor at file://"),
        ("git+https://example.org/x", UsageError, "neither at https:// nor at file://"),
        ("https://example.org/flowplat-wind-1.0.tar.gz", UsageError, "is no wheel"),
        (f"{ADDRESS}#sha256=123", UsageError, "64 digits"),
        (f"{ADDRESS}#md5=123", UsageError, "64 digits"),
        (f"flowplat-rain @ {ADDRESS}", UsageError, "the wheel is one of flowplat-wind"),
        ("flowplat-wind @ file:///none/flowplat_wind-1.0-py3-none-any.whl", InputError, "there is no file /none/"),
        ("flowplat-wind @ file:///none", InputError, "/none is no project folder"),
    ],
)
def test_what_is_refused(word: str, error: type[FlowError], told: str, folder: Path) -> None:
    Path("odd.whl").touch()
    with pytest.raises(error) as caught:
        wanted.parse(word, ENTRIES)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["wind", "flowplat-sea", "flowplat_wind-1.0-py3-none-any.whl", ADDRESS])
def test_only_folders_are_editable(word: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="--editable is for folders"):
        wanted.parse(word, ENTRIES, editable=True)


def test_a_list(folder: Path) -> None:
    lines = f"""
    # made by hand
    flowplat==0.1.0
    flowplat-wind @ {ADDRESS}#sha256={DIGEST}   # by its hash
    acme-sea
    -e {folder}/breeze
    --editable=./breeze

    """
    Path("list.txt").write_text(lines)
    found, made_with = wanted.read_list(Path("list.txt"), ENTRIES)
    assert made_with == "0.1.0"
    assert [one.name for one in found] == ["flowplat-wind", "acme-sea", "flowplat-breeze", "flowplat-breeze"]
    assert [one.editable for one in found] == [False, False, True, True]
    assert found[0].sha256 == DIGEST


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the list list.txt is empty; `platform freeze` writes one"),
        ("# nothing\n", "the list list.txt is empty"),
        ("flowplat==0.1.0\n--pre\n", "list.txt, line 2: --pre is not for such a list"),
        ("-r other.txt\n", "list.txt, line 1: -r is not for such a list"),
        ("\n./none\n", "list.txt, line 2: there is no file or folder ./none"),
        ("flowplat>=0.1\n", "list.txt, line 1: flowplat is no plugin"),
    ],
)
def test_what_a_list_may_not_hold(text: str, told: str, folder: Path) -> None:
    Path("list.txt").write_text(text)
    with pytest.raises(UsageError) as caught:
        wanted.read_list(Path("list.txt"), ENTRIES)
    assert str(caught.value).startswith(told)


def test_a_list_that_cannot_be_read(folder: Path) -> None:
    Path("binary.txt").write_bytes(b"\xff\xfe")
    for name in ("none.txt", "breeze", "binary.txt"):
        with pytest.raises(InputError, match=f"the list {name} cannot be read"):
            wanted.read_list(Path(name), ENTRIES)


def test_what_a_folder_states(folder: Path) -> None:
    file = Path("breeze/pyproject.toml")
    assert wanted.plugins_of_folder(Path("breeze")) == ("breeze", "sea")
    for text, plugins in (
        ('[project]\nname = "x"\n', ()),
        ('[project]\nname = "x"\ndynamic = ["entry-points"]\n', None),
        ("[tool.other]\n", None),
    ):
        file.write_text(text)
        assert wanted.plugins_of_folder(Path("breeze")) == plugins
    file.write_text("[project")
    with pytest.raises(InputError, match=r"pyproject\.toml cannot be read"):
        wanted.parse("breeze", ENTRIES)
