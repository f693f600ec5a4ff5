"""The molecules that come with the package: all of C, N, O, F with up to five heavy atoms that a few rules let through.

    python plugins/molecules/scripts/enumerate_small.py        # writes src/flowplat_molecules/small.npz

A molecule grows by an atom, bonded once, twice or three times to one with hydrogens to spare, and closes rings; what is
left after the rules gets groups with formal charges (nitro, azide, isocyanide, nitrile oxide, amine oxide). Geometry is
the lowest in MMFF94 of some by ETKDG version 3, seed 1; properties are GFN2-xTB's at it, the polarisability D4's.
Dropped are those without MMFF parameters, without convergence, with a gap below 0.05 Ha, or whose geometry is not that
of their graph. Both random seeds and the order are fixed, so a second run writes the same file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem

from flowplat_molecules import xtb

HEAVY = 5
CONFORMERS = 6
OUT = Path(__file__).parents[1] / "src" / "flowplat_molecules" / "small.npz"
VALENCE = {"C": 4, "N": 3, "O": 2, "F": 1}
ORDERS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
FORBIDDEN = [
    "[O,F]~[O,F]", "oo", "[nH][nH]", "[nH]o", "[N,O]F", "[#7,#8;A]~[#7,#8;A]~[#7,#8;A]", "n(:n:n:n)-[!#6]",
    "[nH]1[nH]*1", "[o,n;r3]", "[#7,#8;r3]@[#7,#8;r3]", "[#6;A]=[#6;A]=[#6;A]", "*=[CX2]=[!O]", "[!N;!O]=[CX2]=O",
    "[NX2;!a]=[NX2;!a]-[!#6]", "[NX2](=O)[!#6]", "[CX4]([OX2H])[OX2H,F]", "[CX4]([NX3])([NX3])[#7,#8]",
    "[CX4]([#8])([#8])[#7,#8]", "[CX4](F)[NX3,OX2H]", "[CX4](F)(F)[#7,#8]", "[CX2]#[CX2][#7,#8,F]",
    "[CX3](=O)(F)[#7]", "[OX2H]C(=O)[OX2,F]", "[NX3]C(=O)[OX2H]", "[OX2H]C=[#7]", "[OX2H]C=C[OX2H]",
    "[OX2H]C(=C)[#7,#8,F]", "[NX3]C(=C)[#7,#8,F]", "[r3]=[r3]", "[r4]#*", "[r3]#*", "[r5]#*", "[R2]=*", "[r3;R1]=*",
    "[r4]=[r4]-,=[r4]=[r4]", "*=[N;r3]", "[r3;R3]", "[r5;A]=[r5]=*", "[r3;R2]@[r3;R2]@[r3;R2]",
]  # fmt: skip
PATTERNS = [Chem.MolFromSmarts(pattern) for pattern in FORBIDDEN]
CHARGED = {  # the group, its number of heavy atoms
    "[N+](=O)[O-]": 3, "N=[N+]=[N-]": 3, "[N+]#[C-]": 2, "C#[N+][O-]": 3,
}  # fmt: skip
ALONE = [
    "C[N+](C)(C)[O-]",
    "C[N+](C)([O-])C",
    "[O-][n+]1ccc1",
    "C=[N+]=[N-]",
    "CC=[N+]=[N-]",
    "CC(C)=[N+]=[N-]",
    "[C-]#[O+]",
]


def built(editable: Chem.RWMol) -> str | None:
    """The canonical SMILES, or None where the molecule is none."""
    try:
        molecule = editable.GetMol()
        Chem.SanitizeMol(molecule)
    except ValueError:
        return None
    return Chem.MolToSmiles(molecule)


def grown(smiles: str, elements: str = "CNOF") -> Iterator[str]:
    """All that one atom more makes of a molecule, by bonds of any order that valences leave room for."""
    molecule = Chem.MolFromSmiles(smiles)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for atom in molecule.GetAtoms():
        for element in elements:
            for order in range(1, min(atom.GetTotalNumHs(), VALENCE[element], 3) + 1):
                editable = Chem.RWMol(molecule)
                new = editable.AddAtom(Chem.Atom(element))
                editable.AddBond(atom.GetIdx(), new, ORDERS[order])
                if made := built(editable):
                    yield made


def closed(smiles: str) -> Iterator[str]:
    """All that one ring bond more makes of it."""
    molecule = Chem.MolFromSmiles(smiles)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for i in range(molecule.GetNumAtoms()):
        for j in range(i):
            if molecule.GetBondBetweenAtoms(i, j) is not None:
                continue
            room = min(molecule.GetAtomWithIdx(k).GetTotalNumHs() for k in (i, j))
            for order in range(1, min(room, 2) + 1):
                editable = Chem.RWMol(molecule)
                editable.AddBond(i, j, ORDERS[order])
                if made := built(editable):
                    yield made


def reasonable(smiles: str) -> bool:
    """Whether none of the rules forbids it."""
    molecule = Chem.MolFromSmiles(smiles)
    return not any(molecule.HasSubstructMatch(pattern) for pattern in PATTERNS)


def levels() -> list[list[str]]:
    """Molecules by their number of heavy atoms, from one."""
    level, found = sorted(VALENCE), []
    for size in range(1, HEAVY + 1):
        whole, fresh = set(level), set(level)
        while fresh:  # ring upon ring
            fresh = {made for smiles in fresh for made in closed(smiles)} - whole
            whole |= fresh
        found.append(sorted(filter(reasonable, whole)))
        print(f"{size} heavy atoms: {len(found[-1])} of {len(whole)}", file=sys.stderr, flush=True)
        if size < HEAVY:
            level = sorted({made for smiles in whole for made in grown(smiles)})
    return found


def charged(found: list[list[str]]) -> list[str]:
    """What a group with formal charges makes of a carbon's hydrogen."""
    made = {Chem.CanonSmiles(smiles) for smiles in ALONE if Chem.MolFromSmiles(smiles) is not None}
    for group, size in CHARGED.items():
        for smiles in [smiles for level in found[: HEAVY - size] for smiles in level]:
            molecule = Chem.MolFromSmiles(smiles)
            for atom in molecule.GetAtoms():
                if atom.GetSymbol() != "C" or atom.GetTotalNumHs() == 0 or atom.GetIsAromatic():
                    continue
                if any(other.GetSymbol() != "C" for other in atom.GetNeighbors()):
                    continue
                both = Chem.CombineMols(molecule, Chem.MolFromSmiles(group, sanitize=False))
                editable = Chem.RWMol(both)
                editable.AddBond(atom.GetIdx(), molecule.GetNumAtoms(), ORDERS[1])
                if smiles := built(editable):
                    made.add(smiles)
    return sorted(made)


def placed(smiles: str) -> Chem.Mol | None:
    """The molecule with hydrogens, at the lowest of some conformers; None where there is no good one."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    parameters = AllChem.ETKDGv3()
    parameters.randomSeed = 1
    if molecule.GetNumAtoms() == 1 or not AllChem.MMFFHasAllMoleculeParams(molecule):
        return None
    places = list(AllChem.EmbedMultipleConfs(molecule, CONFORMERS, parameters))
    if not places:
        return None
    energies = [energy for _, energy in AllChem.MMFFOptimizeMoleculeConfs(molecule, maxIters=2000)]
    best = molecule.GetConformer(places[int(np.argmin(energies))])
    kept = Chem.Mol(molecule, confId=best.GetId())
    distance = Chem.Get3DDistanceMatrix(kept) + 9 * np.eye(kept.GetNumAtoms())
    bonded = Chem.GetAdjacencyMatrix(kept).astype(bool)
    sensible = distance[bonded].max() < 1.7 and distance.min() > 0.85 and distance[~bonded].min() > 1.3
    return kept if sensible else None


def main() -> None:
    RDLogger.DisableLog("rdApp.*")
    found = levels()
    smiles = sorted({*(one for level in found for one in level), *charged(found)}, key=lambda s: (len(s), s))
    kept, places, rows = [], [], []
    for one in smiles:
        if (molecule := placed(one)) is None:
            continue
        positions = molecule.GetConformer().GetPositions()
        milli = np.round((positions - positions.mean(0)) * 1000).astype(np.int16)
        told = xtb.properties([a.GetAtomicNum() for a in molecule.GetAtoms()], milli / 1000)
        if not all(np.isfinite(list(told.values()))) or told["gap"] < 0.05:
            continue
        kept.append(one)
        places.append(milli)
        rows.append([round(value, 5) for value in told.values()])
    np.savez_compressed(
        OUT,
        smiles=np.frombuffer("\n".join(kept).encode(), np.uint8),
        sizes=np.array([len(one) for one in places], np.uint8),
        positions=np.concatenate(places),
        properties=np.array(rows, np.float32),
        names=np.array(list(xtb.UNITS)),
    )
    print(f"{len(kept)} of {len(smiles)} molecules, {OUT.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
