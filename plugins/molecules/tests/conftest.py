"""Molecules to test with, and a model that knows the answer."""

from pathlib import Path

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from flowcore.plugin.contracts import Parts
from flowplat_molecules.builtin import Builtin, BuiltinConfig
from flowplat_molecules.graphs import split


class Knowing(torch.nn.Module):
    """Of the training molecules of a size it answers with the one whose property is nearest to what is asked."""

    def __init__(self, data):
        super().__init__()
        source = data.train()
        batch = source.batch(torch.arange(len(source)), torch.Generator())
        self.classes, self.by_size = data.vocabulary.sizes, {}
        for state, values in zip(split(batch), batch.condition, strict=True):
            self.by_size.setdefault(len(state["atoms"]), []).append((values, state))

    def forward(self, x, t, condition, index):
        chosen = []
        for row, size in enumerate(torch.bincount(index["positions"]).tolist()):
            far = [(values - condition[row]).abs().nan_to_num(0).sum() for values, _ in self.by_size[size]]
            chosen.append(self.by_size[size][int(torch.stack(far).argmin())][1])
        told = {"positions": torch.cat([one["positions"] for one in chosen])}
        for name, classes in self.classes.items():
            labels = torch.cat([one[name] for one in chosen])
            told[name] = 1e3 * torch.nn.functional.one_hot(labels, classes).float()
        return told


class Model:
    """What a task sees of a model; see ``flowcore.plugin.contracts.Trained``."""

    def __init__(self, data, network):
        self.data, self.network, self.device, self.seed = data, network, torch.device("cpu"), 0

    def parts(self):
        return Parts(self.data.spec(), self.data, self.device)


@pytest.fixture(scope="session")
def small():
    """The molecules that come with the package."""
    return Builtin(BuiltinConfig())


@pytest.fixture(scope="session")
def knowing(small):
    """A model of them that answers as well as can be."""
    return Model(small, Knowing(small))


@pytest.fixture(scope="session")
def embedded():
    """``embedded("CCO")`` is a molecule with coordinates."""
    return _embedded


def _embedded(smiles: str, hydrogens: bool = True) -> Chem.Mol:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(molecule, randomSeed=1) == 0
    return molecule if hydrogens else Chem.RemoveHs(molecule)


@pytest.fixture(scope="session")
def record():
    """``record("CCO", "its title", mu=3)`` is a record of an SDF file."""

    def made(molecule: Chem.Mol | str, title: str = "", v3000: bool = False, **fields) -> str:
        molecule = Chem.Mol(_embedded(molecule) if isinstance(molecule, str) else molecule)
        molecule.SetProp("_Name", title)
        block = Chem.MolToV3KMolBlock(molecule) if v3000 else Chem.MolToMolBlock(molecule)
        return block + "".join(f">  <{name}>\n{value}\n\n" for name, value in fields.items()) + "$$$$\n"

    return made


@pytest.fixture
def sdf(tmp_path: Path):
    """``sdf("a.sdf", record(...), ...)`` is the path of a new file."""

    def made(name: str, *records: str) -> str:
        (tmp_path / name).write_text("".join(records))
        return str(tmp_path / name)

    return made
