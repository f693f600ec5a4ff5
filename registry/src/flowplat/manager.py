"""Loading plugins: each alone, on request, and none able to harm the rest."""

import contextlib
import re
import sys
from typing import Any

import pluggy

from flowcore.errors import PluginError
from flowcore.plugin import PROJECT, hookspecs
from flowplat import discovery
from flowplat.components import CORE, Component, Components, one_line

KINDS = {
    "register_data": "data",
    "register_networks": "network",
    "register_guidance": "guidance",
    "register_metrics": "metric",
    "register_paths": "path",
    "register_couplings": "coupling",
    "register_times": "times",
    "register_losses": "loss",
    "register_solvers": "solver",
    "register_presets": "preset",
}
"""Each registering hook and the kind of component it registers."""


class Manager:
    """The plugins of one command: the core's own, and those ``load`` was asked for."""

    def __init__(self) -> None:
        from flowcore.plugin import builtin

        self.components = Components()
        self._loaded = {CORE}
        self._register(CORE, builtin)

    def load(self, name: str) -> None:
        """Import plugin ``name`` and collect its components; nothing is done when it is loaded already.

        Raises ``PluginError`` when it is not installed, claimed twice, or fails in any way while it is imported or
        registered: the cause is named in one line and nothing of the plugin stays registered.
        """
        if name == CORE:
            raise PluginError(f"{CORE!r} is the platform's own name for what it brings; no plugin can be called so")
        if name in self._loaded:
            return
        plugin = discovery.find(name)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout carries results, and --json must stay clean
                module = plugin.entry_point.load()
                self._register(name, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may call sys.exit() while it is imported
            owner = f"plugin {name!r} ({plugin.distribution} {plugin.version})"
            raise PluginError(f"{owner} is broken: {one_line(error)}") from error
        self._loaded.add(name)

    def _register(self, name: str, module: Any) -> None:
        hooks = pluggy.PluginManager(PROJECT)  # one each, so that a failure leaves nothing behind
        hooks.add_hookspecs(hookspecs)
        hooks.register(module, name)
        hooks.check_pending()
        found: list[Component] = []
        for hook, kind in KINDS.items():

            def register(
                component: str, reference: str, *, summary: str, config: str | None = None, default: bool = False,
                kind: str = kind,
            ) -> None:  # fmt: skip
                one = Component(kind, name, component, reference, summary, config, default)
                _check(one)
                if any((one.kind, one.name) == (other.kind, other.name) for other in found):
                    raise PluginError(f"it registers the {kind} {component!r} twice")
                found.append(one)

            getattr(hooks.hook, hook)(register=register)
        for component in found:
            self.components.add(component)


def _check(component: Component) -> None:
    """Raise ``PluginError`` where a name or a reference cannot be right."""
    name, kind = component.name, component.kind
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise PluginError(f"it calls a {kind} {name!r}; a name is of lower-case letters, digits, '-', '_' and '.'")
    for reference in (component.reference, component.config):
        if reference is not None and not re.fullmatch(r"[^:]+:[^:]+", str(reference)):
            raise PluginError(f"it registers the {kind} {name!r} as {reference!r}, which is not 'module:attribute'")
