"""A component as a config chose it: which one, with which options."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from flowplat.components import Component


@dataclass(frozen=True)
class Chosen:
    """``component`` with validated ``options``; in a config it is ``{name: plugin/name, option: value, ...}``."""

    component: Component
    options: BaseModel

    def build(self, *context: Any) -> Any:
        """Call the component with its options; see ``Component.build``."""
        return self.component.build(self.options, *context)

    def plain(self) -> dict[str, Any]:
        """The choice as a config file states it."""
        return {"name": self.component.full_name, **self.options.model_dump(mode="json")}
