"""YAML as plain data: no tags, no duplicate keys, and no surprise about what a scalar is.

Scalars follow YAML 1.2's core schema: ``1e-4`` is a float; ``yes``, ``on``, ``12:30:00`` and ``2026-01-01`` are text.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flowcore.errors import UsageError


class _Loader(yaml.BaseLoader):
    """Knows the types added below and refuses every tag, so nothing is ever executed."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag!r} is not allowed", event.start_mark)
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in result:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


for _tag, _make in (
    ("str", lambda loader, node: loader.construct_scalar(node)),
    ("null", lambda loader, node: None),
    ("bool", lambda loader, node: node.value.lower() == "true"),
    ("int", lambda loader, node: int(node.value)),
    ("float", lambda loader, node: float(re.sub(r"\.(?=[iInN])", "", node.value))),
    ("seq", lambda loader, node: [loader.construct_object(child, deep=True) for child in node.value]),
    ("map", _mapping),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _make)


def parse(text: str, origin: str) -> Any:
    """The data of a YAML document. Raises ``UsageError`` naming ``origin``, the line and the fault."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader with fewer types, not more
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{origin}{place}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # other styles lose line breaks such as U+0085; double quotes escape them
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')

    def represent_float(self, value: float) -> yaml.ScalarNode:
        # YAML 1.1's dumper writes 1e-05 as text would be written; the core schema reads repr() back exactly.
        if value != value or value in (float("inf"), float("-inf")):
            return super().represent_float(value)
        return self.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(float, _Dumper.represent_float)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump(data: Any) -> str:
    """``data`` as YAML that ``parse`` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def inline(data: Any) -> str:
    """``data`` on one line, as it would be typed behind ``key=``."""
    text = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip()


def commented(data: Any, comments: Mapping[str, str]) -> str:
    """``dump(data)`` with a comment behind each value whose dotted key is in ``comments``; ``parse`` overlooks them."""
    text = dump(data)
    lines, behind = text.splitlines(), dict[int, str]()
    for key, node in _values(yaml.compose(text, yaml.BaseLoader), ""):
        if key in comments:
            behind[node.end_mark.line] = comments[key]
    width = min(WIDEST, max((len(lines[number]) for number in behind), default=0))
    for number, comment in behind.items():
        lines[number] = f"{lines[number]:{width}}  # {comment}"
    return "".join(f"{line}\n" for line in lines)


WIDEST = 48
"""The column that comments stand in at most; behind a longer line they follow where it ends."""


def _values(node: yaml.Node | None, key: str) -> Iterator[tuple[str, yaml.Node]]:
    """Every scalar and empty collection of a document, by its dotted key."""
    below: list[tuple[Any, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        below = [(name.value, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        below = list(enumerate(node.value))
    for name, value in below:
        if isinstance(value, yaml.CollectionNode) and value.value:
            yield from _values(value, f"{key}.{name}".lstrip("."))
        else:
            yield f"{key}.{name}".lstrip("."), value
