"""info: what a plugin brings, whole, and whatever of it is broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

Said = tuple[int, str, str]

WIND = """
from typing import Literal
import click
from pydantic import BaseModel, Field
from flowcore.plugin import hookimpl

here = "flowplat_wind.plugin"

class Config(BaseModel):
    kind: Literal["hourly", "daily"] = Field("hourly", description="how often")
    levels: list[int] = Field(default_factory=lambda: [1, 2], min_length=1, description="heights")

class Wind:
    '''Wind of a mast.

        Measured at several heights.
    '''

def forecast(trained, inputs, out, hours: int = 6):
    '''Hours ahead.'''

def tidy(trained, inputs, out):
    print("noise")

@click.command()
def plot():
    pass

@hookimpl
def register_data(register):
    register("mast", f"{here}:Wind", config=f"{here}:Config", summary="a mast")

@hookimpl
def register_tasks(register):
    register("forecast", f"{here}:forecast", summary="hours ahead")
    register("tidy", f"{here}:tidy", summary="a clean file", model=False, resumes=True)

@hookimpl
def register_commands(register):
    register("plot", f"{here}:plot", summary="a plot")

@hookimpl
def register_presets(register):
    register("short", "flowplat_wind:short.yaml", summary="an hour")
    register("long", "flowplat_wind:long.yaml", summary="a year", default=True)
"""
PRESETS = {"short.yaml": "# a comment\ndata: mast\n", "long.yaml": "data: {name: mast, kind: daily}\n"}

BROKEN = """
from pydantic import BaseModel
from flowcore.plugin import hookimpl

here = "flowplat_wind.plugin"

class Config(BaseModel):
    width: int = 5

def fine(trained, inputs, out, hours: int = 6):
    pass

def unread(trained, inputs, out, hours: "Hours" = 6):
    pass

def exits():
    raise SystemExit(7)

@hookimpl
def register_networks(register):
    register("gone", "flowplat_wind.gone:net", summary="no module", config=f"{here}:Config")
    register("exit", "flowplat_wind.exits:net", summary="ends the process")

@hookimpl
def register_data(register):
    register("schema", f"{here}:fine", config=f"{here}:fine", summary="a config that is none")

@hookimpl
def register_tasks(register):
    register("fine", f"{here}:fine", summary="this one works")
    register("unread", f"{here}:unread", summary="an annotation that is none")

@hookimpl
def register_presets(register):
    register("missing", "flowplat_wind:missing.yaml", summary="no file")
    register("tagged", "flowplat_wind:tagged.yaml", summary="no plain YAML")
"""


@pytest.fixture
def info(platform: Callable[..., Said]) -> Callable[..., Said]:
    return lambda *arguments: platform("info", "wind", *arguments)


def rows(out: str) -> dict[str, dict[str, Any]]:
    return {f"{row['kind']}/{row['name']}": row for row in json.loads(out)["components"]}


def test_everything_is_told(install: Callable[..., Path], info: Callable[..., Said]) -> None:
    install("wind", WIND, files=PRESETS)
    code, out, err = info()
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "preset", "short an hour", "long a year (default)",
        "task", "forecast hours ahead (needs a model)", "hours int 6", "tidy a clean file (needs no model, resumes)",
        "data", "mast a mast", "kind hourly | daily hourly how often", "levels list[int] length >= 1 [1, 2] heights",
        "command", "plot a plot",
    ]  # fmt: skip
    told = rows(info("--json")[1])
    assert list(told) == [
        "preset/short", "preset/long", "task/forecast", "task/tidy", "data/mast", "command/plot"
    ]  # fmt: skip
    assert [told[f"task/{name}"]["model"] for name in ("forecast", "tidy")] == [True, False]
    assert told["data/mast"]["options"] == [
        {"name": "kind", "type": "hourly | daily", "bounds": "", "required": False, "default": "hourly",
         "description": "how often"},
        {"name": "levels", "type": "list[int]", "bounds": "length >= 1", "required": False, "default": [1, 2],
         "description": "heights"},
    ]  # fmt: skip
    assert told["preset/long"]["default"]


@pytest.mark.parametrize("name", ["mast", "data/mast", "wind/mast"])
def test_one_component_is_told_with_its_documentation(
    name: str, install: Callable[..., Path], info: Callable[..., Said]
) -> None:
    install("wind", WIND, files=PRESETS)
    code, out, _ = info(name)
    assert code == 0
    assert "Wind of a mast.\n\n" in out
    assert "forecast" not in out
    (row,) = json.loads(info(name, "--json")[1])["components"]
    assert row["documentation"].splitlines()[0] == "Wind of a mast."


def test_a_preset_is_told_as_it_stands(install: Callable[..., Path], info: Callable[..., Said]) -> None:
    install("wind", WIND, files=PRESETS)
    assert info("preset/short")[1].splitlines()[-2:] == ["    # a comment", "    data: mast"]


@pytest.mark.parametrize(
    ("name", "hint"), [("masd", "'mast'"), ("data/masd", "'data/mast'"), ("zzzzzz", "`platform info wind`")]
)
def test_a_name_it_does_not_bring(
    name: str, hint: str, install: Callable[..., Path], info: Callable[..., Said]
) -> None:
    install("wind", WIND, files=PRESETS)
    code, out, err = info(name)
    assert (code, out) == (2, "")
    assert f"brings nothing called {name!r}" in err
    assert hint in err


def test_what_is_broken_is_told_beside_what_works(install: Callable[..., Path], info: Callable[..., Said]) -> None:
    files = {"exits.py": "raise SystemExit(7)", "tagged.yaml": "data: !!python/name:os.system"}
    install("wind", BROKEN, files=files)
    code, out, err = info()
    assert code == 3
    assert err.startswith("platform: plugin 'wind' brings what cannot be loaded: ")
    assert len(err.splitlines()) == 1
    causes = {
        "preset/missing": "missing.yaml", "preset/tagged": "tag", "network/gone": "flowplat_wind.gone",
        "network/exit": "SystemExit: 7", "data/schema": "no pydantic model", "task/unread": "Hours",
    }  # fmt: skip
    told = rows(info("--json")[1])
    assert {name for name, row in told.items() if row["cause"]} == set(causes)
    for name, cause in causes.items():
        assert cause in told[name]["cause"]
        assert f"broken: {told[name]['cause']}" in out
        assert repr(name.partition("/")[2]) in err
    assert [option["name"] for option in told["task/fine"]["options"]] == ["hours"]
    assert info("fine")[0] == 0
    assert info("task/unread")[0] == 3


def test_a_cause_is_red_on_a_terminal(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from flowplat.cli.info import command

    install("wind", BROKEN)
    shown = CliRunner().invoke(command, ["wind", "gone"], color=True).output
    assert click.style("    broken: ", fg="red").removesuffix("\x1b[0m") in shown
