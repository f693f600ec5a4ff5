"""conformance, new and check: a scaffold that passes, and the one check that fails for each thing done to it."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flowcore.errors import InputError, PluginError, UsageError
from flowcore.plugin import testing
from flowplat import conformance, isolated, scaffold
from flowplat.manager import KINDS

Install = Callable[..., Path]
Platform = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wind(install: Install, tmp_path: Path) -> Callable[..., None]:
    """``wind(("data.py", "(2,)", "(3,)"))`` installs what `platform new wind` writes, with that changed."""

    def wind(*changes: tuple[str, str, str]) -> None:
        scaffold.write("wind", tmp_path / "wind")
        package = tmp_path / "wind" / "src" / "flowplat_wind"
        texts = {path.name: path.read_text() for path in package.rglob("*.*")}
        texts["plugin.py"] = texts["plugin.py"].replace(":presets/", ":")  # `install` knows no folders
        for name, old, new in changes:
            assert old in texts[name]
            texts[name] = texts[name].replace(old, new)
        install("wind", texts.pop("plugin.py"), texts)

    return wind


def failures(plugin: str, among: str = "", fast: bool = True) -> dict[str, str]:
    """What fails among the checks whose id holds a word, of which there has to be one."""
    found = [check for check in conformance.checks(plugin, fast) if among in check.id]
    assert found
    failed = {}
    for check in found:
        try:
            check()
        except AssertionError as error:
            failed[check.id] = str(error)
    assert not [line for line in failed.values() if "\n" in line]
    return failed


def test_the_scaffold_passes_and_every_part_of_it_is_tried(wind: Callable[..., None]) -> None:
    wind()
    assert failures("wind", fast=False) == {}
    ids = [check.id for check in conformance.checks("wind")]
    assert len(ids) == len(set(ids)) > 40
    for about in ("data/rose", "network/mlp", "guidance/towards", "metric/distance", "preset/default", "preset/smoke"):
        assert f"{about}: its reference loads" in ids
        assert sum(one.startswith(f"{about}: ") for one in ids) >= 3, about
    assert "data/rose: written samples read back" in ids
    assert [one for one in ids if one.startswith("run/smoke: ")] == [
        "run/smoke: it takes under a minute",
        "run/smoke: it is better than untrained",
        "run/smoke: it goes on where it stopped",
    ]
    assert "run/default: it samples alike where it is loaded" in ids


SOCKET = """
        import socket
        socket.create_connection(("127.0.0.1", 9))
        return Rose(self"""

GUIDED = "solver: midpoint, guidance: [classifier_free]"
ALONE = "data/rose: tiny is the same twice"
OFF = "guidance/towards: off it changes nothing"
CAN = "it can be built"

BROKEN: list[tuple[str, str, str, str, str]] = [  # the file, what is replaced, by what; the check that fails, its words
    ("networks.py", "nn.Linear(width, size)", "nn.Linear(width, size + 1)",
     "network/mlp: its output has the shape of the state", "it returned (6, 3) float32 for a state of (6, 2) float32"),
    ("networks.py", "t[:, None]", "0 * t[:, None]", "network/mlp: it depends on t", "same answer at t = 0.1"),
    ("networks.py", "return MLP(", "return lambda x, t, c: MLP(", f"network/mlp: {CAN}", "no torch.nn.Module"),
    ("networks.py", "    return MLP(", "    import nowhere\n    return MLP(", f"network/mlp: {CAN}", "nowhere"),
    ("networks.py", "    return MLP(", "    raise SystemExit(0)\n    return MLP(", f"network/mlp: {CAN}", "SystemExit"),
    ("data.py", "\n        return Rose(self", SOCKET, "data/rose: tiny is offline", "127.0.0.1"),
    ("data.py", 'generator(0, "rose", part)', "torch.default_generator", ALONE, "differs"),
    ("data.py", "[1:]]", "[2:]]", "data/rose: written samples read back", "read back is (7, 2)"),
    ("data.py", "Leaf((2,))", "Leaf((3,))", "data/rose: samples are as the spec says", "the spec asks for (8, 3)"),
    ("data.py", "Field(5,", "Field(", f"data/rose: {CAN}", "its option petals has no default"),
    ("guidance.py", "self.scale * e", "(self.scale + 1) * e", OFF, "at t = 0.1, it changes the velocity"),
    ("guidance.py", "scale: float", "scale: list[int]", f"guidance/towards: {CAN}", "off={'scale': 0} are no options"),
    ("metrics.py", "energy_distance(samples.x1, real)", "torch.rand(()).item()",
     "metric/distance: its figures come again", "measured.seed alone"),
    ("plugin.py", "HERE =", "import torch\nHERE =", "plugin: its entry module imports nothing heavy", "torch"),
    ("plugin.py", "metrics:distance", "metrics:distances", "metric/distance: its reference loads", "distances"),
    ("plugin.py", ":smoke.yaml", ":smoky.yaml", "preset/smoke: its reference loads", "smoky.yaml"),
    ("smoke.yaml", "count: 512", "number: 512", "preset/smoke: it resolves", "data.number (preset smoke): no such key"),
    ("default.yaml", "solver: midpoint", GUIDED, "preset/default: its parts fit each other", "conditional field"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "check", "words"), BROKEN, ids=[f"{one[3]} {one[4]}" for one in BROKEN])
def test_what_is_broken_fails_its_check_in_one_line(
    file: str, old: str, new: str, check: str, words: str, wind: Callable[..., None]
) -> None:
    wind((file, old, new))
    failed = failures("wind", check.partition(":")[0])
    assert check in failed, failed
    assert words in failed[check]


BUSY = """
import contextlib, threading, time, urllib.request

print("made of wind")
torch.manual_seed(3)
torch.set_default_dtype(torch.float64)
Path("cache.csv").touch()
threading.Thread(target=time.sleep, args=(60,), daemon=True, name="busy").start()
with contextlib.suppress(OSError):
    urllib.request.urlopen("https://example.org")
"""


def test_what_an_import_leaves_behind_is_told(wind: Callable[..., None]) -> None:
    wind(("data.py", "TURN = 0.1", f"{BUSY}TURN = 0.1"))
    with pytest.raises(AssertionError) as caught:  # not by `checks`, which imports it here too
        isolated.leaves_nothing_behind(["flowplat_wind.plugin", "flowplat_wind.data"])
    line = str(caught.value)
    assert line.startswith("importing it asks the network for example.org, changes torch's default dtype, ")
    for trace in ("changes torch's random state", "leaves the thread busy running", "writes cache.csv",
                  "prints 'made of wind'"):  # fmt: skip
        assert trace in line


def test_what_a_library_draws_when_it_is_imported_is_not_the_plugins(
    wind: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dice.py").write_text("import random\nSIX = random.randint(1, 6)\n")
    monkeypatch.syspath_prepend(tmp_path)
    wind(("data.py", "TURN = 0.1", "import dice\nTURN = 0.1"))
    isolated.leaves_nothing_behind(["flowplat_wind.plugin", "flowplat_wind.data"])


def test_what_a_plugin_draws_when_it_is_imported_is_told(wind: Callable[..., None]) -> None:
    wind(("data.py", "TURN = 0.1", "import random\nrandom.random()\nTURN = 0.1"))
    with pytest.raises(AssertionError, match="importing it changes python's random state;"):
        isolated.leaves_nothing_behind(["flowplat_wind.plugin", "flowplat_wind.data"])


FORGETFUL = """
        self.steps = getattr(self, "steps", 0) + 1
        velocity = (1 + 0.01 * self.steps) * self.layers"""


@pytest.mark.parametrize(
    ("file", "old", "new", "check", "words"),
    [
        ("smoke.yaml", "lr: 4e-3", "lr: 1e-30", "run/smoke: it is better than untrained", "distance was"),
        ("networks.py", "\n        velocity: Tensor = self.layers", FORGETFUL,
         "run/smoke: it goes on where it stopped", "going on from step-00000100 ends with another"),
        ("networks.py", "velocity: Tensor = self.layers", "import os\n        velocity = os.getpid() + self.layers",
         "run/default: it samples alike where it is loaded", "draws other samples than the run"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_as_it_should_be_is_told(
    file: str, old: str, new: str, check: str, words: str, wind: Callable[..., None]
) -> None:
    wind((file, old, new))
    assert words in failures("wind", check, fast=False)[check]


def test_a_run_that_fails_is_told_by_each_check_that_needs_it(wind: Callable[..., None]) -> None:
    wind(("metrics.py", "    return {", "    raise RuntimeError('no reference')\n    return {"))
    failed = failures("wind", "run/smoke", fast=False)
    assert len(failed) == 3
    assert set(failed.values()) == {"RuntimeError: no reference"}


def test_every_kind_has_checks_and_one_without_is_a_failure(
    wind: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {*testing.CHECKS, "preset", "command"} == set(KINDS.values())
    assert all(testing.CHECKS.values())
    monkeypatch.setattr(testing, "CHECKS", {**testing.CHECKS, "metric": ()})
    wind()
    failed = failures("wind", "metric")
    assert list(failed) == ["metric: at least one check"]
    assert "nothing of this kind was tried" in failed["metric: at least one check"]


MORE = """
import click, torch
from flowcore.errors import InputError
from flowcore import samplers, objectives
from flowcore.data import Batch
from flowcore.plugin import hookimpl
from pydantic import BaseModel

class Nothing(BaseModel):
    pass

class Odd(torch.nn.Linear):  # takes x alone

    def forward(self, x):
        return super().forward(x)

def odd(config, spec):
    return Odd(2, 2)

def repeat(config, parts):
    return lambda network, batch, generator: (network(batch.x1) - batch.x1).square().mean(1)

def one_step(config, parts):
    def sample(network, condition, count, steps, generator):
        return Batch(network(torch.randn(count, 2, generator=generator)), condition, extra={"calls": 1})
    return sample

def fill(trained, inputs, out, tail: int = 1):
    raise InputError(f"{inputs[0]} is not there") if trained.network is not None else TypeError

def bare(trained, inputs, out):
    return {"trained": trained}

def drift(config, parts):
    return samplers.flow(parts)

def matching(config, parts):
    return objectives.matching(parts)

@click.command()
def mute():
    pass

@hookimpl
def register_tasks(register):
    register("fill", "flowplat_more.plugin:fill", summary="fills")
    register("bare", "flowplat_more.plugin:bare", summary="takes anything", model=False)

@hookimpl
def register_samplers(register):
    uses = ("path", "predicts", "solver", "guidance")
    register("one_step", "flowplat_more.plugin:one_step", config="flowplat_more.plugin:Nothing", summary="x")
    register("drift", "flowplat_more.plugin:drift", config="flowplat_more.plugin:Nothing", summary="x", uses=uses)

@hookimpl
def register_objectives(register):
    uses = ("path", "coupling", "times", "loss", "predicts")
    register("mine", "flowplat_more.plugin:matching", config="flowplat_more.plugin:Nothing", summary="x", uses=uses)
    register("repeat", "flowplat_more.plugin:repeat", config="flowplat_more.plugin:Nothing", summary="x")
    register("other", "flowplat_more.plugin:matching", config="flowplat_more.plugin:Nothing", summary="x", uses=uses)

@hookimpl
def register_commands(register):
    register("mute", "flowplat_more.plugin:mute", summary="says nothing")

@hookimpl
def register_paths(register):
    register("straight", "flowcore.paths:linear", summary="the core's")

@hookimpl
def register_networks(register):
    register("odd", "flowplat_more.plugin:odd", config="flowplat_more.plugin:Nothing", summary="x")

@hookimpl
def register_presets(register):
    register("p", "flowplat_more:p.yaml", summary="on the rose")
    register("q", "flowplat_more:q.yaml", summary="without a path")
"""


def test_every_other_kind_is_tried_too(wind: Callable[..., None], install: Install) -> None:
    wind()
    preset = """
        data: wind/rose
        network: wind/mlp
        objective: mine
        train: {steps: 4}
        sample: {sampler: drift}
        eval: {metrics: [wind/distance]}
        """
    pathless = """
        data: wind/rose
        network: odd
        objective: repeat
        train: {steps: 4}
        sample: {sampler: one_step}
        eval: {metrics: [wind/distance]}
        """
    install("more", MORE, {"p.yaml": preset, "q.yaml": pathless})
    failed = failures("more")
    # what it does wrong: it imports click and torch, has a command without a word, an objective that nothing names,
    # and a task that takes what is not there
    assert set(failed) == {
        "plugin: its entry module imports nothing heavy",
        "command/mute: it is a command that says what it does",
        "objective/other: it can be built",
        "task/bare: it refuses what is not there",
    }
    ids = [check.id for check in conformance.checks("more", fast=True)]
    for check in (
        "task/fill: it refuses",
        "sampler/drift: its samples",
        "objective/mine: the network learns",
        "path/straight",
        "network/odd: the network learns from it",
    ):
        assert any(one.startswith(check) for one in ids), check


def test_images_of_a_folder_are_checked_on_their_own_example() -> None:
    assert failures("images", "data/npz") == {}
    assert len([one for one in conformance.checks("images", fast=True) if one.id.startswith("data/folder: ")]) > 10


def test_a_plugin_that_cannot_be_loaded_has_no_checks(install: Install) -> None:
    install("wind", "raise RuntimeError('no licence')")
    with pytest.raises(PluginError, match="no licence"):
        conformance.checks("wind")


def test_check_prints_each_line_and_the_count(wind: Callable[..., None], platform: Platform) -> None:
    wind(("networks.py", "t[:, None]", "0 * t[:, None]"))
    code, out, _ = platform("check", "wind", "--fast")
    *lines, last = out.splitlines()
    assert code == 1
    ok = [line for line in lines if line.startswith("ok      ")]
    assert last == f"{len(ok) + 1} checks, 1 failed"
    at = lines.index("FAILED  network/mlp: it depends on t")
    assert lines[at + 1].startswith("        it gives the same answer at t = 0.1")
    assert len(lines) == len(ok) + 2
    code, out, _ = platform("check", "wind", "--fast", "--json")
    told = json.loads(out)
    assert (code, told["failed"], told["count"]) == (1, 1, len(ok) + 1)
    assert told["kinds"]["network"] == sum(row["kind"] == "network" for row in told["checks"])
    assert [row["id"] for row in told["checks"] if not row["ok"]] == ["network/mlp: it depends on t"]


def test_what_needs_a_package_that_is_not_there_is_left_out(wind: Callable[..., None], platform: Platform) -> None:
    missing = "raise MissingPackageError('network=mlp needs `sails`')"
    wind(
        ("networks.py", "    return MLP(", f"    {missing}\n    return MLP("),
        ("networks.py", "import UsageError", "import MissingPackageError, UsageError"),
    )
    code, out, _ = platform("check", "wind", "--fast")
    *lines, last = out.splitlines()
    assert code == 0
    at = lines.index("left out network/mlp: it can be built")
    assert lines[at + 1] == "        network=mlp needs `sails`"
    left_out = sum(line.startswith("left out ") for line in lines)
    assert last == f"{len(lines) - left_out} checks, 0 failed, {left_out} left out for want of a package"


def test_check_of_what_is_not_there_ends_with_three(platform: Platform) -> None:
    code, out, err = platform("check", "wind")
    assert (code, out) == (3, "")
    assert err.startswith("platform: no plugin named 'wind' is installed")


def test_new_writes_a_project_that_its_tools_accept(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = platform(
        "new", "a-rather-long-name-of-many-words", "--author", 'É. "Q"', "--license", "BSD-3-Clause"
    )
    assert (code, out) == (0, "flowplat-a-rather-long-name-of-many-words\n")
    assert "platform check a-rather-long-name-of-many-words" in err
    project = tmp_path / out.strip()
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert told["project"]["authors"] == [{"name": 'É. "Q"'}]
    assert told["project"]["license"] == "BSD-3-Clause"
    assert told["project"]["dependencies"][0] == f"flowplat{scaffold.requires('0.1.0')}"
    release = yaml.safe_load((project / ".github" / "workflows" / "release.yml").read_text())
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert yaml.safe_load((project / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]
    for command in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    texts = [path.read_text(encoding="utf-8") for path in project.rglob("*.*") if path.is_file()]
    assert len(texts) == 15
    assert not [text for text in texts if re.search("@[A-Z]+@", text)]


def test_new_refuses_what_is_there_and_leaves_it(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("precious")
    code, out, err = platform("new", "wind", "-o", str(tmp_path / "mine"))
    assert (code, out) == (2, "")
    assert "mine is not empty; name a new folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "notes").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "words"),
    [("Wind", "is no name"), ("9winds", "is no name"), ("sea_ice", "is no name"), ("wind-", "is no name"),
     ("", "is no name"), ("../wind", "is no name"), ("w" * 41, "is no name"), ("class", "a word of Python"),
     ("json", "part of Python"), ("core", "the platform's own name"), ("run", "a verb"), ("show-config", "a verb"),
     ("platform", "choose another")],
)  # fmt: skip
def test_new_refuses_a_name_that_no_plugin_should_have(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        scaffold.write(name, tmp_path / "project")
    assert list(tmp_path.iterdir()) == []


def test_new_refuses_a_licence_that_can_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no SPDX licence"):
        scaffold.write("wind", tmp_path / "project", license='MIT"\n')
    with pytest.raises(InputError, match="is no folder"):
        scaffold.write("wind", Path(__file__))


def test_new_warns_of_a_name_that_is_taken(ring: Path, platform: Platform, tmp_path: Path) -> None:
    code, _, err = platform("new", "ring", "-o", str(tmp_path / "a"))
    assert code == 0
    assert "a plugin called 'ring' is installed already" in err
    code, _, err = platform("new", "gflownet", "-o", str(tmp_path / "b"), "--json")
    assert code == 0
    assert "the catalogue knows a plugin 'gflownet' already" in err


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3", ">=0.12,<0.13"), ("1.4.0", ">=1.4,<2"), ("10.0", ">=10.0,<11")],
)
def test_a_plugin_requires_the_interface_it_was_written_for(version: str, wanted: str) -> None:
    assert scaffold.requires(version) == wanted


def test_the_pytest_plugin_is_light_and_asks_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(flowplat_check):\n    flowplat_check()\n")
    (tmp_path / "test_light.py").write_text(
        "import sys\ndef test_light():\n    assert not {'torch', 'pydantic', 'flowcore.errors'} & set(sys.modules)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "-c",
        "/dev/null",
    ]
    done = subprocess.run([*command, "test_light.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "flowplat_check needs the name of a plugin: set flowplat_plugin" in done.stdout + done.stderr
