"""The molecules that come with the package: 1,416 of C, H, N, O, F with up to five heavy atoms, at the lowest of some
MMFF94 conformers, with properties by GFN2-xTB at that geometry. ``scripts/enumerate_small.py`` made them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from rdkit import Chem
from torch import Tensor

from flowplat_molecules import chemistry, xtb
from flowplat_molecules.data import TINY, Collection, Fixed, Known, Loaded, MoleculesConfig, gathered
from flowplat_molecules.vocabulary import AROMATIC, KEKULE, Vocabulary

Name = Literal["mu", "alpha", "homo", "lumo", "gap"]


class BuiltinConfig(MoleculesConfig):
    """The molecules that come with the package."""

    properties: list[Name] = Field(  # type: ignore[assignment]
        ["mu"],
        description="what the network is told of each molecule: mu (D), alpha (bohr^3), homo, lumo, gap (Hartree)",
    )
    judge_share: float = Field(
        0.25, ge=0, lt=1, description="share of the rest that only the judge of properties learns from"
    )


class Builtin(Collection):
    """See the module. Their graphs are made of SMILES when they are asked for, and are the same each time."""

    config: BuiltinConfig

    @cached_property
    def _file(self) -> dict[str, np.ndarray]:
        with resources.files("flowplat_molecules").joinpath("small.npz").open("rb") as file, np.load(file) as arrays:
            return dict(arrays)

    @cached_property
    def _smiles(self) -> list[str]:
        return bytes(self._file["smiles"]).decode().split("\n")

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(bonds=AROMATIC if self.config.aromatic else KEKULE)

    def known(self) -> Mapping[str, Known]:
        """GFN2-xTB's, whatever density functionals would say."""
        return {name: Known(unit, xtb.METHOD) for name, unit in xtb.UNITS.items()}

    def sizes_and_values(self) -> tuple[Tensor, Tensor]:
        """Known without making a graph, so a trained model samples at once."""
        names = self._file["names"].tolist()
        columns = [names.index(name) for name in self.config.properties]
        return torch.from_numpy(self._file["sizes"].astype(np.int64)), torch.from_numpy(
            self._file["properties"][:, columns]
        )

    def _groups(self) -> Sequence[str]:
        return self._smiles

    def read(self) -> Loaded:
        """Every molecule."""
        return self._some(list(range(len(self._smiles))))

    def _some(self, rows: list[int]) -> Loaded:
        sizes, values = self.sizes_and_values()
        ends = sizes.cumsum(0)
        states, chosen = [], [self._smiles[row] for row in rows]
        for row, smiles in zip(rows, chosen, strict=True):
            end = int(ends[row])
            positions = self._file["positions"][end - int(sizes[row]) : end] / 1000
            states.append(chemistry.tensors(molecule_of(smiles, positions), self.vocabulary))
        return gathered(states, values[rows].tolist(), chosen, chosen)

    def tiny(self) -> Collection:
        """128 of them, spread over all, made alone."""
        rows = torch.linspace(0, len(self._smiles) - 1, TINY).round().long().tolist()
        return Fixed(self.config, self._some(rows), self.known(), self.facts())


def molecule_of(smiles: str, positions: np.ndarray) -> Chem.Mol:
    """The molecule of a SMILES with its hydrogens behind the other atoms, at ``positions`` (N, 3)."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    conformer = Chem.Conformer(molecule.GetNumAtoms())
    conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
    molecule.AddConformer(conformer)
    return molecule
