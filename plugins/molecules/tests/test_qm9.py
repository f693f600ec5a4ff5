"""QM9 from its own files, of which the test writes small ones in the same format."""

import builtins

import numpy as np
import pytest

from flowcore.errors import InputError, MissingPackageError
from flowplat_molecules.qm9 import Qm9, Qm9Config


@pytest.fixture
def raw(tmp_path):
    Qm9.example(tmp_path)
    return tmp_path


def test_properties_are_matched_by_name_and_the_split_is_the_papers(raw) -> None:
    table = (raw / "gdb9.sdf.csv").read_text().splitlines()
    (raw / "gdb9.sdf.csv").write_text("\n".join([table[0], *reversed(table[1:])]) + "\n")  # in another order
    data = Qm9(Qm9Config(raw=str(raw)))
    assert data.loaded.values[:, 0].tolist() == pytest.approx([float(line.split(",")[1]) for line in table[1:]])
    order = np.random.RandomState(42).permutation(40)
    train, val, judge = (part.tolist() for part in data.parts)
    assert (train, judge) == (order[:15].tolist(), order[15:30].tolist())
    assert val == order[34:].tolist()  # a tenth between is the test set
    assert data.spec().properties[0].method == "B3LYP/6-31G(2df,p), QM9"
    alone = Qm9(Qm9Config(raw=str(raw), judge_share=0))
    assert [len(part) for part in alone.parts] == [30, 6, 0]


def test_uncharacterized_molecules_are_left_out_and_repaired_ones_preferred(raw, caplog) -> None:
    header = "".join(f"words {n}\n" for n in range(9))
    (raw / "uncharacterized.txt").write_text(header + "     3  CC  CC  0.1\n    17  CO  CO  0.2\n")
    assert len(Qm9(Qm9Config(raw=str(raw))).loaded.sizes) == 38
    assert "38 of 40 records used; left out: 2 named in uncharacterized.txt (record 2, 16)" in caplog.text
    text = (raw / "gdb9.sdf").read_text()
    (raw / "rQM9.sdf").write_text("$$$$\n".join(text.split("$$$$\n")[:10]) + "$$$$\n")
    assert len(Qm9(Qm9Config(raw=str(raw))).loaded.sizes) == 9


def test_what_is_not_there_is_one_line(raw, tmp_path) -> None:
    def refused(line, **options):
        with pytest.raises(InputError, match=line):
            Qm9(Qm9Config(**options)).train()

    refused("nothing is no folder; data.raw names one with gdb9.sdf", raw=str(tmp_path / "nothing"))
    refused("gdb9.sdf.csv has no column 'cv'; its columns are mol_id, mu", raw=str(raw), properties=["cv"])
    (raw / "gdb9.sdf").unlink()
    refused("holds neither rQM9.sdf nor gdb9.sdf", raw=str(raw))


def test_without_a_folder_it_is_fetched_where_it_can_be(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"flowplat-molecules\[qm9\]"):
        Qm9(Qm9Config(raw="fetch", root=str(tmp_path))).train()
