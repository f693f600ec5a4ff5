"""QM7's geometries (arrays atomic_numbers, positions_mA, num_atoms, hof_pbe0, split) as SDF with bonds and properties.

    python plugins/molecules/scripts/qm7_to_sdf.py QM7.npz OUT.sdf.gz [--limit N]

Bonds are RDKit's for a neutral molecule of that geometry (DetermineBonds); what they cannot be found for is left out
and counted. Fields: index (row of the file), split, hof (atomisation energy by PBE0, kcal/mol), and mu (Debye), gap
(Hartree) and alpha (bohr^3) by GFN2-xTB and D4 at that geometry.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from tqdm import tqdm

from flowplat_molecules import xtb


def molecule(numbers: np.ndarray, positions: np.ndarray) -> Chem.Mol | None:
    """The neutral molecule of a geometry in Angstrom, or None."""
    table = Chem.GetPeriodicTable()
    lines = [f"{len(numbers)}", ""]
    for number, place in zip(numbers.tolist(), positions.tolist(), strict=True):
        lines.append(f"{table.GetElementSymbol(number)} " + " ".join(f"{value:.6f}" for value in place))
    raw = Chem.MolFromXYZBlock("\n".join(lines) + "\n")
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBonds(raw, charge=0)
            Chem.SanitizeMol(raw)
    except (ValueError, RuntimeError):
        return None
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    arrays = np.load(options.source)
    count, lost = 0, 0
    with gzip.open(options.out, "wt", encoding="utf-8") as file:
        writer = Chem.SDWriter(file)
        for row in tqdm(range(len(arrays["num_atoms"]))[: options.limit]):
            n = int(arrays["num_atoms"][row])
            numbers, positions = arrays["atomic_numbers"][row, :n], arrays["positions_mA"][row, :n] / 1000
            found = molecule(numbers, positions)
            if found is None or len(Chem.GetMolFrags(found)) > 1:
                lost += 1
                continue
            told = xtb.properties(numbers.tolist(), positions)
            fields = {"index": row, "split": int(arrays["split"][row]), "hof": f"{float(arrays['hof_pbe0'][row]):.3f}"}
            fields |= {name: f"{told[name]:.6g}" for name in ("mu", "gap", "alpha")}
            for name, value in fields.items():
                found.SetProp(name, str(value))
            writer.write(found)
            count += 1
        writer.close()
    print(f"{count} molecules written, {lost} left out", file=sys.stderr)


if __name__ == "__main__":
    main()
