"""The table of components: (kind, "plugin/name") -> a lazy reference and its owner."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from flowcore.errors import FlowError, PluginError, UsageError
from flowplat.quiet import quiet

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Component:
    """One registered component. ``reference`` and ``config`` are "module:attribute" and are imported when asked for.

    The last five are of one kind or two: ``flowcore.plugin.hookspecs`` says what they mean.
    """

    kind: str
    plugin: str
    name: str
    reference: str
    summary: str
    config: str | None = None
    default: bool = False
    uses: tuple[str, ...] = ()
    off: Mapping[str, Any] = field(default_factory=dict)
    model_needed: bool = True
    resumes: bool = False

    @property
    def full_name(self) -> str:
        """``plugin/name``."""
        return f"{self.plugin}/{self.name}"

    def __str__(self) -> str:
        return f"plugin {self.plugin!r}: {self.kind} {self.name!r}"

    def load(self) -> Any:
        """Import what the reference names. Raises ``PluginError`` naming the plugin when that fails."""
        return _attribute(self, self.reference)

    def file(self) -> Traversable:
        """The file of a preset, whose reference is "package:path"."""
        package, _, path = self.reference.partition(":")
        return files(package).joinpath(path)

    def model(self) -> "type[BaseModel]":
        """The pydantic model of this component's options.

        It is the registered ``config``, or is read off the function: every parameter with a default is an option.
        """
        if self.config is not None:
            from pydantic import BaseModel

            model = _attribute(self, self.config)
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise PluginError(f"{self}: its config {self.config!r} is no pydantic model")
            return model
        function = self.load()
        try:
            return _model_of(self.name, function)
        except Exception as error:  # it is no function, or its annotations are not what they should be
            raise PluginError(f"{self}: {self.reference!r} has no options to read: {one_line(error)}") from error

    def build(self, options: "BaseModel", *context: Any) -> Any:
        """Call the component: ``factory(options, *context)`` with a config model, else ``factory(*context, **options)``
        with as much of the context as the function has parameters for that are no options."""
        factory = self.load()
        if self.config is not None:
            return factory(options, *context)
        return factory(*context[: _places(factory)], **keywords(options))


def keywords(options: "BaseModel") -> dict[str, Any]:
    """Validated options as keyword arguments."""
    return {name: getattr(options, name) for name in type(options).model_fields}


class Components:
    """Every component of the plugins that are loaded."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, str], Component] = {}

    def add(self, component: Component) -> None:
        """Add one. Raises ``PluginError`` when its plugin has registered that name before."""
        key = (component.kind, component.full_name)
        if key in self._table:
            raise PluginError(f"plugin {component.plugin!r} registers the {component.kind} {component.name!r} twice")
        self._table[key] = component

    def of(self, kind: str | None = None, plugin: str | None = None) -> Iterator[Component]:
        """The components of a kind, of a plugin, or all."""
        for component in self._table.values():
            if kind in (None, component.kind) and plugin in (None, component.plugin):
                yield component

    def find(self, kind: str, name: str) -> Component:
        """The component called ``name`` or ``plugin/name``.

        Raises ``UsageError`` when there is none, with the nearest names, and when a short name is ambiguous, with the
        candidates.
        """
        if (kind, name) in self._table:
            return self._table[kind, name]
        matches = [component for component in self.of(kind) if component.name == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            candidates = " or ".join(component.full_name for component in matches)
            raise UsageError(f"{name!r} is ambiguous; write {candidates}")
        names = [component.name for component in self.of(kind)]
        names += [component.full_name for component in self.of(kind)]
        close = get_close_matches(name, names, n=1)
        there = ", ".join(component.name for component in self.of(kind)) or "none"
        hint = f"did you mean {close[0]!r}?" if close else f"there are {there}"
        raise UsageError(f"no {kind} is called {name!r}; {hint}")


def _attribute(component: Component, reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        with quiet():
            return getattr(import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{component} names {reference!r}, which cannot be loaded: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error's type and message without line breaks; the message alone where it is one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FlowError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _places(function: Callable[..., Any]) -> int:
    """How many parameters of a function are no options."""
    parameters = inspect.signature(function).parameters.values()
    return sum(
        one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters
    )


def _model_of(name: str, function: Callable[..., Any]) -> "type[BaseModel]":
    from pydantic import ConfigDict, create_model

    options: dict[str, Any] = {
        parameter.name: (Any if parameter.annotation is parameter.empty else parameter.annotation, parameter.default)
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.default is not parameter.empty
    }
    return create_model(name, __config__=ConfigDict(frozen=True, extra="forbid"), **options)
