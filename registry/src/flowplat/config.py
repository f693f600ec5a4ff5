"""From layers of settings to one validated config.

    defaults  <  preset  <  -c file.yaml  <  --smoke  <  key=value

Every fault is found in one pass, and each is reported with its key, where it came from, and the way out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flowcore.errors import InputError, UsageError
from flowplat.chosen import Chosen
from flowplat.components import CORE
from flowplat.manager import Manager
from flowplat.plain_yaml import dump, parse
from flowplat.settings import CHOICES, DEFAULTS, SMOKE, RunConfig

Plain = dict[str, Any]


@dataclass
class Layers:
    """Merged settings, and the layer each key came from."""

    merged: Plain = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def add(self, origin: str, settings: Plain) -> None:
        """Lay ``settings`` over what is there. A component named anew drops the options of the one it replaces."""
        self.merged = self._over(self.merged, settings, origin, "")

    def origin(self, key: str) -> str:
        """The layer that set ``key``, or the nearest key above it."""
        while key not in self.origins and "." in key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "default")

    def _over(self, below: Any, above: Any, origin: str, key: str) -> Any:
        if isinstance(above, str) and isinstance(below, dict) and "name" in below:
            above = {"name": above}
        self.origins[key] = origin
        if not isinstance(above, dict):
            return above
        renamed = isinstance(below, dict) and "name" in above and below.get("name") not in (None, above["name"])
        result = dict(below) if isinstance(below, dict) and not renamed else {}
        if isinstance(below, str) and "name" not in above:  # options for a component the layer below only named
            result = {"name": below}
        for name, value in above.items():
            result[name] = self._over(result.get(name), value, origin, f"{key}.{name}".lstrip("."))
        return result


def resolve(
    plugin: str,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    file: str | Path | None = None,
    smoke: bool = False,
    manager: Manager | None = None,
) -> RunConfig:
    """The config of a run of ``plugin``. Raises ``UsageError`` listing every fault, or ``PluginError``."""
    manager = manager or Manager()
    manager.load(plugin)
    from_file = _read(file) if file is not None else {}
    if from_file.get("plugin", plugin) != plugin:
        raise UsageError(f"{file} is a config of plugin {from_file['plugin']!r}, not of {plugin!r}")
    preset = preset or from_file.get("preset")
    layers = Layers()
    layers.add("default", DEFAULTS)
    name, settings = _preset(manager, plugin, preset)
    layers.add(f"preset {name}", settings)
    if file is not None:
        layers.add(str(file), from_file)
    if smoke:
        layers.add("--smoke", SMOKE)
    for override in overrides:
        layers.add("command line", _override(override))
    layers.add("command line", {"plugin": plugin, "preset": name})
    return _validate(layers, manager)


def plain(config: Any) -> Any:
    """A config as YAML can hold it: complete, and resolving to itself with ``-c``."""
    if isinstance(config, Chosen):
        return config.plain()
    if isinstance(config, BaseModel):
        return {name: plain(getattr(config, name)) for name in type(config).model_fields}
    if isinstance(config, list | tuple):
        return [plain(item) for item in config]
    return config


def to_yaml(config: RunConfig) -> str:
    """``plain(config)`` as YAML text."""
    return dump(plain(config))


def _read(file: str | Path) -> Plain:
    import sys

    try:
        text = sys.stdin.read() if str(file) == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {file} cannot be read: {error}") from error
    return _mapping(parse(text, str(file)), str(file))


def _mapping(settings: Any, origin: str) -> Plain:
    if not isinstance(settings, dict):
        raise UsageError(f"{origin} holds no settings: expected `key: value` lines")
    return settings


def _preset(manager: Manager, plugin: str, preset: str | None) -> tuple[str, Plain]:
    if preset is None:
        presets = list(manager.components.of("preset", plugin))
        component = next((p for p in presets if p.default), presets[0] if presets else None)
        if component is None:
            raise UsageError(f"plugin {plugin!r} has no preset; name a complete config with -c FILE")
    else:
        if "/" in preset:
            manager.load(preset.partition("/")[0])
        component = manager.components.find("preset", preset)
    path = component.file()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"preset {component.full_name} cannot be read: {error}") from error
    return component.name, _mapping(parse(text, f"preset {component.full_name}"), component.full_name)


def _override(text: str) -> Plain:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"{text!r} is no setting; write key=value, such as train.steps=500")
    nested: Any = parse(value, f"the value of {key}")
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _validate(layers: Layers, manager: Manager) -> RunConfig:
    faults: list[str] = []
    failed: set[str] = set()

    def fault(key: str, message: str) -> None:
        faults.append(f"{key} ({layers.origin(key)}): {message}")

    def choose(key: str, kind: str, value: Any) -> Chosen | None:
        named = {"name": value} if isinstance(value, str) else value
        if not isinstance(named, dict) or not isinstance(named.get("name"), str):
            fault(key, f"should name a {kind}, such as {{name: ...}}")
            return None
        plugin = named["name"].partition("/")[0]
        try:
            if "/" in named["name"] and plugin != CORE:
                manager.load(plugin)
            component = manager.components.find(kind, named["name"])
        except UsageError as error:
            fault(key, str(error))
            return None
        model = component.model()
        try:
            return Chosen(component, model.model_validate({k: v for k, v in named.items() if k != "name"}))
        except ValidationError as error:
            for line in _faults(error, model, key):
                fault(*line)
        return None

    settings = layers.merged
    for key, kind in CHOICES.items():
        *parents, last = key.split(".")
        holder = settings
        for parent in parents:
            holder = holder[parent] if isinstance(holder.get(parent), dict) else {}
        if last not in holder:
            continue
        value = holder[last]
        if isinstance(value, list):
            chosen: Any = [choose(f"{key}.{i}", kind, item) for i, item in enumerate(value)]
            failed |= {key} if None in chosen else set()
        else:
            chosen = choose(key, kind, value)
            failed |= {key} if chosen is None else set()
        holder[last] = chosen
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        for key, message in _faults(error, RunConfig, ""):
            if not any(key == bad or key.startswith(bad + ".") for bad in failed):
                fault(key, message)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UsageError(f"the config has {count}:\n" + "\n".join(f"  {line}" for line in faults))
    return config


def _faults(error: ValidationError, model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for one in error.errors():
        path = [str(part) for part in one["loc"]]
        key = ".".join([prefix, *path] if prefix else path)
        match one["type"]:
            case "extra_forbidden":
                yield key, f"no such key; {_suggest(model, path, prefix)}"
            case "missing":
                yield key, "is missing"
            case _:
                message = one["msg"].removeprefix("Input ").removeprefix("Value error, ")
                given = repr(one["input"])
                yield key, message + (f", not {given}" if len(given) < 60 else "")


def _suggest(model: type[BaseModel], path: list[str], prefix: str) -> str:
    """ "did you mean" for an unknown key: a sibling by a similar name, else a key elsewhere by that name."""
    here: type[BaseModel] | None = model
    for part in path[:-1]:
        info = here.model_fields.get(part) if here else None
        here = info.annotation if info and _is_model(info.annotation) else None  # type: ignore[assignment]
    siblings = list(here.model_fields) if here else []
    above = ".".join([prefix, *path[:-1]] if prefix else path[:-1])
    close = get_close_matches(path[-1], siblings, n=1)
    if close:
        return f"did you mean {f'{above}.{close[0]}'.lstrip('.')}?"
    elsewhere = [key for key in _keys(model) if key.rpartition(".")[2] == path[-1]]
    if elsewhere and not prefix:
        return f"did you mean {elsewhere[0]}?"
    return f"there are {', '.join(siblings)}" if siblings else "it takes no options"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        if _is_model(info.annotation):
            yield from _keys(info.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
