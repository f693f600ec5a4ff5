"""Properties of a molecule as it stands by density functional theory, B3LYP/6-31G(2df,p) as QM9 has them, through
PySCF.

The functional is ``b3lypg``, with the correlation of Vosko, Wilk and Nusair that Gaussian uses. PySCF's own
6-31G(2df,p) has the d exponents of 6-311G, which puts water's dipole at 1.98 D where QM9 has 1.85; those of Frisch,
Pople and Binkley (1984, doi 10.1063/1.447079), 0.8 halved and doubled, are set here. With spherical functions orbital
energies come within 0.0005 Ha of QM9's for HOMOs of its first molecules, and within 0.004 Ha with Cartesian ones, so
they are spherical. Seconds to minutes a molecule: some dozens of them at most.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowcore.errors import MissingPackageError
from flowplat_molecules import heat
from flowplat_molecules.xtb import DEBYE

METHOD = "B3LYP/6-31G(2df,p) (PySCF, b3lypg, spherical), at the geometry given"
UNITS = {"mu": "D", "alpha": "bohr^3", "homo": "Ha", "lumo": "Ha", "gap": "Ha"}
BASIS, FUNCTIONAL = "6-31g(2df,p)", "b3lypg"
D_EXPONENTS = (1.6, 0.4)
F_EXPONENTS = {6: 0.8, 7: 1.0, 8: 1.4, 9: 1.85}  # other elements than C, N, O, F take PySCF's basis as it is
HEAVIEST = 18  # argon: the basis has no more
PYSCF = "DFT needs pyscf: pip install 'flowplat-molecules[dft]'"
FIELD = 2e-3  # atomic units; the error of the difference is of its square


def properties(
    numbers: Sequence[int],
    positions: np.ndarray,
    charge: int = 0,
    alpha: bool = False,
    grid: int = 3,
    cv: bool = False,
) -> Mapping[str, float]:
    """mu (Debye), homo, lumo, gap (Hartree), and with ``alpha`` the isotropic polarisability (bohr^3) by finite fields,
    six more calculations: alpha = tr(d mu / d E) / 3; with ``cv`` the heat capacity, cal/(mol K), by second
    derivatives, which take several times as long again.

    ``positions`` (N, 3) are in Angstrom, ``grid`` is PySCF's level of the integration grid. All are NaN where the
    number of electrons is odd or the self-consistent field does not converge. Raises ``MissingPackageError`` without
    pyscf.
    """
    try:
        from pyscf import dft, gto  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingPackageError(PYSCF) from error
    missing = dict.fromkeys([*UNITS, *(["cv"] if cv else [])], float("nan"))
    if (sum(numbers) - charge) % 2:
        return missing
    atoms = [(int(z), tuple(place)) for z, place in zip(numbers, np.asarray(positions, float).tolist(), strict=True)]
    basis = {}
    for z, symbol in {z: gto.mole._symbol(z) for z in sorted({int(z) for z in numbers})}.items():
        basis[symbol] = gto.basis.load(BASIS, symbol)
        if z in F_EXPONENTS:
            high = [[2, [d, 1.0]] for d in D_EXPONENTS] + [[3, [F_EXPONENTS[z], 1.0]]]
            basis[symbol] = [*gto.basis.load("6-31g", symbol), *high]
    molecule = gto.M(atom=atoms, basis=basis, charge=charge, verbose=0)

    def solved(field: np.ndarray | None = None, guess: Any = None) -> Any:
        calculation = dft.RKS(molecule, xc=FUNCTIONAL).density_fit()
        calculation.grids.level = grid
        if field is not None:
            with molecule.with_common_orig((0, 0, 0)):
                dipoles = molecule.intor_symmetric("int1e_r", comp=3)
            core = calculation.get_hcore() + np.einsum("x,xij->ij", field, dipoles)
            calculation.get_hcore = lambda *_: core
        calculation.kernel(dm0=guess)
        return calculation

    try:
        found = solved()
    except (ValueError, np.linalg.LinAlgError):  # atoms upon each other
        return missing
    if not found.converged:
        return missing
    filled = molecule.nelectron // 2
    homo, lumo = (float(found.mo_energy[place]) for place in (filled - 1, filled))
    told = {
        **missing,
        "mu": float(np.linalg.norm(found.dip_moment(unit="AU", verbose=0))) * DEBYE,
        "homo": homo,
        "lumo": lumo,
        "gap": lumo - homo,
    }
    if cv:
        second = np.asarray(found.Hessian().kernel()).transpose(0, 2, 1, 3)
        told["cv"] = heat.capacity(second.reshape(3 * len(numbers), -1), numbers, positions)
    if alpha:
        density, total = found.make_rdm1(), 0.0
        for axis in range(3):
            field = np.zeros(3)
            field[axis] = FIELD
            ends = [solved(sign * field, density) for sign in (1, -1)]
            if not all(end.converged for end in ends):
                return told
            up, down = (end.dip_moment(unit="AU", verbose=0)[axis] for end in ends)
            total += (up - down) / (2 * FIELD)
        told["alpha"] = float(total) / 3
    return told


class Job(NamedTuple):
    """A molecule to compute: atomic numbers, positions (N, 3) in Angstrom, net charge."""

    numbers: Sequence[int]
    positions: np.ndarray
    charge: int


def several(
    jobs: Sequence[Job],
    alpha: bool,
    grid: int,
    cv: bool,
    processes: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[Mapping[str, float]]:
    """``properties`` of each, so many molecules at once: a process of one thread for each, which takes nothing with it
    where it fails, and leaves nothing. ``done`` is told how many are. Raises ``MissingPackageError`` without pyscf."""
    found: list[Mapping[str, float]] = [{} for _ in jobs]
    if min(processes, len(jobs)) <= 1:
        for number, job in enumerate(jobs):
            found[number] = properties(*job, alpha, grid, cv)
            done(number + 1)
        return found
    if importlib.util.find_spec("pyscf") is None:
        raise MissingPackageError(PYSCF)
    running: dict[int, subprocess.Popen[str]] = {}
    waiting, single = list(range(len(jobs)))[::-1], {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = jobs[waiting[-1]]
                told = [list(map(int, job.numbers)), np.asarray(job.positions).tolist(), job.charge, alpha, grid, cv]
                running[waiting.pop()] = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps(told)], env=os.environ | single,
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
            for number in [number for number, one in running.items() if one.poll() is not None]:
                one = running.pop(number)
                if one.returncode == 0:
                    found[number] = json.loads(one.communicate()[0])
                done(len(jobs) - len(waiting) - len(running))
            time.sleep(0.05)
    finally:
        for one in running.values():
            one.kill()
    return found


if __name__ == "__main__":
    print(json.dumps(properties(*json.loads(sys.argv[1]))))
