"""The quality page of volumes on the disk, each beside its source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flowcore.errors import InputError
from flowcore.plugin.contracts import Trained
from flowplat_mri import batch, quality, reading, writing
from flowplat_mri import page as pages
from flowplat_mri.applying import target_of
from flowplat_mri.jobs import Job
from flowplat_mri.page import Shown
from flowplat_mri.picture import picture
from flowplat_mri.prepared import prepared
from flowplat_mri.quality import Look
from flowplat_mri.scaling import Scale, robust
from flowplat_mri.target import Target

MOST = 60  # pictures on a page; a page of a thousand would open nowhere


@dataclass(frozen=True)
class Pair:
    """A source and its harmonized version, and ``note``, the record that ``harmonize`` wrote of it, if it did."""

    name: str
    source: Path
    result: Path
    mask: Path | None = None
    note: Mapping[str, object] | None = None


def pairs(place: Path, match: str = "") -> list[Pair]:
    """What a folder that ``harmonize`` wrote, or a CSV list (subject, path, harmonized, mask), pairs up. Raises
    ``InputError``."""
    if place.is_dir():
        found = [pair for path in reading.volumes_in(place, match) if (pair := _noted(path, place)) is not None]
        if not found:
            raise InputError(f"{place} holds no volume with the sidecar that harmonize writes; give a CSV list")
        return found
    if not reading.is_list(place) or not place.exists():
        raise InputError(f"{place} is neither a folder nor a CSV list that is there")
    rows = reading.rows(place)
    if not rows or not {"path", "harmonized"} <= set(rows[0]):
        raise InputError(f"{place} needs the columns path and harmonized, and may have subject and mask")
    return [
        Pair(
            row.get("subject") or Path(row["path"]).name,
            place.parent / row["path"],
            place.parent / row["harmonized"],
            place.parent / row["mask"] if row.get("mask") else None,
        )
        for row in rows
    ]


def _noted(path: Path, root: Path) -> Pair | None:
    """The pair of a volume with a sidecar of ours; None of another volume, such as a spread."""
    note = writing.sidecar(path)
    if not note.exists():
        return None
    record = batch.read_note(note)
    source = str(record["Sources"][0])
    mask = None if record["Mask"] == batch.DERIVED else path.parent / str(record["Mask"])
    if source.startswith("bids:raw:"):
        described = root / "dataset_description.json"
        try:
            link = json.loads(described.read_text(encoding="utf-8"))["DatasetLinks"]["raw"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{described} does not say where the sources are") from error
        return Pair(record["Subject"], root / link / source.removeprefix("bids:raw:"), path, mask, record)
    return Pair(record["Subject"], path.parent / source, path, mask, record)


def page(trained: Trained, done: Sequence[tuple[Path, Job]], failed: Mapping[str, str]) -> str:
    """The page of what ``harmonize`` has just written: figures from the sidecars, pictures from the files."""
    noted = [
        Pair(job.subject, job.path, path, job.mask, batch.read_note(writing.sidecar(path)))
        for path, job in done
        if str(job.path) not in failed
    ]
    shown, lost = looked(trained, noted)
    return rendered(trained, shown, {**failed, **lost})


def rendered(trained: Trained, shown: Sequence[Shown], failed: Mapping[str, str]) -> str:
    """The page, with its heading."""
    voxel = " x ".join(f"{v:g}" for v in target_of(trained).voxel)
    intro = f"Harmonized to the target of a model of {voxel} mm; {target_of(trained).contrast}."
    return pages.page("MRI harmonization: quality", shown, intro, failed)


def looked(trained: Trained, found: Sequence[Pair]) -> tuple[list[Shown], dict[str, str]]:
    """Figures of all pairs, pictures of those that need a look most; and what cannot be read, and why."""
    looks: list[tuple[Pair, Look]] = []
    failed: dict[str, str] = {}
    target = target_of(trained)
    for pair in found:
        try:
            looks.append((pair, _look(pair, target)))
        except InputError as error:
            failed[pair.name] = str(error)
    looks.sort(key=lambda one: one[1].worst, reverse=True)
    shown = []
    for number, (pair, look) in enumerate(tqdm(looks, desc="page", unit="volume", disable=None)):
        try:
            png = _picture(pair, target) if number < MOST else None
            shown.append(Shown(pair.name, look, png, _told(pair)))
        except InputError as error:
            failed[pair.name] = str(error)
    return shown, failed


def _look(pair: Pair, target: Target) -> Look:
    if pair.note is not None:
        return Look(dict(pair.note["Metrics"]), list(pair.note["Flags"]))  # type: ignore[call-overload]
    before, after, mask, _ = _views(pair, target)
    return quality.look(before, after, mask, target)


def _picture(pair: Pair, target: Target) -> bytes:
    before, after, mask, spread = _views(pair, target)
    return picture(before, after, mask, target, spread)


def _views(pair: Pair, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Source and result on the common scale, their mask, and the spread if it is there, on the model's grid."""
    source, result = reading.read(pair.source), reading.read(pair.result)
    if source.data.shape != result.data.shape:
        raise InputError(f"{pair.result} is of shape {result.data.shape}, its source of {source.data.shape}")
    mask = None if pair.mask is None else reading.read_mask(pair.mask, source)
    seen = prepared(source, mask, target.voxel)
    scale = _scale(pair, seen.scale, target, result.data, seen.space.back(seen.own_mask))
    after = np.where(seen.own_mask, scale.apply(seen.space.forth(result.data)), np.float32(0))
    onto = seen.to_model(after)
    spread_file, spread = batch.spread_of(pair.result), None
    if pair.note is not None and spread_file.exists():
        spread = seen.to_model(seen.space.forth(reading.read(spread_file).data) / np.float32(scale.width))
    return seen.x, onto, seen.mask, spread


def _scale(pair: Pair, source: Scale, target: Target, result: np.ndarray, mask: np.ndarray) -> Scale:
    """The scale of a result: what was asked of ``harmonize``; of other tools' results their own percentiles."""
    if pair.note is None:
        return robust(result, mask, str(pair.result))
    parameters = pair.note.get("Parameters")
    in_source = isinstance(parameters, Mapping) and parameters.get("range") == "source"
    return source if in_source else target.scale


def _told(pair: Pair) -> dict[str, str]:
    told = {"source": pair.source.name}
    if pair.note is not None:
        told |= {"model": str(pair.note.get("Model")), "mask": str(pair.note.get("Mask"))}
    return told
