"""What a user hands over, a file, a folder, a CSV list, a BIDS root, as a list of volumes and where each goes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowcore.errors import InputError
from flowplat_mri import reading

NOT_SCANS = re.compile(
    r"(mask|lesion|label|seg|_harmonized\.|_spread\.)", re.IGNORECASE
)  # in the names of files that are no scans
BIDS_NAME = re.compile(r"sub-[A-Za-z0-9]+_")
COLUMNS = ("subject", "path", "mask", "lesion")


@dataclass(frozen=True)
class Job:
    """One volume: whose it is, its file, its mask and lesion mask if there are any, and ``place``, relative to the
    output, where its harmonized version goes; ``bids`` is its root where it lies in one."""

    subject: str
    path: Path
    place: Path
    mask: Path | None = None
    lesion: Path | None = None
    bids: Path | None = None

    def at(self, place: Path) -> "Job":
        """The same with its result in another place."""
        return replace(self, place=place)


def jobs(
    inputs: Sequence[Path],
    contrast: str = "T1w",
    match: str = "",
    mask: Path | None = None,
    lesion: Path | None = None,
) -> list[Job]:
    """The volumes of all inputs, in order, each once.

    ``contrast`` is the suffix that counts in a BIDS root; ``match`` what names have in them that count in others,
    where masks, lesions and labels are left out. ``mask`` and ``lesion`` are a file, for one volume, or folders with
    files of the same names. Raises ``InputError`` naming what is missing or holds nothing.
    """
    found = [job for one in inputs for job in _of(Path(one), contrast, match)]
    if not found:
        raise InputError("no volume is named; give a file, a folder, a CSV list or a BIDS root")
    found = [
        replace(
            job,
            mask=job.mask or _beside(mask, job, len(found)),
            lesion=job.lesion or _beside(lesion, job, len(found), needed=False),
        )
        for job in found
    ]
    places: dict[Path, Path] = {}
    for job in found:
        if (other := places.setdefault(job.place, job.path)) != job.path:
            raise InputError(f"{other} and {job.path} would both be written to {job.place}; give them apart")
    return found


def _of(path: Path, contrast: str, match: str) -> list[Job]:
    if not path.exists():
        raise InputError(f"{path} is not there")
    if path.is_dir():
        rooted = any(path.glob("sub-*/anat")) or any(path.glob("sub-*/ses-*/anat"))
        return _of_bids(path, contrast) if rooted else _of_folder(path, match)
    if reading.is_list(path):
        return _of_list(path)
    return [_plain(path, Path(path.name))]


def _plain(path: Path, place: Path, subject: str = "", mask: Path | None = None, lesion: Path | None = None) -> Job:
    name = f"{reading.stem(place)}_harmonized{reading.ending(place)}"
    return Job(subject or str(place.with_name(reading.stem(place))), path, place.with_name(name), mask, lesion)


def _of_folder(folder: Path, match: str) -> list[Job]:
    there = [p for p in reading.volumes_in(folder, match) if not NOT_SCANS.search(p.name)]
    if not there:
        kinds, named = ", ".join(reading.ENDINGS), f" with {match} in its name" if match else ""
        raise InputError(f"{folder} holds no volume{named} ({kinds}); masks and labels do not count")
    return [_plain(path, path.relative_to(folder)) for path in there]


def _of_bids(root: Path, contrast: str) -> list[Job]:
    """``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``; the place has ``desc-harmonized`` before the suffix."""
    made = []
    for path in reading.volumes_in(root, f"_{contrast}.nii"):
        place = path.relative_to(root)
        if place.parts[0].startswith("sub-") and place.parent.name == "anat" and BIDS_NAME.match(path.name):
            name = re.sub(rf"(_desc-[A-Za-z0-9]+)?_{contrast}\.", f"_desc-harmonized_{contrast}.", path.name)
            made.append(
                Job(
                    path.name.removesuffix(reading.ending(path)).removesuffix(f"_{contrast}"),
                    path,
                    place.with_name(name),
                    bids=root,
                )
            )
    if not made:
        raise InputError(f"{root} holds no sub-*/[ses-*/]anat/*_{contrast}.nii[.gz], which the model is for")
    return made


def _of_list(path: Path) -> list[Job]:
    """Columns subject, path, mask, lesion, of which path is needed; paths are relative to the list."""
    rows = reading.rows(path)
    if not rows or "path" not in rows[0]:
        raise InputError(f"{path} has no column 'path', or no row; its columns are {', '.join(COLUMNS)}")
    made = []
    for number, row in enumerate(rows, 2):
        if not (row.get("path") or "").strip():
            raise InputError(f"{path} line {number} has no path")
        there = {
            key: path.parent / row[key].strip() for key in ("path", "mask", "lesion") if (row.get(key) or "").strip()
        }
        subject = (row.get("subject") or "").strip()
        if subject and not re.fullmatch(r"[\w.-]+", subject):
            raise InputError(f"{path} line {number}: subject {subject!r} is no name for a file")
        place = Path(subject) / there["path"].name if subject else Path(there["path"].name)
        made.append(_plain(there["path"], place, subject, there.get("mask"), there.get("lesion")))
    return made


def _beside(given: Path | None, job: Job, count: int, needed: bool = True) -> Path | None:
    """The mask of a volume: ``given`` itself, or the file in the folder ``given`` that has its name."""
    if given is None:
        return None
    if not given.exists():
        raise InputError(f"{given} is not there")
    if not given.is_dir():
        if count > 1:
            raise InputError(f"{given} is one mask for {count} volumes; give a folder of them, or a CSV list")
        return given
    if job.bids is not None and (given / job.path.relative_to(job.bids)).exists():
        return given / job.path.relative_to(job.bids)
    start = reading.stem(job.path)
    fits = [p for p in reading.volumes_in(given) if reading.stem(p) == start]
    fits = fits or [p for p in reading.volumes_in(given) if reading.stem(p).startswith(start)]
    if len(fits) == 1 or (not fits and not needed):
        return fits[0] if fits else None
    what = "no file" if not fits else f"{len(fits)} files"
    raise InputError(f"{given} has {what} for {job.path.name}; it should be named like it, or stand in a CSV list")
