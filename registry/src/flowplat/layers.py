"""Layers of settings laid over each other, and which of them set what."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowplat.settings import CHOICES

DEFAULT = "default"
"""The origin of what no layer has set."""


@dataclass
class Layers:
    """Merged settings, and the layer each key came from."""

    merged: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def add(self, origin: str, settings: Mapping[str, Any]) -> None:
        """Lay ``settings`` over what is there. A component named anew drops the options of the one it replaces."""
        self.merged = self._over(self.merged, settings, origin, "")
        if origin not in self.order:
            self.order.append(origin)

    def rank(self, key: str) -> int:
        """The number of the layer that set ``key``; a higher one lies over a lower one."""
        return self.order.index(self.origin(key))

    def origin(self, key: str) -> str:
        """The layer that set ``key``, or the nearest key above it."""
        while key not in self.origins and "." in key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, DEFAULT)

    def of(self, config: Mapping[str, Any]) -> dict[str, str]:
        """The origin of every value of ``config``, the complete one that these layers became, by its dotted key."""
        return dict(self._told(config, self.merged, "", DEFAULT))

    def _told(self, value: Any, given: Any, key: str, above: str) -> Iterator[tuple[str, str]]:
        """``given`` is what the layers say of ``value``; ``_Unset`` where that is nothing, and then it is a default."""
        origin = DEFAULT if given is _Unset else self.origins.get(key, above)
        if isinstance(value, Mapping):
            if isinstance(given, str):  # a component by its name alone
                given = {"name": given}
            for name, one in value.items():
                below = given.get(name, _Unset) if isinstance(given, Mapping) else _Unset
                yield from self._told(one, below, f"{key}.{name}".lstrip("."), origin)
        elif isinstance(value, list) and value:
            for place, one in enumerate(value):
                below = given[place] if isinstance(given, list) and place < len(given) else given
                yield from self._told(one, below, f"{key}.{place}", origin)
        else:
            yield key, origin

    def _over(self, below: Any, above: Any, origin: str, key: str) -> Any:
        if isinstance(above, str) and isinstance(below, dict) and "name" in below:
            above = {"name": above}
        if isinstance(above, Mapping) and isinstance(below, str) and key in CHOICES:
            below = {"name": below}  # options for a component that the layer below only names
            self.origins[f"{key}.name"] = self.origin(key)
        self.origins[key] = origin
        if not isinstance(above, Mapping):
            return above
        if isinstance(below, dict) and _renamed(below, above):
            below = {}
            self.origins = {old: layer for old, layer in self.origins.items() if not old.startswith(f"{key}.")}
        result = dict(below) if isinstance(below, dict) else {}
        for name, value in above.items():
            result[name] = self._over(result.get(name), value, origin, f"{key}.{name}".lstrip("."))
        return result


class _Unset:
    """What no layer has set."""


def _renamed(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether ``above`` names another component than ``below``; a short name may be the same as a full one."""
    old, new = below.get("name"), above.get("name")
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    (owner, _, short), (other, _, name) = old.rpartition("/"), new.rpartition("/")
    return short != name or bool(owner and other and owner != other)
