"""What xTB, density functional theory and the judge say of a user's molecules."""

import csv
import json
import math

import numpy as np
import pytest

from flowcore.errors import InputError, UsageError
from flowplat_molecules import dft, xtb
from flowplat_molecules.checking import score, validate

WATER = np.array([[-0.0344, 0.9775, 0.0076], [0.0648, 0.0206, 0.0015], [0.8718, 1.3008, 0.0007]])  # gdb_3 of QM9


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_xtb_knows_water() -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("dftd4")
    told = xtb.properties([8, 1, 1], WATER)
    assert 1.8 < told["mu"] < 2.6  # 1.85 D by experiment
    assert told["gap"] == pytest.approx(told["lumo"] - told["homo"])
    assert xtb.properties([8, 1, 1], WATER, cv=True)["cv"] == pytest.approx(6.002, abs=0.03)  # QM9's, by DFT
    turned = WATER @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].T + 5
    assert list(xtb.properties([8, 1, 1], turned).values()) == pytest.approx(list(told.values()), abs=1e-6)
    nothing = [xtb.properties([8, 1], WATER[:2]), xtb.properties([8, 1, 1], np.full((3, 3), math.nan))]
    assert all(math.isnan(value) for one in nothing for value in one.values())
    assert math.isfinite(xtb.properties([8, 1], WATER[:2], charge=-1)["mu"])  # hydroxide


def test_dft_agrees_with_qm9_on_water() -> None:
    """QM9's third molecule: mu 1.8511 D, alpha 6.31 bohr^3, homo -0.2928, lumo 0.0687 Ha."""
    pytest.importorskip("pyscf")
    told = dft.properties([8, 1, 1], WATER, grid=2)
    assert told["mu"] == pytest.approx(1.8511, abs=0.02)
    assert told["homo"] == pytest.approx(-0.2928, abs=0.002)
    assert told["gap"] == pytest.approx(0.3615, abs=0.004)
    assert math.isnan(told["alpha"])
    assert math.isnan(dft.properties([8, 1], WATER[:2])["mu"])


@pytest.mark.slow
def test_dfts_polarisability_and_heat_capacity_are_qm9s() -> None:
    pytest.importorskip("pyscf")
    told = dft.properties([8, 1, 1], WATER, alpha=True, cv=True)
    assert told["alpha"] == pytest.approx(6.31, abs=0.1)
    assert told["cv"] == pytest.approx(6.002, abs=0.002)


def test_validate_says_of_each_record_what_it_has_or_why_not(record, sdf, tmp_path) -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("dftd4")
    path = sdf(
        "a.sdf", record("CCO", asked_mu=1.5), record("C.O", asked_mu=2), record("[NH4+]"), record("[CH3]"),
        record("CF", asked_mu=2), record("CC", asked_mu=0),
    )  # fmt: skip
    summary = validate(None, [path], tmp_path / "out", properties=["mu", "gap", "cv"])
    rows = table(tmp_path / "out" / "validated.csv")
    assert [row["index"] for row in rows] == list("012345")
    assert [row["note"] for row in rows] == ["", "in pieces", "", "an odd number of electrons", "", ""]
    assert [bool(row["xtb_mu"]) for row in rows] == [True, False, True, False, True, True]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == summary
    assert float(rows[0]["xtb_cv"]) > float(rows[4]["xtb_cv"]) > 6  # ethanol's above fluoromethane's
    assert summary["computed"] == 4
    assert summary["left_out"] == {"in pieces": 1, "an odd number of electrons": 1}
    assert summary["mu"]["molecules"] == 3
    errors = [abs(float(row["xtb_mu"]) - float(row["asked_mu"])) for row in rows if row["xtb_mu"] and row["asked_mu"]]
    assert summary["mu"]["mean_error"] == pytest.approx(sum(errors) / 3, abs=1e-4)
    assert (tmp_path / "out" / "parity.png").exists()


def test_dft_takes_so_many_and_says_what_it_left(record, sdf) -> None:
    pytest.importorskip("pyscf")
    hydrogen = record("[H][H]")
    path = sdf("a.sdf", record("[NH4+]"), hydrogen, record("CBr"), record("O"), hydrogen)
    rows = validate(None, [path], None, by="dft:2", grid=1, processes=2)
    assert [row["note"] for row in rows] == [
        "charged", "", "with an element that the basis has not", "", "past the first 2"
    ]  # fmt: skip
    assert rows[1]["dft_mu"] == pytest.approx(0, abs=1e-6)
    assert 1.7 < rows[3]["dft_mu"] < 2
    assert "dft_alpha" not in rows[1]
    [alone] = validate(None, [sdf("b.sdf", hydrogen)], None, by="dft:1", grid=1)  # in this process
    assert alone["dft_gap"] == pytest.approx(rows[1]["dft_gap"], abs=1e-9)
    assert alone["dft_gap"] > 0.4


def test_a_molecule_whose_process_fails_takes_nothing_with_it() -> None:
    pytest.importorskip("pyscf")
    jobs = [
        dft.Job([53, 1], np.array([[0, 0, 0], [0, 0, 1.6]]), 0),
        dft.Job([1, 1], np.array([[0, 0, 0], [0, 0, 0.74]]), 0),
    ]
    told: list[int] = []
    lost, kept = dft.several(jobs, False, 0, False, 2, told.append)
    assert not lost
    assert kept["gap"] > 0.4
    assert told == [1, 2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"by": "dft"}, "by=dft is neither by=xtb nor by=dft:20"),
        ({"by": "dft:some"}, "by=dft:some is neither"),
        ({"by": "xtb:3"}, "by=xtb:3 is neither"),
        ({"properties": ["zpve"]}, "xtb computes mu, alpha, homo, lumo, gap, cv, and no 'zpve'"),
    ],
)
def test_methods_that_are_none_are_one_line(options, line, record, sdf) -> None:
    with pytest.raises(UsageError, match=line):
        validate(None, [sdf("a.sdf", record("CO"))], None, **options)


def test_files_that_are_none_are_one_line(knowing, tmp_path, record, sdf, embedded) -> None:
    for task, model in ((validate, None), (score, knowing)):
        with pytest.raises(InputError, match="there are no molecules: name an SDF file"):
            task(model, [], None)
        with pytest.raises(InputError, match=r"gone\.sdf"):
            task(model, [tmp_path / "gone.sdf"], None)
        (tmp_path / "bad.sdf").write_text("nothing of the kind")
        with pytest.raises(InputError, match=r"bad\.sdf is no SDF file"):
            task(model, [tmp_path / "bad.sdf"], None)
    bare = sdf("b.sdf", record(embedded("CCO", hydrogens=False)))
    with pytest.raises(InputError, match=r"b\.sdf, record 0 leaves hydrogens out; set add_hydrogens=true"):
        score(knowing, [bare], None, judge_steps=1)
    with pytest.raises(InputError, match="none of 1 records can be scored; the most are its element Cl is none of"):
        score(knowing, [sdf("c.sdf", record("CCl"))], None)


def test_score_keeps_its_judge_and_tells_errors_where_there_are_labels(knowing, record, sdf, tmp_path) -> None:
    path = sdf("a.sdf", record("CCO", mu=1.4), record("CCl"), record("CF"))
    summary = score(knowing, [path], tmp_path / "out", judge=str(tmp_path / "judge"), judge_steps=2)
    rows = table(tmp_path / "out" / "scores.csv")
    assert [row["note"] for row in rows] == ["", "its element Cl is none of C, H, N, O, F", ""]
    assert summary["records"] == 3
    assert summary["scored"] == 2
    assert summary["mu"] == {
        "labelled": 1, "mean_error": pytest.approx(abs(float(rows[0]["judge_mu"]) - 1.4), abs=1e-4), "unit": "D"
    }  # fmt: skip
    again = score(knowing, [path], None, judge=str(tmp_path / "judge"))
    assert [row.get("judge_mu") is not None for row in again] == [True, False, True]
    assert float(rows[2]["judge_mu"]) == pytest.approx(again[2]["judge_mu"], rel=1e-4)
    (tmp_path / "judge" / "judge.json").write_text("{}")
    with pytest.raises(InputError, match="holds no judge that can be read"):
        score(knowing, [path], None, judge=str(tmp_path / "judge"))


def test_a_model_without_its_data_needs_a_judge(knowing, record, sdf) -> None:
    from flowplat_molecules.sdf import Sdf, SdfConfig

    gone = Sdf(SdfConfig(path="gone.sdf", properties=["mu"]), knowing.data.facts())
    with pytest.raises(InputError, match=r"a new judge learns from the model's data, and .*gone\.sdf does not exist"):
        score(type(knowing)(gone, knowing.network), [sdf("a.sdf", record("CO"))], None)
