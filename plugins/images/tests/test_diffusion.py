"""A Stable Diffusion folder with first weights, from its pictures to pictures again."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import flowplat
from flowcore.data import everything
from flowcore.errors import InputError, MissingPackageError, UsageError
from flowcore.field import Field
from flowcore.seeds import generator
from flowcore.solvers import exponential, solve
from flowplat_images.data import Digits, DigitsConfig
from flowplat_images.diffusion import ModelConfig, NetworkConfig, example, scheduler, stable_diffusion
from flowplat_images.latents import Latents, LatentsConfig

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return Latents.example(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def latents(options):
    return Latents(LatentsConfig(**options))


@pytest.fixture(scope="module")
def network(options, latents):
    return stable_diffusion(NetworkConfig(folder=options["folder"]), latents.spec()).eval()


def test_the_path_is_the_schedulers_table(options):
    path = scheduler(ModelConfig(folder=options["folder"]))
    table = diffusers.DDPMScheduler.from_pretrained(str(options["folder"] / "scheduler")).alphas_cumprod.double()
    t = 1 - torch.arange(1000, dtype=torch.float64) / 1000
    assert torch.allclose(path.alpha(t).square(), table, atol=1e-9)
    assert torch.allclose(path.alpha(t).square() + path.sigma(t).square(), torch.ones(1, dtype=torch.float64))
    middle = torch.tensor([0.5005], dtype=torch.float64)
    assert table[500] < path.alpha(middle).square() < table[499]
    assert (path.start, path.stop) == (0.001, 1.0)


def test_ddim_by_the_scheduler_and_by_the_path_are_the_same_steps(options, latents, network):
    """Nine steps over a grid of whole numbers, 999, 888, ... 0."""
    path, condition = scheduler(ModelConfig(folder=options["folder"])), latents.condition(3, None)
    x = path.initial(torch.randn(3, *latents.shape, generator=generator(0)))
    field = Field(network, path, "noise", condition, torch.tensor(latents.spec().null))
    ours = solve(field, x, 9, exponential(order=1))
    table = diffusers.DDPMScheduler.from_pretrained(str(options["folder"] / "scheduler")).alphas_cumprod
    with torch.no_grad():
        words = network.encoder(input_ids=condition).last_hidden_state
        for n in range(999, 0, -111):
            noise = network.unet(x, torch.full((3,), float(n)), encoder_hidden_states=words).sample
            data = (x - (1 - table[n]).sqrt() * noise) / table[n].sqrt()
            x = table[n - 111].sqrt() * data + (1 - table[n - 111]).sqrt() * noise
    assert torch.allclose(ours, x, atol=1e-4 * x.abs().max().item())
    assert field.calls == 9


def test_the_network_is_told_a_thousand_at_noise(network, latents):
    x, condition = torch.randn(2, *latents.shape, generator=generator(0)), latents.condition(2, None)
    words = network.encoder(input_ids=condition).last_hidden_state
    for t, step in ((0.0, 1000.0), (0.25, 750.0), (1.0, 0.0)):
        told = network.unet(x, torch.full((2,), step), encoder_hidden_states=words).sample
        assert torch.equal(network(x, torch.full((2,), t), condition), told)
    assert not any(weight.requires_grad for weight in network.encoder.parameters())


def test_latents_are_the_mean_of_the_vae_by_its_factor(latents):
    images = latents.pictures
    batch, encoded = everything(images.train()), everything(latents.train())
    mean = latents.vae.encode(batch.x1).latent_dist.mean
    assert torch.allclose(encoded.x1, latents.vae.config.scaling_factor * mean, atol=1e-6)
    assert torch.equal(encoded.condition, batch.condition)
    assert torch.allclose(latents.decode(encoded.x1), latents.vae.decode(mean).sample, atol=1e-5)
    assert len(latents.train()) + len(latents.val()) == 16
    assert latents.condition(2, "a thick seven").shape == (2, 12)


def test_facts_say_all_but_the_model(options, latents):
    facts = json.loads(json.dumps(latents.facts(), allow_nan=False))
    elsewhere = Latents(LatentsConfig(**options | {"path": options["path"].parent / "gone"}), facts)
    assert elsewhere.spec() == latents.spec()
    assert torch.equal(elsewhere.condition(5, None), latents.condition(5, None))


@pytest.mark.parametrize(
    ("spoil", "error", "line"),
    [
        (lambda f: shutil.rmtree(f / "unet"), InputError, "unet is not there"),
        (lambda f: shutil.rmtree(f / "scheduler"), InputError, "holds no scheduler/scheduler_config.json"),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}'),
            UsageError,
            "predicts 'v_prediction'; only models that predict the noise",
        ),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"hello"),
            InputError,
            "unet holds no UNet2DConditionModel that can be read",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_named(latents, tmp_path, spoil, error, line):
    shutil.copytree(latents.config.folder, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(error, match=line) as refused:
        stable_diffusion(NetworkConfig(folder=tmp_path / "model"), latents.spec())
    assert "\n" not in str(refused.value)


def test_data_that_do_not_suit_it_are_refused(options, latents, tmp_path):
    with pytest.raises(UsageError, match=r"is of 4 channels, the data are .*; use data=latents"):
        stable_diffusion(NetworkConfig(folder=options["folder"]), Digits(DigitsConfig(captions="labels")).spec())
    with pytest.raises(UsageError, match="network=stable_diffusion reads captions"):
        stable_diffusion(NetworkConfig(folder=options["folder"]), Digits(DigitsConfig()).spec())
    with pytest.raises(UsageError, match=r"data\.size=9 is no multiple of 2"):
        Latents(LatentsConfig(**options | {"size": 9})).spec()
    longer = Latents(LatentsConfig(**options | {"length": 13})).spec()
    with pytest.raises(UsageError, match=r"model reads 12 tokens; set data\.captions\.length=12"):
        stable_diffusion(NetworkConfig(folder=options["folder"]), longer)


def test_without_the_package_a_line_says_what_brings_it(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for needs in (lambda: example(tmp_path), lambda: scheduler(ModelConfig(folder=options["folder"]))):
        with pytest.raises(MissingPackageError, match=r"`pip install 'flowplat-images\[diffusers\]'` brings it"):
            needs()


def test_a_folder_is_the_teacher_and_what_its_student_begins_with(options, network, tmp_path, monkeypatch):
    """Sampled as it is, then reflowed for a step, its text encoder left alone, and what comes of it decoded."""
    monkeypatch.chdir(tmp_path)
    data = ["data=latents"] + [f"data.{key}={value}" for key, value in options.items()]
    model = [*data, "network=stable_diffusion", f"network.folder={options['folder']}", "engine.accelerator=cpu",
             "eval.count=2", "eval.steps=[1]", "eval.paths=2", "sample.count=3", "sample.steps=3"]  # fmt: skip
    path = ["path=scheduler", f"path.folder={options['folder']}", "predicts=noise"]
    guided = "[{name: classifier_free, scale: 2}]"
    ddim = ["sample.solver=exponential", f"sample.guidance={guided}"]
    teacher = flowplat.run("images", *model, *path, *ddim, "train.steps=0", out=tmp_path / "teacher")
    taken = flowplat.load(teacher.folder).network.state_dict()
    assert all(torch.equal(taken[name], weight) for name, weight in network.state_dict().items())
    pairs = ["teacher.pairs.count=8", "teacher.pairs.steps=3", "teacher.pairs.solver=exponential",
             f"teacher.pairs.guidance={guided}"]  # fmt: skip
    student = flowplat.run(
        "images", *model, f"teacher.model={teacher.folder}", *pairs, "train.steps=1", "train.batch_size=4",
        "train.ema=0", out=tmp_path / "student",
    )  # fmt: skip
    learnt = flowplat.load(student.folder).network.state_dict()
    moved = {name.partition(".")[0] for name, weight in learnt.items() if not torch.equal(weight, taken[name])}
    assert moved == {"unet"}
    for run in (teacher, student):
        shown = [np.asarray(Image.open(path)) for path in sorted((run.folder / "samples" / "images").glob("*.png"))]
        assert [image.shape for image in shown] == [(8, 8, 3)] * 3
        assert len(list((run.folder / "samples" / "images").glob("*.txt"))) == 3
    record = json.loads(next((tmp_path / "teacher" / "pairs").glob("*/meta.json")).read_text())
    assert (record["path"], record["predicts"], record["condition"]) == ("scheduler", "noise", ["int64", [12]])
