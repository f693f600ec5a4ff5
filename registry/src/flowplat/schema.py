"""The options of a component in a user's words: type, bounds, default, description."""

import enum
import json
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from flowplat.plain_yaml import inline

WORDS = {type(None): "null", str: "text", Any: "anything", bytes: "text", dict: "mapping", tuple: "list", set: "list"}
"""Types that are called otherwise in a config than in Python."""


@dataclass(frozen=True)
class Option:
    """One option; ``default`` is what a config file would hold, and means nothing where the option is ``required``."""

    name: str
    type: str
    bounds: str
    required: bool
    default: Any
    description: str

    def plain(self) -> dict[str, Any]:
        """All of it as JSON; a default that is not finite, which JSON does not know, as the text of a config."""
        try:
            json.dumps(self.default, allow_nan=False)
        except ValueError:
            return vars(self) | {"default": inline(self.default)}
        return vars(self)

    def said(self) -> tuple[str, str, str, str]:
        """Name, type with bounds, default and description, as text."""
        # of `float | null` it is the float that is bounded
        kind, null, _ = self.type.partition(" | null")
        bounded = " ".join(filter(None, (kind, self.bounds))) + null
        return self.name, bounded, "required" if self.required else inline(self.default), self.description


def options(model: type[BaseModel], given: BaseModel | None = None, prefix: str = "") -> Iterator[Option]:
    """The options of a config model; those of a model in it by their dotted name, with the defaults of ``given``."""
    for name, info in model.model_fields.items():
        required = given is None and info.is_required()
        value = getattr(given, name) if given is not None else None if required else _default(info)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from options(info.annotation, value if isinstance(value, BaseModel) else None, f"{prefix}{name}.")
            continue
        kind, bounds = said(info.annotation), ", ".join(_bounds(info.metadata))
        yield Option(f"{prefix}{name}", kind, bounds, required, _plain(value), info.description or "")


def said(annotation: Any) -> str:
    """A type as it is in a config; functions, which no config can hold, are left out of a union."""
    annotation = getattr(annotation, "__value__", getattr(annotation, "__supertype__", annotation))  # other names of it
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([said(parts[0]), ", ".join(_bounds(parts[1:]))]).strip()
    if origin in (Union, types.UnionType):
        names = [said(part) for part in parts if get_origin(part) is not Callable and part is not Callable]
        return " | ".join(dict.fromkeys(sorted(names, key=lambda name: name == "null")))
    if origin is Literal:
        return " | ".join(inline(_plain(part)) for part in parts)
    if origin is type:
        return "type"
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"[{', '.join(map(said, parts))}]"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{{{': '.join(map(said, parts))}}}"
    if isinstance(origin, type) and issubclass(origin, Collection):
        return f"list[{said(parts[0])}]"
    if isinstance(annotation, TypeVar):
        return said(annotation.__bound__ or Any)
    if annotation is None or annotation in WORDS:
        return WORDS[annotation or type(None)]
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return " | ".join(inline(_plain(one.value)) for one in annotation)
        if issubclass(annotation, PurePath):
            return "path"
        if issubclass(annotation, BaseModel):
            fields = annotation.model_fields.items()
            return f"{{{', '.join(f'{name}: {said(info.annotation)}' for name, info in fields)}}}"
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _bounds(metadata: Any) -> Iterator[str]:
    """The limits that annotations state, such as ">= 1"."""
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from _bounds(one.metadata)
        for name, phrase in (
            ("ge", ">= {}"), ("gt", "> {}"), ("le", "<= {}"), ("lt", "< {}"), ("multiple_of", "multiple of {}"),
            ("min_length", "length >= {}"), ("max_length", "length <= {}"), ("pattern", "like {}"),
        ):  # fmt: skip
            limit = getattr(one, name, None)
            if limit is not None and not (name == "min_length" and limit == 0):
                yield phrase.format(getattr(limit, "pattern", limit))
        if getattr(one, "allow_inf_nan", None) is False:
            yield "finite"


def _default(info: FieldInfo) -> Any:
    try:
        return info.get_default(call_default_factory=True)
    except (TypeError, ValueError):  # a factory of what the other options are
        return None


def _plain(value: Any) -> Any:
    """A value as YAML can hold it."""
    return to_jsonable_python(value, fallback=lambda other: getattr(other, "__name__", str(other)))
