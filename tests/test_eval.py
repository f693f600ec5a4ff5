"""Measuring samples that are files, as a user would: pictures of any origin against pictures on the disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowcore.data import Batch
from flowcore.seeds import generator
from flowplat_images.data import Digits, DigitsConfig

ASKED = ("data=folder", "data.path=real/images", "data.size=8", "data.channels=1", "eval.metrics=[frechet, kernel]",
         "engine.threads=1", "--json")  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with half of the digits in ``real``, 400 of the other half in ``others``, the same as bare pictures
    twice or three times the size in ``mixed``, and noise in ``noise``."""
    home = tmp_path_factory.mktemp("pictures")
    digits = Digits(DigitsConfig(conditional=True))
    order = torch.randperm(1797, generator=generator(0, "halves"))
    draws = generator(0, "noise")
    for name, samples in (
        ("real", digits.train().batch(order[:897], draws)),
        ("others", digits.train().batch(order[897:1297], draws)),
        ("noise", Batch(torch.randn(400, 1, 8, 8, generator=draws))),
    ):
        (home / name).mkdir()
        digits.write(samples, home / name)
    (home / "mixed").mkdir()
    for i, path in enumerate(sorted((home / "others" / "images").glob("*.png"))):
        larger = (2 + i % 2) * 8
        Image.open(path).resize((larger, larger), Image.Resampling.NEAREST).save(home / "mixed" / path.name)
    return home


def test_real_pictures_score_the_floor_or_better_and_noise_like_noise(
    pictures: Path, warm: Callable[..., Any], tmp_path: Path
) -> None:
    measured = {}
    for name in ("others", "mixed", "noise"):
        done = warm("eval", "images", name, *ASKED, "-o", tmp_path / name, cwd=pictures)
        assert done.wait() == 0, done.err
        told = json.loads(done.out)
        assert told == json.loads((tmp_path / name / "metrics.json").read_text())
        assert (told["count"], told["by_steps"][0]["steps"]) == (400, None)
        measured[name] = told["by_steps"][0]["figures"]
    real, noise = measured["others"], measured["noise"]
    for figure in ("frechet", "kernel"):  # one judge for both: what the reference measures is the same to the last bit
        assert (real[figure]["floor"], real[figure]["baselines"]) == (
            noise[figure]["floor"],
            noise[figure]["baselines"],
        )
        assert real[figure]["value"] < real[figure]["baselines"]["gaussian"] / 3
        assert noise[figure]["value"] == pytest.approx(noise[figure]["baselines"]["noise"], rel=0.1)
        assert measured["mixed"][figure]["value"] < real[figure]["baselines"]["gaussian"] / 2  # LANCZOS blurs them
    assert real["frechet"]["value"] < real["frechet"]["floor"]


def test_pictures_that_do_not_fit_are_told_in_a_line(pictures: Path, warm: Callable[..., Any], tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    Digits(DigitsConfig()).write(Batch(torch.zeros(3, 1, 9, 8)), grey)
    empty, text = tmp_path / "empty", tmp_path / "text"
    for folder in (empty, text):
        folder.mkdir()
    (text / "0.png").write_text("no picture")
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "samples.npz").write_bytes((grey / "samples.npz").read_bytes()[:-40])
    told_of = {grey: "images of (1, 9, 8), the data are of (1, 8, 8)", empty: "holds no .png or .jpg file",
               text: "0.png is no picture", torn: "cannot be read as an .npz"}  # fmt: skip
    for folder, told in told_of.items():
        done = warm("eval", "images", folder, *ASKED, "-o", tmp_path / "out", cwd=pictures)
        assert (done.wait(), done.out) == (2, "")
        assert str(folder) in done.err
        assert told in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
