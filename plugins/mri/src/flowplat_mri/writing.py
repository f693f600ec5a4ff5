"""Volumes written with the header they came with, and what is written beside them."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowcore import files
from flowcore.errors import InputError

FREE = frozenset(  # fields that say how the numbers are stored, and where
    ["datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max", "vox_offset", "magic", "type"]
)


def like(image: Any, data: np.ndarray) -> Any:
    """An image of ``data`` as float32, of the kind of ``image`` and with its header.

    Shape, affine, sform and qform with their codes, pixdim, units, intent, description and extensions are the same
    bytes; only how numbers are stored (``FREE``) may differ. Integers are not rounded to. Raises ``InputError`` where a
    header contradicts itself so that nibabel would change it.
    """
    shape = tuple(int(n) for n in image.shape)
    made = type(image)(np.asarray(data, np.float32).reshape(shape), image.affine, image.header.copy())
    made.set_data_dtype(np.float32)
    if changed := [key for key in image.header if key not in FREE and not _same(image.header[key], made.header[key])]:
        raise InputError(f"the header contradicts itself in {', '.join(changed)}: writing it would change that")
    return made


def _same(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(path: Path, image: Any) -> None:
    """Write an image whole or not at all, packed where the name ends in z; the same image is the same bytes."""
    content = image.to_bytes()
    packed = path.name.lower().endswith((".gz", ".mgz"))
    with files.refusals(f"{path} cannot be written"):
        files.write(path, gzip.compress(content, compresslevel=6, mtime=0) if packed else content)


def sidecar(path: Path) -> Path:
    """Where what is told of a volume stands: the same name, ending in .json."""
    from flowplat_mri.reading import stem

    return path.with_name(stem(path) + ".json")


def note(path: Path, told: Mapping[str, Any]) -> None:
    """Write plain JSON, without NaN, which JSON has no word for."""
    with files.refusals(f"{path} cannot be written"):
        files.write(path, json.dumps(told, indent=1, allow_nan=False) + "\n")


def describe(folder: Path, version: str, sources: str) -> None:
    """``dataset_description.json`` of a folder of derivatives of ``sources``, as BIDS asks for it."""
    told = {
        "Name": "MR volumes harmonized by flowplat-mri; for research, not for diagnosis",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "flowplat-mri", "Version": version}],
        "SourceDatasets": [{"URL": sources}],
        "DatasetLinks": {"raw": sources},
    }
    note(folder / "dataset_description.json", told)
