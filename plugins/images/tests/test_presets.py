import subprocess
import sys
from importlib import import_module
from importlib.resources import files

import pytest
import torch
import yaml

from flowcore.data import everything
from flowcore.field import Field
from flowcore.paths import linear
from flowcore.plugin import builtin
from flowplat_images import plugin

KINDS = {"data": "data", "network": "networks", "metric": "metrics", "preset": "presets", "path": "paths",
         "time": "times", "solver": "solvers", "guidance": "guidance", "sampler": "samplers"}  # fmt: skip


def registered(module, kind):
    """{name: (reference, config reference)} of what a module registers of a kind."""
    found = {}

    def register(name, reference, *, summary, config=None, **more):
        assert summary
        assert name not in found
        found[name] = (reference, config)

    getattr(module, f"register_{KINDS[kind]}")(register)
    return found


def loaded(reference):
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def choice(value):
    """A choice in a config as (name, options)."""
    value = {"name": value} if isinstance(value, str) else dict(value)
    return value.pop("name"), value


PRESETS = {
    name: yaml.safe_load(files(package).joinpath(path).read_text())
    for name, (reference, _) in registered(plugin, "preset").items()
    for package, _, path in [reference.partition(":")]
}
every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def built(preset):
    """The data set and the network of a preset, where what they need is installed."""
    if choice(preset["network"])[0] == "text_unet":
        pytest.importorskip("diffusers")
        pytest.importorskip("tokenizers")
    parts = []
    for kind in ("data", "network"):
        name, options = choice(preset[kind])
        reference, config = registered(plugin, kind)[name]
        parts.append((loaded(reference), loaded(config).model_validate(options)))
    (data, data_config), (network, network_config) = parts
    images = data(data_config)
    torch.manual_seed(0)
    return images, network(network_config, images.spec())


def test_the_entry_module_imports_nothing_heavy():
    code = (
        "import sys, flowplat_images.plugin; "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'PIL', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["data", "network", "metric"])
def test_everything_registered_is_there_and_its_options_are_described(kind):
    for reference, config in registered(plugin, kind).values():
        assert callable(loaded(reference))
        for name, field in loaded(config).model_fields.items() if config else ():
            assert field.description, name


@every_preset
def test_a_preset_names_what_is_registered(preset):
    for key, kind in (("path", "path"), ("times", "time")):
        assert key not in preset or choice(preset[key])[0] in registered(builtin, kind)
    for kind in {"solver", "sampler"} & preset["sample"].keys():
        assert choice(preset["sample"][kind])[0] in registered(builtin, kind)
    pairs = preset.get("teacher", {}).get("pairs", {})
    for guidance in [*preset["sample"].get("guidance", []), *pairs.get("guidance", [])]:
        assert choice(guidance)[0] in registered(builtin, "guidance")
    assert preset["eval"]["metrics"]
    assert set(preset["eval"]["metrics"]) <= registered(plugin, "metric").keys()


@every_preset
def test_a_preset_fits_its_network_to_its_data(preset):
    images, network = built(preset)
    batch = everything(images.train(), 4)
    outputs = 2 if preset.get("objective") == "interpolant" else 1
    out = network(batch.x1, torch.rand(4), batch.condition)
    assert out.shape == (4, outputs * batch.x1.shape[1], *batch.x1.shape[2:])
    sampled, learnt = (
        bool(part.get("guidance")) for part in (preset["sample"], preset.get("teacher", {}).get("pairs", {}))
    )
    assert (
        (sampled or learnt) == (images.spec().condition is not None) == ("class_accuracy" in preset["eval"]["metrics"])
    )
    assert not (sampled and learnt)  # what is in the pairs is not applied again
    assert not sampled or preset["train"]["drop_condition"] > 0
    assert preset["eval"]["count"] == len(images.train())


FRESH = {name: preset for name, preset in PRESETS.items() if "start" not in preset.get("teacher", {})}


@pytest.mark.parametrize("preset", FRESH.values(), ids=FRESH)
def test_a_preset_that_begins_afresh_learns(preset):
    """Thirty steps, of a small network a few more, take the loss well below that of the mean velocity, E[v] = E[x1]."""
    images, network = built(preset)
    training = everything(images.train())
    optimizer = torch.optim.AdamW(network.parameters(), lr=float(preset["train"]["lr"]))
    draws = torch.Generator().manual_seed(0)

    def loss(rows):
        x1 = training.x1[rows]
        x0, t = torch.randn(x1.shape, generator=draws), torch.rand(len(rows), generator=draws)
        labels = None if training.condition is None else training.condition[rows]
        field = Field(lambda x, t, c: network(x, t, c)[:, : x.shape[1]], linear(), condition=labels)
        return (field(linear().interpolate(x0, x1, t), t) - (x1 - x0)).square().mean()

    @torch.no_grad()
    def below(limit):
        return loss(torch.arange(min(512, len(training)))).item() < limit

    mean = 1 + training.x1.var(0).mean().item()
    for step in range(240):
        if step % 30 == 0 and below(0.8 * mean):
            return
        optimizer.zero_grad()
        loss(torch.randint(len(training), (128,), generator=draws)).backward()
        optimizer.step()
    pytest.fail("it has not learnt in 240 steps")
