import csv
import json
import re

import nibabel
import numpy as np
import pytest

from flowcore.errors import InputError, UsageError
from flowplat_mri import evaluating, harmonise, simulating, tasks


@pytest.fixture
def tree(brain, save, tmp_path):
    """A BIDS root of two subjects, one of them with sessions."""
    save("bids/sub-01/anat/sub-01_T1w.nii.gz", brain("S3", 1))
    save("bids/sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", brain("S5", 2))
    save("bids/sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz", brain("T2w", 2))
    return tmp_path / "bids"


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_bids_root_becomes_a_tree_of_derivatives(model, tree, tmp_path):
    out = tmp_path / "out"
    found = tasks.harmonize(model, [tree], out)
    assert (found["done"], found["skipped"], found["failed"]) == (2, 0, {})
    assert files_of(out) == [
        "dataset_description.json",
        "quality.html",
        "sub-01/anat/sub-01_desc-harmonized_T1w.json",
        "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-harmonized_T1w.json",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-harmonized_T1w.nii.gz",
        "summary.csv",
    ]
    told = json.loads((out / "dataset_description.json").read_text())
    assert (told["DatasetType"], told["DatasetLinks"]) == ("derivative", {"raw": "../bids"})
    assert told["GeneratedBy"][0]["Name"] == "flowplat-mri"
    note = json.loads((out / "sub-01/anat/sub-01_desc-harmonized_T1w.json").read_text())
    assert note["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert (note["Parameters"]["seed"], note["SkullStripped"]) == (0, True)
    before = nibabel.load(tree / "sub-01/anat/sub-01_T1w.nii.gz")
    after = nibabel.load(out / "sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz")
    for key in before.header:
        if key not in ("cal_max", "cal_min"):
            assert np.asarray(before.header[key]).tobytes() == np.asarray(after.header[key]).tobytes(), key
    source, result = (np.asarray(image.dataobj) for image in (before, after))
    assert not result[source == 0].any()
    assert result[source > 0].all()
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [(row["subject"], row["status"]) for row in rows] == [("sub-01", "done"), ("sub-02_ses-a", "done")]
    assert all(float(row["w1_after"]) < float(row["w1_before"]) for row in rows)
    page = (out / "quality.html").read_text()
    assert len(re.findall(r'<tr><td><a href="#v\d">', page)) == 2
    assert len(page) < 2_000_000


def test_what_is_done_is_not_done_again(model, tree, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    tasks.harmonize(model, [tree], out)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = tasks.harmonize(model, [tree], out)
    assert (again["done"], again["skipped"]) == (0, 2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == first
    (out / "sub-01/anat/sub-01_desc-harmonized_T1w.json").unlink()  # killed before it was whole
    assert tasks.harmonize(model, [tree], out)["done"] == 1
    tasks.harmonize(model, [tree], other)
    for name in files_of(out):
        if name.endswith((".nii.gz", ".json")):
            assert (out / name).read_bytes() == (other / name).read_bytes(), name
    with pytest.raises(InputError, match=r"sub-01_desc-harmonized_T1w.nii.gz was made with seed=0 and not 1"):
        tasks.harmonize(model, [tree], out, seed=1)
    assert tasks.harmonize(model, [tree], out, range="target", overwrite=True)["done"] == 2
    (tree / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(
        (tree / "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz").read_bytes()
    )
    with pytest.raises(InputError, match=r"was made of another .*sub-01_T1w.nii.gz"):
        tasks.harmonize(model, [tree], out)


def test_one_bad_file_does_not_stop_the_others(model, brain, save, tmp_path):
    save("in/a.nii.gz", brain("S3"))
    save("in/b.nii.gz", brain("T2w"))
    torn = save("in/c.nii.gz", brain("S1"))
    torn.write_bytes(torn.read_bytes()[:2000])
    save("in/d.mgz", nibabel.MGHImage(np.asarray(brain("S5").dataobj), brain("S5").affine))
    found = tasks.harmonize(model, [tmp_path / "in"], tmp_path / "out")
    assert found["done"] == 2
    assert [path.rpartition("/")[2] for path in found["failed"]] == ["b.nii.gz", "c.nii.gz"]
    (inverted, unreadable) = found["failed"].values()
    assert re.search(r"b.nii.gz looks inverted against the model's T1w, correlating -0.\d+ .* force=true", inverted)
    assert "c.nii.gz cannot be read as a volume" in unreadable
    rows = {row["source"].rpartition("/")[2]: row for row in csv.DictReader((tmp_path / "out/summary.csv").open())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.nii.gz": "done", "b.nii.gz": "failed", "c.nii.gz": "failed", "d.mgz": "done",
    }  # fmt: skip
    assert "cannot be read" in rows["c.nii.gz"]["error"]
    assert "cannot be read" in (tmp_path / "out/quality.html").read_text()
    forced = tasks.harmonize(model, [tmp_path / "in/b.nii.gz"], tmp_path / "forced.nii.gz", force=True)
    assert "contrast looks inverted" in forced["flags"][0]
    with pytest.raises(InputError, match=r"none of 2 volumes could be harmonized; the first: .*b.nii.gz looks"):
        tasks.harmonize(model, [tmp_path / "in/b.nii.gz", torn], tmp_path / "none")
    with pytest.raises(InputError, match=r"c.nii.gz cannot be read"):
        tasks.harmonize(model, [torn], tmp_path / "none")


@pytest.mark.parametrize("voxel", [6.0, 4.0])
def test_a_change_of_nothing_gives_the_same_voxels(model, brain, voxel, monkeypatch, save, tmp_path):
    def nothing(trained, x, mask, **options):
        return harmonise.Harmonized(x, None, x, x, 0.0)

    monkeypatch.setattr(harmonise, "harmonize", nothing)
    source = nibabel.as_closest_canonical(brain("S1", 3, voxel))
    turned = source.as_reoriented(nibabel.orientations.axcodes2ornt("PSR"))
    path = save("in.nii.gz", turned)
    tasks.harmonize(model, [path], tmp_path / "out.nii.gz", range="source", background="keep")
    before, after = nibabel.load(path), nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
    assert before.affine.tobytes() == after.affine.tobytes()


def test_lesions_are_protected_by_histogram_matching(model, brain, monkeypatch, save, tmp_path):
    def erasing(trained, x, mask, **options):
        return harmonise.Harmonized(np.full_like(x, 0.5), None, 2 * x, x, 1.0)

    monkeypatch.setattr(harmonise, "harmonize", erasing)
    image = brain("S1", 3)
    lesion = np.zeros(image.shape, np.uint8)
    lesion[14:17, 20:24, 14:17] = 1
    path, mask = save("in.nii.gz", image), save("lesion.nii.gz", nibabel.Nifti1Image(lesion, image.affine))
    told = {}
    for protect in (True, False):
        out = tmp_path / f"{protect}.nii.gz"
        tasks.harmonize(model, [path], out, lesion=str(mask), protect=protect, range="source")
        told[protect] = json.loads((tmp_path / f"{protect}.json").read_text())["Metrics"]
        result = np.asarray(nibabel.load(out).dataobj)[lesion > 0]
        assert (result.std() > 1) == protect
    assert told[True]["lesion_ncc"] > 0.999
    assert told[False]["lesion_ncc"] < 0.1
    assert told[False]["lesion_change"] > 0


def test_a_mask_that_is_given_is_the_mask(model, brain, save, tmp_path):
    image = brain("S1", 3)
    half = np.asarray(image.dataobj) > 0
    half[: half.shape[0] // 2] = False
    mask = save("mask.nii.gz", nibabel.Nifti1Image(half.astype(np.uint8), image.affine))
    path = save("in.nii.gz", image)
    tasks.harmonize(model, [path], tmp_path / "out.nii.gz", mask=str(mask), background="keep")
    before, after = (np.asarray(nibabel.load(p).dataobj) for p in (path, tmp_path / "out.nii.gz"))
    np.testing.assert_array_equal(before[~half], after[~half])
    assert (before[half] != after[half]).mean() > 0.99
    small = save("small.nii.gz", nibabel.Nifti1Image(half[1:].astype(np.uint8), image.affine))
    with pytest.raises(InputError, match=r"small.nii.gz is of shape .*, and .*in.nii.gz of"):
        tasks.harmonize(model, [path], tmp_path / "no.nii.gz", mask=str(small))


def test_where_it_goes_is_settled_before_anything_is_done(model, brain, save, tmp_path):
    path, other = save("in/a.nii.gz", brain("S1")), save("in/b.nii.gz", brain("S2"))
    with pytest.raises(UsageError, match="one file, and there are 2 volumes"):
        tasks.harmonize(model, [path, other], tmp_path / "out.nii.gz")
    with pytest.raises(UsageError, match="of another format"):
        tasks.harmonize(model, [path], tmp_path / "out.mgz")
    with pytest.raises(UsageError, match=r"in/a.nii.gz would be written over"):
        tasks.harmonize(model, [path], path)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="is a file of another kind"):
        tasks.harmonize(model, [path], tmp_path / "note.txt")
    assert files_of(tmp_path) == ["in/a.nii.gz", "in/b.nii.gz", "note.txt"]


def test_from_python_an_image_in_is_an_image_out(model, brain):
    (image,) = tasks.harmonize(model, [brain("S5")], None)
    assert image.get_data_dtype() == np.float32
    assert image.affine.tobytes() == brain("S5").affine.tobytes()
    (again,) = tasks.harmonize(model, [brain("S5")], None)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(again.dataobj))


def test_spread_and_the_page_made_again(model, brain, save, tmp_path):
    path, out = save("in/a.nii.gz", brain("S5")), tmp_path / "out"
    tasks.harmonize(model, [path], out, samples=2, steps=1, spread=True, weight=1.0)
    spread = np.asarray(nibabel.load(out / "a_spread.nii.gz").dataobj)
    assert spread.min() >= 0
    assert (spread[np.asarray(brain("S5").dataobj) > 0] > 0).mean() > 0.9
    tasks.harmonize(model, [path], tmp_path / "one.nii.gz", samples=2, steps=1, spread=True, weight=1.0)
    assert (tmp_path / "one.nii.gz").read_bytes() == (out / "a_harmonized.nii.gz").read_bytes()
    assert (tmp_path / "one_spread.nii.gz").read_bytes() == (out / "a_spread.nii.gz").read_bytes()
    found = tasks.qc(model, [out], tmp_path / "page.html")
    assert (found["volumes"], found["failed"]) == (1, {})
    assert (tmp_path / "page.html").read_text() == (out / "quality.html").read_text()
    (tmp_path / "list.csv").write_text("subject,path,harmonized\nann,in/a.nii.gz,out/a_harmonized.nii.gz\n")
    figures = tasks.qc(model, [tmp_path / "list.csv"], None)["ann"]
    noted = json.loads((out / "a_harmonized.json").read_text())["Metrics"]
    assert figures["ncc"] == pytest.approx(noted["ncc"], abs=1e-4)
    path.unlink()
    with pytest.raises(InputError, match=r"none of 1 pairs can be compared; the first: .*a.nii.gz is not there"):
        tasks.qc(model, [out], tmp_path / "gone.html")


def test_simulated_scans_are_what_evaluate_measures(model, tmp_path):
    out = tmp_path / "sim"
    told = simulating.simulated(None, [], out, count=1, scanners=("target", "S3", "gamma0.7", "T2w"), resolution=6.0)
    assert told["subjects"] == 1
    assert [name for name in files_of(out) if name.startswith("sub")] == [
        f"sub-01/ses-{s}/anat/sub-01_ses-{s}_{c}.nii.gz"
        for s, c in (("S3", "T1w"), ("T2w", "T2w"), ("gamma07", "T1w"), ("target", "T1w"))
    ]
    means = evaluating.evaluate(model, [out / "pairs.csv"], None, weight=0.0)
    assert set(means) == {"S3", "gamma0.7", "T2w"}
    for ways in means.values():  # a prior of no weight is histogram matching
        assert ways["harmonized"]["psnr"] == pytest.approx(ways["matched"]["psnr"], abs=1e-2)
        assert 0 < ways["matched"]["dice_gm"] <= 1
    gamma = means["gamma0.7"]
    assert gamma["matched"]["psnr"] > gamma["unchanged"]["psnr"] + 0.5
    found = evaluating.evaluate(model, [out / "pairs.csv"], tmp_path / "table.csv")
    assert set(found["psnr_above_histogram_matching"]) == set(means)
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 3 * 4
    with pytest.raises(InputError, match=r"sim is no CSV list"):
        evaluating.evaluate(model, [out], None)
    with pytest.raises(UsageError, match="no scanner 'S9'; there are target"):
        simulating.simulated(None, [], out, scanners=("S9",))


def test_a_mask_that_comes_later_is_no_reason_to_skip(model, brain, save, tmp_path):
    path, out = save("in.nii.gz", brain("S1", 3)), tmp_path / "out"
    mask = save("mask.nii.gz", brain("S1", 3))
    tasks.harmonize(model, [path], out)
    with pytest.raises(InputError, match=r"was made with mask=derived and not ../mask.nii.gz"):
        tasks.harmonize(model, [path], out, mask=str(mask))
    assert tasks.harmonize(model, [path], out, force=True)["skipped"] == 1  # it would change nothing
    with pytest.raises(UsageError, match="spread is how much draws differ: set samples=2"):
        tasks.harmonize(model, [path], out, spread=True)
    more = {"samples": 2, "steps": 1, "overwrite": True}
    assert tasks.harmonize(model, [path], out, **more)["done"] == 1
    assert tasks.harmonize(model, [path], out, **more | {"overwrite": False}, spread=True)["done"] == 1
    assert tasks.harmonize(model, [path], out, **more | {"overwrite": False}, spread=True)["skipped"] == 1
