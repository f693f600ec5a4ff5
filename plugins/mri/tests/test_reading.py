import nibabel
import numpy as np
import pytest

from flowcore.errors import InputError
from flowplat_mri import reading
from flowplat_mri.prepared import prepared

NOISE = np.random.default_rng(0).normal(100, 10, (12, 12, 12)).astype(np.float32)


def refused(path, words):
    with pytest.raises(InputError) as caught:
        prepared(reading.read(path), None, (2, 2, 2))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bad_volume_is_one_line_with_its_file(save, tmp_path):
    holed = NOISE.copy()
    holed[3, 3, 3] = np.nan
    refused(save("nan.nii", holed), "has 1 voxels that are NaN or infinite")
    refused(save("zero.nii.gz", np.zeros((12, 12, 12), np.float32)), "has the value 0 everywhere")
    refused(save("four.nii", np.stack([NOISE] * 3, -1)), "is 3 volumes in one, of shape (12, 12, 12, 3)")
    refused(save("slice.nii", NOISE[:, :, :1]), "is one slice, of shape (12, 12, 1)")
    refused(save("flat.nii", NOISE[:, :, 0]), "is 2D, of shape (12, 12)")
    refused(save("complex.nii", NOISE.astype(np.complex64)), "complex64 and not one real number a voxel")
    lost = nibabel.Nifti1Image(NOISE, np.eye(4))
    lost.set_sform(None, code=0)
    lost.set_qform(None, code=0)
    refused(save("lost.nii", lost), "has neither sform nor qform")
    refused(save("flat-axis.mgz", NOISE, np.diag([0.0, 1, 1, 1])), "an axis no direction")
    refused(tmp_path / "missing.nii", "is not there")
    (tmp_path / "note.txt").write_text("no volume")
    refused(tmp_path / "note.txt", "its name ends in none of .nii.gz, .nii")
    for name in ("torn.nii.gz", "torn.mgz", "torn.nii"):
        whole = save(name, NOISE).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / name, "cannot be read as a volume")
    (tmp_path / "empty.nii").write_bytes(b"")
    refused(tmp_path / "empty.nii", "cannot be read as a volume")


def test_an_image_without_affine_is_refused():
    with pytest.raises(InputError, match="image 0 has no affine"):
        reading.of_image(nibabel.Nifti1Image(NOISE, None), "image 0")


def test_a_fourth_axis_of_one_volume_is_read(save):
    volume = reading.read(save("one.nii", NOISE[..., None]))
    assert volume.data.shape == (12, 12, 12)
    assert volume.shape == (12, 12, 12, 1)


def test_a_mask_must_lie_where_its_volume_does(save):
    volume = reading.read(save("a.nii", NOISE))
    ones = np.ones((12, 12, 12), np.uint8)
    assert reading.read_mask(save("mask.nii", ones), volume).all()
    with pytest.raises(InputError, match=r"small.nii is of shape \(11, 12, 12\), and .*a.nii of \(12, 12, 12\)"):
        reading.read_mask(save("small.nii", ones[1:]), volume)
    with pytest.raises(InputError, match=r"moved.nii lies elsewhere than .*a.nii"):
        reading.read_mask(save("moved.nii", ones, np.diag([2.0, 2, 2.5, 1])), volume)
    with pytest.raises(InputError, match=r"none.nii is empty"):
        reading.read_mask(save("none.nii", 0 * ones), volume)
