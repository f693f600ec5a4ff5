"""Loading plugins: each alone, on request, and none able to harm the rest."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import pluggy

from flowcore.errors import PluginError
from flowcore.plugin import PROJECT, hookspecs
from flowplat import discovery
from flowplat.components import Component, Components, one_line
from flowplat.discovery import CORE
from flowplat.quiet import quiet

KINDS = {
    "register_data": "data",
    "register_networks": "network",
    "register_guidance": "guidance",
    "register_objectives": "objective",
    "register_samplers": "sampler",
    "register_metrics": "metric",
    "register_tasks": "task",
    "register_paths": "path",
    "register_couplings": "coupling",
    "register_times": "times",
    "register_losses": "loss",
    "register_solvers": "solver",
    "register_presets": "preset",
    "register_commands": "command",
}
"""Each registering hook and the kind of component it registers."""

HOOKS = {name for name, function in vars(hookspecs).items() if hasattr(function, f"{PROJECT}_spec")}

USES = {
    "objective": ("path", "coupling", "times", "loss", "predicts"),
    "sampler": ("path", "predicts", "solver", "guidance"),
}
"""The settings that a component of a kind may be registered to use."""


class Manager:
    """The plugins of one command: the core's own, and those ``load`` was asked for."""

    def __init__(self) -> None:
        from flowcore.plugin import builtin

        self.components = Components()
        self._loaded = {CORE}
        self._register(CORE, builtin)

    def load(self, name: str) -> None:
        """Import plugin ``name`` and collect its components; nothing is done when it is loaded already.

        Raises ``PluginError`` when it is not installed, not in order (``discovery.State``), or fails in any way while
        it is imported or registered: the cause is named in one line and nothing of the plugin stays registered.
        """
        if name == CORE:
            raise PluginError(f"{CORE!r} is the platform's own name for what it brings; no plugin can be called so")
        if name in self._loaded:
            return
        plugin = discovery.find(name)
        try:
            with quiet():  # --json must stay clean
                module = plugin.entry_point.load()
                self._register(name, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may call sys.exit() while it is imported
            raise PluginError(f"{plugin} is broken: {one_line(error)}") from error
        self._loaded.add(name)

    def _register(self, name: str, module: Any) -> None:
        _refuse_dead(module)
        hooks = pluggy.PluginManager(PROJECT)  # one each, so that a failure leaves nothing behind
        hooks.add_hookspecs(hookspecs)
        hooks.register(module, name)
        hooks.check_pending()
        found: list[Component] = []
        for hook, kind in KINDS.items():

            def register(
                component: str, reference: str, *, summary: str, config: str | None = None, default: bool = False,
                uses: Sequence[str] = (), off: Mapping[str, Any] | None = None, model: bool = True,
                resumes: bool = False, kind: str = kind,
            ) -> None:  # fmt: skip
                off = {"scale": 0} if off is None and kind == "guidance" else off or {}
                one = Component(
                    kind, name, component, reference, summary, config, default, (*uses,), off, model, resumes
                )
                _check(one)
                if any((one.kind, one.name) == (other.kind, other.name) for other in found):
                    raise PluginError(f"it registers the {kind} {component!r} twice")
                found.append(one)

            getattr(hooks.hook, hook)(register=register)
        for component in found:
            self.components.add(component)


def _refuse_dead(module: Any) -> None:
    """Raise ``PluginError`` where a module's hooks are none: misspelt, unmarked, or not there at all."""
    marked, unmarked = [], []
    for name, value in _functions(module):
        if hasattr(value, f"{PROJECT}_impl"):
            marked.append(name)
        elif name in HOOKS or (name.startswith("register_") and value.__module__ == getattr(module, "__name__", None)):
            unmarked.append(name)
    for name in marked:
        if name not in HOOKS:
            raise PluginError(f"there is no hook {name!r}; {_hint(name)}")
    for name in unmarked:
        what = "it lacks @hookimpl" if name in HOOKS else f"there is no such hook; {_hint(name)}"
        raise PluginError(f"{name} would never be called: {what}")
    if not marked:
        raise PluginError(f"its entry point {getattr(module, '__name__', module)!r} implements no hook")


def _functions(module: Any) -> Iterator[tuple[str, Any]]:
    for name in dir(module):
        value = getattr(module, name, None)
        if inspect.isroutine(value):
            yield name, value


def _hint(name: str) -> str:
    close = get_close_matches(name, HOOKS, n=1)
    return f"did you mean {close[0]!r}?" if close else "docs/reference/hooks.md lists them"


def _check(component: Component) -> None:
    """Raise ``PluginError`` where what is registered cannot be right."""
    name, kind = component.name, component.kind
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise PluginError(f"it calls a {kind} {name!r}; a name is of lower-case letters, digits, '-', '_' and '.'")
    for reference in (component.reference, component.config):
        if reference is not None and not re.fullmatch(r"[^:]+:[^:]+", str(reference)):
            raise PluginError(f"it registers the {kind} {name!r} as {reference!r}, which is not 'module:attribute'")
    for use in component.uses:
        if use not in USES.get(kind, ()):
            known = ", ".join(USES.get(kind, ())) or "nothing"
            raise PluginError(f"it registers the {kind} {name!r} to use {use!r}; a {kind} may use {known}")
    others = {"default": "preset", "off": "guidance", "resumes": "task"}
    for key, owner in others.items():
        if getattr(component, key) and kind != owner:
            raise PluginError(f"it registers the {kind} {name!r} with {key}=, which is for a {owner}")
    if not component.model_needed and kind != "task":
        raise PluginError(f"it registers the {kind} {name!r} with model=, which is for a task")
