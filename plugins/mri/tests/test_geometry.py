import itertools

import nibabel
import numpy as np
import pytest

from flowcore.errors import InputError
from flowplat_mri import geometry


def test_all_48_orders_of_axes_go_to_ras_and_exactly_back():
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    spacing = np.array([1.0, 2.0, 3.0])
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis in range(3):  # the file's axis leads along order[axis]
                affine[order[axis], axis] = signs[axis] * spacing[axis]
            space = geometry.canonical(data, affine)
            theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))
            np.testing.assert_array_equal(space.data, np.asarray(theirs.dataobj))
            assert space.voxel == pytest.approx(theirs.header.get_zooms())
            np.testing.assert_array_equal(space.back(space.data), data)


def test_an_axis_without_direction_is_refused():
    with pytest.raises(InputError, match=r"scan.nii has an affine that gives an axis no direction"):
        geometry.canonical(np.zeros((2, 2, 2)), np.diag([1.0, 0, 1, 1]), "scan.nii")
    with pytest.raises(InputError, match="no direction"):
        geometry.canonical(np.zeros((2, 2, 2)), np.full((4, 4), np.nan))


def test_a_ramp_in_mm_stays_a_ramp_in_mm():
    centres = 1.5 * (np.arange(40) + 0.5)
    ramp = np.broadcast_to(centres[:, None, None], (40, 8, 8)).astype(np.float32)
    coarse = geometry.resampled(ramp, (1.5, 1, 1), (3, 1, 1))
    assert coarse.shape == (20, 8, 8)
    np.testing.assert_allclose(coarse[3:-3, 4, 4], (3 * (np.arange(20) + 0.5))[3:-3], rtol=1e-5)
    back = geometry.onto(coarse, ramp.shape)
    np.testing.assert_allclose(back[8:-8], ramp[8:-8], rtol=1e-5)


def test_a_fifth_off_is_resampled_and_less_is_not():
    assert not geometry.differs((2.0, 2.0, 2.3), (2, 2, 2))
    assert geometry.differs((2.0, 2.0, 2.5), (2, 2, 2))
    assert geometry.differs((2.0, 1.5, 2.0), (2, 2, 2))
