import numpy as np
import pytest
from scipy import ndimage

from flowcore.errors import InputError
from flowplat_mri import masking, reading, scaling
from flowplat_mri.prepared import prepared


def ball(size, radius):
    axes = np.indices((size,) * 3) - (size - 1) / 2
    return (axes**2).sum(0) < radius**2


def test_a_brain_without_skull_is_what_is_not_background():
    inside = ball(24, 9)
    volume = np.where(inside, np.random.default_rng(0).uniform(5, 9, inside.shape), -3)
    volume[12, 12, 12] = -3  # a hole, as clipping makes them
    np.testing.assert_array_equal(masking.brain(volume), inside)


def test_a_head_in_noise_is_its_largest_component():
    inside, rng = ball(24, 8), np.random.default_rng(0)
    volume = np.abs(rng.normal(0, 1, inside.shape)) + 30 * inside
    volume[12, 12, 12] = 0
    volume[1, 1, 1:3] = 40  # bright, and no part of the head
    np.testing.assert_array_equal(masking.brain(volume), inside)


def test_percentiles_of_the_mask_are_0_and_1():
    values = np.linspace(0, 1000, 1001).reshape(7, 11, 13)
    mask = np.ones(values.shape, bool)
    scale = scaling.robust(values, mask)
    assert (scale.low, scale.high) == pytest.approx((5, 995))
    np.testing.assert_allclose(scale.undo(scale.apply(values)), values, atol=1e-3)
    with pytest.raises(InputError, match=r"a.nii has one value, 3, wherever its mask is"):
        scaling.robust(np.full((2, 2, 2), 3.0), np.ones((2, 2, 2), bool), "a.nii")


def test_the_models_view_and_the_way_back(save):
    rng = np.random.default_rng(0)
    inside = ball(40, 16)
    volume = np.where(inside, ndimage.gaussian_filter(rng.normal(size=inside.shape), 3) * 100 + 50, 0)
    affine = np.diag([-1.0, 1, 1, 1])
    seen = prepared(reading.read(save("a.nii", volume.astype(np.float32), affine)), None, (2, 2, 2))
    assert seen.x.shape == (20, 20, 20)
    np.testing.assert_array_equal(seen.space.back(seen.own_mask), inside)
    own = np.where(inside, seen.scale.apply(volume), 0)[::-1]
    np.testing.assert_allclose(seen.own, own)
    eighths = own.reshape(20, 2, 20, 2, 20, 2).mean((1, 3, 5))
    middle = ball(20, 6)
    assert np.abs(seen.x - eighths)[middle].max() < 0.03
    np.testing.assert_allclose(seen.to_model(seen.own), seen.x)
    assert not seen.onto_own(np.ones_like(seen.x))[~seen.own_mask].any()
    np.testing.assert_allclose(seen.onto_own(np.ones_like(seen.x))[seen.own_mask], 1)


def test_too_small_a_mask_is_refused(save):
    volume = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    mask = np.zeros((12, 12, 12), bool)
    mask[:3, :3, :3] = True
    with pytest.raises(InputError, match=r"a.nii has a mask of 27 voxels"):
        prepared(reading.read(save("a.nii", volume)), mask, (2, 2, 2))
    with pytest.raises(InputError, match=r"a.nii is of 27 voxels of the model's \(8, 8, 8\) mm; too few"):
        prepared(reading.read(save("a.nii", volume)), np.ones((12, 12, 12), bool), (8, 8, 8))
