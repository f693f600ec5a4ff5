"""Those who watch a run: plugins with a hook of ``HOOKS``, and the built-in TensorBoard writer."""

import logging
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import pluggy

from flowcore.errors import MachineError
from flowcore.plugin import PROJECT, hookspecs
from flowcore.plugin.contracts import Watched
from flowplat import discovery
from flowplat.components import one_line
from flowplat.quiet import quiet
from flowplat.settings import OBSERVERS

log = logging.getLogger("flowplat")

HOOKS = ("run_started", "after_step", "checkpoint_saved", "run_finished")


class Observers:
    """``Observers(run, names)(hook, ...)`` calls one of ``HOOKS`` on each observer that has it."""

    def __init__(self, run: Watched, names: Iterable[str]) -> None:
        self.run = run
        self._hooks: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            module = _module(name)
            if any(hasattr(module, hook) for hook in HOOKS):
                manager = pluggy.PluginManager(PROJECT)  # one each, so that one can be dropped alone
                manager.add_hookspecs(hookspecs)
                manager.register(module, name)
                self._hooks[name] = manager.hook

    def __call__(self, hook: str, **what: Any) -> None:
        """Call ``hook`` on every observer; one that raises is named once and dropped."""
        for name, hooks in list(self._hooks.items()):
            try:
                with quiet():
                    getattr(hooks, hook)(run=self.run, **what)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # an observer's sys.exit() is not the run's
                log.warning("observer %s is dropped, its %s failed: %s", name, hook, one_line(error))
                print(f"platform: observer {name} is dropped, its {hook} failed: {one_line(error)}", file=sys.stderr)
                del self._hooks[name]


def ready(names: Iterable[str]) -> None:
    """Raise what importing the observers raises, before a run begins."""
    for name in names:
        _module(name)


def _module(name: str) -> Any:
    if name not in OBSERVERS:
        return discovery.find(name).entry_point.load()
    try:
        return import_module(OBSERVERS[name])
    except ImportError as error:
        raise MachineError(
            f"observers={name} needs a package that is not installed: pip install 'flowplat[{name}]' ({error})"
        ) from error
