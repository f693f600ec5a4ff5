"""Between RDKit's molecules and tensors: one featuriser for every data set, and the way back.

What comes back from tensors is what they say and no more: no hydrogen is added, no charge guessed. An atom still masked
becomes the dummy atom ``*`` and a masked bond none, and neither is ever valid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Geometry import Point3D

from flowcore.data import Batch
from flowcore.state import State
from flowplat_molecules.graphs import LEAVES, split
from flowplat_molecules.vocabulary import Vocabulary

TYPES = {
    "single": Chem.BondType.SINGLE,
    "double": Chem.BondType.DOUBLE,
    "triple": Chem.BondType.TRIPLE,
    "aromatic": Chem.BondType.AROMATIC,
}
NAMES = {kind: name for name, kind in TYPES.items()}
ORDERS = {Chem.BondType.SINGLE: 1.0, Chem.BondType.DOUBLE: 2.0, Chem.BondType.TRIPLE: 3.0, Chem.BondType.AROMATIC: 1.5}
# valence less formal charge, for atoms with an octet; hydrogen's pair; the higher oxidation states of P, S and halogens
VALENCES: Mapping[str, tuple[int, ...]] = {
    "H": (1,), "B": (3,), "C": (4,), "N": (3,), "O": (2,), "F": (1,), "Si": (4,), "P": (3, 5), "S": (2, 4, 6),
    "Cl": (1,), "Br": (1,), "I": (1,), "Se": (2, 4, 6), "As": (3, 5),
}  # fmt: skip


class UnfitError(ValueError):
    """A molecule that no tensors stand for; the message says why, as in "its charge 4 is none of -2 to 3"."""


def symbols(molecule: Chem.Mol) -> set[str]:
    """The elements of a molecule."""
    return {atom.GetSymbol() for atom in molecule.GetAtoms()}


def tensors(molecule: Chem.Mol, vocabulary: Vocabulary, conformer: int = -1) -> State:
    """A sanitised molecule with hydrogens as ``positions`` (N, 3), centred, ``atoms`` (N,), ``charges`` (N,) and
    ``bonds`` (N (N - 1) / 2,), in its own order of atoms. Dummy atoms are of the mask's class. Raises
    ``UnfitError``."""
    count = molecule.GetNumAtoms()
    if count < 2:
        raise UnfitError(f"it has {count} atoms, and a pair is the least")
    if not vocabulary.aromatic:
        molecule = Chem.Mol(molecule)
        Chem.Kekulize(molecule, clearAromaticFlags=True)
    element, charge, bond = _classes(vocabulary)
    atoms, charges = [], []
    for atom in molecule.GetAtoms():
        symbol, q = atom.GetSymbol(), atom.GetFormalCharge()
        if atom.GetAtomicNum() == 0:
            symbol = "*"  # a dummy, as what is masked is written
        elif symbol not in element:
            raise UnfitError(f"its element {symbol} is none of {', '.join(vocabulary.elements)}")
        if q not in charge:
            raise UnfitError(f"its formal charge {q} is none of {vocabulary.charges[0]} to {vocabulary.charges[-1]}")
        atoms.append(element[symbol])
        charges.append(charge[q])
    full = np.zeros((count, count), np.int64)
    for one in molecule.GetBonds():
        kind = NAMES.get(one.GetBondType())
        if kind not in bond:
            raise UnfitError(
                f"its bond of type {str(one.GetBondType()).lower()} is none of {', '.join(vocabulary.bonds)}"
            )
        i, j = sorted((one.GetBeginAtomIdx(), one.GetEndAtomIdx()))
        full[i, j] = bond[kind]
    positions = molecule.GetConformer(conformer).GetPositions()
    if not np.isfinite(positions).all():
        raise UnfitError("its coordinates are not finite")
    return {
        "positions": torch.from_numpy((positions - positions.mean(0)).astype(np.float32)),
        "atoms": torch.tensor(atoms),
        "charges": torch.tensor(charges),
        "bonds": torch.from_numpy(full[np.triu_indices(count, 1)]),
    }


@cache
def _classes(vocabulary: Vocabulary) -> tuple[dict[str, int], dict[int, int], dict[str, int]]:
    return (
        {name: number for number, name in enumerate((*vocabulary.elements, "*"))},
        {charge: number for number, charge in enumerate(vocabulary.charges)},
        {name: number for number, name in enumerate(vocabulary.bonds)},
    )


@cache
def _triangle(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(count, 1)


def molecule(state: State, vocabulary: Vocabulary) -> Chem.Mol:
    """What the tensors of one molecule say, unsanitised, with its conformer."""
    positions, atoms, charges, bonds = (state[name].numpy() for name in LEAVES)
    made, (i, j) = Chem.RWMol(), _triangle(len(atoms))
    for element, charge in zip(atoms.tolist(), charges.tolist(), strict=True):
        atom = Chem.Atom(vocabulary.elements[element] if element < len(vocabulary.elements) else "*")
        atom.SetFormalCharge(vocabulary.charges[charge] if charge < len(vocabulary.charges) else 0)
        atom.SetNoImplicit(True)
        made.AddAtom(atom)
    there = ((bonds > 0) & (bonds < len(vocabulary.bonds))).nonzero()[0]
    for first, second, kind in zip(i[there].tolist(), j[there].tolist(), bonds[there].tolist(), strict=True):
        kind_of = TYPES[vocabulary.bonds[kind]]
        made.AddBond(first, second, kind_of)
        if kind_of == Chem.BondType.AROMATIC:
            made.GetBondBetweenAtoms(first, second).SetIsAromatic(True)
            for place in (first, second):
                made.GetAtomWithIdx(place).SetIsAromatic(True)
    conformer = Chem.Conformer(len(atoms))
    conformer.Set3D(True)
    for place, point in enumerate(positions.astype(float).tolist()):
        conformer.SetAtomPosition(place, Point3D(*point))
    made.AddConformer(conformer, assignId=True)
    return made.GetMol()


def molecules(batch: Batch, vocabulary: Vocabulary) -> list[Chem.Mol]:
    """``molecule`` of each sample of a batch, in its order."""
    return [molecule(state, vocabulary) for state in split(batch)]


def sanitised(raw: Chem.Mol) -> Chem.Mol | None:
    """The molecule as RDKit understands it, or None where its valences or its aromatic rings make no sense, and where
    an atom is a dummy."""
    if any(atom.GetAtomicNum() == 0 for atom in raw.GetAtoms()):
        return None
    found = Chem.Mol(raw)
    with rdBase.BlockLogs():
        if Chem.SanitizeMol(found, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return None
    return found


def smiles_of(molecule: Chem.Mol) -> str:
    """The canonical SMILES of the graph, without hydrogens and without stereo, which tells what is the same
    molecule."""
    with rdBase.BlockLogs():
        plain = Chem.RemoveHs(molecule, sanitize=False)
        if Chem.SanitizeMol(plain, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            plain = molecule  # a hydrogen that is more than that
        return str(Chem.MolToSmiles(plain, isomericSmiles=False))


@dataclass(frozen=True)
class Verdict:
    """What is true of one molecule as its tensors say it.

    ``valid``: RDKit sanitises it whole. ``valid_largest``: its largest fragment. ``fragments``: pieces not bonded to
    each other. ``atoms`` and ``stable_atoms``: how many there are, and how many have the valence of their element and
    charge. ``charge``: net. ``closed_shell``: an even number of electrons, the net charge taken off. ``smiles`` is
    canonical, empty where the molecule is not valid.
    """

    valid: bool
    valid_largest: bool
    fragments: int
    atoms: int
    stable_atoms: int
    charge: int
    closed_shell: bool
    masked: bool
    smiles: str

    @property
    def stable(self) -> bool:
        """All atoms stable, no net charge, nothing left masked."""
        return self.stable_atoms == self.atoms and self.charge == 0 and not self.masked

    @property
    def fault(self) -> str:
        """The gravest fault in a word or two, for a picture; empty where there is none."""
        if not self.valid:
            return "not valid"
        if self.fragments > 1:
            return "in pieces"
        return "" if self.stable else "not stable"


def judged(raw: Chem.Mol, masked: bool = False) -> Verdict:
    """See ``Verdict``. ``masked`` says that a label of it was left masked, which the molecule cannot show.

    Valences are those of the Kekule form where there is one: a pyrrole's nitrogen has three bonds there and one too
    many by halves. Aromatic bonds that make no ring count one and a half.
    """
    whole = sanitised(raw)
    fragments = list(Chem.GetMolFrags(raw)) or [()]
    if len(fragments) == 1 or whole is not None:
        largest = whole is not None
    else:
        # equal sizes: the first, as the atoms are numbered
        kept = set(sorted(fragments, key=lambda part: -len(tuple(part)))[0])
        part = Chem.RWMol(raw)
        for place in sorted(set(range(raw.GetNumAtoms())) - kept, reverse=True):
            part.RemoveAtom(place)
        largest = sanitised(part.GetMol()) is not None
    atoms = list(raw.GetAtoms())
    charge = sum(atom.GetFormalCharge() for atom in atoms)
    electrons = sum(atom.GetAtomicNum() for atom in atoms) - charge
    dummy = any(atom.GetAtomicNum() == 0 for atom in atoms)
    return Verdict(
        valid=whole is not None and not masked,
        valid_largest=largest and not masked,
        fragments=len(fragments),
        atoms=len(atoms),
        stable_atoms=sum(stable_atoms(raw)),
        charge=charge,
        closed_shell=electrons % 2 == 0 and not dummy,
        masked=masked or dummy,
        smiles="" if whole is None or masked else smiles_of(whole),
    )


def stable_atoms(raw: Chem.Mol) -> list[bool]:
    """Whether each atom has the valence of its element and formal charge."""
    form = raw
    if any(bond.GetIsAromatic() for bond in raw.GetBonds()):
        form = Chem.Mol(raw)
        with rdBase.BlockLogs():
            try:
                form.UpdatePropertyCache(strict=False)
                Chem.Kekulize(form, clearAromaticFlags=True)
            except ValueError:  # no Kekule form
                form = raw
    valence = [0.0] * form.GetNumAtoms()
    for bond in form.GetBonds():
        order = ORDERS.get(bond.GetBondType(), 0.0)
        valence[bond.GetBeginAtomIdx()] += order
        valence[bond.GetEndAtomIdx()] += order
    return [
        valence[atom.GetIdx()] - atom.GetFormalCharge() in VALENCES.get(atom.GetSymbol(), ())
        for atom in form.GetAtoms()
    ]


def verdicts(batch: Batch, vocabulary: Vocabulary) -> Iterator[tuple[Chem.Mol, Verdict]]:
    """Each molecule of a batch and what is true of it."""
    sizes = vocabulary.sizes
    for state in split(batch):
        left = any(bool((state[name] >= size).any()) for name, size in sizes.items())
        raw = molecule(state, vocabulary)
        yield raw, judged(raw, left)
