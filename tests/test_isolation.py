"""One bad plugin is one bad plugin: beside every kind of it the good ones run, and its cause is told in one line."""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wheels
from wheels import Environment

PROBE = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
QUICK = ("train.steps=4", "train.checkpoint_every=4", "engine.threads=1")

GOOD = """
    from flowcore.plugin import hookimpl

    parts = f"{__package__}.parts"

    @hookimpl
    def register_data(register):
        register("points", f"{parts}:Points", config=f"{parts}:PointsConfig", summary="points")

    @hookimpl
    def register_networks(register):
        register("unet", f"{parts}:dense", config=f"{parts}:DenseConfig", summary="two layers")

    @hookimpl
    def register_metrics(register):
        register("spread", f"{parts}:spread", summary="standard deviation")

    @hookimpl
    def register_presets(register):
        register("quick", f"{__package__}:quick.yaml", summary="a second", default=True)
    """
PRESET = """
    data: points
    network: unet
    train: {batch_size: 8, warmup: 0, log_every: 1}
    sample: {count: 8, steps: 1, batch_size: 8}
    eval: {count: 16, steps: [1], paths: 4}
    """
FILES = {"plugin.py": GOOD, "parts.py": PROBE, "quick.yaml": PRESET}

TRACE = """
from os import environ
from pathlib import Path

from flowcore.plugin import hookimpl

with Path(environ["HOME"], "imported").open("a") as file:
    file.write(f"{__package__}\\n")
"""
HOOK = """
@hookimpl
def register_networks(register):
    register("mlp", f"{__package__}.parts:mlp", summary="a network")
"""

BROKEN = {
    "absent": ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    "garbled": ("def (", "SyntaxError: "),
    "quits": ("raise SystemExit(3)", "SystemExit: 3"),
    "argued": (HOOK.replace("(register)", "(registry)"), "registry"),
    "misspelt": (HOOK.replace("networks", "network"), "did you mean 'register_networks'?"),
    "unmarked": (HOOK.replace("@hookimpl", ""), "register_networks would never be called: it lacks @hookimpl"),
    "throws": (HOOK + "    raise ValueError('on\\n  purpose')", "ValueError: on purpose"),
    "empty": ("", "implements no hook"),
}
"""Plugins that cannot be loaded, and the cause that is told."""

ENDS = {
    "leaves": ("import os\nos._exit(0)", "its import ended the process, exit code 0"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "its import ended the process, signal 11"),
}
"""Plugins that take the process with them; only what asks each in a process of its own can tell of them."""

NOISY = """
import os, subprocess
print("hello")
os.write(1, b"from below\\n")
subprocess.run(["echo", "from another process"])
"""

WATCHER = """
@hookimpl
def after_step(run, step, row):
    if step >= 3:
        raise RuntimeError("three is too many")
"""

ENDLESS = "while True:\n    pass\n"


@dataclass(frozen=True)
class Place:
    """An environment with every plugin of this module, and the traces of those that were imported."""

    environment: Environment

    def platform(self, *arguments: str, **more: str) -> wheels.Done:
        return self.environment.platform(*arguments, **more)

    def python(self, code: str, **more: str) -> wheels.Done:
        return self.environment.run(self.environment.python, "-c", code, **more)

    def imported(self) -> set[str]:
        """The plugins that were imported since this was last asked, those that leave a trace."""
        trace = self.environment.home / "imported"
        names = trace.read_text().split() if trace.exists() else []
        trace.unlink(missing_ok=True)
        return {name.removeprefix("flowplat_") for name in names}


@pytest.fixture(scope="module")
def place(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("isolation")
    out = folder / "wheels"
    bad = {name: code for name, (code, _) in (BROKEN | ENDS).items()}
    bad |= {
        "core": HOOK, "twin": HOOK, "endless": ENDLESS, "off": HOOK, "watcher": WATCHER, "moduleless": HOOK,
        "attributeless": HOOK.replace(".parts", ".plugin"), "noisy": NOISY + GOOD.replace("\n    ", "\n"),
    }  # fmt: skip
    made = [wheels.wheel(out, name, FILES) for name in ("good", "fair")]
    made += [wheels.wheel(out, name, {"plugin.py": TRACE + code} | _parts(name)) for name, code in bad.items()]
    made.append(wheels.wheel(out, "twin", {"plugin.py": TRACE + HOOK}, distribution="other-tides"))
    made.append(wheels.wheel(out, "tomorrow", {"plugin.py": TRACE + HOOK}, requires=["flowplat>=99"]))
    made += [wheels.wheel(out, verb, FILES | {"plugin.py": SHADOW}) for verb in ("run", "list")]
    place = Place(wheels.environment(folder, ours["flowplat"], *made))
    for name in ("off", "endless"):  # endless is switched on where it is meant
        assert place.platform("disable", name).returncode == 0
    assert place.imported() == set()  # by nothing so far: not by being installed, not by being switched off
    return place


def _parts(name: str) -> dict[str, str]:
    return {key: FILES[key] for key in ("parts.py", "quick.yaml")} if name == "noisy" else {}


SHADOW = (
    GOOD
    + """
    import click

    @hookimpl
    def register_commands(register):
        for verb in ("run", "list"):
            register(verb, f"{__name__}:shadow", summary="a verb of the same name")

    @click.command()
    def shadow():
        click.echo(f"{__package__}'s own")
    """
)


def line(done: wheels.Done, code: int) -> str:
    """The one line on stderr of a command that ended with ``code``."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"platform: [^\n]+\n", done.stderr)
    return done.stderr


@pytest.fixture(scope="module")
def listed(place: Place) -> dict[str, list[dict[str, Any]]]:
    """What ``platform list --components --json`` says, by plugin."""
    place.imported()
    before = os.times()
    done = place.platform("list", "--components", "--json")
    after = os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout):
        found.setdefault(row["plugin"], []).append(row)
    assert spent < 0.5 * len(found)  # CPU seconds: a small process for each
    return found


# states


def test_a_good_plugin_is_listed_with_what_it_brings(listed: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("good", "fair", "noisy"):
        (row,) = listed[name]
        assert (row["state"], row["cause"], row["distribution"]) == ("ok", "", f"flowplat-{name}")
        assert [f"{part['kind']} {part['name']}" for part in row["components"]] == [
            "data points", "network unet", "metric spread", "preset quick",
        ]  # fmt: skip
        assert not any("cause" in part for part in row["components"])


@pytest.mark.parametrize(("name", "cause"), [(name, cause) for name, (_, cause) in (BROKEN | ENDS).items()])
def test_a_broken_plugin_is_listed_with_its_cause(
    name: str, cause: str, listed: dict[str, list[dict[str, Any]]]
) -> None:
    (row,) = listed[name]
    assert row["state"] == "broken"
    assert cause in row["cause"]
    assert "\n" not in row["cause"]
    assert row["components"] is None


@pytest.mark.parametrize(
    ("name", "state", "causes"),
    [
        ("tomorrow", "incompatible", ["it requires flowplat>=99, and this is flowplat 0.", "install a release for it"]),
        ("off", "disabled", ["`platform enable off`"]),
        ("twin", "duplicate", ["flowplat-twin 1.0", "other-tides 1.0", "uninstall one of them"]),
        ("core", "broken", ["the platform's own name"]),
    ],
)
def test_a_state_that_metadata_tell(
    name: str, state: str, causes: list[str], listed: dict[str, list[dict[str, Any]]]
) -> None:
    assert {row["state"] for row in listed[name]} == {state}
    assert len(listed[name]) == (2 if name == "twin" else 1)
    for row in listed[name]:
        assert all(cause in row["cause"] for cause in causes)


def test_a_component_whose_module_is_missing_is_listed_as_broken(listed: dict[str, list[dict[str, Any]]]) -> None:
    (row,) = listed["moduleless"]
    assert row["state"] == "ok"
    (part,) = row["components"]
    assert part["cause"] == "there is no module 'flowplat_moduleless.parts'"


def test_every_state_is_one_line_of_the_table_and_what_metadata_tell_is_not_imported(place: Place) -> None:
    place.imported()
    done = place.platform("list", "--components")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    tops = [line for line in lines if not line.startswith(" ")]
    for name, cause in [(name, cause) for name, (_, cause) in (BROKEN | ENDS).items()]:
        (found,) = [line for line in tops if line.startswith(f"{name} ")]
        assert "[broken] " in found
        assert cause in found
    for state, count in {"disabled": 2, "incompatible": 1, "duplicate": 2, "broken": len(BROKEN | ENDS) + 1}.items():
        assert sum(f" [{state}] " in line for line in tops) == count
    assert "  network     mlp [broken] there is no module 'flowplat_moduleless.parts'" in lines
    asked = {*BROKEN, *ENDS, "moduleless", "attributeless", "watcher", "noisy"} - {"garbled"}  # which has no first line
    assert place.imported() == asked


# what a bad plugin costs the others: nothing


def modules(place: Place, *arguments: str, **more: str) -> tuple[set[str], wheels.Done]:
    """The plugins' packages that ``platform ...`` has imported, and what it said."""
    code = f"""
import json, sys
from flowplat.cli import main
try:
    main({[*arguments]!r})
except SystemExit as ended:
    print("\\n" + json.dumps([ended.code, sorted(name for name in sys.modules if name.startswith("flowplat_"))]))
"""
    done = place.python(code, **more)
    exit_code, names = json.loads(done.stdout.splitlines()[-1])
    assert exit_code == 0, done.stderr
    return {name.partition(".")[0] for name in names}, done


def test_a_run_imports_its_plugin_and_no_other(place: Place, tmp_path: Path) -> None:
    place.imported()
    everything_on = {"FLOWPLAT_CONFIG": str(tmp_path)}  # endless, too
    found, done = modules(place, "run", "good", *QUICK, "--out", str(tmp_path / "run"), "--json", **everything_on)
    assert found == {"flowplat_good"}
    assert place.imported() == set()
    assert done.stderr == ""
    told = json.loads("\n".join(done.stdout.splitlines()[:-1]))
    assert told["folder"] == str(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()


def test_listing_imports_none(place: Place, tmp_path: Path) -> None:
    place.imported()
    found, done = modules(place, "list", FLOWPLAT_CONFIG=str(tmp_path))
    assert found == set()
    assert place.imported() == set()
    assert done.stderr == ""
    assert {"good", "quits", "endless", "off"} <= {line.split()[0] for line in done.stdout.splitlines() if line}


def test_one_that_never_ends_is_waited_for_as_long_as_asked(place: Place, tmp_path: Path) -> None:
    code = "import flowplat\nfor one in flowplat.plugins(components=True, patience=4):\n    print(one.name, one.cause)"
    start = time.monotonic()
    done = place.python(code, FLOWPLAT_CONFIG=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "endless it was not imported within 4 s" in done.stdout.splitlines()
    assert {"good ", "fair "} <= set(done.stdout.splitlines())
    assert time.monotonic() - start < 25
    assert "endless" in place.imported()


# using a bad one


@pytest.mark.parametrize(("verb", "name"), [*(("run", name) for name in BROKEN), ("info", "quits"), ("x", "throws")])
def test_a_broken_plugin_ends_with_code_3_and_its_cause(verb: str, name: str, place: Place) -> None:
    told = line(place.platform(verb, name), 3)
    assert told.startswith(f"platform: plugin '{name}' (flowplat-{name} 1.0) is broken: ")
    assert BROKEN[name][1] in told


@pytest.mark.parametrize(
    ("name", "causes"),
    [
        ("tomorrow", ["plugin 'tomorrow' (flowplat-tomorrow 1.0) is incompatible", "flowplat>=99"]),
        ("off", ["plugin 'off' (flowplat-off 1.0) is disabled", "`platform enable off`"]),
        ("twin", ["two distributions bring a plugin named 'twin'", "flowplat-twin 1.0", "other-tides 1.0"]),
        ("core", ["'core' is the platform's own name"]),
        ("watcher", []),
        ("goood", ["no plugin named 'goood' is installed; did you mean 'good'?"]),
    ],
)
def test_a_plugin_that_is_not_in_order_is_not_run(name: str, causes: list[str], place: Place) -> None:
    place.imported()
    told = line(place.platform("run", name), 2 if name == "watcher" else 3)
    assert all(cause in told for cause in causes)
    assert place.imported() == ({"watcher"} if name == "watcher" else set())  # it has no preset, and that is all


@pytest.mark.parametrize(
    ("name", "reference", "cause"),
    [
        ("moduleless", "flowplat_moduleless.parts:mlp", "No module named 'flowplat_moduleless.parts'"),
        ("attributeless", "flowplat_attributeless.plugin:mlp", "has no attribute 'mlp'"),
    ],
)
def test_a_component_that_is_not_there_ends_with_code_3_and_harms_none_that_is(
    name: str, reference: str, cause: str, place: Place
) -> None:
    told = line(place.platform("run", "good", f"network={name}/mlp"), 3)
    assert f"plugin {name!r}: network 'mlp' names {reference!r}, which cannot be loaded: " in told
    assert cause in told


@pytest.mark.parametrize("verb", ["show-config", "info", "run"])
def test_what_a_plugin_prints_is_no_result(verb: str, place: Place) -> None:
    done = place.platform(verb, "noisy", "--json", *(["--dry-run"] if verb == "run" else []))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plugin"] == "noisy"
    for said in ("hello", "from below", "from another process"):
        assert said in done.stderr.splitlines()


def test_an_observer_that_raises_is_named_once_and_the_run_goes_on(place: Place, tmp_path: Path) -> None:
    done = place.platform("run", "good", *QUICK, "observers=[watcher]", "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    said = "observer watcher is dropped, its after_step failed: RuntimeError: three is too many"
    assert done.stderr == f"platform: {said}\n"
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "log.txt").read_text().count(said) == 1
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["status"] == "done"


# names


def test_a_short_name_of_two_plugins_is_ambiguous_and_full_names_work(place: Place) -> None:
    both = ("show-config", "good", "eval.metrics=[fair/spread]", "--json")
    done = place.platform(*both, "network=unet")
    assert done.returncode == 2
    assert done.stdout == ""
    told = done.stderr.splitlines()
    assert "  network (command line): 'unet' is ambiguous; write good/unet or fair/unet" in told
    for owner, word in (("fair", "network=fair/unet"), ("good", "network.width=8")):  # a preset's names are its own's
        done = place.platform(*both, word)
        assert done.returncode == 0, done.stderr
        config = json.loads(done.stdout)
        assert (config["network"]["name"], config["data"]["name"]) == (f"{owner}/unet", "good/points")
        assert config["eval"]["metrics"] == [{"name": "fair/spread"}]


@pytest.mark.parametrize("verb", ["run", "list"])
def test_no_plugin_takes_the_place_of_a_verb(verb: str, place: Place) -> None:
    """Two plugins are called as verbs are, and each brings further verbs of their names."""
    assert f"Usage: platform {verb} " in place.platform(verb, "--help").stdout
    done = place.platform("x", verb, verb)
    assert (done.returncode, done.stdout) == (0, f"flowplat_{verb}'s own\n")
    assert "unknown" not in done.stderr
    shown = place.platform("show-config", verb, "--json")
    assert json.loads(shown.stdout)["plugin"] == verb
