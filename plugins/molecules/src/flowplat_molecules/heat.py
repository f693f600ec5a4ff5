"""Heat capacities of the ideal gas from second derivatives: rigid rotor, harmonic oscillators.

    Cv = R (3/2 + 3/2 + sum_k x_k^2 e^x_k / (e^x_k - 1)^2),   x_k = h nu_k / k T

with 1 in place of the second 3/2 for atoms on a line. Rotations and translations are projected out, masses are those of
the commonest isotopes. Where a geometry is no minimum some nu_k are imaginary, and left out, as Gaussian does.
"""

from collections.abc import Sequence

import numpy as np
from rdkit import Chem

UNIT = "cal/(mol K)"
TEMPERATURE = 298.15
R = 1.987204258640832  # cal/(mol K)
BOHR, HARTREE, DALTON = 5.29177210903e-11, 4.3597447222071e-18, 1.66053906660e-27  # m, J, kg
HBAR, BOLTZMANN = 1.054571817646e-34, 1.380649e-23


def capacity(hessian: np.ndarray, numbers: Sequence[int], positions: np.ndarray) -> float:
    """Cv in cal/(mol K) at 298.15 K, of second derivatives (3N, 3N) in Hartree/bohr^2 and positions (N, 3) in any
    unit."""
    free = _still(numbers, positions)
    root = np.sqrt(_masses(numbers)).repeat(3)
    inner = np.linalg.eigvalsh(free.T @ (0.5 * (hessian + hessian.T) / root[:, None] / root) @ free)
    pace = np.sqrt(inner[inner > 0] * HARTREE / DALTON) / BOHR  # radians a second
    half = HBAR * pace / (2 * BOLTZMANN * TEMPERATURE)
    turns = 3 * len(numbers) - free.shape[1] - 3
    return float(R * (1.5 + turns / 2 + ((half / np.sinh(half)) ** 2).sum()))


def _masses(numbers: Sequence[int]) -> np.ndarray:
    table = Chem.GetPeriodicTable()
    return np.array([table.GetMostCommonIsotopeMass(int(z)) for z in numbers])


def _still(numbers: Sequence[int], positions: np.ndarray) -> np.ndarray:
    """Mass-weighted directions (3N, 3N - 6, or - 5 on a line) in which nothing turns or moves as a whole."""
    masses = _masses(numbers)
    x = np.asarray(positions, float)
    x = x - masses @ x / masses.sum()
    unit = np.eye(3)
    whole = [np.tile(unit[k], (len(x), 1)) for k in range(3)] + [np.cross(unit[k], x) for k in range(3)]
    rows = np.stack([(one * np.sqrt(masses)[:, None]).ravel() for one in whole])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    _, size, directions = np.linalg.svd(rows)
    return np.asarray(directions[(size > 1e-3).sum() :].T)
