"""components: names, lazy references, and options read off a function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flowcore.errors import PluginError, UsageError
from flowplat.chosen import Chosen
from flowplat.components import Component, Components

Install = Callable[..., Path]


def component(
    name: str, plugin: str = "wind", kind: str = "network", reference: str = "nowhere:nothing", **more: Any
) -> Component:
    return Component(kind, plugin, name, reference, "summary", **more)


@pytest.fixture
def table() -> Components:
    components = Components()
    for one in (component("unet"), component("unet", "images"), component("mlp"), component("mlp", kind="data")):
        components.add(one)
    return components


def test_a_name_is_found_short_and_full(table: Components) -> None:
    assert table.find("network", "mlp") == table.find("network", "wind/mlp") == component("mlp")
    assert table.find("network", "images/unet").plugin == "images"


def test_kinds_are_apart(table: Components) -> None:
    assert table.find("data", "mlp").kind == "data"
    with pytest.raises(UsageError, match="no data is called 'unet'"):
        table.find("data", "unet")


def test_an_ambiguous_short_name_lists_the_candidates(table: Components) -> None:
    with pytest.raises(UsageError, match=r"^'unet' is ambiguous; write wind/unet or images/unet$"):
        table.find("network", "unet")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mpl", "did you mean 'mlp'?"), ("wind/unnet", "did you mean 'wind/unet'?"), ("zzz", "there are unet"),
     ("", "there are unet"), ("sea/mlp", "did you mean")],
)  # fmt: skip
def test_an_unknown_name_has_a_way_out(name: str, hint: str, table: Components) -> None:
    with pytest.raises(UsageError) as caught:
        table.find("network", name)
    assert str(caught.value).startswith(f"no network is called {name!r}; {hint}")


def test_a_kind_without_components_says_so() -> None:
    with pytest.raises(UsageError, match=r"^no metric is called 'crps'; there are none$"):
        Components().find("metric", "crps")


def test_a_name_is_registered_once(table: Components) -> None:
    with pytest.raises(PluginError, match=r"^plugin 'wind' registers the network 'mlp' twice$"):
        table.add(component("mlp", reference="elsewhere:mlp"))
    assert table.find("network", "mlp").reference == "nowhere:nothing"


def test_components_by_kind_and_by_plugin(table: Components) -> None:
    assert [c.full_name for c in table.of("network")] == ["wind/unet", "images/unet", "wind/mlp"]
    assert [c.full_name for c in table.of(plugin="images")] == ["images/unet"]
    assert [c.kind for c in table.of("data", "wind")] == ["data"]
    assert len(list(table.of())) == 4


# references


BROKEN = {
    "missing module": (None, "flowplat_wind.nothing:x"),
    "missing attribute": ("", "flowplat_wind.parts:x"),
    "no attribute named": ("", "flowplat_wind.parts"),
    "nothing named": ("", ""),
    "ImportError": ("import nothing_of_this_name", "flowplat_wind.parts:x"),
    "SyntaxError": ("def (", "flowplat_wind.parts:x"),
    "RuntimeError": ("raise RuntimeError('on purpose')", "flowplat_wind.parts:x"),
    "sys.exit": ("import sys\nsys.exit(3)", "flowplat_wind.parts:x"),
}


@pytest.mark.parametrize(("code", "reference"), BROKEN.values(), ids=BROKEN)
def test_a_reference_that_cannot_be_loaded_names_plugin_and_component(
    code: str | None, reference: str, install: Install
) -> None:
    install("wind", "", {} if code is None else {"parts.py": code})
    with pytest.raises(PluginError) as caught:
        component("mlp", reference=reference).load()
    for part in ("plugin 'wind'", "network 'mlp'", repr(reference)):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ctrl_c_while_a_component_is_imported_is_ctrl_c(install: Install) -> None:
    install("wind", "", {"parts.py": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        component("mlp", reference="flowplat_wind.parts:x").load()


def test_what_a_component_prints_while_it_is_imported_is_kept_off_stdout(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("wind", "", {"parts.py": "print('using the C++ backend')\nx = 1"})
    assert component("mlp", reference="flowplat_wind.parts:x").load() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "using the C++ backend\n"


def test_a_file_of_the_package(install: Install) -> None:
    install("wind", "", {"storm.yaml": "seed: 1"})
    assert component("storm", kind="preset", reference="flowplat_wind:storm.yaml").file().read_text() == "seed: 1"


# options


@pytest.fixture
def parts(install: Install) -> None:
    code = """
        from pydantic import BaseModel, Field

        class Config(BaseModel):
            width: int = Field(4, ge=1)

        def plain(samples, measured, power: float = 1.0, names: tuple[str, ...] = ("a",), *, exact: bool = False):
            return "plain", power, names, exact

        def guide(scale: float = 2.0):
            return "guide", scale

        def network(config, spec):
            return "network", config.width, spec

        def bare(limit=5):
            return limit

        def objective(parts, weight: float = 0.5):
            return "objective", parts, weight

        def task(trained, inputs, out, /, *, steps: int = 3):
            return "task", trained, inputs, out, steps

        def everything(*parts, weight: float = 0.5, **more):
            return parts, weight, more

        def strange(steps: "Nothing" = 3):
            return steps

        number = 5
        """
    install("wind", "", {"parts.py": code})


def test_the_options_of_a_function_are_its_parameters_with_defaults(parts: None) -> None:
    model = component("plain", reference="flowplat_wind.parts:plain").model()
    assert model().model_dump() == {"power": 1.0, "names": ("a",), "exact": False}
    assert model(power="1e-3").power == 1e-3  # type: ignore[attr-defined]
    with pytest.raises(ValidationError):
        model(power="strong")
    with pytest.raises(ValidationError):
        model(samples=1)


def test_a_function_builds_from_its_options_alone(parts: None) -> None:
    guide = component("guide", kind="guidance", reference="flowplat_wind.parts:guide")
    assert guide.build(guide.model()(scale=3.0), "spec") == ("guide", 3.0)  # type: ignore[call-arg]


def test_a_factory_with_a_config_model_gets_it_and_the_context(parts: None) -> None:
    network = component("n", reference="flowplat_wind.parts:network", config="flowplat_wind.parts:Config")
    chosen = Chosen(network, network.model().model_validate({"width": 7}))
    assert chosen.build("spec") == ("network", 7, "spec")
    assert chosen.plain() == {"name": "wind/n", "width": 7}


def test_an_option_without_a_type_takes_what_it_is_given(parts: None) -> None:
    bare = component("bare", reference="flowplat_wind.parts:bare")
    assert bare.build(bare.model()(limit="many")) == "many"  # type: ignore[call-arg]


def test_a_config_that_is_no_model_names_the_plugin(parts: None) -> None:
    with pytest.raises(PluginError, match="plugin 'wind'"):
        component("n", reference="flowplat_wind.parts:network", config="flowplat_wind.parts:guide").model()


def test_a_function_gets_as_much_of_the_context_as_it_has_places_for(parts: None) -> None:
    def built(name: str, *context: Any, **options: Any) -> Any:
        one = component(name, reference=f"flowplat_wind.parts:{name}")
        return one.build(one.model()(**options), *context)

    assert built("objective", "parts", weight=2.0) == ("objective", "parts", 2.0)
    assert built("objective", "parts") == ("objective", "parts", 0.5)
    assert built("task", "model", ["a"], "out", steps=4) == ("task", "model", ["a"], "out", 4)
    assert built("bare", "parts", "more") == 5
    assert built("everything", "parts", weight=1.0) == ((), 1.0, {})
    assert list(component("task", reference="flowplat_wind.parts:task").model().model_fields) == ["steps"]


@pytest.mark.parametrize(("name", "cause"), [("number", "TypeError"), ("strange", "'Nothing' is not defined")])
def test_what_has_no_options_to_read_names_plugin_and_component(name: str, cause: str, parts: None) -> None:
    with pytest.raises(PluginError) as caught:
        component("n", reference=f"flowplat_wind.parts:{name}").model()
    assert str(caught.value).startswith(f"plugin 'wind': network 'n': 'flowplat_wind.parts:{name}' has no options")
    assert cause in str(caught.value)
