"""The classes that atoms, formal charges and bonds fall into; a further one, past the last, is the mask."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CHARGES = (-2, -1, 0, 1, 2, 3)
KEKULE = ("none", "single", "double", "triple")
AROMATIC = (*KEKULE, "aromatic")
LEAVES = ("positions", "atoms", "charges", "bonds")


@dataclass(frozen=True)
class Vocabulary:
    """What a model knows: element symbols, formal charges, kinds of bonds, each in the order of their classes."""

    elements: tuple[str, ...] = ("C", "H", "N", "O", "F")
    charges: tuple[int, ...] = CHARGES
    bonds: tuple[str, ...] = AROMATIC

    def __post_init__(self) -> None:
        if not self.elements or len(set(self.elements)) < len(self.elements):
            raise ValueError(f"elements {self.elements} are none, or one is there twice")
        if list(self.charges) != sorted(set(self.charges)) or 0 not in self.charges:
            raise ValueError(f"charges {self.charges} should rise and hold 0")
        if self.bonds not in (KEKULE, AROMATIC):
            raise ValueError(f"bonds are {KEKULE} or {AROMATIC}")

    @property
    def sizes(self) -> dict[str, int]:
        """How many classes each kind of label has, its mask not counted."""
        return {"atoms": len(self.elements), "charges": len(self.charges), "bonds": len(self.bonds)}

    @property
    def aromatic(self) -> bool:
        """Whether aromatic bonds are a class of their own, not single and double in turn."""
        return "aromatic" in self.bonds

    def facts(self) -> dict[str, Any]:
        """Plain JSON, which ``from_facts`` reads."""
        return {key: list(value) for key, value in asdict(self).items()}


def from_facts(facts: dict[str, Sequence[Any]]) -> Vocabulary:
    """The vocabulary that ``facts`` tell of. Raises ``ValueError`` where they tell of none."""
    return Vocabulary(**{key: tuple(value) for key, value in facts.items()})


def of_elements(symbols: set[str], aromatic: bool) -> Vocabulary:
    """The vocabulary of data with these elements: QM9's first, in its order, and all of them; others behind."""
    usual = Vocabulary().elements
    return Vocabulary((*usual, *sorted(symbols - set(usual))), bonds=AROMATIC if aromatic else KEKULE)
