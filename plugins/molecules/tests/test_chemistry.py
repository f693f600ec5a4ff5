"""A molecule is its tensors and comes back from them; what is said of one is what a chemist would say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem, RDConfig

from flowplat_molecules import chemistry, records
from flowplat_molecules.builtin import Builtin, BuiltinConfig
from flowplat_molecules.chemistry import UnfitError, judged, molecule, smiles_of, tensors
from flowplat_molecules.graphs import joined
from flowplat_molecules.vocabulary import AROMATIC, KEKULE, Vocabulary, of_elements

QM9 = Vocabulary()


@pytest.fixture
def raw(embedded):
    """``raw("CCO", 8)`` is a molecule as tensors would say it, less some of its atoms."""

    def made(smiles, *without):
        editable = Chem.RWMol(embedded(smiles))
        for place in sorted(without, reverse=True):
            editable.RemoveAtom(place)
        for atom in editable.GetAtoms():
            atom.SetNoImplicit(True)
        return editable.GetMol()

    return made


@pytest.mark.parametrize("bonds", [AROMATIC, KEKULE])
def test_every_molecule_of_the_default_set_comes_back_from_its_tensors(bonds) -> None:
    data = Builtin(BuiltinConfig(aromatic=bonds is AROMATIC))
    batch = joined(_states(data))
    for smiles, (_, verdict) in zip(data.loaded.smiles, chemistry.verdicts(batch, data.vocabulary), strict=True):
        assert verdict.smiles == Chem.CanonSmiles(smiles, useChiral=0)
        assert verdict.valid
        assert verdict.stable
        assert verdict.closed_shell
        assert verdict.fragments == 1
    assert batch.x1["bonds"].max() == len(bonds) - 1


def _states(data):
    from flowplat_molecules.graphs import split

    source = data.loaded
    rows = torch.arange(len(source.sizes))
    return split(data._part(rows).batch(rows, torch.Generator()))


@pytest.mark.parametrize("bonds", [AROMATIC, KEKULE])
def test_the_first_200_of_nci_come_back_from_an_sdf_file(bonds, tmp_path) -> None:
    """RDKit's own test file, hydrogens added: all that sanitise, written by the plugin and read again."""
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"
    whole = [Chem.AddHs(one, addCoords=True) for one in Chem.SDMolSupplier(str(path)) if one is not None]
    vocabulary = of_elements({symbol for one in whole for symbol in chemistry.symbols(one)}, bonds is AROMATIC)
    before, states = [], []
    for one in whole:
        try:
            states.append(tensors(one, vocabulary))
            before.append(smiles_of(one))
        except UnfitError:
            continue
    assert len(states) > 180
    made = [molecule(state, vocabulary) for state in states]
    records.write(tmp_path, made, [{"index": place} for place in range(len(made))])
    after = [chemistry.sanitised(entry) for entry in records.entries(tmp_path / "molecules.sdf")]
    assert [smiles_of(one) for one in after] == before
    for state, one in zip(states, after, strict=True):
        again = tensors(one, vocabulary)
        assert torch.equal(again["atoms"], state["atoms"])
        assert torch.equal(again["charges"], state["charges"])
        assert (again["positions"] - state["positions"]).abs().max() < 1e-3


def test_what_a_pair_of_atoms_is_and_where(embedded) -> None:
    state = tensors(embedded("C[N+](=O)[O-]"), QM9)
    assert state["atoms"].tolist() == [0, 2, 3, 3, 1, 1, 1]
    assert [QM9.charges[c] for c in state["charges"].tolist()] == [0, 1, 0, -1, 0, 0, 0]
    # pairs (0,1) (0,2) (0,3) (0,4) ... (1,2) (1,3): C-N single, C-H single, N=O double, N-O single
    assert state["bonds"].tolist()[:8] == [1, 0, 0, 1, 1, 1, 2, 1]
    assert len(state["bonds"]) == 21
    assert state["positions"].mean(0).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("smiles", "line"),
    [("CCl", "its element Cl is none of C, H, N, O, F"), ("[CH3-].[CH3-].[C+4]", r"charge 4 is none of -2 to 3")],
)
def test_what_a_vocabulary_has_no_class_for_is_said(smiles, line) -> None:
    with pytest.raises(UnfitError, match=line):
        tensors(_flat(smiles), QM9)


def _flat(smiles: str) -> Chem.Mol:
    one = Chem.AddHs(Chem.MolFromSmiles(smiles))
    one.AddConformer(Chem.Conformer(one.GetNumAtoms()))
    return one


def test_an_atom_alone_is_no_graph() -> None:
    with pytest.raises(UnfitError, match="1 atoms"):
        tensors(_flat("[He]"), Vocabulary(("He",)))


@pytest.mark.parametrize(
    ("smiles", "without", "valid", "stable", "charge", "closed", "fragments"),
    [
        ("CCO", (), True, 9, 0, True, 1),
        ("CCO", (8,), True, 7, 0, False, 1),  # an ethoxy radical: one hydrogen less, one oxygen not stable
        ("c1cc[nH]c1", (), True, 10, 0, True, 1),  # three bonds of the nitrogen, not two and two halves
        ("[NH4+]", (), True, 5, 1, True, 1),
        ("[OH-]", (), True, 2, -1, True, 1),
        ("C[N+](=O)[O-]", (), True, 7, 0, True, 1),
        ("C.O", (), True, 8, 0, True, 2),
        ("[CH3+]", (), True, 3, 1, True, 1),
    ],
)
def test_verdicts_on_molecules_that_are_known(raw, smiles, without, valid, stable, charge, closed, fragments) -> None:
    verdict = judged(raw(smiles, *without))
    assert (verdict.valid, verdict.stable_atoms, verdict.charge) == (valid, stable, charge)
    assert (verdict.closed_shell, verdict.fragments) == (closed, fragments)
    assert verdict.stable == (stable == verdict.atoms and charge == 0)
    assert verdict.fault == ("in pieces" if fragments > 1 else "" if verdict.stable else "not stable")


def test_a_carbon_with_five_bonds_is_not_valid_and_its_other_half_may_be(embedded) -> None:
    state = tensors(embedded("C"), QM9)
    five = {
        "positions": torch.cat([state["positions"], 9 + torch.arange(21.0).view(7, 3)]),
        "atoms": torch.tensor([0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]),
        "charges": torch.full((12,), 2),
        "bonds": torch.zeros(66, dtype=torch.long),
    }
    i, j = np.triu_indices(12, 1)
    bonded = [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (6, 7), (6, 8), (6, 9), (7, 10), (7, 11)]
    for pair in bonded:
        five["bonds"][int(np.flatnonzero((i == pair[0]) & (j == pair[1]))[0])] = 1
    verdict = judged(molecule(five, QM9))
    assert (verdict.valid, verdict.valid_largest, verdict.fragments) == (False, False, 2)
    assert verdict.smiles == ""
    five["bonds"][int(np.flatnonzero((i == 6) & (j == 7))[0])] = 2
    five["atoms"][5], five["bonds"][4] = 0, 0  # the fifth hydrogen a carbon of its own: methane, ethene, carbon
    verdict = judged(molecule(five, QM9))
    assert (verdict.valid, verdict.fragments, verdict.stable_atoms) == (True, 3, 11)
    assert verdict.smiles == "C.C=C.[C]"


def test_what_is_still_masked_is_never_valid(embedded) -> None:
    state = tensors(embedded("CO"), QM9)
    for name, size in QM9.sizes.items():
        for place in (0, len(state[name]) - 1):
            masked = {key: value.clone() for key, value in state.items()}
            masked[name][place] = size
            [(_, verdict)] = chemistry.verdicts(joined([masked]), QM9)
            assert not verdict.valid
            assert not verdict.stable
            assert verdict.masked
            assert verdict.smiles == ""


def test_aromatic_bonds_that_make_no_ring_are_not_valid(embedded) -> None:
    state = tensors(embedded("CC"), QM9)
    state["bonds"][0] = 4
    verdict = judged(molecule(state, QM9))
    assert not verdict.valid
    assert verdict.stable_atoms == 6  # a bond and a half does not make four


def test_a_vocabulary_reads_back_and_refuses_what_is_none() -> None:
    from flowplat_molecules.vocabulary import from_facts

    for one in (QM9, of_elements({"S", "Cl", "C"}, False)):
        assert from_facts(one.facts()) == one
    assert of_elements({"S", "Cl", "C"}, False).elements == ("C", "H", "N", "O", "F", "Cl", "S")
    for wrong in ({"elements": ("C", "C")}, {"charges": (1, 2)}, {"bonds": ("none",)}):
        with pytest.raises(ValueError, match=r"elements|charges|bonds"):
            Vocabulary(**wrong)
