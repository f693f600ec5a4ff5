"""Translation and interpolation, against flows that are known: those of Gaussians, and of the digits blurred a little.

The flow of N(m, s^2) takes noise z to m + s z, so a picture x of one class is x + m' - m as one of another.
"""

import csv
import io
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import flowplat
from flowcore import closed_form
from flowcore.data import Batch, everything
from flowcore.errors import InputError, UsageError
from flowcore.guidance import classifier_free
from flowcore.paths import cosine, linear, vp
from flowcore.plugin.contracts import Parts
from flowcore.seeds import generator
from flowplat_images import pictures
from flowplat_images.data import Digits, DigitsConfig, Fixed, Folder, FolderConfig, ImagesConfig, Loaded
from flowplat_images.inputs import brought
from flowplat_images.tasks import guess, interpolate, slerp, translate

SHAPE = (1, 4, 5)
NAMES = ["ant", "bee", "cat"]
CPU = torch.device("cpu")
SPREAD = 0.2
MEANS = 0.4 * torch.randn(4, *SHAPE, generator=generator(3))  # the last is of the null class


class ByClass(nn.Module):
    """The exact network of a mixture for each class, the last one for none; or what it would predict of the data."""

    def __init__(self, path, mixtures, posterior=False):
        super().__init__()
        self.mixtures = nn.ModuleList(closed_form.mixture(path, means, std).network for means, std in mixtures)
        self.posterior = posterior

    def forward(self, x, t, condition=None):
        condition = torch.full((len(x),), len(self.mixtures) - 1) if condition is None else condition
        found = torch.empty_like(x)
        for k, mixture in enumerate(self.mixtures):
            of = condition == k
            if bool(of.any()):
                found[of] = mixture.posterior(x[of], t[of]).view_as(x[of]) if self.posterior else mixture(x[of], t[of])
        return found


@dataclass
class Known:
    """A model that needs no training; see ``flowcore.plugin.contracts.Trained``."""

    data: Fixed
    network: nn.Module
    path: object
    predicts: str = "velocity"
    guidance: tuple = ()
    device: torch.device = CPU
    seed: int = 0

    def parts(self):
        return Parts(
            self.data.spec(), self.data, self.device, path=self.path, predicts=self.predicts, guidance=self.guidance
        )


def gaussians(path=None, posterior=False, conditional=True, **more):
    """A model of three classes, N(m, SPREAD^2) each."""
    path = path or linear()
    mixtures = [(mean[None], SPREAD) for mean in MEANS]
    x = torch.zeros(3, *SHAPE, dtype=torch.uint8)
    data = Fixed(ImagesConfig(conditional=conditional), Loaded(x, torch.arange(3), NAMES))
    return Known(data, ByClass(path, mixtures, posterior), path, "x1" if posterior else "velocity", **more)


def of_class(number, count, seed=0):
    return MEANS[number] + SPREAD * torch.randn(count, *SHAPE, generator=generator(seed))


# ---------------------------------------------------------------- translate

PATHS = {"linear": (linear(), False), "cosine": (cosine(), False), "vp": (vp(), False), "x1": (linear(), True)}


@pytest.mark.parametrize(("path", "posterior"), PATHS.values(), ids=PATHS)
def test_a_picture_keeps_its_noise_and_takes_the_other_class(path, posterior):
    x = of_class(0, 6)
    found = translate(gaussians(path, posterior), [Batch(x, torch.zeros(6, dtype=torch.int64))], None, to="cat")
    assert torch.allclose(found.x1, x + MEANS[2] - MEANS[0], atol=1e-2)
    assert torch.allclose(found.x0 * SPREAD, x - MEANS[0], atol=1e-2)
    assert found.condition.tolist() == [2] * 6
    assert found.extra["round_trip_error"] < 1e-2
    assert found.extra["nfe"] == 200


def test_each_picture_may_become_one_of_another_class():
    x = torch.cat([of_class(k, 1) for k in (0, 1, 2, 0)])
    found = translate(gaussians(), [x], None, to="bee,cat", of="ant,bee,cat,ant")
    moved = MEANS[[1, 2, 1, 2]] - MEANS[[0, 1, 2, 0]]
    assert torch.allclose(found.x1, x + moved, atol=1e-2)


def test_guidance_is_of_the_way_forwards_alone():
    """Between Gaussians of one spread the guided flow is that to null + w (mean - null)."""
    x, model = of_class(0, 3), gaussians(guidance=(classifier_free(2.5),))
    model.parts = lambda: replace(Known.parts(model))
    found = translate(model, [x], None, to=NAMES[1], of="ant")
    assert torch.allclose(found.x1, x - MEANS[0] + MEANS[3] + 2.5 * (MEANS[1] - MEANS[3]), atol=2e-2)
    assert found.extra["round_trip_error"] < 1e-3


@pytest.fixture(scope="module")
def digits():
    """The exact flow of 200 digits, each blurred by a little, for every class and for all together."""
    data = Digits(DigitsConfig(conditional=True))
    batch = everything(data.train(), 200)
    classes = [batch.x1[batch.condition == k] for k in range(10)]
    return Known(data, ByClass(linear(), [(x, 0.1) for x in [*classes, batch.x1]]), linear()), batch


def test_backwards_and_forwards_returns_the_picture(digits):
    model, batch = digits
    x = batch.x1[:30] + 0.1 * torch.randn(30, 1, 8, 8, generator=generator(1))
    found = translate(
        model, [Batch(x, batch.condition[:30])], None, of="", to=",".join(map(str, batch.condition[:30].tolist()))
    )
    assert torch.allclose(found.x1, x, atol=1e-2)
    assert found.extra["round_trip_error"] < 1e-2
    other = translate(model, [Batch(x, batch.condition[:30])], None, to=8)
    eights = torch.cdist(other.x1.flatten(1), batch.x1[batch.condition == 8].flatten(1)).amin(1)
    assert bool((eights < 1.6).all())  # 0.1 times the length of noise in 64 dimensions is 0.8
    assert not torch.allclose(other.x1, x, atol=0.3)


def test_more_steps_come_nearer(digits):
    model, batch = digits
    given = Batch(batch.x1[:10], batch.condition[:10])
    errors = [translate(model, [given], None, to=1, steps=n).extra["round_trip_error"] for n in (10, 20, 40)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_class_is_found_where_it_is_not_told(digits):
    model, batch = digits
    found = guess(model, model.parts(), batch.x1)
    assert (found == batch.condition).float().mean() > 0.97
    x = torch.cat([of_class(k, 5) for k in range(3)])
    assert guess(gaussians(), gaussians().parts(), x).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    translated = translate(gaussians(), [x], None, to="ant")
    assert translated.extra["of"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert translated.extra["classes_guessed"] == 15


# ---------------------------------------------------------------- interpolate


def test_noise_goes_along_the_great_circle():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    half = 3 / 2**0.5
    assert torch.allclose(slerp(a, b, torch.tensor([0.0, 0.5, 1.0])), torch.tensor([[3.0, 0], [half, half], [0, 3.0]]))
    assert torch.equal(slerp(a, a, torch.tensor([0.0, 0.3])), torch.cat([a, a]))
    z = torch.randn(2, 3, 5, 5, generator=generator(0))
    on_it = slerp(z[:1] / z[0].norm(), z[1:] / z[1].norm(), torch.linspace(0, 1, 7))
    assert on_it.shape == (7, 3, 5, 5)
    assert torch.allclose(on_it.flatten(1).norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("of", ["ant", "ant,cat"])
def test_the_frames_are_the_flow_of_the_noise_between(of):
    ends = torch.cat([of_class(0, 1), of_class(2 if "," in of else 0, 1, seed=5)])
    found = interpolate(gaussians(), [ends], None, frames=5, of=of)
    share = torch.linspace(0, 1, 5)
    first, last = MEANS[0], MEANS[2 if "," in of else 0]
    noise = torch.stack([ends[0] - first, ends[1] - last]) / SPREAD
    means = (1 - share).view(-1, 1, 1, 1) * first + share.view(-1, 1, 1, 1) * last
    assert torch.allclose(found.x1, means + SPREAD * slerp(noise[:1], noise[1:], share), atol=1e-2)
    assert torch.allclose(found.x1[[0, -1]], ends, atol=1e-2)
    assert found.extra["nfe"] == (300 if "," in of else 200)


def test_a_model_without_classes_interpolates_too(digits):
    model, batch = digits
    plain = replace(model, data=Digits(DigitsConfig()))
    found = interpolate(plain, [batch.x1[:4]], None, frames=3)
    assert torch.allclose(found.x1[[0, 2]], batch.x1[[0, 3]], atol=1e-2)
    assert found.condition is None
    with pytest.raises(UsageError, match="leave `of` out"):
        interpolate(plain, [batch.x1[:4]], None, of=3)


# ---------------------------------------------------------------- what is brought


def png(value, size=(5, 4)):
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_folders_and_zips_are_brought_with_their_classes(tmp_path):
    for name, value in (("one.png", 10), ("set/cat/a.png", 20), ("set/ant/b.png", 30)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(value))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("c.png", png(40, (50, 40)))
        archive.writestr("labels.csv", "file,label\nc.png,bee\n")
    given = brought([tmp_path / "one.png", str(tmp_path / "set"), tmp_path / "z.zip"], SHAPE)
    assert ((given.x[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [10, 30, 20, 40]
    assert given.classes == [None, "ant", "cat", "bee"]
    assert given.names == [
        f"{tmp_path}/{name}" for name in ("one.png", "set/ant/b.png", "set/cat/a.png", "z.zip/c.png")
    ]
    assert given.x.shape == (4, *SHAPE)
    ends = brought([tmp_path / "set", tmp_path / "one.png"], SHAPE, ends=True)
    assert ends.names == [f"{tmp_path}/set/ant/b.png", f"{tmp_path}/one.png"]


def test_a_picture_is_cropped_to_the_shape_of_the_models_images(tmp_path):
    wide = np.zeros((40, 200), np.uint8)
    wide[:, 40:160] = 255  # 75 to 125 are left of it, and the filter reaches 30 farther
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert torch.equal(brought([tmp_path / "wide.png"], SHAPE).x, torch.ones(1, *SHAPE))
    assert torch.equal(brought([tmp_path / "wide.png"], (3, 4, 5)).x, torch.ones(1, 3, 4, 5))


def test_arrays_are_brought_as_an_npz_holds_them_and_tensors_as_samples_are():
    grey = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    assert torch.allclose(brought([grey], SHAPE).x[:, 0].double(), torch.from_numpy(grey / 127.5 - 1), atol=1e-6)
    assert torch.equal(brought([grey[0]], SHAPE).x, brought([grey], SHAPE).x[:1])
    for given in (colour, colour[0]):
        assert torch.equal(
            brought([given], (3, 4, 5)).x[0], pictures.scaled(torch.from_numpy(colour[0]).permute(2, 0, 1))
        )
    x = brought([grey], SHAPE).x
    for given in (x, x[0], x.double()):
        assert torch.equal(brought([given], SHAPE).x, x[: 1 if given.ndim == 3 else 3])
    assert brought([Batch(x, torch.tensor([2, 0, 1]))], SHAPE).classes == [2, 0, 1]


WRONG = {
    "a larger array": (np.zeros((2, 8, 8), np.uint8), r"of \(1, 8, 8\) are not of the model's shape, \(1, 4, 5\)"),
    "colour": (torch.zeros(2, 3, 4, 5), r"images of \(3, 4, 5\)"),
    "floats in an array": (np.zeros((2, 4, 5)), "float64 of .* is no picture: give a file, a uint8 array"),
    "whole numbers in a tensor": (torch.zeros(2, 1, 4, 5, dtype=torch.uint8), "torch.uint8 of .* is no picture"),
    "a number": (3, "int is no picture"),
    "not a number": (torch.full((1, 1, 4, 5), torch.nan), "no numbers, or infinite"),
    "none": (torch.zeros(0, 1, 4, 5), "there are no pictures to work on"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        translate(gaussians(), [given], None, to="ant")


def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"hello")
    (tmp_path / "one.png").write_bytes(png(3))
    for name in ("ant", "fox"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.png").write_bytes(png(3))
    (tmp_path / "empty").mkdir()
    for given, message in {
        "gone.png": "gone.png is not there; name a PNG or JPEG file",
        "bad.png": "bad.png is no picture",
        "empty": "holds no .png or .jpg file",
        "set": "set/fox/a.png is of class 'fox', and the model knows ant, bee, cat; say of=CLASS",
    }.items():
        for task, options in ((translate, {"to": "ant"}), (interpolate, {})):
            with pytest.raises(UsageError) as refused:
                task(gaussians(), [tmp_path / "one.png", tmp_path / given], tmp_path / "out", **options)
            assert message in str(refused.value)
            assert "\n" not in str(refused.value)
            assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="there is one picture to work on; name two pictures"):
        interpolate(gaussians(), [tmp_path / "one.png"], None)


def test_what_the_model_cannot_do_is_said():
    x = of_class(0, 1)
    with pytest.raises(
        UsageError, match="say which class they are to be of, with to=CLASS; the classes are ant, bee, cat"
    ):
        translate(gaussians(), [x], None)
    with pytest.raises(UsageError, match="no class is called 'fox'"):
        translate(gaussians(), [x], None, to="fox")
    with pytest.raises(
        UsageError, match=r"knows no classes to translate between; train one with data\.conditional=true"
    ):
        translate(gaussians(conditional=False), [x], None, to="ant")
    with pytest.raises(UsageError, match="do not come by following a flow"):
        translate(replace(gaussians(), path=None), [x], None, to="ant")


# ---------------------------------------------------------------- what is written, by a model as it is trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    flowplat.run("images", preset="digits-by-class", smoke=True, out=folder)
    return folder


def test_a_trained_model_writes_pictures_that_data_folder_reads(run, tmp_path):
    digits = Digits(DigitsConfig(conditional=True))
    real = everything(digits.train(), 12)
    digits.write(Batch(real.x1, real.condition), tmp_path)
    model = flowplat.load(run)
    summary = model.apply("translate", tmp_path / "images", out=tmp_path / "out", to=8, steps=20)
    assert (summary["pictures"], summary["classes_guessed"], summary["nfe"]) == (12, 0, 80)
    assert summary["round_trip_error"] < 0.05
    found = Folder(FolderConfig(path=tmp_path / "out" / "images", size=8, channels=1, conditional=True))
    assert found.names == ["8"]
    again = model.apply("translate", tmp_path / "images", to=8, steps=20)
    assert torch.allclose(pictures.scaled(found.loaded.x), again.x1.clamp(-1, 1), atol=1 / 250)
    with (tmp_path / "out" / "pictures.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["of"] for row in rows] == [str(k) for k in real.condition.tolist()]
    assert rows[3]["picture"] == f"{tmp_path}/images/00003.png"
    assert {row["to"] for row in rows} == {"8"}
    assert (Image.open(tmp_path / "out" / "sheet.png").width - 2) % 100 == 0  # pairs of cells of 50 pixels

    summary = model.apply("interpolate", tmp_path / "images", out=tmp_path / "way", frames=7, steps=20)
    assert (summary["frames"], summary["from"], summary["to"]) == (
        7, f"{tmp_path}/images/00000.png", f"{tmp_path}/images/00011.png"
    )  # fmt: skip
    assert Image.open(tmp_path / "way" / "strip.png").size == (7 * 50 + 2, 50 + 2 + 16)
    frames = sorted((tmp_path / "way" / "images").iterdir())
    assert len(frames) == 7
    shown = [pictures.read(frames[i].open("rb"), "frame", 1, 8) for i in (0, -1)]
    given = [pictures.read((tmp_path / "images" / f"{i:05d}.png").open("rb"), "given", 1, 8) for i in (0, 11)]
    assert np.abs(np.stack(shown).astype(int) - np.stack(given)).mean() < 8


def test_options_that_cannot_be_are_refused(run, tmp_path):
    model = flowplat.load(run)
    for options, message in (({"to": 3, "steps": 0}, "steps"), ({"to": 3, "frames": 5}, "frames"), ({"to": [3]}, "to")):
        with pytest.raises(UsageError, match=message):
            model.apply("translate", tmp_path, **options)
    with pytest.raises(UsageError, match="frames"):
        model.apply("interpolate", tmp_path, frames=1)


def test_the_code_of_the_readme_runs(run):
    readme = Path(__file__).parents[1] / "README.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    scope = {"run": run}
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["eights"].condition.tolist() == [8] * 4
    assert scope["way"].x1.shape == (5, 1, 8, 8)
