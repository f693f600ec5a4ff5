"""settings: the tables agree with the model."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from flowcore.training.settings import EngineSettings, TrainSettings
from flowplat.chosen import Chosen
from flowplat.config import model_in, resolve
from flowplat.settings import CHOICES, DEFAULTS, SMOKE, SMOKE_PAIRS, RunConfig, SampleSettings


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every leaf key of a config and its annotation."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if below := model_in(info.annotation):
            found |= fields(below, f"{prefix}{name}.")
        else:
            found[prefix + name] = info.annotation
    return found


def keys(settings: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        key
        for name, value in settings.items()
        for key in (keys(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name})
    }


def test_every_place_of_a_component_is_in_the_table_and_no_other() -> None:
    places = {key for key, annotation in fields(RunConfig).items() if Chosen in (annotation, *get_args(annotation))}
    assert places == set(CHOICES)


@pytest.mark.parametrize(
    "table", [DEFAULTS, SMOKE, {"teacher": {"pairs": SMOKE_PAIRS}}], ids=["defaults", "smoke", "smoke, pairs"]
)
def test_the_layers_of_the_platform_state_keys_that_exist(table: dict[str, Any]) -> None:
    sections = {name for name, info in RunConfig.model_fields.items() if hasattr(info.annotation, "model_fields")}
    assert keys(table) <= set(fields(RunConfig)) | sections


def test_every_setting_says_what_it_is() -> None:
    def silent(model: type[BaseModel]) -> list[str]:
        inner = [i.annotation for i in model.model_fields.values() if hasattr(i.annotation, "model_fields")]
        here = [n for n, i in model.model_fields.items() if i.annotation not in inner and not i.description]
        return here + [name for one in inner for name in silent(one)]  # type: ignore[arg-type]

    assert silent(RunConfig) == []


@pytest.mark.parametrize("devices", ["auto", 1, 8, [0], [1, 3]])
def test_devices(devices: Any) -> None:
    assert EngineSettings(devices=devices).devices == devices


@pytest.mark.parametrize("devices", ["", "all", 0, -1, [], [-1], 1.5])
def test_what_is_no_device(devices: Any) -> None:
    with pytest.raises(ValidationError, match="devices"):
        EngineSettings(devices=devices)


def test_settings_that_contradict_each_other() -> None:
    for wrong, name in (
        ({"batch_size": 10, "accumulate": 3}, "accumulate"),
        ({"patience": 3}, "validate_every"),
    ):
        with pytest.raises(ValidationError, match=name):
            TrainSettings(**wrong)
    with pytest.raises(ValidationError, match="fsdp"):
        EngineSettings(strategy="fsdp", precision="16-mixed")


def test_a_config_does_not_change(ring: Path) -> None:
    config = resolve("ring")
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.train.steps = 3


def test_settings_refuse_what_they_do_not_know(ring: Path) -> None:
    solver = resolve("ring").sample.solver
    with pytest.raises(ValidationError, match="colour"):
        SampleSettings(solver=solver, colour="red")  # type: ignore[call-arg]
