"""The plugin as a user runs it: what it registers, and its default preset from end to end."""

import subprocess
import sys
from importlib import import_module
from importlib.resources import files

import pytest
import torch
import yaml

from flowplat_text import plugin

KINDS = {"data": "data", "network": "networks", "metric": "metrics", "task": "tasks", "preset": "presets"}


def registered(kind):
    """{name: (reference, config reference)} of what the plugin registers of a kind."""
    found = {}

    def register(name, reference, *, summary, config=None, **more):
        assert summary
        assert name not in found
        found[name] = (reference, config)

    getattr(plugin, f"register_{KINDS[kind]}")(register)
    return found


def loaded(reference):
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


PRESETS = {
    name: yaml.safe_load(files(package).joinpath(path).read_text())
    for name, (reference, _) in registered("preset").items()
    for package, _, path in [reference.partition(":")]
}


def test_the_entry_module_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pydantic", "transformers")
    code = f"import sys, flowplat_text.plugin; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["data", "network", "metric", "task"])
def test_everything_registered_is_there_and_its_options_are_described(kind) -> None:
    for reference, config in registered(kind).values():
        assert callable(loaded(reference))
        for name, field in loaded(config).model_fields.items() if config else ():
            assert field.description, name


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_names_what_is_registered(preset) -> None:
    data = {"name": preset["data"]} if isinstance(preset["data"], str) else dict(preset["data"])
    loaded(registered("data")[data.pop("name")][1]).model_validate(data)
    network = dict(preset["network"])
    loaded(registered("network")[network.pop("name")][1]).model_validate(network)
    assert set(preset["eval"]["metrics"]) <= registered("metric").keys()
    assert preset["train"]["batch_size"] % preset["train"].get("accumulate", 1) == 0


def test_the_default_preset_learns() -> None:
    """Twenty-five steps take it from 8 bits a byte to what the shares of letters alone would give."""
    from flowcore.plugin.contracts import Parts
    from flowcore.tokens import objective

    preset = PRESETS["radd"]
    torch.manual_seed(0)
    data = loaded(registered("data")["builtin"][0])(loaded(registered("data")["builtin"][1])()).tiny()
    options = dict(preset["network"])
    reference, config = registered("network")[options.pop("name")]
    network = loaded(reference)(loaded(config).model_validate(options), data.spec())
    loss = objective(Parts(data.spec(), data, torch.device("cpu")))
    optimizer, draws, source = (
        torch.optim.AdamW(network.parameters(), lr=2e-3),
        torch.Generator().manual_seed(0),
        data.train(),
    )
    found = []
    for _ in range(25):
        batch = source.batch(torch.randint(len(source), (16,), generator=draws), draws)
        optimizer.zero_grad()
        value = loss(network, batch, draws).mean()
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert found[0] == pytest.approx(5.55, abs=0.01)  # log 257
    assert sum(found[-5:]) / 5 < 3.7
