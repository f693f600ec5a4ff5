"""From layers of settings to one validated config.

    defaults  <  preset  <  -c file.yaml  <  --smoke  <  key=value

Every fault is found in one pass, and each is reported with its key, where it came from, and the way out.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flowcore.errors import InputError, UsageError
from flowplat.chosen import Chosen
from flowplat.components import Component
from flowplat.discovery import CORE
from flowplat.layers import DEFAULT, Layers
from flowplat.manager import Manager
from flowplat.plain_yaml import dump, parse
from flowplat.settings import CHOICES, DEFAULTS, LISTS, OBSERVERS, SMOKE, SMOKE_PAIRS, USED, RunConfig

Plain = dict[str, Any]

COMPLETE = {"plugin", "preset", "data", "network", "train", "sample", "eval"}
"""A file with all of these keys was written by a run, and stands alone."""

ELSEWHERE = {
    "plugin": "the plugin is the word behind the verb",
    "preset": "name a preset with --preset",
}
"""What a config file holds and ``key=value`` does not."""


def resolve(
    plugin: str,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    file: str | Path | None = None,
    smoke: bool = False,
    manager: Manager | None = None,
    over: Sequence[tuple[str, Plain]] = (),
) -> RunConfig:
    """The config of a run of ``plugin``. Raises ``UsageError`` listing every fault, or ``PluginError``.

    ``file`` is laid over its preset, unless it is a resolved config (see ``COMPLETE``): that stands alone, so that a
    preset which has changed since cannot change it.
    """
    return traced(plugin, overrides, preset, file, smoke, manager, over)[0]


def traced(
    plugin: str,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    file: str | Path | None = None,
    smoke: bool = False,
    manager: Manager | None = None,
    over: Sequence[tuple[str, Plain]] = (),
) -> tuple[RunConfig, Layers]:
    """``resolve``, with the layers that the config was made of; ``over`` are further ones, each with its origin."""
    manager = manager or Manager()
    manager.load(plugin)
    settings = _read(file) if file is not None else {}
    if settings.get("plugin", plugin) != plugin:
        raise UsageError(f"{file} is a config of plugin {settings['plugin']!r}, not of {plugin!r}")
    named = settings.get("preset") if preset is None else preset
    if named is not None and not isinstance(named, str):
        raise UsageError(f"{file}: preset should be a name, not {named!r}")
    layers = Layers()
    layers.add(DEFAULT, DEFAULTS)
    if preset is None and set(settings) >= COMPLETE:
        name = named
    else:
        name, below = _preset(manager, plugin, named, required=file is None)
        layers.add(f"preset {name}", below)
    read_from = "stdin" if str(file) == "-" else str(file)
    if file is not None:
        layers.add(read_from, settings)
    if smoke:
        layers.add("--smoke", SMOKE)
        if _holder(layers.merged, "teacher.pairs.count")[0]:
            layers.add("--smoke", {"teacher": {"pairs": SMOKE_PAIRS}})
    for origin, more in over:
        layers.add(origin, more)
    faults = []
    for word in overrides:
        try:
            layers.add("command line", override(word))
        except UsageError as error:
            faults.append(str(error))
    layers.add("command line", {"plugin": plugin})
    layers.add("command line" if preset is not None else DEFAULT if named is None else read_from, {"preset": name})
    config = _validate(layers, manager, faults)
    for observer in config.observers:
        if observer not in OBSERVERS:
            manager.load(observer)
    return config, layers


def plain(config: Any) -> Any:
    """A config as YAML can hold it: complete, and resolving to itself with ``-c``."""
    if isinstance(config, Chosen):
        return config.plain()
    if isinstance(config, BaseModel):
        return {name: plain(getattr(config, name)) for name in type(config).model_fields}
    if isinstance(config, list | tuple):
        return [plain(item) for item in config]
    return config


def chosen(config: Any) -> Iterator[Chosen]:
    """Every component that a config names."""
    if isinstance(config, Chosen):
        yield config
    elif isinstance(config, BaseModel):
        for name in type(config).model_fields:
            yield from chosen(getattr(config, name))
    elif isinstance(config, list | tuple):
        for item in config:
            yield from chosen(item)


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


def _preset(manager: Manager, plugin: str, preset: str | None, required: bool) -> tuple[str | None, Plain]:
    """A preset by name, or the plugin's default; a plugin without any needs a file that is complete."""
    if preset is None:
        presets = list(manager.components.of("preset", plugin))
        component = next((p for p in presets if p.default), presets[0] if presets else None)
        if component is None:
            if required:
                raise UsageError(f"plugin {plugin!r} has no preset; name a complete config with -c FILE")
            return None, {}
    else:
        if "/" in preset:
            manager.load(preset.partition("/")[0])
        component = manager.components.find("preset", preset)
    name = component.name if component.plugin == plugin else component.full_name
    try:
        text = component.file().read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"preset {component.full_name} cannot be read: {error}") from error
    settings = _mapping(parse(text, f"preset {component.full_name}"), component.full_name)
    _own_names(settings, manager, component.plugin)
    return name, settings


def _own_names(settings: Plain, manager: Manager, plugin: str) -> None:
    """Write the short names of a preset out where they are its own plugin's: its author cannot know which others a run
    will load beside it."""
    own = {(component.kind, component.name) for component in manager.components.of(plugin=plugin)}

    def full(kind: str, value: Any) -> Any:
        if isinstance(value, dict):
            return value | {"name": full(kind, value["name"])} if "name" in value else value
        return f"{plugin}/{value}" if isinstance(value, str) and (kind, value) in own else value

    for _, kind, holder, last in _choices(settings):
        value = holder[last]
        holder[last] = [full(kind, item) for item in value] if isinstance(value, list) else full(kind, value)


def override(text: str) -> Plain:
    """``key=value`` as nested settings. Raises ``UsageError`` where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"{text!r} is no setting; write key=value, such as train.steps=500")
    if key in ELSEWHERE:
        raise UsageError(f"{text!r} is no setting; {ELSEWHERE[key]}")
    nested: Any = parse(value, f"the value of {key}")
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _validate(layers: Layers, manager: Manager, faults: list[str]) -> RunConfig:
    """The config that the layers add up to; ``faults`` are those found so far."""
    settings = deepcopy(layers.merged)  # what follows puts components in the place of their names
    if pairs := _holder(settings, "teacher.pairs.solver")[0]:  # which most runs have not, so it is among no defaults
        pairs.setdefault("solver", "heun")
    _load_named(settings, manager)
    failed: set[str] = set()

    def fault(key: str, message: str) -> None:
        faults.append(f"{key} ({layers.origin(key)}): {message}")

    def choose(key: str, kind: str, value: Any) -> Chosen | None:
        named = {"name": value} if isinstance(value, str) else value
        if not isinstance(named, dict) or not isinstance(named.get("name"), str):
            fault(key, f"should name {_a(kind)}, such as {{name: ...}}")
            return None
        try:
            component = manager.components.find(kind, named["name"])
        except UsageError as error:
            fault(key, str(error))
            return None
        model = component.model()
        try:
            return Chosen(component, model.model_validate({k: v for k, v in named.items() if k != "name"}))
        except ValidationError as error:
            for line in faults_of(error, model, key):
                fault(*line)
        return None

    _leave_out(settings, manager, layers, fault)
    for key, kind, holder, last in _choices(settings):
        value = holder[last]
        if value is None and key in USED:  # it is used, or it would not be here
            fault(key, f"should name {_a(kind)}")
            failed.add(key)
            continue
        if key in LISTS and isinstance(value, list):
            chosen: Any = [choose(f"{key}.{i}", kind, item) for i, item in enumerate(value)]
            failed |= {key} if None in chosen else set()
        else:
            chosen = choose(key, kind, value)
            failed |= {key} if chosen is None else set()
        holder[last] = chosen
    if settings.get("predicts", "") is None:
        fault("predicts", "should say what the network predicts, such as velocity")
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        for key, message in faults_of(error, RunConfig, ""):
            if not any(key == bad or key.startswith(bad + ".") for bad in failed):
                fault(key, message)
    refuse("the config", faults)
    return config


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def refuse(what: str, faults: Sequence[str]) -> None:
    """Raise ``UsageError`` with all ``faults`` of ``what``, if there are any."""
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UsageError(f"{what} has {count}:\n" + "\n".join(f"  {line}" for line in faults))


def _leave_out(settings: Plain, manager: Manager, layers: Layers, fault: Callable[[str, str], None]) -> None:
    """Take from the settings those that neither the objective nor the sampler uses. One that was set where they were
    chosen, or above that, is a fault: it would change nothing, in silence. What lies below, as in a preset that was
    written for another objective, is passed over."""
    users: list[Component] = []
    chosen_in = 0
    for key, kind, holder, last in _choices(settings):
        if kind in ("objective", "sampler"):
            name = holder[last].get("name") if isinstance(holder[last], dict) else holder[last]
            if not isinstance(name, str):
                return
            chosen_in = max(chosen_in, layers.rank(key))
            try:
                users.append(manager.components.find(kind, name))
            except UsageError:
                return  # it is told where it is chosen
    used = {name for user in users for name in user.uses}
    for key, name in USED.items():
        holder, last = _holder(settings, key)
        if name not in used and last in holder:
            told = layers.origin(key) != DEFAULT and layers.rank(key) >= chosen_in
            if told and holder[last] not in (None, []):
                whose = " nor ".join(f"{user.kind} {user.full_name}" for user in users)
                fault(key, f"is used by neither {whose}; leave it out, or say {key}={'[]' if key in LISTS else 'null'}")
            del holder[last]
    key = "sigma_data"
    unused = settings.get("predicts") != "edm" and settings.pop(key, None) is not None
    if unused and layers.rank(key) >= max(chosen_in, layers.rank("predicts")):
        fault(key, f"is used by predicts=edm alone; leave it out, or say {key}=null")


def _holder(settings: Plain, key: str) -> tuple[Plain, str]:
    """The mapping that ``key`` is in, and its name there; an empty one where it is in none."""
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings[parent] if isinstance(settings.get(parent), dict) else {}
    return settings, last


def _choices(settings: Plain) -> Iterator[tuple[str, str, Plain, str]]:
    """Every place of the settings that names a component: (key, kind, the mapping it is in, its name there)."""
    for key, kind in CHOICES.items():
        holder, last = _holder(settings, key)
        if last in holder:
            yield key, kind, holder, last


def _load_named(settings: Plain, manager: Manager) -> None:
    """Load every plugin that a full name mentions, before any name is looked up: what is ambiguous must not depend on
    the order of keys."""
    for _, _, holder, last in _choices(settings):
        for item in holder[last] if isinstance(holder[last], list) else [holder[last]]:
            name = item.get("name") if isinstance(item, dict) else item
            if isinstance(name, str) and "/" in name and not name.startswith(f"{CORE}/"):
                manager.load(name.partition("/")[0])


def faults_of(error: ValidationError, model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """What pydantic found, as (key, message) with the way out."""
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
        here = model_in(info.annotation) if info else None
    siblings = list(here.model_fields) if here else []
    above = ".".join([prefix, *path[:-1]] if prefix else path[:-1])
    elsewhere = [] if prefix else [key for key in _keys(model) if key.rpartition(".")[2] == path[-1]]
    if elsewhere:
        return f"did you mean {min(elsewhere, key=lambda key: key.count('.'))}?"
    close = get_close_matches(path[-1], siblings, n=1)
    if close:
        return f"did you mean {f'{above}.{close[0]}'.lstrip('.')}?"
    return f"there are {', '.join(siblings)}" if siblings else "it takes no options"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        if below := model_in(info.annotation):
            yield from _keys(below, f"{prefix}{name}.")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that an annotation is, or is with None beside it."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None
