"""MR volumes as files: NIfTI-1 and -2, MGH; whole and finite, or one line that says what is wrong with which."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from flowcore.errors import InputError

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh")
LISTS = (".csv", ".tsv")


@dataclass(frozen=True)
class Volume:
    """One volume: ``data`` (X, Y, Z) float32 in the order of the file, ``affine`` (4, 4), and nibabel's ``image``,
    whose header is what is written again."""

    name: str
    data: np.ndarray
    affine: np.ndarray
    image: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the file, which may have axes of length 1 after the third."""
        return tuple(int(n) for n in self.image.shape)


def ending(path: Path) -> str:
    """The ending of a volume's file, such as ``.nii.gz``; empty for other files."""
    return next((e for e in ENDINGS if path.name.lower().endswith(e)), "")


def stem(path: Path) -> str:
    """The name of a file without that."""
    return path.name[: len(path.name) - len(ending(path))]


def read(path: Path) -> Volume:
    """The volume of a file. Raises ``InputError`` with its name for what is no volume."""
    import nibabel

    if not path.exists():
        raise InputError(f"{path} is not there")
    if not ending(path):
        raise InputError(f"{path} is no volume: its name ends in none of {', '.join(ENDINGS)}")
    try:
        image: Any = nibabel.load(path)
        return of_image(image, str(path))
    except InputError:
        raise
    except Exception as error:  # nibabel raises what its readers and gzip raise, of any kind
        raise InputError(f"{path} cannot be read as a volume: {' '.join(str(error).split())[:200]}") from error


def of_image(image: Any, name: str) -> Volume:
    """The volume of a nibabel image. Raises ``InputError``."""
    if getattr(image, "affine", None) is None:
        raise InputError(f"{name} has no affine, so nobody knows where its axes lead; give it one")
    header = image.header
    if "sform_code" in header and not int(header["sform_code"]) and not int(header["qform_code"]):
        raise InputError(f"{name} has neither sform nor qform, so left and right are not known; set one of them first")
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        what = f"{len(shape)}D" if len(shape) < 3 else f"{int(np.prod(shape[3:]))} volumes in one"
        raise InputError(f"{name} is {what}, of shape {shape}; split it, and give each volume by itself")
    if min(shape[:3]) < 2:
        raise InputError(f"{name} is one slice, of shape {shape}; a volume is needed")
    if np.dtype(header.get_data_dtype()).fields or np.dtype(header.get_data_dtype()).kind == "c":
        raise InputError(f"{name} holds {header.get_data_dtype()} and not one real number a voxel")
    data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape[:3])
    if (lost := int((~np.isfinite(data)).sum())) > 0:
        raise InputError(f"{name} has {lost} voxels that are NaN or infinite; set them to the value of the background")
    return Volume(name, data, np.asarray(image.affine, dtype=float), image)


def read_mask(path: Path, like: Volume) -> np.ndarray:
    """A mask (X, Y, Z) for a volume, bool: where the file is above 0. Raises ``InputError`` where it is of another grid
    or empty."""
    mask = read(path)
    if mask.data.shape != like.data.shape:
        raise InputError(f"{path} is of shape {mask.data.shape}, and {like.name} of {like.data.shape}; resample it")
    if not np.allclose(mask.affine, like.affine, atol=1e-2):
        raise InputError(f"{path} lies elsewhere than {like.name}: their affines differ; resample it onto that")
    if not (mask.data > 0).any():
        raise InputError(f"{path} is empty")
    return mask.data > 0


def is_list(path: Path) -> bool:
    """Whether a path is named like a list of volumes or a table of regions."""
    return path.suffix.lower() in LISTS


def rows(path: Path, what: str = "list") -> list[dict[str, str]]:
    """The rows of a CSV or, by its ending, TSV file, by column. Raises ``InputError`` naming what cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a {what}: {error}") from error


def volumes_in(folder: Path, match: str = "") -> Sequence[Path]:
    """The volumes below a folder that have ``match`` in their names (* and ? stand for anything), in order of names."""
    there = (p for p in folder.rglob("*") if ending(p) and fnmatchcase(p.name, f"*{match}*"))
    return sorted(p for p in there if p.is_file() and not p.name.startswith("."))
