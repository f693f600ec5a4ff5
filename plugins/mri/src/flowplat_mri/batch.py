"""Many volumes, one after the other: what is done is not done again, and one that fails does not stop the others."""

import csv
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowcore import files
from flowcore.errors import InputError, MachineError, UsageError
from flowcore.plugin.contracts import Trained
from flowplat_mri import reading, writing
from flowplat_mri.applying import Asked, Made, harmonized, identity
from flowplat_mri.jobs import Job
from flowplat_mri.quality import Look

log = logging.getLogger("flowplat")

TABLE, PAGE = "summary.csv", "quality.html"
DERIVED = "derived"
Record = dict[str, Any]


def carry_out(
    trained: Trained, work: Sequence[Job], out: Path, asked: Asked, overwrite: bool, spread: bool
) -> tuple[list[Record], dict[str, str]]:
    """Harmonize what is not yet there under ``out``; the records of all that is there then, and why the others failed.

    A volume is written whole, its sidecar after it: what has both is finished. Raises ``InputError`` before anything
    is done where a finished one was made otherwise than asked and ``overwrite`` is not set, and if all fail; and
    ``MachineError`` where the disk refuses.
    """
    told = {key: value for key, value in asdict(asked).items() if key != "force"}  # which changes no result
    model = identity(trained)
    marks = {job.place: _mark(model, told, job, out, spread) for job in work}
    finished: dict[Path, Record] = {}
    if not overwrite:
        finished = {job.place: one for job in work if (one := _finished(out, job, marks[job.place])) is not None}
    records: list[Record] = []
    failed: dict[str, str] = {}
    for job in tqdm([*work], desc="harmonize", unit="volume", disable=None):
        if job.place in finished:
            records.append(finished[job.place] | {"status": "skipped"})
            continue
        try:
            records.append(_one(trained, job, out, asked, marks[job.place]) | {"status": "done"})
        except Exception as error:  # of any kind, and no reason to leave the others undone
            everyones = isinstance(error, MachineError) or type(error) is UsageError  # the disk's, or the options'
            if everyones or len(work) == 1:
                raise
            failed[str(job.path)] = " ".join(str(error).split()) or type(error).__name__
            log.warning("%s", failed[str(job.path)])
    if failed and not records:
        raise InputError(f"none of {len(work)} volumes could be harmonized; the first: {next(iter(failed.values()))}")
    return records, failed


def _mark(model: str, parameters: Record, job: Job, out: Path, spread: bool) -> Record:
    """What decides the result of a volume, besides its file, as its sidecar says it."""
    folder = (out / job.place).parent
    return {
        "Model": model,
        "Parameters": parameters,
        "Mask": DERIVED if job.mask is None else relative(job.mask, folder),
        "Lesion": None if job.lesion is None else relative(job.lesion, folder),
        "Spread": spread,
    }


def _finished(out: Path, job: Job, mark: Mapping[str, Any]) -> Record | None:
    place = out / job.place
    note = writing.sidecar(place)
    if not (place.exists() and note.exists()):
        return None
    record = read_note(note)
    if job.path.exists() and record.get("SourceSha256") != files.sha256(job.path):
        raise InputError(f"{place} was made of another {job.path}; overwrite=true makes it anew, or name another place")
    before = {**record, **record.get("Parameters", {})}
    for key, value in {**mark, **mark["Parameters"]}.items():
        if key not in ("Parameters", "Spread") and before.get(key) != value:
            raise InputError(
                f"{place} was made with {key.lower()}={before.get(key)} and not {value}; overwrite=true makes it anew,"
                " or name another place"
            )
    return record if before.get("Spread") or not mark["Spread"] else None


def read_note(path: Path) -> Record:
    """A sidecar. Raises ``InputError`` where it is none of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Look(found["Metrics"], found["Flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no sidecar of a harmonized volume; overwrite=true writes it anew") from error
    return dict(found)


def _one(trained: Trained, job: Job, out: Path, asked: Asked, mark: Record) -> Record:
    """Read, harmonize, write; the record, which is also the sidecar."""
    volume = reading.read(job.path)
    mask = None if job.mask is None else reading.read_mask(job.mask, volume)
    lesion = None if job.lesion is None else reading.read_mask(job.lesion, volume)
    made = harmonized(trained, volume, asked, mask, lesion)
    place = out / job.place
    writing.sidecar(place).unlink(missing_ok=True)  # of a former result, which it would vouch for
    writing.save(place, writing.like(volume.image, made.data))
    if mark["Spread"] and made.spread is not None:
        writing.save(spread_of(place), writing.like(volume.image, made.spread))
    record: Record = {
        "Description": "harmonized to the target scanner of the model; for research, not for diagnosis",
        "Sources": [source_of(job, place)],
        "SkullStripped": _stripped(volume, made, mask is not None and asked.background == "zero"),
        "SourceSha256": files.sha256(job.path),
        "Subject": job.subject,
        **mark,
        "Scaling": {key: made.told[key] for key in ("source_scale", "target_scale", "voxel", "model_voxel")},
        "Metrics": {key: round(float(value), 5) for key, value in made.look.figures.items()},
        "Flags": made.look.flags,
    }
    writing.note(writing.sidecar(place), record)
    return record | {"seconds": made.told["seconds"]}


def _stripped(volume: reading.Volume, made: Made, zeroed: bool) -> bool:
    """Whether nothing is left of the skull: the mask is of a brain, not of a head, and so is what was written."""
    outside = volume.data[made.seen.space.back(~made.seen.own_mask)]
    return zeroed or len(outside) == 0 or float(np.ptp(outside)) == 0


def spread_of(place: Path) -> Path:
    """Where the spread of a harmonized volume goes."""
    if "harmonized" in place.name:
        return place.with_name(place.name.replace("harmonized", "spread"))
    return place.with_name(f"{reading.stem(place)}_spread{reading.ending(place)}")


def source_of(job: Job, place: Path) -> str:
    """What a sidecar says of the source: a BIDS URI, or its path from the sidecar."""
    if job.bids is not None:
        return f"bids:raw:{job.path.relative_to(job.bids).as_posix()}"
    return relative(job.path, place.parent)


def describe(folder: Path, root: str) -> None:
    """``dataset_description.json`` of derivatives of a BIDS root."""
    try:
        number = version("flowplat-mri")
    except PackageNotFoundError:  # used from its sources
        number = "unknown"
    writing.describe(folder, number, relative(Path(root), folder))


def relative(path: Path, folder: Path) -> str:
    """The way to ``path`` from ``folder``, so that both can be moved together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def table(records: Sequence[Record], failed: Mapping[str, str]) -> str:
    """``summary.csv``: a row for each volume, also for those that failed."""
    keys = sorted({key for record in records for key in record["Metrics"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["subject", "source", "status", *keys, "seconds", "flag", "error"])
    for record in records:
        figures = [record["Metrics"].get(key, "") for key in keys]
        flag = "; ".join(record["Flags"])
        writer.writerow(
            [record["Subject"], record["Sources"][0], record["status"], *figures, record.get("seconds", ""), flag, ""]
        )
    for path, why in failed.items():
        writer.writerow([Path(path).name, path, "failed", *[""] * len(keys), "", "", why])
    return text.getvalue()


def images(trained: Trained, inputs: Sequence[Any], asked: Asked) -> list[Any]:
    """From Python: nibabel images, or paths, harmonized; images with the headers these came with."""
    made = []
    for number, one in enumerate(inputs):
        volume = (
            reading.read(Path(one)) if isinstance(one, str | os.PathLike) else reading.of_image(one, f"image {number}")
        )
        made.append(writing.like(volume.image, np.asarray(harmonized(trained, volume, asked).data)))
    return made
