"""layers: which layer set what, as `show-config --origin` tells it."""

from pathlib import Path

import pytest

from flowplat.config import plain, resolve, to_yaml, traced
from flowplat.layers import Layers
from flowplat.plain_yaml import parse

pytestmark = pytest.mark.usefixtures("ring")


def origins(
    *overrides: str, preset: str | None = None, file: Path | None = None, smoke: bool = False
) -> dict[str, str]:
    config, layers = traced("ring", overrides, preset, file, smoke)
    return layers.of(plain(config))


def test_each_value_has_the_layer_that_set_it(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("train: {lr: 0.5}\neval: {count: 50}\n")
    found = origins("seed=3", file=file, smoke=True)
    assert {key: found[key] for key in ("plugin", "seed", "train.lr", "eval.count", "train.warmup", "data.name")} == {
        "plugin": "command line", "seed": "command line", "train.lr": str(file), "eval.count": "--smoke",
        "train.warmup": "--smoke", "data.name": "preset ring",
    }  # fmt: skip


def test_an_option_that_nobody_set_is_a_default_whoever_named_its_component() -> None:
    found = origins("times=logit_normal", "sample.guidance=[{name: classifier_free, scale: 2}]", preset="halves")
    assert (found["network.name"], found["network.width"]) == ("preset halves", "default")
    assert (found["data.conditional"], found["data.count"]) == ("preset halves", "default")
    assert (found["times.name"], found["times.stratified"]) == ("command line", "default")
    assert (found["sample.guidance.0.scale"], found["sample.guidance.0.interval.0"]) == ("command line", "default")
    assert (found["eval.steps.0"], found["train.lr"], found["train.steps"]) == ("default", "default", "preset halves")


def test_options_given_to_a_component_that_a_layer_below_names_do_not_take_its_name() -> None:
    found = origins("network.width=5", "times.stratified=true")
    assert (found["network.name"], found["network.width"]) == ("preset ring", "command line")
    assert (found["times.name"], found["times.stratified"]) == ("default", "command line")
    found = origins("network.width=5", preset="halves")  # which names the network and nothing else of it
    assert (found["network.name"], found["network.width"]) == ("preset halves", "command line")


def test_a_component_named_anew_leaves_no_origin_of_the_old_one() -> None:
    found = origins("network=affine")  # the preset has set a width
    assert {key: layer for key, layer in found.items() if key.startswith("network")} == {
        "network.name": "command line", "network.bias": "default",
        "network.repeat.0": "default", "network.repeat.1": "default",
    }  # fmt: skip


def test_items_of_a_list_are_of_the_layer_that_set_the_list() -> None:
    found = origins("eval.steps=[3, 4]", "eval.metrics=[radius, {name: fails, how: ValueError}]")
    assert [found[key] for key in ("eval.steps.0", "eval.steps.1", "eval.metrics.0.name", "eval.metrics.1.how")] == [
        "command line"
    ] * 4
    assert (found["eval.metrics.0.wanted"], found["sample.guidance"]) == ("default", "default")


@pytest.mark.parametrize(
    ("preset", "text", "origin"),
    [(None, None, "default"), ("halves", None, "command line"), (None, "preset: halves", "file"),
     ("ring", "preset: halves", "command line"), (None, "seed: 1", "default")],
)  # fmt: skip
def test_who_chose_the_preset(preset: str | None, text: str | None, origin: str, tmp_path: Path) -> None:
    file = None if text is None else tmp_path / "my.yaml"
    if file is not None:
        file.write_text(text or "")
    found = origins(preset=preset, file=file)["preset"]
    assert found == (str(file) if origin == "file" else origin)


def test_every_value_of_a_resolved_config_is_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(resolve("ring", ["train.steps=3"], preset="halves")))
    found = origins(file=file)
    assert found.pop("plugin") == "command line"
    assert set(found.values()) == {str(file)}
    assert {key for key in found if not key.startswith("train.")} & {"data.count", "sample.guidance.0.interval.1"}


def test_every_value_has_an_origin() -> None:
    def keys(value: object, key: str = "") -> set[str]:
        if isinstance(value, dict) and value:
            return {one for name, below in value.items() for one in keys(below, f"{key}.{name}".lstrip("."))}
        if isinstance(value, list) and value:
            return {one for place, below in enumerate(value) for one in keys(below, f"{key}.{place}")}
        return {key}

    config, layers = traced("ring", preset="halves")
    assert set(layers.of(plain(config))) == keys(plain(config))


def test_what_is_laid_over_is_left_as_it_was() -> None:
    below, above = {"network": {"name": "dense", "width": 3}}, {"network": {"width": 5}}
    layers = Layers()
    layers.add("one", below)
    layers.add("two", above)
    assert layers.merged == {"network": {"name": "dense", "width": 5}}
    assert (below, above) == ({"network": {"name": "dense", "width": 3}}, {"network": {"width": 5}})
    assert parse("network: {width: 5}", "here") == above
