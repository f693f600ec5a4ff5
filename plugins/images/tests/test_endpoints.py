"""endpoints: two sets of images, from one to the other."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from flowcore.data import Batch, everything
from flowcore.errors import InputError, UsageError
from flowcore.seeds import generator
from flowplat import load, run
from flowplat_images.data import Digits, DigitsConfig
from flowplat_images.endpoints import Endpoints, EndpointsConfig


def endpoints(**options):
    return Endpoints(EndpointsConfig(**options))


def digits(label):
    """Every digit of a class, as it should come."""
    everyone = everything(Digits(DigitsConfig()).train())
    return everyone.x1[everyone.extra["labels"] == label]


def among(x, images):
    """For each of x its row among the images, -1 where it is none of them."""
    same = (x.flatten(1)[:, None] == images.flatten(1)[None]).all(2)
    return torch.where(same.any(1), same.int().argmax(1), -1)


def pictures(folder, *colours):
    """One flat picture of each colour."""
    folder.mkdir(parents=True)
    for i, colour in enumerate(colours):
        Image.fromarray(np.full((10, 10, 3), colour, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_by_default_threes_become_eights():
    data = endpoints(holdout=0.2)
    batch = everything(data.train())
    assert (among(batch.x0, digits(3)) >= 0).all()
    assert (among(batch.x1, digits(8)) >= 0).all()
    assert len(batch.x1) == len(data.train()) == 139
    assert batch.condition is None
    assert data.names == []


def test_pairs_are_independent_and_drawn_by_the_generator():
    source, rows = endpoints().train(), torch.arange(32)
    one, again, other = (source.batch(rows, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.x0, again.x0)
    assert torch.equal(one.x1, other.x1)
    assert (one.x0 != other.x0).flatten(1).any(1).float().mean() > 0.8
    many = source.batch(torch.zeros(20_000, dtype=torch.int64), generator(2))  # one target with every source
    counts = torch.bincount(among(many.x0, digits(3)))
    counts = counts[counts > 0].double()
    assert len(counts) == len(source.source)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).mean() < 1.5  # as even as chance makes them


def test_sampling_begins_at_held_out_sources_each_as_often():
    data = endpoints(holdout=0.2)
    held = everything(data.val().source).x1
    assert not (among(held, everything(data.train().source).x1) >= 0).any()
    drawn = data.draw_source(2 * len(held) + 3, generator(0))
    counts = torch.bincount(among(drawn, held), minlength=len(held))
    assert sorted(counts.unique().tolist()) == [2, 3]
    assert torch.equal(drawn, data.draw_source(len(drawn), generator(0)))
    assert not torch.equal(drawn, data.draw_source(len(drawn), generator(1)))


def test_where_none_are_held_out_it_begins_at_the_sources_there_are():
    drawn = endpoints(holdout=0).draw_source(4, generator(0))
    assert (among(drawn, digits(3)) >= 0).all()


def test_ends_are_folders_zips_and_npz_as_well(tmp_path):
    pictures(tmp_path / "black", 0, 0, 0)
    white = np.full((4, 8, 8), 255, np.uint8)
    white[0] = 128
    np.savez(tmp_path / "white.npz", images=white, labels=["grey", "white", "white", "white"])
    data = endpoints(
        source={"path": tmp_path / "black"}, target={"path": tmp_path / "white.npz", "label": "white"}, size=8,
        channels=1, holdout=0,
    )  # fmt: skip
    batch = everything(data.train())
    assert data.spec().state.shape == (1, 8, 8)
    assert len(batch.x1) == 3
    assert (batch.x0 == -1).all()
    assert (batch.x1 == 1).all()


def test_the_source_is_mirrored_as_the_target_is():
    batch = endpoints(flip=True, holdout=0).train().batch(torch.arange(100), generator(0))
    for x, label in ((batch.x0, 3), (batch.x1, 8)):
        straight = among(x, digits(label)) >= 0
        assert (straight | (among(x.flip(-1), digits(label)) >= 0)).all()
        assert 20 < straight.sum() < 80


def test_its_tiny_version_has_some_of_both_ends():
    data = endpoints(source={}, target={})
    tiny = data.tiny()
    assert len(tiny.source.loaded.x) == len(tiny.loaded.x) == 128
    assert tiny.spec() == data.spec()


def test_the_fingerprint_is_of_both_ends():
    prints = {endpoints(source={"label": a}, target={"label": b}).fingerprint() for a, b in ("38", "37", "48", "83")}
    assert len(prints) == 4
    assert endpoints().fingerprint() in prints


def test_a_device_holds_both_ends():
    source = endpoints().train()
    moved = source.to(torch.device("cpu"))
    rows = torch.arange(8)
    assert torch.equal(source.batch(rows, generator(0)).x0, moved.batch(rows, generator(0)).x0)
    assert source.nbytes == source.source.nbytes + source.target.nbytes > 0


def test_a_trained_model_needs_the_source_alone(tmp_path):
    options = {
        "source": {"path": pictures(tmp_path / "from", 0, 50)}, "target": {"path": pictures(tmp_path / "to", 255)},
        "size": 8, "channels": 1,
    }  # fmt: skip
    facts = json.loads(json.dumps(endpoints(**options).facts()))
    (tmp_path / "to").rename(tmp_path / "gone")
    again = Endpoints(EndpointsConfig(**options), facts)
    assert again.spec().state.shape == (1, 8, 8)
    assert again.draw_source(3, generator(0)).shape == (3, 1, 8, 8)
    (tmp_path / "from").rename(tmp_path / "gone-too")
    with pytest.raises(InputError, match=r"from does not exist; data\.source\.path names"):
        Endpoints(EndpointsConfig(**options), facts).draw_source(3, generator(0))


def test_the_sheet_shows_what_each_sample_came_from():
    x0, x1 = torch.full((2, 1, 8, 8), -1.0), torch.full((2, 1, 8, 8), 1.0)
    page = np.asarray(Image.open(io.BytesIO(endpoints().show(Batch(x1, x0=x0)))).convert("L"))
    row = page[page.shape[0] // 2]
    assert set(row[[10, row.size - 10]].tolist()) == {0, 255}
    assert row[10] == 0  # black, then white
    assert endpoints().show(Batch(x1))[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"source": {"label": "three"}}, InputError, r"data\.source\.label: .* 'three'; the classes are 0, 1, 2"),
        ({"target": {"path": "/nowhere"}}, InputError, r"/nowhere does not exist; data\.target\.path names"),
        ({"target": {"path": "/nowhere.npz"}}, InputError, r"/nowhere\.npz does not exist; data\.target\.path"),
        ({"source": {"path": "FOLDER"}}, UsageError, r"data\.source has images of \(3, 32, 32\), data\.target of"),
        ({"source": {"path": "FOLDER", "label": "3"}}, InputError, r"is of class '3'; these have none"),
        ({"conditional": True}, UsageError, r"data\.conditional=true needs classes"),
    ],
)
def test_what_it_cannot_read_is_told(tmp_path, options, error, said):
    for one in options.values():
        if isinstance(one, dict) and one.get("path") == "FOLDER":
            one["path"] = pictures(tmp_path / "folder", 0)
    with pytest.raises(error, match=said):
        endpoints(**options).train()


@pytest.mark.parametrize("options", [{"source": 3}, {"source": {"name": "3"}}, {"path": "x"}])
def test_options_that_are_none(options):
    with pytest.raises(ValidationError):
        EndpointsConfig(**options)


TINY = ("train.steps=8", "eval.count=16", "eval.steps=[2]", "sample.count=4", "sample.batch_size=8", "network.width=16",
        "network.blocks=1", "engine.accelerator=cpu")  # fmt: skip


def test_a_run_goes_from_the_one_set_to_the_other(tmp_path):
    done = run("images", *TINY, preset="interpolant-3-to-8", out=tmp_path / "run")
    assert done.figures["paths"] == {}  # an interpolant's samples follow no one field
    assert done.figures["by_steps"][0]["nfe"] == 2
    held = everything(endpoints(holdout=0.2).val().source).x1
    ode, sde = load(done.folder), load(done.folder, "sample.sampler.epsilon=0.5")
    one, again, other = ode.sample(4, seed=1), ode.sample(4, seed=1), sde.sample(4, seed=1)
    assert (among(one.x0, held) >= 0).all()
    assert torch.equal(one.x1, again.x1)
    assert torch.equal(one.x0, other.x0)
    assert not torch.equal(one.x1, other.x1)


def test_a_rectified_flow_goes_there_too(tmp_path):
    done = run("images", *TINY, "data=endpoints", "eval.paths=8", preset="digits", out=tmp_path / "run")
    assert done.figures["paths"]["straightness"]["value"] >= 0
    drawn = load(done.folder).sample(4, seed=1)
    assert (among(drawn.x0, digits(3)) >= 0).all()
    with pytest.raises(UsageError, match="begins at samples of its data; train without pairs"):
        run("images", *TINY, "data=endpoints", f"teacher.model={done.folder}", "teacher.pairs.count=8",
            preset="rectified-flow", out=tmp_path / "second")  # fmt: skip


def test_a_coupling_does_not_pair_again(tmp_path):
    with pytest.raises(UsageError, match="pairs that are given are not coupled again"):
        run("images", *TINY, "coupling=exact", preset="interpolant-3-to-8", out=tmp_path / "run")
