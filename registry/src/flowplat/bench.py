"""A plugin on the bench: its components, its presets resolved, and what each component is tried with."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pydantic import BaseModel, ValidationError

from flowcore.errors import FlowError, UsageError
from flowcore.plugin.contracts import Data
from flowplat import teacher
from flowplat.chosen import Chosen
from flowplat.components import Component
from flowplat.config import chosen, resolve
from flowplat.manager import Manager
from flowplat.model import Model
from flowplat.settings import RunConfig
from flowplat.trial import HERE, temporary


class Bench:
    """What belongs to one plugin. Raises ``PluginError`` where it cannot be loaded."""

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin
        self.manager = Manager()
        self.manager.load(plugin)
        self.components = list(self.manager.components.of(plugin=plugin))
        self._tiny: dict[str, Data] = {}
        self._folder = temporary()

    @property
    def presets(self) -> list[Component]:
        """The presets, the default one first."""
        presets = [one for one in self.components if one.kind == "preset"]
        return sorted(presets, key=lambda one: not one.default)

    @cached_property
    def configs(self) -> list[RunConfig]:
        """The presets that resolve, with the settings of a smoke run on the CPU; the others are told by their check."""
        found = []
        for preset in self.presets:
            try:
                found.append(resolve(self.plugin, HERE, preset.name, smoke=True))
            except FlowError:
                continue
        return found

    def naming(self, component: Component) -> list[tuple[RunConfig, BaseModel]]:
        """The presets that name a component, and the options they give it."""
        return [
            (config, choice.options)
            for config in self.configs
            for choice in chosen(config)
            if (choice.component.kind, choice.component.full_name) == (component.kind, component.full_name)
        ]

    def options(self, component: Component) -> BaseModel:
        """The default options of a component; where it requires some those of the first preset that names it, or those
        that read the example a data set makes of itself. Raises ``UsageError`` where there are none.
        """
        try:
            return component.model()()
        except ValidationError as error:
            for _, options in self.naming(component):
                return options
            if (example := getattr(component.load(), "example", None)) is not None:
                return component.model().model_validate(example(self._place(component)))
            missing = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise UsageError(
                f"its option {missing} has no default, no preset names it and it has no example(); give it one of these"
            ) from error

    def _place(self, component: Component) -> Path:
        """A new folder for a data set's example."""
        return Path(mkdtemp(prefix=f"{component.name}-", dir=self._folder))

    def tiny(self, choice: Chosen) -> Data:
        """The tiny version of a data set as a preset chose it, made once."""
        key = repr(choice.plain())
        if key not in self._tiny:
            self._tiny[key] = choice.build().tiny()
        return self._tiny[key]

    def data_sets(self) -> Iterator[Chosen]:
        """The data sets to try other things on: those of the presets, then the plugin's own."""
        yield from (config.data for config in self.configs)
        for component in self.components:
            if component.kind == "data":
                try:
                    yield Chosen(component, self.options(component))
                except FlowError:
                    continue

    def tried(self, component: Component) -> Iterator[tuple[BaseModel, Chosen]]:
        """Options and a data set to try a component with: as presets name it, then its defaults on every data set."""
        yield from ((options, config.data) for config, options in self.naming(component))
        options = self.options(component)
        yield from ((options, data) for data in self.data_sets())

    def fitting(self, component: Component, build: Callable[[BaseModel, Data], Any]) -> tuple[BaseModel, Data, Any]:
        """The first options and data set with which ``build`` succeeds, and what it made.

        Raises what it said the first time, or ``UsageError`` where there is nothing to try it on.
        """
        first: Exception | None = None
        for options, choice in self.tried(component):
            try:
                data = self.tiny(choice)
                return options, data, build(options, data)
            except Exception as error:  # a plugin's own, of any kind
                first = first or error
        raise first or UsageError("there is no data set to try it on; name it in a preset")

    def untrained(self, config: RunConfig) -> Model:
        """The model of a preset before any training: a task that is given nonsense needs no better."""
        return teacher.untrained(config)
