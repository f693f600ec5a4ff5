"""What every installed plugin is and brings, learnt without trusting any.

Each is loaded in a process of its own, so that one which hangs, exits or crashes is a line of the answer.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from flowplat.discovery import Installed, State, installed

PATIENCE = 30.0
"""Seconds that a plugin may take to be imported."""


@dataclass(frozen=True)
class Report:
    """A plugin: ``state`` with its ``cause`` where that is not ok, and ``components`` where they were asked for, each a
    dict of kind, name, summary, default, and its own ``cause`` where it is known to be out of order."""

    name: str
    distribution: str
    version: str
    summary: str
    state: State
    cause: str
    components: tuple[dict[str, Any], ...] | None = None


def plugins(components: bool = False, patience: float = PATIENCE) -> list[Report]:
    """The installed plugins, by name. With ``components`` those that are in order are loaded, each in a process of its
    own, and what they bring is listed; one that fails is ``broken``, or takes longer than ``patience`` seconds."""
    found = [_report(plugin) for claims in installed().values() for plugin in claims]
    if not components:
        return found
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda one: _probed(one, patience) if one.state == "ok" else one, found))


def _report(plugin: Installed) -> Report:
    return Report(plugin.name, plugin.distribution, plugin.version, plugin.summary, plugin.state, plugin.cause)


def _probed(report: Report, patience: float) -> Report:
    # -P: no file in the user's folder passes for a module. What it starts and leaves running may keep its stderr open.
    command = [sys.executable, "-P", "-m", "flowplat.probe", report.name, str(patience)]
    nowhere = subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdin=nowhere, stdout=subprocess.PIPE, stderr=nowhere, timeout=patience)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return replace(report, state="broken", cause=f"it was not imported within {patience:g} s")
    except ValueError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return replace(report, state="broken", cause=f"its import ended the process, {how}")
    if "cause" in answer:
        return replace(report, state="broken", cause=answer["cause"])
    return replace(report, components=tuple(answer["components"]))


def _load(name: str) -> dict[str, Any]:
    """In the process of its own: the components of a plugin, or the cause why there are none."""
    from flowcore.errors import PluginError
    from flowplat.components import one_line
    from flowplat.manager import Manager

    manager = Manager()
    try:
        manager.load(name)
    except PluginError as error:
        return {"cause": one_line(error.__cause__ or error)}
    return {
        "components": [
            {"kind": c.kind, "name": c.name, "summary": c.summary, "default": c.default} | _fault(c)
            for c in manager.components.of(plugin=name)
        ]
    }


def _fault(component: Any) -> dict[str, str]:
    """What is wrong with a component, as far as it can be known without importing it."""
    from flowplat.components import one_line

    try:
        if component.kind == "preset":
            missing = not component.file().is_file()
            return {"cause": f"there is no file {component.reference!r}"} if missing else {}
        for reference in filter(None, (component.reference, component.config)):
            module = reference.partition(":")[0]
            if find_spec(module) is None:
                return {"cause": f"there is no module {module!r}"}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the package that a module is in is imported to find it
        return {"cause": one_line(error)}
    return {}


if __name__ == "__main__":
    if hasattr(signal, "setitimer"):  # it ends although nobody is left who waits for it
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]) + 1)
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever the plugin prints, and however
    os.write(answer, json.dumps(_load(sys.argv[1])).encode())
    os._exit(0)  # without waiting for threads that it may have started
