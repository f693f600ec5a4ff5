"""The data sets: what a run sees of them, and what a model elsewhere knows."""

import json

import numpy as np
import pytest
import torch

from flowcore.errors import InputError, UsageError
from flowplat_mri import slices
from flowplat_mri.data import Simulated, SimulatedConfig
from flowplat_mri.volumes import Volumes, VolumesConfig


def test_batches_are_as_the_spec_says(model):
    data = model.data
    spec, train = data.spec(), data.train()
    batch = train.batch(torch.arange(5), torch.Generator().manual_seed(0))
    assert batch.x1.shape == (5, *spec.state.shape)
    assert batch.condition.shape == (5, *spec.condition.shape)
    mask = batch.condition[:, -4:-3]
    assert not (batch.x1 * (1 - mask)).any()
    assert abs(float(batch.x1[mask > 0].mean())) < 0.6


def test_guises_differ_and_their_truth_does_not(model):
    data = Simulated(SimulatedConfig(resolution=6.0, subjects=1, held=1, guises=2, mirror=False))
    train = data.train()
    first = (train.rows[:, 1] == 0).nonzero().flatten()
    one = train.batch(first, torch.Generator().manual_seed(0))
    other = train.batch(first + 1, torch.Generator().manual_seed(0))
    assert torch.equal(one.x1, other.x1)
    assert not torch.equal(one.condition[:, 1], other.condition[:, 1])
    assert torch.equal(one.condition[:, 3:], other.condition[:, 3:])


def test_held_out_subjects_are_others_and_the_fingerprint_knows_all(model):
    train, held, _ = model.data.scans
    assert {one.name for one in train}.isdisjoint(one.name for one in held)
    same = Simulated(model.data.config)
    assert same.fingerprint() == model.data.fingerprint()
    assert model.data.tiny().fingerprint() != same.fingerprint()
    assert model.data.tiny().spec() == same.spec()


def test_a_model_elsewhere_knows_its_target_from_plain_json(model):
    told = json.loads(json.dumps(model.data.facts(), allow_nan=False))
    there = Simulated(model.data.config, told)
    assert there.spec() == model.data.spec()
    np.testing.assert_allclose(there.target.quantiles, model.data.target.quantiles, atol=1e-5)
    assert there.condition(2, None).shape == (2, *there.spec().condition.shape)


def test_every_brain_lies_in_the_frame(model):
    sizes = [slices.frame(one.mask)[1] for part in model.data.scans[:2] for one in part]
    assert (np.max(sizes, 0) <= model.data.shape).all()


def test_nothing_can_be_asked_for_in_words(model):
    with pytest.raises(UsageError, match="harmonize"):
        model.data.condition(1, "a brain")


def test_samples_are_written_read_back_and_shown(model, tmp_path):
    from flowcore.data import Batch

    batch = Batch(torch.randn(3, *model.data.spec().state.shape), model.data.condition(3, None))
    model.data.write(batch, tmp_path)
    assert torch.equal(model.data.read_back(tmp_path).x1, batch.x1)
    assert model.data.show(batch).startswith(b"\x89PNG")


def test_a_users_volumes_are_read_held_out_and_trained_on(tmp_path):
    data = Volumes(VolumesConfig(**Volumes.example(tmp_path)))
    train, held, voxel = data.scans
    assert [one.name for one in train + held] == ["sub-0_T1w", "sub-1_T1w", "sub-2_T1w"]
    assert len(held) == 1
    assert voxel == (6.0, 6.0, 6.0)
    assert len(data.val()) > 10
    assert data.target.scale.width > 100  # in the units of the files
    assert data.target.contrast == "T1w"
    again = Volumes(VolumesConfig(path=str(tmp_path), guises=1, voxel=9.0, contrast="PDw"))
    assert again.target.contrast == "PDw"
    assert again.scans[0][0].x.shape < train[0].x.shape


def test_one_volume_is_too_few(tmp_path):
    options = Volumes.example(tmp_path)
    for path in list(tmp_path.glob("*"))[1:]:
        path.unlink()
    with pytest.raises(InputError, match="two are needed"):
        _ = Volumes(VolumesConfig(**options)).scans
