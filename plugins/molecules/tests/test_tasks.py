"""What a user of generate gets: files that agree row by row, and one line for what cannot be done."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rdkit import Chem

from flowcore.errors import UsageError
from flowplat_molecules import drawing, records
from flowplat_molecules.builtin import Builtin, BuiltinConfig
from flowplat_molecules.formulas import atoms_of
from flowplat_molecules.tasks import generate
from flowplat_molecules.vocabulary import Vocabulary


def read(folder):
    with (folder / "molecules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, list(records.entries(folder / "molecules.sdf")), json.loads((folder / "metrics.json").read_text())


def test_molecules_for_a_dipole_with_all_their_files(knowing, tmp_path) -> None:
    """A model that answers as well as training molecules can: the whole way from words to files to xTB's figures."""
    pytest.importorskip("tblite")
    pytest.importorskip("dftd4")
    summary = generate(knowing, [], tmp_path / "out", target="0.5|1|2|3|4", number=70, steps=3)
    rows, entries, told = read(tmp_path / "out")
    assert told == summary
    assert len(rows) == len(entries) == told["molecules"] == told["drawn"] == 70
    assert (
        [row["index"] for row in rows] == [entry.GetProp("index") for entry in entries] == [str(n) for n in range(70)]
    )
    assert [float(row["asked_mu"]) for row in rows[:6]] == [0.5, 1, 2, 3, 4, 0.5]
    for row, entry in zip(rows, entries, strict=True):
        assert entry.GetProp("xtb_mu") == row["xtb_mu"]
        whole = Chem.Mol(entry)
        Chem.SanitizeMol(whole)
        assert Chem.MolToSmiles(Chem.RemoveHs(whole), isomericSmiles=False) == row["smiles"]
    assert told["valid"] == told["stable"] == told["closed_shell"] == told["one_piece"] == told["acceptance"] == 1
    assert told["novel"] == told["left_masked"] == 0
    error = told["mu_xtb"]
    assert error["molecules"] == 70
    assert error["spearman"] > 0.9
    assert error["mean_error"] < 0.2 < 0.75 * error["shuffled"]
    for name, size in (("grid.png", (1380, 840)), ("parity.png", (660, 620))):
        assert Image.open(tmp_path / "out" / name).size == size


def test_valid_molecules_come_first_and_all_keep_their_number(small, knowing, tmp_path) -> None:
    """Of four molecules the first two have a carbon of eight bonds."""

    class Spoilt(torch.nn.Module):
        def forward(self, x, t, condition, index):
            told = knowing.network(x, t, condition, index)
            told["bonds"][index["bonds"] < 2] = torch.eye(5)[2] * 1e3
            return told

    generate(
        type(knowing)(small, Spoilt()), [], tmp_path, target="1|2|3|4", number=4, n_atoms=9, steps=2, values="none"
    )
    rows, entries, _ = read(tmp_path)
    assert [row["index"] for row in rows] == [one.GetProp("index") for one in entries] == ["2", "3", "0", "1"]
    assert [(row["valid"], row["asked_mu"]) for row in rows] == [("1", "3"), ("1", "4"), ("0", "1"), ("0", "2")]


def test_a_seed_decides_and_chunks_do_not(knowing) -> None:
    def drawn(**options):
        return generate(knowing, [], None, target=2, steps=2, values="none", **options)

    first, again, other = drawn(number=5), drawn(number=5), drawn(number=5, seed=1)
    smiles = [[row["smiles"] for row in one.extra["rows"]] for one in (first, again, other)]
    assert smiles[0] == smiles[1] != smiles[2]
    assert set(first.condition.flatten().tolist()) == {2.0}
    unasked = generate(knowing, [], None, number=5, steps=2, values="none")
    assert torch.equal(unasked.condition, knowing.data.condition(5, None))


def test_several_properties_are_asked_for_at_once(knowing) -> None:
    both = Builtin(BuiltinConfig(properties=["mu", "gap"]))
    model = type(knowing)(both, type(knowing.network)(both))
    batch = generate(model, [], None, target="mu=3,gap=0.2", number=3, steps=2, values="none")
    assert torch.allclose(batch.condition, torch.tensor([[3.0, 0.2]] * 3))


def test_guidance_insists_on_the_property(knowing) -> None:
    def drawn(**options):
        batch = generate(knowing, [], None, target=3, number=6, steps=2, values="none", **options)
        return [row["smiles"] for row in batch.extra["rows"]]

    assert drawn() == drawn(guidance=1.0) != drawn(guidance=0.0)  # at 0 the model is asked for nothing


def test_a_size_or_a_formula_is_kept(knowing, small) -> None:
    batch = generate(knowing, [], None, target=2, number=4, n_atoms=9, steps=2, values="none")
    assert [row["atoms"] for row in batch.extra["rows"]] == [9] * 4
    batch = generate(knowing, [], None, target=2, number=3, formula="C2H6O", steps=2, values="none")
    counts = torch.bincount(batch.x1["atoms"], minlength=5).tolist()
    assert counts == [6, 18, 0, 3, 0]
    assert atoms_of("CH3F", small.vocabulary).tolist() == [0, 1, 1, 1, 4]


def test_only_valid_draws_on_and_says_what_share_was_kept(knowing, small) -> None:
    """A network whose every second molecule, by the noise it comes from, has lost its bonds."""
    spoilt = {"count": 0}

    class Losing(torch.nn.Module):
        def forward(self, x, t, condition, index):
            told = knowing.network(x, t, condition, index)
            mean = torch.zeros(int(index["bonds"].max()) + 1).index_add(0, index["positions"], self.first(x, t))
            lost = mean < 0
            told["bonds"][lost[index["bonds"]]] = torch.eye(5)[0] * 1e3
            return told

        def first(self, x, t):
            if float(t[0]) == 0:
                spoilt["noise"] = x["positions"][:, 0].sign() * (torch.arange(len(x["positions"])) % 2)
                spoilt["count"] += 1
            return spoilt["noise"]

    model = type(knowing)(small, Losing())
    batch = generate(model, [], None, target="1|3", number=20, n_atoms=10, steps=2, only_valid=True, values="none")
    told = batch.extra["summary"]
    assert told["molecules"] == 20
    assert told["valid"] == told["one_piece"] == 1
    assert told["drawn"] > 20
    assert told["acceptance"] == round(20 / told["drawn"], 4)
    assert batch.condition.flatten().tolist() == [1.0, 3.0] * 10  # each drawn anew under its own target
    assert [row["index"] for row in batch.extra["rows"]] == list(range(20))


def test_a_model_that_draws_nothing_valid_is_not_asked_for_ever(small, knowing) -> None:
    class Apart(torch.nn.Module):
        def forward(self, x, t, condition, index):
            told = knowing.network(x, t, condition, index)
            return {**told, "bonds": torch.eye(5)[torch.zeros(len(told["bonds"]), dtype=torch.long)] * 1e3}

    with pytest.raises(UsageError, match="0 of 40 molecules drawn are valid and in one piece, and 2 are wanted"):
        generate(type(knowing)(small, Apart()), [], None, number=2, steps=1, only_valid=True, values="none")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"target": "red"}, "'red' is no value of mu"),
        ({"property": "gap", "target": 1}, "no property is called 'gap'; this model was told mu"),
        ({"property": "mu"}, "property=mu asks for no value; set target=3"),
        ({"property": "mu", "target": "mu=3"}, "names its properties itself; leave property=mu out"),
        ({"formula": "C2Cl"}, "C2Cl: this model knows C, H, N, O, F, and no Cl"),
        ({"formula": "water"}, "'water' is no formula; write one as C4H8O"),
        ({"formula": "C"}, "C has 1 atoms; 2 to 512 can be drawn"),
        ({"formula": "C99999"}, "2 to 512 can be drawn"),
        ({"formula": "CH4", "n_atoms": 5}, "leave n_atoms or formula out"),
    ],
)
def test_what_cannot_be_asked_is_one_line(knowing, options, line) -> None:
    with pytest.raises(UsageError, match=line) as told:
        generate(knowing, [], None, number=2, steps=1, values="none", **options)
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match=r"takes no files: leave a\.sdf out"):
        generate(knowing, ["a.sdf"], None)


def test_a_formula_is_not_for_the_simplex(knowing) -> None:
    simplex = type(knowing)(knowing.data, _Unasked(knowing.network))
    simplex.network.categories = "simplex"
    with pytest.raises(UsageError, match="a formula is kept by categories=masked only"):
        generate(simplex, [], None, number=2, steps=1, formula="CH4", values="none")


def test_a_model_without_properties_draws_and_is_asked_for_nothing(knowing) -> None:
    plain = Builtin(BuiltinConfig(properties=[]))
    model = type(knowing)(plain, _Unasked(knowing.network))
    assert len(generate(model, [], None, number=3, steps=1).extra["rows"]) == 3
    with pytest.raises(UsageError, match="was told no property; train it with data"):
        generate(model, [], None, number=3, target=3)


class _Unasked(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, condition, index):
        return self.network(x, t, torch.full((len(t), 1), 2.0), index)


def test_sizes_that_no_molecule_had_are_warned_of(small, knowing, caplog) -> None:
    with pytest.raises(KeyError):  # the model of this test knows no molecule of forty atoms
        generate(knowing, [], None, number=1, n_atoms=40, steps=1)
    assert "40 atoms: the model was trained on molecules of 3 to 17" in caplog.text


def test_the_parity_picture_has_each_molecule_at_its_place() -> None:
    asked, came = [0.0, 1.0, float("nan")], [1.0, 0.0, 1.0]
    picture = np.asarray(Image.open(io.BytesIO(drawing.parity(asked, came, "mu", "D", "judge"))).convert("RGB")).astype(
        int
    )
    blue = (abs(picture - np.array([0x1F, 0x6F, 0xB4])).sum(-1) < 30).nonzero()
    left, right = blue[1] < 340, blue[1] >= 340
    assert blue[0][left].mean() < 200
    assert blue[0][right].mean() > 400
    assert drawing.parity([], [], "mu", "D", "judge").startswith(b"\x89PNG")
    assert drawing.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert drawing.ticks(-0.3, 0.1) == pytest.approx([-0.3, -0.2, -0.1, 0.0, 0.1])


def test_a_vocabulary_of_other_elements_has_their_formulas() -> None:
    assert atoms_of("CCl4", Vocabulary(("C", "Cl"))).tolist() == [0, 1, 1, 1, 1]
