"""How good generated molecules are: as chemistry, and as answers to what was asked."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from rdkit import Chem, rdBase
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import MissingPackageError
from flowcore.plugin.contracts import Figure, Measured
from flowcore.seeds import generator
from flowplat_molecules import chemistry, evaluators
from flowplat_molecules.chemistry import Verdict
from flowplat_molecules.data import Collection, first
from flowplat_molecules.graphs import ATOMWISE, centred, graph

log = logging.getLogger("flowplat")

Checked = Sequence[tuple[Chem.Mol, Verdict]]
Figures = Mapping[str, Figure]
Steps = Annotated[int, Field(ge=1, description="steps that the judge is trained for, 64 molecules each")]
CLOSE, FAR, APART = 0.75, 1.25, 1.15  # times the sum of the covalent radii
FAR_TARGET = 99  # percentile of the training values
BUSTED = 10  # PoseBusters' columns that count


def structure(samples: Batch, measured: Measured) -> Figures:
    """What is sound among the molecules, of all that were drawn.

    ``valid``: RDKit sanitises the molecule whole, ``valid_largest`` its largest fragment (which hides the others), and
    ``fragments`` is their mean number. ``atom_stable``, ``molecule_stable``: valence less formal charge is the
    element's, for each atom; for all, and no net charge. ``closed_shell``: an even number of electrons, net charge
    taken off. ``net_charge``: the share that has one. ``unique``: different valid SMILES of all drawn; ``novel``: those
    not trained on, of the valid. ``geometry``: bonds as long, and other atoms as far apart, as covalent radii let
    expect. Floors: as many held-out molecules. Baseline: labels drawn each from its share in the training data,
    positions from noise.
    """
    data = cast(Collection, measured.data)
    drawn = _structure(samples, data)
    floor = _structure(evaluators.real(data, len(samples)), data)
    random = _structure(marginals(data, _sizes(samples), measured.seed), data)
    note = {
        "valid": "RDKit sanitises the molecule, all fragments of it",
        "valid_largest": "RDKit sanitises the largest fragment",
        "fragments": "pieces a molecule",
        "atom_stable": "of all atoms",
        "molecule_stable": "all atoms, and no net charge",
        "net_charge": "molecules with one",
        "closed_shell": "an even number of electrons, the net charge taken off",
        "unique": "different valid SMILES, of all drawn",
        "novel": "SMILES not trained on, of the valid ones",
        "geometry": "distances as covalent radii let expect",
        "left_masked": "molecules with an atom, charge or bond left masked",
    }
    lower = ("fragments", "net_charge", "left_masked")
    return {
        name: Figure(
            value,
            "lower" if name in lower else "higher",
            floor=floor[name],
            baselines={"marginals": random[name]},
            note=note[name],
        )
        for name, value in drawn.items()
    }


def _structure(samples: Batch, data: Collection) -> dict[str, float]:
    checked = list(chemistry.verdicts(samples, data.vocabulary))
    told = [verdict for _, verdict in checked]
    count, valid = max(1, len(told)), [one.smiles for one in told if one.valid]
    unique = set(valid)
    return {
        "valid": len(valid) / count,
        "valid_largest": sum(one.valid_largest for one in told) / count,
        "fragments": sum(one.fragments for one in told) / count,
        "atom_stable": sum(one.stable_atoms for one in told) / max(1, sum(one.atoms for one in told)),
        "molecule_stable": sum(one.stable for one in told) / count,
        "net_charge": sum(one.charge != 0 for one in told) / count,
        "closed_shell": sum(one.closed_shell for one in told) / count,
        "unique": len(unique) / count,
        "novel": len(unique - data.training_smiles()) / max(1, len(valid)),
        "geometry": sum(sound(raw) for raw, _ in checked) / count,
        "left_masked": sum(one.masked for one in told) / count,
    }


def sound(raw: Chem.Mol) -> bool:
    """Whether every bond is 0.75 to 1.25 times the sum of the covalent radii, and atoms not bonded are 1.15 times
    apart."""
    table = Chem.GetPeriodicTable()
    if any(atom.GetAtomicNum() == 0 for atom in raw.GetAtoms()):
        return False
    radii = np.array([table.GetRcovalent(atom.GetAtomicNum()) for atom in raw.GetAtoms()])
    positions = raw.GetConformer().GetPositions()
    if not np.isfinite(positions).all():
        return False
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1) / (radii[:, None] + radii[None])
    bonded = Chem.GetAdjacencyMatrix(raw).astype(bool)
    others = ~bonded & ~np.eye(len(radii), dtype=bool)
    return bool(((apart[bonded] > CLOSE) & (apart[bonded] < FAR)).all() and (apart[others] > APART).all())


def marginals(data: Collection, sizes: Tensor, seed: int) -> Batch:
    """Molecules of given ``sizes`` whose every label is drawn by itself from its share in the training data, at the
    positions that a flow begins from."""
    laid, draws, known = graph(sizes), generator(seed, "marginals"), data.train().x1
    x1: dict[str, Tensor] = {}
    for name, index in laid.index.items():
        if name == "positions":
            x1[name] = centred(torch.randn(len(index), 3, generator=draws), index, len(sizes))
        else:
            share = torch.bincount(known[name]).double()
            x1[name] = torch.multinomial(share, len(index), replacement=True, generator=draws)
    return Batch(x1, index=laid.index, samples=len(sizes))


def _sizes(samples: Batch) -> Tensor:
    return torch.bincount(samples.index[ATOMWISE[0]], minlength=len(samples))


def judge_error(samples: Batch, measured: Measured, steps: Steps = evaluators.STEPS) -> Figures:
    """How far the judge's values are from what was asked, and whether they follow it.

    ``NAME_judge`` is the mean absolute error over all samples, valid or not; ``NAME_judge_rank`` Spearman's
    correlation. Floor: the judge's own error on held-out molecules. Baselines: ``shuffled``, what was asked of one
    against what came of any other; ``size_only``, training molecules of the same number of atoms in the place of the
    samples.
    """
    data, condition = _asked(samples, measured, "judge")
    if condition is None:
        return {}
    judging = evaluators.trained(data, measured.folder / evaluators.FOLDER, measured.seed, measured.device, steps)

    def values(batch: Batch) -> Tensor:
        sizes = data.vocabulary.sizes
        masked = torch.zeros(len(batch), dtype=torch.bool)
        for name, size in sizes.items():
            masked[batch.index[name][batch.x1[name] >= size]] = True
        return evaluators.by_judge(judging, batch, (~masked).tolist())

    held = evaluators.real(data, 512)
    floors = (values(held) - cast(Tensor, held.condition)).abs().nanmean(0)
    return _errors("judge", data, condition, values(samples), _sizes(samples), floors)


def xtb_error(samples: Batch, measured: Measured) -> Figures:
    """As ``judge_error`` by GFN2-xTB at the geometry as it was drawn, over the molecules that are one piece with an
    even number of electrons; ``xtb_counted`` is their share. Its floor is xTB against the labels of held-out molecules:
    0 where these are xTB's, and else the difference of two methods. Raises ``MissingPackageError`` without tblite and
    dftd4.
    """
    data, condition = _asked(samples, measured, "xtb")
    if condition is None:
        return {}
    names = [one.name for one in data.spec().properties]
    held = evaluators.real(data, 128)
    floors = (evaluators.by_xtb(_checked(held, data), names) - cast(Tensor, held.condition)).abs().nanmean(0)
    came = evaluators.by_xtb(_checked(samples, data), names)
    counted = float((~came.isnan()).any(1).double().mean())
    figures = dict(_errors("xtb", data, condition, came, _sizes(samples), floors))
    figures["xtb_counted"] = Figure(counted, "higher", floor=1.0, note="molecules that xTB has a value of")
    return figures


def _checked(samples: Batch, data: Collection) -> Checked:
    return list(chemistry.verdicts(samples, data.vocabulary))


def _asked(samples: Batch, measured: Measured, metric: str) -> tuple[Collection, Tensor | None]:
    """The data and what was asked of each sample; None, and a word, where that is nothing."""
    condition = cast(Tensor | None, samples.condition)
    if condition is None or bool(condition.isnan().all()):
        log.warning("metric %s is left out: nothing was asked of these molecules", metric)
        return cast(Collection, measured.data), None
    return cast(Collection, measured.data), condition.double()


def _errors(source: str, data: Collection, asked: Tensor, came: Tensor, sizes: Tensor, floors: Tensor) -> Figures:
    figures: dict[str, Figure] = {}
    for k, one in enumerate(data.spec().properties):
        both = ~(asked[:, k].isnan() | came[:, k].isnan())
        if not bool(both.any()):
            continue
        a, c, n = asked[both, k], came[both, k], sizes[both]
        floor = None if math.isnan(float(floors[k])) else float(floors[k])
        figures[f"{one.name}_{source}"] = Figure(
            float((a - c).abs().mean()),
            floor=floor,
            baselines={"shuffled": shuffled(a, c), "size_only": size_only(a, n, data, k)},
            unit=one.unit,
            note=f"mean |asked - {source}'s| of {len(a)} molecules; labels by {one.method}",
        )
        rank = spearman(a, c)
        if not math.isnan(rank):
            figures[f"{one.name}_{source}_rank"] = Figure(
                rank,
                "higher",
                floor=1.0,
                baselines={"shuffled": 0.0},
                note="Spearman's correlation with what was asked",
            )
    return figures


def shuffled(asked: Tensor, came: Tensor) -> float:
    """The mean of |a_i - c_j| over all i and j: what an error is expected to be where nothing was listened to."""
    return float(
        torch.stack([(part[:, None] - came).abs().mean(1).sum() for part in asked.split(512)]).sum() / len(asked)
    )


def size_only(asked: Tensor, sizes: Tensor, data: Collection, column: int) -> float:
    """The mean of |a_i - y| over training molecules of as many atoms as sample i; of any, where there are none."""
    known = data.outline
    values = torch.from_numpy(known.values[:, column])
    counts, there = torch.from_numpy(known.counts), ~values.isnan()
    values, counts = values[there], counts[there]
    total = 0.0
    for size in sizes.unique():
        like = values[counts == size]
        total += shuffled(asked[sizes == size], like if len(like) else values) * int((sizes == size).sum())
    return total / len(asked)


def spearman(a: Tensor, b: Tensor) -> float:
    """The correlation of the ranks, mean ranks where values are equal; NaN where one of them never varies."""
    if len(a) < 3:
        return math.nan
    ranks = torch.stack([_ranks(a), _ranks(b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    ends = count.cumsum(0).double()
    return (ends - (count - 1) / 2)[place]


def out_of_distribution(
    samples: Batch,
    measured: Measured,
    count: Annotated[int, Field(ge=1, description="molecules drawn for each property")] = 64,
    by: Annotated[Literal["judge", "xtb"], Field(description="who says what they have")] = "judge",
    steps: Steps = evaluators.STEPS,
) -> Figures:
    """The mean error at a far target, the 99th percentile of the training values, of molecules drawn for that alone.

    Nothing of samples that are files, where no model is there to draw them. Baseline: molecules of the training
    data, whatever they have.
    """
    if measured.trained is None:
        log.warning("metric ood is left out: it draws molecules of its own, and files draw none")
        return {}
    return _far(measured, count, by, steps)


@lru_cache(maxsize=4)
def _far(measured: Measured, count: int, by: str, steps: int) -> Figures:
    data, trained = cast(Collection, measured.data), cast(Any, measured.trained)
    figures: dict[str, Figure] = {}
    for k, one in enumerate(data.spec().properties):
        values = data.outline.values[:, k]
        values = values[~np.isnan(values)]
        target = float(np.percentile(values, FAR_TARGET))
        drawn = trained.sample(count, seed=measured.seed, condition=f"{one.name}={target!r}")
        found = xtb_error(drawn, measured) if by == "xtb" else judge_error(drawn, measured, steps)
        figure = found.get(f"{one.name}_{by}")
        if figure is None:
            log.warning("%s has no value of %s for any of %d molecules", by, one.name, count)
            continue
        figures[f"{one.name}_far"] = Figure(
            figure.value,
            floor=figure.floor,
            baselines={"training_data": float(np.abs(values - target).mean())},
            unit=one.unit,
            note=f"mean |{target:.4g} - {by}'s|, the {FAR_TARGET}th percentile; {figure.note}",
        )
    return figures


def posebusters(
    samples: Batch,
    measured: Measured,
    limit: Annotated[int, Field(ge=1, description="molecules that are looked at, some tenths of a second each")] = 64,
) -> Figures:
    """The share of molecules that pass the first ten of PoseBusters' checks of a molecule by itself (Buttenschoen et
    al. 2024, doi 10.1039/D3SC04185A). Floor: as many held-out molecules. Raises ``MissingPackageError`` without it."""
    data, count = cast(Collection, measured.data), min(limit, len(samples))
    random = marginals(data, _sizes(samples)[:count], measured.seed)
    batches = {"drawn": samples, "held": evaluators.real(data, count), "random": random}
    share = {name: _passing(_checked(first(batch, count), data)) for name, batch in batches.items()}
    note = f"all of the first {BUSTED} columns of config=mol, of {count} molecules"
    baselines = {"marginals": share["random"]}
    return {"posebusters": Figure(share["drawn"], "higher", floor=share["held"], baselines=baselines, note=note)}


def _passing(checked: Checked) -> float:
    try:
        from posebusters import PoseBusters
    except ImportError as error:
        raise MissingPackageError("posebusters is not there: pip install 'flowplat-molecules[posebusters]'") from error
    wholes = [whole for raw, one in checked if one.valid and (whole := chemistry.sanitised(raw)) is not None]
    if not wholes:
        return 0.0
    with rdBase.BlockLogs():
        table = PoseBusters(config="mol").bust(wholes)
    return float(table.iloc[:, :BUSTED].all(axis=1).sum()) / len(checked)
