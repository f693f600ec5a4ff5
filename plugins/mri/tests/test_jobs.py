from pathlib import Path

import pytest

from flowcore.errors import InputError
from flowplat_mri.jobs import jobs


@pytest.fixture
def touch(tmp_path):
    """``touch("a/b.nii", ...)`` makes empty files, and is the folder they are in."""

    def made(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return made


def places(found):
    return [job.place.as_posix() for job in found]


def test_a_folder_is_its_scans_in_order(touch):
    root = touch("b.nii", "a.nii.gz", "deep/c.mgz", "a_brainmask.nii.gz", "deep/lesion.nii", "notes.txt", ".d.nii",
                 "b_harmonized.nii")  # fmt: skip
    found = jobs([root])
    assert places(found) == ["a_harmonized.nii.gz", "b_harmonized.nii", "deep/c_harmonized.mgz"]
    assert [job.subject for job in found] == ["a", "b", "deep/c"]
    assert places(jobs([root], match="b.")) == ["b_harmonized.nii"]
    with pytest.raises(InputError, match=r"holds no volume with xyz in its name"):
        jobs([root], match="xyz")


def test_a_bids_root_is_its_images_of_one_contrast(touch):
    root = touch(
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii", "sub-02/ses-a/anat/x_T1w.nii",
        "sub-01/anat/sub-01_T2w.nii.gz", "derivatives/old/sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz",
        "sub-03/func/sub-03_bold.nii.gz",
    )  # fmt: skip
    found = jobs([root])
    assert places(found) == [
        "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-2_desc-harmonized_T1w.nii",
    ]
    assert [job.subject for job in found] == ["sub-01", "sub-02_ses-a_run-2"]
    assert places(jobs([root], "T2w")) == ["sub-01/anat/sub-01_desc-harmonized_T2w.nii.gz"]
    with pytest.raises(InputError, match=r"holds no sub-\*/\[ses-\*/\]anat/\*_FLAIR"):
        jobs([root], "FLAIR")


def test_a_list_names_volumes_and_their_masks(touch):
    root = touch("scans/a.nii", "m.nii")
    (root / "list.csv").write_text("subject,path,mask,lesion\nann,scans/a.nii,m.nii,\nbob,scans/a.nii,,\n")
    ann, bob = jobs([root / "list.csv"])
    assert (ann.path, ann.mask, ann.lesion) == (root / "scans/a.nii", root / "m.nii", None)
    assert places([ann, bob]) == ["ann/a_harmonized.nii", "bob/a_harmonized.nii"]
    assert bob.mask is None
    (root / "bad.csv").write_text("file\na.nii\n")
    with pytest.raises(InputError, match=r"bad.csv has no column 'path'"):
        jobs([root / "bad.csv"])
    (root / "bad.csv").write_text("path,subject\n,ann\n")
    with pytest.raises(InputError, match=r"bad.csv line 2 has no path"):
        jobs([root / "bad.csv"])
    (root / "bad.csv").write_text("path,subject\na.nii,../ann\n")
    with pytest.raises(InputError, match=r"line 2: subject '../ann' is no name for a file"):
        jobs([root / "bad.csv"])


def test_masks_are_found_by_name(touch):
    root = touch("in/a.nii", "in/b.nii", "masks/a.nii.gz", "masks/b_mask.nii", "les/b.nii")
    first, second = jobs([root / "in"], mask=root / "masks", lesion=root / "les")
    assert (first.mask, second.mask) == (root / "masks/a.nii.gz", root / "masks/b_mask.nii")
    assert (first.lesion, second.lesion) == (None, root / "les/b.nii")  # who has no lesion needs no mask of it
    with pytest.raises(InputError, match=r"les has no file for a.nii"):
        jobs([root / "in"], mask=root / "les")
    with pytest.raises(InputError, match=r"a.nii.gz is one mask for 2 volumes"):
        jobs([root / "in"], mask=root / "masks/a.nii.gz")
    assert jobs([root / "in/a.nii"], mask=root / "masks/a.nii.gz")[0].mask == root / "masks/a.nii.gz"


def test_what_would_be_written_twice_or_is_not_there_is_refused(touch):
    root = touch("x/a.nii", "y/a.nii")
    with pytest.raises(InputError, match=r"x/a.nii and .*y/a.nii would both be written to a_harmonized.nii"):
        jobs([root / "x", root / "y"])
    with pytest.raises(InputError, match=r"nowhere is not there"):
        jobs([Path("nowhere")])
    with pytest.raises(InputError, match="no volume is named"):
        jobs([])
