"""manager: each plugin is loaded alone; a bad one is told in one line, leaves nothing behind and harms no other."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowcore.errors import PluginError
from flowcore.plugin import hookspecs
from flowplat.manager import KINDS, Manager
from flowplat.settings import CHOICES

Install = Callable[..., Path]

HOOK = """
from flowcore.plugin import hookimpl

@hookimpl
def register_data(register):
    register("calm", "flowplat_wind.data:Calm", summary="no wind")

@hookimpl
def register_networks(register):
    register("mlp", "flowplat_wind.networks:mlp", summary="a network")
"""

BAD = {
    "ImportError": ("import nothing_of_this_name", "nothing_of_this_name"),
    "SyntaxError": ("def (", "SyntaxError"),
    "exception": ("raise RuntimeError('no licence\\n  found')", "RuntimeError: no licence"),
    "sys.exit": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "sys.exit without a word": ("import sys\nsys.exit()", "SystemExit"),
    "wrong argument": (HOOK.replace("def register_data(register)", "def register_data(registry)"), "registry"),
    "unknown hook": (HOOK.replace("register_data", "register_dataset"), "did you mean 'register_data'?"),
    "hook like no other": (HOOK.replace("register_data", "sail"), "'sail'; docs/reference/hooks.md lists them"),
    "unmarked hook": (
        HOOK.replace("@hookimpl\ndef register_data", "def register_data"),
        "register_data would never be called: it lacks @hookimpl",
    ),
    "unmarked observer": (
        HOOK + "def after_step(run, step): pass\n",
        "after_step would never be called: it lacks @hookimpl",
    ),
    "unmarked and misspelt": (
        HOOK + "def register_guidence(register): pass\n",
        "register_guidence would never be called: there is no such hook; did you mean 'register_guidance'?",
    ),
    "marked for another": (
        HOOK.replace(
            "from flowcore.plugin import hookimpl", "import pluggy\nhookimpl = pluggy.HookimplMarker('others')"
        ),
        "it lacks @hookimpl",
    ),
    "no hook at all": ("x = 1", "'flowplat_wind.plugin' implements no hook"),
    "nothing": ("", "implements no hook"),
    "hook that raises": (HOOK + "    raise ValueError('late')\n", "ValueError: late"),
    "hook that exits": (HOOK + "    raise SystemExit(0)\n", "SystemExit: 0"),
    "no summary": (HOOK + "    register('unet', 'flowplat_wind.networks:unet')\n", "summary"),
    "duplicate": (HOOK + "    register('mlp', 'flowplat_wind.networks:other', summary='again')\n", "'mlp' twice"),
    "slash in a name": (HOOK + "    register('wind/unet', 'flowplat_wind:unet', summary='x')\n", "'wind/unet'"),
    "capitals in a name": (HOOK + "    register('UNet', 'flowplat_wind:unet', summary='x')\n", "'UNet'"),
    "a name that is no text": (HOOK + "    register(5, 'flowplat_wind:unet', summary='x')\n", "5"),
    "a reference of three parts": (HOOK + "    register('unet', 'flowplat_wind:unet:x', summary='x')\n", "unet:x"),
    "a config that is none": (
        HOOK + "    register('unet', 'flowplat_wind:unet', config='Config', summary='x')\n",
        "'Config'",
    ),
    "a reference that is none": (HOOK + "    register('unet', 'flowplat_wind', summary='x')\n", "flowplat_wind"),
}


FLAGS = {
    "network": ("register_networks", {"default=True": "for a preset", "off={'scale': 0}": "for a guidance",
                                      "resumes=True": "for a task", "model=False": "for a task",
                                      "uses=['path']": "a network may use nothing"}),
    "preset": ("register_presets", {"model=False": "for a task", "uses=['loss']": "a preset may use nothing"}),
    "guidance": ("register_guidance", {"default=True": "for a preset", "resumes=True": "for a task"}),
    "task": ("register_tasks", {"default=True": "for a preset", "off={'scale': 0}": "for a guidance"}),
    "objective": ("register_objectives", {"uses=['solver']": "may use path, coupling, times, loss, predicts",
                                          "uses='path'": "to use 'p'"}),
    "sampler": ("register_samplers", {"uses=['coupling']": "may use path, predicts, solver, guidance"}),
}  # fmt: skip
"""What belongs to one kind or two, registered with another."""


def contents(manager: Manager) -> list[str]:
    return [f"{c.kind} {c.full_name}" for c in manager.components.of()]


@pytest.mark.parametrize(("code", "cause"), BAD.values(), ids=BAD)
def test_a_bad_plugin_is_told_in_one_line_and_leaves_nothing_behind(
    code: str, cause: str, install: Install, ring: Path
) -> None:
    install("wind", code)
    manager = Manager()
    before = contents(manager)
    for _ in range(2):  # the second time as the first
        with pytest.raises(PluginError) as caught:
            manager.load("wind")
        message = str(caught.value)
        assert message.startswith("plugin 'wind' (flowplat-wind 1.0) is broken: ")
        assert cause in message
        assert "\n" not in message
        assert contents(manager) == before
    manager.load("ring")
    assert "network ring/dense" in contents(manager)


def test_an_entry_point_that_leads_nowhere(install: Install) -> None:
    (install("wind", "") / "plugin.py").unlink()
    with pytest.raises(PluginError, match=r"plugin 'wind' .* is broken: ModuleNotFoundError"):
        Manager().load("wind")


def test_ctrl_c_while_a_plugin_is_imported_is_ctrl_c(install: Install) -> None:
    install("wind", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Manager().load("wind")


def test_what_a_plugin_prints_is_kept_off_stdout(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("wind", "print('hello')\n" + HOOK + "    print('again')\n")
    Manager().load("wind")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "hello\nagain\n"


def test_a_good_plugin(install: Install) -> None:
    install("wind", HOOK)
    manager = Manager()
    manager.load("wind")
    manager.load("wind")  # loaded once
    assert [c.full_name for c in manager.components.of(plugin="wind")] == ["wind/calm", "wind/mlp"]
    assert manager.components.find("data", "calm").summary == "no wind"
    assert "flowplat_wind.data" not in sys.modules  # named, not imported


def test_a_run_loads_what_it_names_and_nothing_else(install: Install, ring: Path) -> None:
    install("wind", HOOK)
    Manager().load("ring")
    assert "flowplat_wind.plugin" not in sys.modules


def test_the_core_is_there_without_any_plugin() -> None:
    names = contents(Manager())
    assert {"path core/linear", "solver core/euler", "coupling core/independent"} <= set(names)
    assert all(" core/" in name for name in names)


def test_the_name_of_the_core_cannot_be_taken(install: Install) -> None:
    install("core", HOOK.replace("flowplat_wind", "flowplat_core"))
    with pytest.raises(PluginError, match="core"):
        Manager().load("core")


def test_a_name_claimed_twice_is_not_loaded(install: Install) -> None:
    install("wind", HOOK)
    install("wind", HOOK, distribution="windflow")
    with pytest.raises(PluginError, match="uninstall one of them") as caught:
        Manager().load("wind")
    assert "flowplat-wind 1.0" in str(caught.value)
    assert "windflow 1.0" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "hook", "flag", "cause"),
    [(kind, hook, flag, cause) for kind, (hook, flags) in FLAGS.items() for flag, cause in flags.items()],
)
def test_what_belongs_to_another_kind_is_refused(kind: str, hook: str, flag: str, cause: str, install: Install) -> None:
    code = f"""
from flowcore.plugin import hookimpl

@hookimpl
def {hook}(register):
    register("one", "flowplat_wind.parts:one", summary="one", {flag})
"""
    install("wind", code)
    with pytest.raises(PluginError) as caught:
        Manager().load("wind")
    assert f"it registers the {kind} 'one' " in str(caught.value)
    assert cause in str(caught.value)


def test_what_a_kind_may_say_is_kept(install: Install) -> None:
    code = """
from flowcore.plugin import hookimpl

@hookimpl
def register_guidance(register):
    register("pull", "flowplat_wind:pull", summary="as it comes")
    register("push", "flowplat_wind:push", summary="stated", off={"scale": 1, "hard": False})

@hookimpl
def register_objectives(register):
    register("balance", "flowplat_wind:balance", summary="of everything of its own")
    register("reg", "flowplat_wind:reg", summary="of a path", uses=("path", "times"))

@hookimpl
def register_tasks(register):
    register("plain", "flowplat_wind:plain", summary="with a model")
    register("gather", "flowplat_wind:gather", summary="without", model=False, resumes=True)
"""
    install("wind", code)
    manager = Manager()
    manager.load("wind")
    found = {c.name: c for c in manager.components.of(plugin="wind")}
    assert (found["pull"].off, found["push"].off) == ({"scale": 0}, {"scale": 1, "hard": False})
    assert (found["balance"].uses, found["reg"].uses) == ((), ("path", "times"))
    assert (found["plain"].model_needed, found["plain"].resumes) == (True, False)
    assert (found["gather"].model_needed, found["gather"].resumes) == (False, True)
    assert found["reg"].off == {}
    assert manager.components.find("guidance", "classifier_free").off == {"scale": 1}


def test_helpers_of_an_entry_module_are_no_hooks(install: Install) -> None:
    code = HOOK + "from functools import reduce as register_reduce\n\ndef helper(register):\n    pass\n"
    install("wind", code)
    Manager().load("wind")


def test_a_plugin_that_is_not_in_order_is_told_with_its_state(install: Install) -> None:
    site = install("wind", "raise RuntimeError('nobody asked for this module')").parent
    metadata = site / "flowplat_wind-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: flowplat>=99\n")
    told = r"^plugin 'wind' \(flowplat-wind 1\.0\) is incompatible: it requires flowplat>=99, and this is flowplat "
    with pytest.raises(PluginError, match=told):
        Manager().load("wind")
    assert "flowplat_wind" not in sys.modules


def test_every_registering_hook_has_a_kind_and_every_choice_a_hook() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("register_")}
    assert set(KINDS) == hooks
    assert set(CHOICES.values()) <= set(KINDS.values())
