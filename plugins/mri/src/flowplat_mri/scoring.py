"""What a run measures of its model: how near other scanners' pictures come to the truth, and a page to judge it by."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import numpy as np
from pydantic import Field
from tqdm import tqdm

from flowcore import files
from flowcore.data import Batch
from flowcore.plugin.contracts import Figure, Measured, Trained
from flowplat_mri import data, histogram, metrics, page, picture, quality, scaling, simulate, views
from flowplat_mri.data import Scan, Simulated, VolumeSet

PAGE, RESCAN = "quality.html", "rescan"
WAYS = ("unchanged", "z-score", "histogram matching")
MEANS = ("ssim", "gradient_correlation", "dice_gm", "dice_wm")

Figures = Mapping[str, Mapping[str, float]]
"""For each of ``WAYS`` and ``harmonized``, what ``metrics.compared`` finds."""


class Case(NamedTuple):
    """A source, the truth of it on the target scanner, and its tissues (1, 2, 3) where they are known."""

    group: str
    source: Scan
    truth: Scan
    labels: np.ndarray | None


def harmonization(
    samples: Batch,
    measured: Measured,
    subjects: Annotated[int, Field(ge=1, description="held-out subjects, at most")] = 2,
    draws: Annotated[int, Field(ge=0, description="samples that are averaged; 0 is the mean in one call")] = 0,
    steps: Annotated[int, Field(ge=1, description="steps of each draw")] = 8,
) -> Mapping[str, Figure]:
    """PSNR within the brain (dB, range 1) by scanner, and the means over scanners of SSIM, the correlation of gradients
    and Dice, beside the unchanged scan, its z-score and histogram matching.

    Of simulated data the sources are the unseen scanners S1 to S5, and the target's own next visit, ``rescan``: what is
    between two visits is the floor. Of a user's data they are the held-out volumes in other guises
    (``views.restyled``). The samples that came along are not used. ``quality.html`` is written to the folder of the
    figures. Nothing is measured of samples that no model drew.
    """
    if measured.trained is None:
        return {}
    cases = _cases(cast(VolumeSet, measured.data), subjects, measured.seed)
    found: dict[str, list[Figures]] = {}
    shown: list[page.Shown] = []
    for case in tqdm(cases, desc="harmonize", unit="volume", disable=None, leave=False):
        figures, one = _compared(measured.trained, case, draws, steps, measured.seed)
        if case.group not in found:
            shown.append(one)
        found.setdefault(case.group, []).append(figures)
    _write(shown, measured.folder / PAGE)
    own = found.get(RESCAN)
    floors = {} if own is None else {key: _mean(own, "unchanged", key) for key in own[0]["unchanged"]}
    made = {f"psnr_{group}": _figure(rows, "psnr", floors) for group, rows in found.items()}
    every = [row for group, rows in found.items() if group != RESCAN for row in rows]
    return made | {key: _figure(every, key, floors) for key in MEANS if key in every[0]["harmonized"]}


def _cases(volumes: VolumeSet, subjects: int, seed: int) -> list[Case]:
    held = volumes.scans[1][:subjects]
    if not isinstance(volumes, Simulated):
        target = volumes.target
        rng = [np.random.default_rng([seed, number]) for number in range(len(held))]
        changed = [
            _scan(views.restyled(one.x, one.mask, target.voxel, r), one) for one, r in zip(held, rng, strict=True)
        ]
        return [Case("restyled", source, truth, None) for source, truth in zip(changed, held, strict=True)]
    config = volumes.config
    numbers = volumes.numbers[config.subjects :][:subjects]
    drawn = data.drawn(numbers, config.resolution)
    made = []
    for place, group in enumerate((RESCAN, *simulate.UNSEEN), 1):
        sources = data.scanned(numbers, drawn, "target" if group == RESCAN else group, place)
        for truth, source, tissues in zip(held, sources, drawn, strict=True):
            made.append(Case(group, source, truth, tissues.labels))
    return made


def _scan(x: np.ndarray, like: Scan) -> Scan:
    """A volume of any units as a scan of the same brain."""
    x, scale = scaling.common(x, like.mask, like.name)
    return Scan(x, like.mask, scale, like.name)


def _compared(trained: Trained, case: Case, draws: int, steps: int, seed: int) -> tuple[Figures, page.Shown]:
    from flowplat_mri.harmonise import harmonize

    target, (x, mask) = cast(VolumeSet, trained.data).target, (case.source.x, case.source.mask)
    made = harmonize(trained, x, mask, samples=draws, steps=steps, seed=seed)
    ways = (x, histogram.standardized(x, mask, target), made.histogram_matched, made.volume)
    figures = {
        way: metrics.compared(one, case.truth.x, mask, case.labels)
        for way, one in zip((*WAYS, "harmonized"), ways, strict=True)
    }
    look = quality.look(x, made.volume, mask, target, made.latent_norm)
    look.figures.update(
        weight=made.weight, psnr=figures["harmonized"]["psnr"], psnr_unchanged=figures["unchanged"]["psnr"],
        psnr_matched=figures["histogram matching"]["psnr"],
    )  # fmt: skip
    drawn = picture.picture(x, made.volume, mask, target, made.std)
    return figures, page.Shown(f"{case.group} {case.source.name}", look, drawn)


def _write(shown: Sequence[page.Shown], place: Path) -> None:
    intro = (
        "Scans that the model has not seen, beside what it makes of them. PSNR is against the same brain on the target."
    )
    with files.refusals(f"{place} cannot be written"):
        files.write(place, page.page("How far the model can be relied on", shown, intro))
    print(f"quality page: {place}", file=sys.stderr)


def _mean(rows: Sequence[Figures], way: str, key: str) -> float:
    return float(np.mean([row[way][key] for row in rows]))


def _figure(rows: Sequence[Figures], key: str, floors: Mapping[str, float]) -> Figure:
    baselines = {way: _mean(rows, way, key) for way in WAYS}
    return Figure(
        _mean(rows, "harmonized", key), "higher", floors.get(key), baselines, "dB" if key == "psnr" else "",
        note=f"{len(rows)} volumes",
    )  # fmt: skip
