import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from flowcore.errors import InputError
from flowplat_mri import geometry, reading, writing

FOLDER = Path(nibabel.__file__).parent / "tests" / "data"
FREE = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max", "vox_offset", "magic", "type"}
OBLIQUE = np.array([[1.9, 0.3, 0.1, -40], [-0.3, 1.9, 0.2, -50], [-0.1, -0.2, 2.1, -20], [0, 0, 0, 1]])


def same_header(before, after):
    """To the last bit, but for how numbers are stored."""
    assert type(before) is type(after)
    assert before.affine.tobytes() == after.affine.tobytes()
    for key in before.header:
        if key not in FREE:
            assert np.asarray(before.header[key]).tobytes() == np.asarray(after.header[key]).tobytes(), key
    if isinstance(before, nibabel.Nifti1Pair):
        for which in ("get_sform", "get_qform"):
            one, other = (getattr(image, which)(coded=True) for image in (before, after))
            assert one[1] == other[1]
            assert (one[0] is None) == (other[0] is None)
            assert one[0] is None or one[0].tobytes() == other[0].tobytes()
        assert [e.get_content() for e in before.header.extensions] == [e.get_content() for e in after.header.extensions]


@pytest.mark.parametrize(
    "name",
    [
        "anatomical.nii", "functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "reoriented_anat_moved.nii",
        "test.mgz",
    ],
)  # fmt: skip
def test_headers_of_nibabels_images_come_back_to_the_last_bit(name, tmp_path):
    before = nibabel.load(FOLDER / name)
    data = before.get_fdata(dtype=np.float32)
    writing.save(tmp_path / name, writing.like(before, data))
    after = nibabel.load(tmp_path / name)
    same_header(before, after)
    assert after.get_data_dtype().newbyteorder("=") == np.float32
    np.testing.assert_array_equal(np.asarray(after.dataobj), data)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".mgh"])
@pytest.mark.parametrize("axes", ["RAS", "LAS", "RPI", "PSR", "oblique"])
def test_every_orientation_and_format_comes_back_through_ras(axes, ending, save, tmp_path):
    affine = OBLIQUE.copy()
    if axes != "oblique":
        wanted = nibabel.orientations.axcodes2ornt(axes)
        turn = nibabel.orientations.inv_ornt_aff(wanted, (5, 6, 7))
        affine = np.diag([1.0, 1.5, 2.0, 1.0]) @ np.linalg.inv(turn)
        affine[:3, 3] = (3.5, -2.25, 7.125)
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    volume = reading.read(save(f"in{ending}", data, affine))
    space = geometry.canonical(volume.data, volume.affine)
    if axes != "oblique":
        assert nibabel.aff2axcodes(volume.affine) == tuple(axes)
    writing.save(tmp_path / f"out{ending}", writing.like(volume.image, space.back(space.data)))
    after = reading.read(tmp_path / f"out{ending}")
    same_header(volume.image, after.image)
    np.testing.assert_array_equal(after.data, data)


@pytest.mark.parametrize(("sform", "qform"), [*itertools.product((0, 1, 2, 4), (1, 2, 3)), (3, 0)])
def test_codes_units_and_extensions_are_kept(sform, qform, save, tmp_path):
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), OBLIQUE)
    image.set_sform(OBLIQUE if sform else None, code=sform)
    image.set_qform(np.diag([2.0, 2, 2, 1]) if qform else None, code=qform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"kept"
    image.header["intent_code"] = 1001
    image.header["pixdim"][4:] = (1, 2, 3, 4)
    image.header.set_slope_inter(0.5, -3)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept too"))
    volume = reading.read(save("in.nii.gz", image))
    writing.save(tmp_path / "out.nii.gz", writing.like(volume.image, volume.data))
    after = reading.read(tmp_path / "out.nii.gz")
    same_header(volume.image, after.image)
    np.testing.assert_array_equal(after.data, volume.data)
    assert not np.array_equal(volume.data, volume.data.round())  # scaled, and not rounded again


def test_a_header_that_contradicts_its_affine_is_refused():
    image = nibabel.load(FOLDER / "anatomical.nii")
    image.affine[0, 3] += 5
    with pytest.raises(InputError, match=r"contradicts itself in .*srow_x"):
        writing.like(image, np.zeros(image.shape))


def test_the_same_image_is_the_same_bytes(tmp_path):
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        writing.save(tmp_path / name, image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())) == 352 + 4 * 64
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", "b.nii.gz"}
