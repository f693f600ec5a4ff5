"""What a run is told of molecules, what it is asked in words, and the files that it writes."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rdkit import Chem

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowcore.plugin import testing
from flowcore.plugin.testing import data as checks
from flowplat_molecules import drawing, records, xtb
from flowplat_molecules.builtin import Builtin, BuiltinConfig
from flowplat_molecules.chemistry import molecules, sanitised
from flowplat_molecules.data import first
from flowplat_molecules.graphs import graph, joined, split
from flowplat_molecules.qm9 import Qm9, Qm9Config
from flowplat_molecules.sdf import Sdf, SdfConfig

KINDS = [(Builtin, BuiltinConfig), (Sdf, SdfConfig), (Qm9, Qm9Config)]


def some(data, count=12, start=0):
    return data.train().batch(torch.arange(start, start + count), torch.Generator())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].__name__)
@pytest.mark.parametrize("check", [*testing.CHECKS["data"], checks.written_samples_read_back], ids=testing.title)
def test_the_kit(kind, check, tmp_path) -> None:
    made, config = kind
    options = made.example(tmp_path) if hasattr(made, "example") else {}
    check(lambda: made(config(**options)))


def test_the_three_shares_of_a_data_set_have_no_molecule_in_common(small) -> None:
    sizes = [len(part) for part in small.parts]
    assert sum(sizes) == len(small.loaded.sizes) == 1416
    assert sizes == [956, 142, 318]
    assert len(torch.cat(small.parts).unique()) == 1416
    assert len(small.judge()) == 318
    assert len(Builtin(BuiltinConfig(properties=[])).parts[2]) == 0  # without a property there is nothing to judge
    everything = Builtin(BuiltinConfig(holdout=0, judge_share=0))
    assert (len(everything.train()), len(everything.val()), everything.holds_out) == (1416, 1416, False)


def test_the_statistics_are_those_of_what_is_trained_on(small) -> None:
    [mu] = small.spec().properties
    values = small.train().condition[:, 0].double()
    assert mu.mean == pytest.approx(values.mean().item())
    assert mu.std == pytest.approx(values.std(unbiased=False).item())
    assert (mu.low, mu.high, mu.unit) == (values.min().item(), values.max().item(), "D")
    assert "GFN2" in mu.method
    assert sorted(small.spec().counts.tolist()) == sorted(small.train().sizes.tolist())


def test_the_shipped_properties_are_xtbs_at_the_shipped_geometry(small) -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("dftd4")
    every = Builtin(BuiltinConfig(properties=["mu", "alpha", "homo", "lumo", "gap"]))
    batch = some(every, 6, 100)
    for state, told in zip(split(batch), batch.condition.tolist(), strict=True):
        numbers = [[6, 1, 7, 8, 9][a] for a in state["atoms"].tolist()]
        assert list(xtb.properties(numbers, state["positions"].numpy()).values()) == pytest.approx(told, abs=2e-4)


def test_facts_alone_make_the_spec_and_the_conditions(small) -> None:
    facts = json.loads(json.dumps(small.facts(), allow_nan=False))
    again = Builtin(BuiltinConfig(), facts)
    assert again.spec() == small.spec()
    assert torch.equal(again.condition(9, None), small.condition(9, None))
    facts["counts"] = []
    with pytest.raises(ValueError, match="sizes of molecules"):
        Builtin(BuiltinConfig(), facts)


def test_what_is_asked_in_words(small) -> None:
    def asked(wish, count=4, names=("mu",)):
        return Builtin(BuiltinConfig(properties=list(names))).condition(count, wish).tolist()

    assert asked("3") == asked("mu=3") == [[3.0]] * 4
    assert asked("mu=1|2") == [[1.0], [2.0], [1.0], [2.0]]
    assert asked("mu=0..3") == [[0.0], [1.0], [2.0], [3.0]]
    both = torch.tensor(asked("gap=0.25", 2, ("mu", "gap")))
    assert both[:, 0].isnan().all()
    assert both[:, 1].tolist() == [0.25] * 2
    assert asked("mu=1,gap=0.5", 1, ("mu", "gap")) == [[1.0, 0.5]]
    unasked = small.condition(956, None)
    assert torch.equal(unasked[:, 0].sort().values, small.train().condition[:, 0].sort().values)


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        ("red", "'red' is no value of mu; write mu=3"),
        ("mu=", "'' is no value of mu"),
        ("mu=nan", "'nan' is no value of mu"),
        ("logS=3", "no property is called 'logS'; this model was told mu"),
        ("mu=1,mu=2", "mu is asked for twice"),
    ],
)
def test_what_cannot_be_asked_is_one_line(small, wish, line) -> None:
    with pytest.raises(UsageError, match=line):
        small.condition(2, wish)
    with pytest.raises(UsageError, match="was told no property"):
        Builtin(BuiltinConfig(properties=[])).condition(2, wish)
    with pytest.raises(UsageError, match="names no property; write NAME=VALUE"):
        Builtin(BuiltinConfig(properties=["mu", "gap"])).condition(2, "3")


def test_a_target_that_nothing_had_is_warned_of(small, caplog) -> None:
    small.condition(2, "mu=99")
    assert "mu=99 is outside of what the model was trained on, 0 to 6.606 D" in caplog.text


def test_rows_of_sdf_and_csv_are_the_samples_in_their_order(small, tmp_path) -> None:
    """Valid or not: the third has lost its bonds, the fifth an atom to the mask."""
    batch = some(small, 7)
    states = split(batch)
    states[2]["bonds"] = torch.zeros_like(states[2]["bonds"])
    states[4]["atoms"][0] = 5
    small.write(joined(states, batch.condition), tmp_path)
    with (tmp_path / "molecules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    entries = list(records.entries(tmp_path / "molecules.sdf"))
    assert len(rows) == len(entries) == 7
    for place, (row, entry, wanted) in enumerate(zip(rows, entries, batch.condition[:, 0].tolist(), strict=True)):
        assert row["index"] == entry.GetProp("index") == str(place)
        assert entry.GetProp("_Name") == f"{place:05d}"
        assert {name: entry.GetProp(name) for name in entry.GetPropNames()} == {k: v for k, v in row.items() if v}
        assert float(row["asked_mu"]) == pytest.approx(wanted, rel=1e-4)
        assert row["stable"] == ("0" if place in (2, 4) else "1")
        assert row["valid"] == ("0" if place == 4 else "1")  # atoms apart are sanitised each by itself
    assert rows[2]["fragments"] == rows[2]["atoms"]
    again = small.read_back(tmp_path)
    assert torch.equal(again.x1["atoms"], joined(states).x1["atoms"])
    assert torch.allclose(again.condition, batch.condition, rtol=1e-4)


@pytest.mark.parametrize("aromatic", [True, False])
def test_whatever_labels_are_drawn_they_are_written_and_read_back(aromatic, tmp_path) -> None:
    """An untrained network's: hydrogens of charge +3, all atoms bonded to each other, atoms in one place, and masks, of
    which a charge reads back as 0 and a bond as none."""
    data = Builtin(BuiltinConfig(aromatic=aromatic))
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        laid = graph(torch.randint(2, 14, (24,), generator=draw))
        x1 = {"positions": torch.randn(len(laid.atom), 3, generator=draw) * (seed % 3)}
        for name, size in data.vocabulary.sizes.items():
            rows = len(laid.index[name])
            x1[name] = torch.randint(size + (seed > 2), (rows,), generator=draw)
        x1["bonds"][torch.rand(len(laid.pair), generator=draw) < 0.4 * (seed % 3)] = 0
        data.write(Batch(x1, torch.ones(24, 1), index=laid.index, samples=24), tmp_path)
        batch, back = Batch(x1, torch.ones(24, 1), index=laid.index, samples=24), data.read_back(tmp_path)
        assert torch.equal(back.x1["atoms"], x1["atoms"])
        assert torch.equal(back.x1["charges"], torch.where(x1["charges"] == 6, 2, x1["charges"]))
        masked = data.vocabulary.sizes["bonds"]
        told = [sanitised(raw) is not None for raw in molecules(batch, data.vocabulary)]
        for sane, before, after in zip(told, split(batch), split(back), strict=True):
            if not (sane and aromatic):  # a ring of single and double bonds in turn reads back as an aromatic one
                assert torch.equal(after["bonds"], torch.where(before["bonds"] == masked, 0, before["bonds"]))


def test_another_programs_sdf_is_read_back_and_faults_are_named(small, sdf, record, tmp_path) -> None:
    sdf("a.sdf", record("CCO"), record("c1cc[nH]c1"))
    batch = small.read_back(tmp_path)
    assert len(batch) == 2
    assert batch.condition.isnan().all()
    sdf("b.sdf", record("CCl"))
    with pytest.raises(InputError, match=r"b.sdf, record 0 is no molecule of this model's: its element Cl is none of"):
        small.read_back(tmp_path)
    with pytest.raises(InputError, match="holds no SDF file"):
        small.read_back(tmp_path / "nothing")


def test_the_picture_is_a_grid_that_is_not_empty(small) -> None:
    picture = Image.open(io.BytesIO(small.show(some(small, 24))))
    assert picture.size == (6 * 230, 4 * 210)
    dark = np.asarray(picture.convert("L")) < 128
    cells = dark.reshape(4, 210, 6, 230).any((1, 3))
    assert cells.all()
    one = Image.open(io.BytesIO(small.show(some(small, 1))))
    assert one.size == (230, 210)


def test_a_machine_without_x_has_smiles_for_structures_and_is_told_once(small, monkeypatch, caplog) -> None:
    drawing._drawer.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "rdkit.Chem.Draw", None)
        for _ in range(2):
            picture = Image.open(io.BytesIO(small.show(some(small, 24))))
    drawing._drawer.cache_clear()
    dark = np.asarray(picture.convert("L")) < 128
    assert dark.reshape(4, 210, 6, 230).any((1, 3)).all()
    assert caplog.text.count("RDKit cannot draw here") == 1
    assert "apt-get install libxrender1" in caplog.text


def test_only_drawing_imports_rdkits_drawing() -> None:
    """It needs libraries of X, which a slim container has not."""
    code = (
        "import sys, pkgutil, importlib, flowplat_molecules as m\n"
        "[importlib.import_module(f'flowplat_molecules.{one.name}') for one in pkgutil.iter_modules(m.__path__)]\n"
        "print([name for name in sys.modules if name.startswith('rdkit.Chem.Draw')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_of_a_batch(small) -> None:
    batch = some(small, 9)
    few = first(batch, 4)
    assert len(few) == 4
    for a, b in zip(split(few), split(batch)[:4], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert first(batch, 20) is batch


def test_a_fingerprint_is_of_the_content(small) -> None:
    kekule = Builtin(BuiltinConfig(aromatic=False))
    assert len({small.fingerprint(), kekule.fingerprint(), small.tiny().fingerprint()}) == 3
    changed = Builtin(BuiltinConfig())
    changed.__dict__["loaded"] = replace(small.loaded, values=small.loaded.values + 1)
    assert changed.fingerprint() != small.fingerprint()


def test_the_shipped_file_is_small_and_of_different_molecules(small) -> None:
    from importlib import resources

    assert resources.files("flowplat_molecules").joinpath("small.npz").stat().st_size < 150_000
    smiles = small.loaded.smiles
    assert len({Chem.CanonSmiles(one) for one in smiles}) == len(smiles)
    assert all(Chem.MolFromSmiles(one).GetNumAtoms() <= 5 for one in smiles)
    assert any("+" in one for one in smiles)
