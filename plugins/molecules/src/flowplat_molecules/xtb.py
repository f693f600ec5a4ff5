"""Properties of a molecule as it stands, by GFN2-xTB (Bannwarth, Ehlert, Grimme 2019, doi 10.1021/acs.jctc.8b01176) and
D4 polarisabilities: milliseconds a molecule, on a scale of its own that is not that of density functionals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowcore.errors import MissingPackageError
from flowplat_molecules import heat

METHOD = "GFN2-xTB (tblite), alpha by D4 (dftd4), at the geometry given"
BOHR = 0.529177210903  # Angstrom
DEBYE = 2.541746473  # of one atomic unit
EV = 27.211386245988  # of one Hartree
STEP = 5e-3  # bohr, of the differences of gradients
UNITS = {"mu": "D", "alpha": "bohr^3", "homo": "Ha", "lumo": "Ha", "gap": "Ha"}


def properties(numbers: Sequence[int], positions: np.ndarray, charge: int = 0, cv: bool = False) -> Mapping[str, float]:
    """Dipole moment mu (Debye), static polarisability alpha (bohr^3), homo, lumo and gap (Hartree);
    with ``cv`` the heat capacity too, cal/(mol K), by 6 N gradients more.

    ``numbers`` are the N atomic numbers, ``positions`` (N, 3) in Angstrom. The molecule is a closed shell; every value
    is NaN where the number of electrons is odd or the self-consistent field does not converge. Raises
    ``MissingPackageError`` without tblite or dftd4.
    """
    try:
        from dftd4.interface import DispersionModel  # type: ignore[import-untyped]
        from tblite.interface import Calculator
    except ImportError as error:
        raise MissingPackageError(
            f"xTB's properties need {error.name}: pip install 'flowplat-molecules[xtb]'"
        ) from error
    atoms, places = np.asarray(numbers), np.asarray(positions, dtype=np.float64) / BOHR
    missing = dict.fromkeys([*UNITS, *(["cv"] if cv else [])], float("nan"))
    if (atoms.sum() - charge) % 2 or not np.isfinite(places).all():
        return missing
    try:
        calculator = Calculator("GFN2-xTB", atoms, places, charge=float(charge))
        calculator.set("verbosity", 0)
        result = calculator.singlepoint()
        alpha = DispersionModel(atoms, places, charge=float(charge)).get_properties()["polarizabilities"].sum()
        energies, occupied = np.array(result.get("orbital-energies")), np.array(result.get("orbital-occupations"))
        dipole = np.array(result.get("dipole"))
        heated = {"cv": heat.capacity(_hessian(calculator, result, places), numbers, places)} if cv else {}
    except RuntimeError:  # atoms upon each other, or no convergence
        return missing
    filled = round(float(occupied.sum()) / 2)
    homo = float(energies[filled - 1])
    lumo = float(energies[filled]) if filled < len(energies) else float("nan")
    return {
        "mu": float(np.linalg.norm(dipole)) * DEBYE,
        "alpha": float(alpha),
        "homo": homo,
        "lumo": lumo,
        "gap": lumo - homo,
        **heated,
    }


def _hessian(calculator: Any, result: Any, places: np.ndarray) -> np.ndarray:
    """Second derivatives (3N, 3N) in Hartree/bohr^2, by central differences of gradients."""
    rows = []
    for number in range(places.size):
        ends = []
        for sign in (1, -1):
            moved = places.ravel().copy()
            moved[number] += sign * STEP
            calculator.update(moved.reshape(places.shape))
            ends.append(np.array(calculator.singlepoint(result, copy=True).get("gradient")).ravel())
        rows.append((ends[0] - ends[1]) / (2 * STEP))
    return np.stack(rows)
