"""Molecular formulas, as in ``C4H8O``."""

import re

import torch
from torch import Tensor

from flowcore.errors import UsageError
from flowplat_molecules.vocabulary import Vocabulary

LARGEST = 512


def atoms_of(formula: str, vocabulary: Vocabulary) -> Tensor:
    """The class of each atom of a formula, elements in its order. Raises ``UsageError``."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    if not parts or "".join(element + number for element, number in parts) != formula:
        raise UsageError(f"{formula!r} is no formula; write one as C4H8O")
    atoms: list[int] = []
    for element, number in parts:
        if element not in vocabulary.elements:
            raise UsageError(f"{formula}: this model knows {', '.join(vocabulary.elements)}, and no {element}")
        atoms += [vocabulary.elements.index(element)] * min(int(number or 1), LARGEST + 1)
    if not 2 <= len(atoms) <= LARGEST:
        raise UsageError(f"{formula} has {len(atoms)} atoms; 2 to {LARGEST} can be drawn")
    return torch.tensor(atoms)
