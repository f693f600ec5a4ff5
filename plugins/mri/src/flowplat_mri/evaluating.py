"""How near harmonized volumes come to the truth, beside what no model is needed for."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowcore import files
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Trained
from flowplat_mri import geometry, histogram, metrics, reading, scaling, simulate
from flowplat_mri.applying import Asked, harmonized, target_of
from flowplat_mri.simulating import FIRST, image
from flowplat_mri.tasks import Mode, Plane, Samples, Seed, Steps, Weight

WAYS = ("unchanged", "standardized", "matched", "harmonized")
SUBJECTS = 3


@dataclass(frozen=True)
class Case:
    """A scan and the truth of it on the target scanner, on one grid; ``labels`` are 1, 2, 3 for CSF, GM, WM."""

    name: str
    group: str
    source: reading.Volume
    truth: np.ndarray
    mask: np.ndarray
    labels: np.ndarray | None


def evaluate(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    mode: Mode = "auto",
    plane: Plane = "trained",
    samples: Samples = 0,
    steps: Steps = 8,
    weight: Weight = None,
    seed: Seed = 0,
) -> Any:
    """PSNR, SSIM, the correlation of gradients, and with labels Dice, of the model's result against scans of the same
    subjects on the target scanner; beside the unchanged scan, its z-score and its histogram put onto the target's.

    Inputs are CSV lists (subject, group, path, truth, mask, labels; paths from the list on) of volumes that lie upon
    each other; without inputs three simulated subjects on five scanners. All is measured on the common scale within the
    mask: PSNR of a range of 1, SSIM with a Gaussian window of 11 x 11 x 11 voxels (sigma 1.5). ``out`` is a CSV table
    of means by scanner (of lists by group, or by row); from Python it returns them.
    """
    asked = Asked(mode=mode, plane=plane, samples=samples, steps=steps, weight=weight, force=True, seed=seed)
    named = [case for one in inputs for case in listed(Path(one))]
    if out is not None and out.suffix.lower() != ".csv":
        raise UsageError(f"{out} should end in .csv: it is one table")
    cases = named or simulated(trained, seed)
    found: dict[str, list[dict[str, Mapping[str, float]]]] = {}
    for case in tqdm([*cases], desc="evaluate", unit="volume", disable=None):
        found.setdefault(case.group, []).append(compared(trained, case, asked))
    means = {
        group: {way: {key: float(np.mean([r[way][key] for r in rows])) for key in rows[0][way]} for way in WAYS}
        for group, rows in found.items()
    }
    if out is None:
        return means
    with files.refusals(f"{out} cannot be written"):
        files.write(out, table(means))
    gains = {group: round(ways["harmonized"]["psnr"] - ways["matched"]["psnr"], 2) for group, ways in means.items()}
    return {"volumes": len(cases), "psnr_above_histogram_matching": gains}


def compared(trained: Trained, case: Case, asked: Asked) -> dict[str, Mapping[str, float]]:
    """The figures of each way, on the grid of the case."""
    target = target_of(trained)
    space = geometry.canonical(case.source.data, case.source.affine, case.source.name)
    mask, truth = space.forth(case.mask), space.forth(case.truth)
    labels = None if case.labels is None else space.forth(case.labels)
    truth, _ = scaling.common(truth, mask, f"the truth of {case.name}")
    x, _ = scaling.common(space.data, mask, case.source.name)
    made = harmonized(trained, case.source, asked, case.mask)
    result = np.where(mask, target.scale.apply(space.forth(made.data)), np.float32(0))
    ways = (x, histogram.standardized(x, mask, target), histogram.matched(x, mask, target), result)
    return {way: metrics.compared(one, truth, mask, labels) for way, one in zip(WAYS, ways, strict=True)}


def simulated(trained: Trained, seed: int) -> list[Case]:
    """Subjects that no model has learned from, on the unseen scanners, with voxels of the model's."""
    voxel = target_of(trained).voxel
    made = []
    for number in range(FIRST + 1000 * seed, FIRST + 1000 * seed + SUBJECTS):
        tissues = simulate.subject(number, min(6.0, max(1.0, float(np.mean(voxel)))))
        truth = simulate.scan(tissues, "target", number * 31)
        for place, scanner in enumerate(simulate.UNSEEN, 1):
            source = image(simulate.scan(tissues, scanner, number * 31 + place), tissues.affine)
            volume = reading.of_image(source, f"subject {number} on {scanner}")
            made.append(Case(f"subject {number}", scanner, volume, truth, tissues.mask, tissues.labels))
    return made


def listed(path: Path) -> Iterator[Case]:
    """The cases of a CSV list. Raises ``InputError`` naming the file that is missing or lies elsewhere."""
    if not reading.is_list(path) or not path.is_file():
        raise InputError(f"{path} is no CSV list; evaluate needs one with the columns path, truth and others")
    rows = reading.rows(path)
    if not rows or not {"path", "truth"} <= set(rows[0]):
        raise InputError(f"{path} needs the columns path and truth, and may have subject, mask and labels")
    for row in rows:
        source, truth = reading.read(path.parent / row["path"]), reading.read(path.parent / row["truth"])
        if source.data.shape != truth.data.shape or not np.allclose(source.affine, truth.affine, atol=1e-2):
            raise InputError(f"{source.name} and {truth.name} do not lie upon each other; register and resample one")
        mask = reading.read_mask(path.parent / row["mask"], source) if row.get("mask") else _both(source, truth)
        labels = reading.read(path.parent / row["labels"]).data.astype(int) if row.get("labels") else None
        name = row.get("subject") or source.name
        yield Case(name, row.get("group") or name, source, truth.data, mask, labels)


def _both(source: reading.Volume, truth: reading.Volume) -> np.ndarray:
    from flowplat_mri import masking

    return masking.brain(source.data, source.name) & masking.brain(truth.data, truth.name)


def table(means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row for each group and way."""
    keys = list(dict.fromkeys(key for ways in means.values() for figures in ways.values() for key in figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "way", *keys])
    for group, ways in means.items():
        for way, figures in ways.items():
            writer.writerow([group, way, *(f"{figures[key]:.4f}" if key in figures else "" for key in keys)])
    return text.getvalue()
