"""A user's SDF files: what is read, what is left out and said, what is refused in one line."""

import gzip
import logging
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from flowcore.errors import InputError, UsageError
from flowplat_molecules.sdf import Sdf, SdfConfig, flat

ALCOHOLS = ["CO", "CCO", "CCCO", "CC(C)O", "OCCO", "C#CCO"]


def data(path, **options):
    return Sdf(SdfConfig(path=path, holdout=0.2, judge_share=0, **options))


@pytest.fixture
def alcohols(record):
    return [record(smiles, f"m{n}", mu=n + 0.5) for n, smiles in enumerate(ALCOHOLS)]


def test_properties_come_from_fields_and_the_split_is_of_molecules(sdf, alcohols) -> None:
    made = data(sdf("a.sdf", *alcohols), properties=["mu"], units={"mu": "D"}, method="by hand")
    assert made.loaded.values[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert made.loaded.smiles == [Chem.CanonSmiles(one) for one in ALCOHOLS]
    [mu] = made.spec().properties
    assert (mu.unit, mu.method, len(made.train()), len(made.val())) == ("D", "by hand", 5, 1)


def test_conformers_stay_on_one_side_of_the_split(sdf, caplog, record) -> None:
    caplog.set_level(logging.INFO)
    records_of = [record(smiles, mu=n) for n, smiles in enumerate(ALCOHOLS * 3)]
    made = data(sdf("a.sdf", *records_of), properties=["mu"])
    train, val, _ = made.parts
    sides = [{made.loaded.smiles[i] for i in part.tolist()} for part in (train, val)]
    assert len(train) + len(val) == 18
    assert not sides[0] & sides[1]
    assert len(val) == 3
    assert "6 molecules in 18 entries; conformers" in caplog.text


def test_v3000_gzip_and_folders(sdf, tmp_path, record) -> None:
    sdf("a.sdf", record("CCO", v3000=True), record("c1cc[nH]c1", v3000=True))
    (tmp_path / "b.sdf.gz").write_bytes(gzip.compress("".join([record("CC#N"), record("CF")]).encode()))
    made = data(str(tmp_path))
    assert made.loaded.smiles == ["CCO", "c1cc[nH]c1", "CC#N", "CF"]
    assert made.loaded.names[3] == f"{tmp_path}/b.sdf.gz, record 1"


def test_a_crlf_file_and_another_programs_charges(sdf, tmp_path, record) -> None:
    path = Path(sdf("a.sdf", record("C[N+](=O)[O-]"), record("CCO")))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert data(str(path)).loaded.smiles == ["C[N+](=O)[O-]", "CCO"]


def test_elements_make_the_vocabulary(sdf, record) -> None:
    made = data(sdf("a.sdf", record("CCl"), record("CS"), record("CC")))
    assert made.vocabulary.elements == ("C", "H", "N", "O", "F", "Cl", "S")
    assert made.spec().state["atoms"].classes == 7


def test_what_cannot_be_used_is_left_out_and_said(sdf, caplog, record) -> None:
    five = record("CCO", mu=1).replace(
        "  1  2  1  0", "  1  2  3  0"
    )  # three bonds, and three hydrogens, of one carbon
    path = sdf(
        "a.sdf", record("CCO", mu=1), five, record("CN", mu="n/a"), record("CF"), record("CC", mu=2),
        record("C" * 12, mu=3), record("CC#N", mu=4), record("CO", mu=5).replace("  6  5", "  x  5"),
    )  # fmt: skip
    made = data(path, properties=["mu"], max_atoms=20)
    assert made.loaded.smiles == ["CCO", "CC", "CC#N"]
    told = caplog.text
    assert "3 of 8 records used" in told
    for part in (
        "1 not sanitisable (record 1)", "1 without a number for mu (record 2)", "1 not readable (record 7)",
        "1 without a number for mu among no fields (record 3)", "1 of more than max_atoms=20 atoms (record 5)",
    ):  # fmt: skip
        assert part in told


@pytest.mark.parametrize(
    ("key", "keys"), [("index", ["2", "0", "1"]), ("name", ["m2", "m0", "m1"]), ("code", ["c2", "c0", "c1"])]
)
def test_a_table_is_matched_by_name_or_number_and_never_by_order(sdf, tmp_path, key, keys, record) -> None:
    path = sdf("a.sdf", *(record(smiles, f"m{n}", code=f"c{n}") for n, smiles in enumerate(ALCOHOLS[:3])))
    rows = zip(keys, ("2.5", "0.5", "1.5"), strict=True)
    (tmp_path / "t.csv").write_text(f"{key},logS\n" + "".join(f"{k},{v}\n" for k, v in rows))
    made = data(path, csv=str(tmp_path / "t.csv"), key=key, properties=["logS"])
    assert made.loaded.values[:, 0].tolist() == [0.5, 1.5, 2.5]


def test_rows_and_records_without_each_other_are_said(sdf, tmp_path, caplog, record) -> None:
    path = sdf("a.sdf", *(record(smiles, f"m{n}") for n, smiles in enumerate(ALCOHOLS[:4])))
    (tmp_path / "t.csv").write_text("name,logS\nm0,1\nm1,2\nm2,3\nm7,4\n")
    made = data(path, csv=str(tmp_path / "t.csv"), key="name", properties=["logS"])
    assert made.loaded.smiles == ["CO", "CCO", "CCCO"]
    assert "1 rows of it belong to no record" in caplog.text
    assert "3 of 4 records used; left out: 1 without a row in t.csv (record 3)" in caplog.text


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("name,logS\nx0,1\nx1,2\n", "t.csv: no 'name' in it is that of a record, as 'x0' is not; data.key names"),
        ("id,logS\nm0,1\n", "t.csv has no column 'name'; its columns are id, logS"),
        ("name,dipole\nm0,1\n", "t.csv has no column 'logS'; its columns are name, dipole"),
        ("name,logS\nm0,1\nm0,2\n", "t.csv has two rows with name=m0"),
        ("name,logS\n", "t.csv holds no rows"),
        ("", "t.csv has no column 'name'; its columns are none"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(sdf, tmp_path, table, line, record) -> None:
    path = sdf("a.sdf", *(record(smiles, f"m{n}") for n, smiles in enumerate(ALCOHOLS)))
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(InputError, match=line):
        data(path, csv=str(tmp_path / "t.csv"), key="name", properties=["logS"]).train()


def test_files_that_are_none_are_one_line(sdf, tmp_path, alcohols, record) -> None:
    def refused(line, path=str(tmp_path / "a.sdf"), **options):
        with pytest.raises((InputError, UsageError), match=line) as told:
            data(path, **options).spec()
        assert "\n" not in str(told.value)

    refused("a.sdf does not exist; data.path names SDF files")
    sdf("a.sdf", "")
    refused("a.sdf is empty")
    sdf("a.sdf", "hello\nworld\n")
    refused("a.sdf is no SDF file: no molecule in it is of V2000 or V3000")
    (tmp_path / "b.sdf.gz").write_bytes(b"not gzip V2000")
    refused("t.csv does not exist; data.csv names", path=sdf("c.sdf", *alcohols), csv=str(tmp_path / "t.csv"))
    refused("b.sdf.gz cannot be read: Not a gzipped file", str(tmp_path / "b.sdf.gz"))
    (tmp_path / "empty").mkdir()
    refused("empty holds no SDF file", str(tmp_path / "empty"))
    sdf("a.sdf", record("CCO").replace("V2000", "V2000")[:-200])
    refused("a.sdf holds no molecule that can be used: 1 not readable")
    sdf("a.sdf", *alcohols)
    refused("can be used: 6 without a number for logS among mu", properties=["logS"])
    sdf("a.sdf", *(record(smiles, mu=1) for smiles in ALCOHOLS))
    refused("data.properties: 'mu' has one value alone, of which nothing is to be learnt", properties=["mu"])


def test_hydrogens_that_are_missing_are_offered(sdf, record, embedded) -> None:
    path = sdf("a.sdf", *(record(embedded(smiles, hydrogens=False)) for smiles in ALCOHOLS))
    with pytest.raises(InputError, match=r"record 0 leaves hydrogens out; set data\.add_hydrogens=true"):
        data(path).train()
    made = data(path, add_hydrogens=True)
    assert made.loaded.sizes.tolist() == [embedded(smiles).GetNumAtoms() for smiles in ALCOHOLS]
    apart = torch.pdist(made.loaded.x1["positions"][:6])
    assert apart.min() > 0.8  # placed, not heaped


def test_drawings_are_not_taken_for_molecules(sdf, record, embedded) -> None:
    drawing = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    from rdkit.Chem import rdDepictor

    rdDepictor.Compute2DCoords(drawing)
    with pytest.raises(InputError, match="record 0 has no coordinates in three dimensions; make them first"):
        data(sdf("a.sdf", record(drawing))).train()
    bare = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    with pytest.raises(InputError, match="no coordinates in three dimensions"):
        data(sdf("a.sdf", record(bare))).train()
    water = embedded("O")
    assert not flat(water)
    water.GetConformer().Set3D(False)
    assert not flat(water)  # planar, and its bonds are as short as those of hydrogens


def test_properties_that_are_not_there_are_named_with_those_that_are(small) -> None:
    from flowplat_molecules.data import outline

    with pytest.raises(UsageError, match="there is no property 'logS'; these are known: mu, alpha, homo, lumo, gap"):
        outline(small.vocabulary, ["logS"], small.known(), small.loaded.sizes, small.loaded.values)


def test_what_was_read_is_kept_until_a_file_or_an_option_changes(sdf, tmp_path, alcohols, record, monkeypatch) -> None:
    path, folder = sdf("a.sdf", *alcohols), str(tmp_path / "cache")
    first = data(path, cache=folder, properties=["mu"])
    prints = [first.fingerprint()]
    with monkeypatch.context() as patched:
        patched.setattr(Sdf, "entries", lambda self: pytest.fail("read again"))
        again = data(path, cache=folder, properties=["mu"])
        prints.append(again.fingerprint())
        assert again.loaded.names == first.loaded.names
        assert again.spec() == first.spec()
    assert prints[0] == prints[1]
    assert data(path, cache=folder).loaded.values.shape == (6, 0)
    sdf("a.sdf", *alcohols, record("CCCCO", mu=9))
    assert len(data(path, cache=folder, properties=["mu"]).loaded.sizes) == 7
    (tmp_path / "cache" / "molecules.npz").write_bytes(b"damaged")
    assert len(data(path, cache=folder, properties=["mu"]).loaded.sizes) == 7
    assert [one.name for one in (tmp_path / "cache").iterdir()] == ["molecules.npz"]
