"""A plugin's tasks: the domain's verbs, on files from the command line or on objects from Python."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flowcore import files
from flowcore.errors import InputError, PluginError, UsageError
from flowcore.plugin.contracts import Trained
from flowplat.components import Component
from flowplat.config import faults_of, override, refuse
from flowplat.layers import Layers
from flowplat.manager import Manager


def find(plugin: str, name: str) -> Component:
    """The task ``name`` of a plugin. Raises ``UsageError`` where it has none of that name, or ``PluginError``."""
    manager = Manager()
    manager.load(plugin)
    tasks = {component.name: component for component in manager.components.of("task", plugin)}
    if name in tasks:
        return tasks[name]
    close = get_close_matches(name, tasks, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(tasks) or 'none'}"
    raise UsageError(f"plugin {plugin!r} has no task {name!r}; {hint}")


def settings(overrides: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as options. Raises ``UsageError`` naming the word that is none."""
    layers = Layers()
    for word in overrides:
        layers.add("command line", override(word))
    return layers.merged


def carry_out(
    component: Component, trained: Trained | None, inputs: Sequence[Any], out: Path | None, given: Mapping[str, Any]
) -> Any:
    """What the task returns.

    ``out`` is there whole, or as it was: the task writes beside it, unless it is one that goes on in what is there.
    Raises ``UsageError`` listing all faults of the options and ``InputError`` where ``out`` is there already.
    """
    options = ready(component, trained is not None, out, given)
    if out is None or component.resumes:
        return component.build(options, trained, inputs, out)
    target = Path(os.path.abspath(out))
    beside = target.with_name(f".{target.name}.tmp")
    above = [folder for folder in target.parents if not folder.exists()]
    try:
        with files.refusals(f"{out} cannot be written"):
            shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed
            beside.mkdir(parents=True)
        place = beside / target.name  # the same name: its suffix may say the format
        result = component.build(options, trained, inputs, place)
        if not place.exists():
            raise PluginError(f"task {component.full_name} has ended without writing {out}")
        if others := sorted(path.name for path in beside.iterdir() if path != place):
            what = f"has written {others[0]} beside {out}, where it would be lost"
            raise PluginError(f"task {component.full_name} {what}")
        with files.refusals(f"{out} cannot be written"):
            if target.is_dir():
                target.rmdir()
            place.rename(target)
            files.sync(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        with suppress(OSError):
            for folder in above:
                folder.rmdir()
        raise
    beside.rmdir()
    return result


def ready(component: Component, taught: bool, out: Path | None, given: Mapping[str, Any]) -> BaseModel:
    """The options that ``given`` makes; raises what can be known before a model is loaded."""
    model = component.model()
    if not taught and component.model_needed:
        raise UsageError(f"task {component.full_name} needs a trained model: name a run or a model with --model")
    used = out is not None and (out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))))
    if used and not component.resumes:
        raise InputError(f"{out} is there already; name a new place, or move it away")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        refuse(f"task {component.full_name}", [f"{key}: {message}" for key, message in faults_of(error, model, "")])
        raise
