"""Who says what the properties of a molecule are: GFN2-xTB, or a judge trained on molecules that the generator never
saw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowplat_molecules import judge, xtb
from flowplat_molecules.chemistry import Verdict
from flowplat_molecules.data import Collection
from flowplat_molecules.graphs import joined, split
from flowplat_molecules.progress import counted, counter

STEPS = 1500
CHUNK = 256
FOLDER = "judge"


def by_xtb(checked: Sequence[tuple[Chem.Mol, Verdict]], names: Sequence[str]) -> Tensor:
    """(B, K) by GFN2-xTB at the geometry as it is; NaN for what xTB does not compute, and for a molecule in pieces,
    with something masked, or with an odd number of electrons. Raises ``UsageError`` where xTB computes none of
    ``names``."""
    if not set(names) & set(xtb.UNITS):
        raise UsageError(
            f"xTB computes {', '.join(xtb.UNITS)}, and this model was told {', '.join(names) or 'nothing'}"
        )
    found = torch.full((len(checked), len(names)), np.nan, dtype=torch.float64)
    for row, (raw, verdict) in enumerate(counted("xTB", checked)):
        if verdict.masked or verdict.fragments != 1 or not verdict.closed_shell:
            continue
        numbers = [atom.GetAtomicNum() for atom in raw.GetAtoms()]
        told = xtb.properties(numbers, raw.GetConformer().GetPositions(), verdict.charge)
        found[row] = torch.tensor([told.get(name, np.nan) for name in names])
    return found


def trained(data: Collection, folder: Path | None, seed: int, device: torch.device, steps: int = STEPS) -> judge.Judge:
    """The judge of a data set's properties: the one in ``folder``, or a new one, trained on its own share of the data
    and kept there. Raises ``UsageError`` where the model was told no property."""
    spec = data.spec()
    if not spec.properties:
        raise UsageError("this model was told no property, so there is none to judge")
    if folder is not None and (folder / "judge.json").exists():
        return judge.load(folder, spec, device)
    try:
        source = data.judge()
    except InputError as error:
        raise InputError(
            f"a new judge learns from the model's data, and {error}; or name one by judge=FOLDER"
        ) from error
    made = judge.fit(source, spec, seed, device, steps, progress=counter("judge", steps))
    if folder is not None:
        made.save(folder)
    return made


def by_judge(judging: judge.Judge, batch: Batch, unmasked: Sequence[bool]) -> Tensor:
    """(B, K) in the units of the data; NaN where something is left masked, which the judge has no class for."""
    found = torch.full((len(batch), len(judging.properties)), np.nan, dtype=torch.float64)
    rows = [row for row, whole in enumerate(unmasked) if whole]
    states = split(Batch(batch.x1, index=batch.index, samples=batch.samples))
    for start in range(0, len(rows), CHUNK):
        mine = rows[start : start + CHUNK]
        found[mine] = judging.predict(joined([states[row] for row in mine])).double()
    return found


def real(data: Collection, count: int) -> Batch:
    """Held-out molecules, ``count`` at most, spread over all there are."""
    source = data.val()
    rows = torch.linspace(0, len(source) - 1, min(count, len(source))).round().long()
    return source.batch(rows, torch.Generator())
