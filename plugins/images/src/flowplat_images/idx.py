"""IDX files, the format of MNIST and of what was published in its shape since: Fashion-MNIST, KMNIST, EMNIST."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from flowcore.errors import InputError
from flowplat_images import pictures
from flowplat_images.data import Digits, DigitsConfig, Images, Loaded, Place, PublishedConfig, some
from flowplat_images.files import numbered

IMAGES = re.compile(r"(.*?)(train|t10k|test)-images([-.])idx3-ubyte(\.gz)?")
UNSIGNED_BYTES = 8  # the third byte of a file says what its numbers are
WHOLE = "fetch it again, or unpack it anew"


class IdxConfig(PublishedConfig):
    """IDX files, packed by gzip or not."""

    path: Place = Field(description="the folder with train-images-idx3-ubyte and the others, or one file of images")
    labels: Place | None = Field(None, description="the file of labels, where path is one file of images")
    names: tuple[str, ...] = Field((), description="what the classes are called, in order; their numbers if not given")


class Idx(Images):
    """The images and labels of the MNIST family. Test images that lie beside the others are what is validated on."""

    config: IdxConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: twenty digits, sixteen to train on and four to test, and their labels."""
        digits = some(Digits(DigitsConfig()).loaded, 20)
        assert digits.labels is not None
        for part, rows in (("train", slice(0, 16)), ("t10k", slice(16, 20))):
            write(folder / f"{part}-images-idx3-ubyte", (digits.x[rows, 0] * 15).numpy())
            write(folder / f"{part}-labels-idx1-ubyte", digits.labels[rows].to(torch.uint8).numpy())
        return {"path": folder}

    def read(self, limit: int | None = None) -> Loaded:
        """Raises ``InputError`` naming the file that is missing, cut short or of another kind."""
        pairs = self._pairs()
        found = [_pair(*pair) for pair in pairs]
        (images, labels), *tests = found
        for (other, _), (file, _) in zip(tests, pairs[1:], strict=True):
            if other.shape[1:] != images.shape[1:]:
                raise InputError(
                    f"{file} holds images of {other.shape[1:]} and {pairs[0][0]} of {images.shape[1:]}; they do not "
                    "belong together"
                )
        x = pictures.to_tensor(np.concatenate([part for part, _ in found]))
        test = torch.arange(len(x)) >= len(images) if tests else None
        if labels is None:
            return some(Loaded(x, None, [], test=test), limit)
        classes = np.concatenate([part for _, part in found]).tolist()
        if not self.config.names:
            numbers, names = numbered([str(one) for one in classes])
        else:
            numbers, names = classes, list(self.config.names)
            if max(numbers) >= len(names):
                raise InputError(f"{pairs[0][1]} has a label {max(numbers)}; data.names names {len(names)} classes")
        return some(Loaded(x, torch.tensor(numbers), names, test=test), limit)

    def _pairs(self) -> list[tuple[Path, Path | None]]:
        """The files of images and of labels: those to train on, then those to test on if they are there and wanted."""
        path, labels = self.config.path, self.config.labels
        if not path.exists():
            raise InputError(f"{path} does not exist; data.path names a folder of IDX files, or one file of images")
        if not path.is_dir():
            return [(path, labels)]
        if labels is not None:
            raise InputError(f"{path} is a folder; data.labels goes with one file of images, which data.path names")
        try:
            files = {file.name: file for file in sorted(path.iterdir())}
        except OSError as error:
            raise InputError(f"{path} cannot be listed: {error.strerror}") from error
        parts: dict[str, tuple[Path, Path | None]] = {}
        sets = set()
        for name in files:
            if match := IMAGES.fullmatch(name):
                stem, part, mark, _ = match.groups()
                sets.add(stem)
                wanted = f"{stem}{part}-labels{mark}idx1-ubyte"
                beside = files.get(wanted) or files.get(f"{wanted}.gz")
                if beside is None:
                    raise InputError(f"{path} holds {name} without {wanted}; data.path={path / name} does without it")
                parts.setdefault("train" if part == "train" else "test", (files[name], beside))
        if len(sets) > 1:
            raise InputError(
                f"{path} holds several data sets: {', '.join(sorted(sets))}; name the files of one with data.path and "
                "data.labels"
            )
        if "train" not in parts:
            raise InputError(
                f"{path} holds no train-images-idx3-ubyte, packed as .gz or not; data.path names the folder of the "
                "four files, or one file of images"
            )
        used = ("train", "test") if self.config.holdout == 0 else ("train",)
        return [parts[part] for part in used if part in parts]


def _pair(images: Path, labels: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    x = read(images, 3, "images")
    if x.size == 0:
        raise InputError(f"{images} holds no images: its shape is {x.shape}")
    if labels is None:
        return x, None
    y = read(labels, 1, "labels")
    if len(y) != len(x):
        raise InputError(f"{labels} holds {len(y)} labels and {images} {len(x)} images; they do not belong together")
    return x, y


def read(path: Path, dimensions: int, what: str) -> np.ndarray:
    """The uint8 array of an IDX file: two zero bytes, the kind of number, the count of dimensions, each as four bytes,
    big-endian, and the numbers.

    Raises ``InputError`` where it is no such file, has other dimensions, or is cut short.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0":
                raise InputError(f"{path} is no IDX file: it begins with {magic.hex() or 'nothing'}, not with 0000")
            if magic[2] != UNSIGNED_BYTES or magic[3] != dimensions:
                raise InputError(
                    f"{path} holds no {what}: it begins with {magic.hex()}, and an IDX file of {what} with "
                    f"0000{UNSIGNED_BYTES:02x}{dimensions:02x}"
                )
            header = file.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise InputError(f"{path} is cut short within its header; {WHOLE}")
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
            size = math.prod(shape)
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error, MemoryError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read: {reason}; {WHOLE}") from error
    if len(content) < size:
        raise InputError(f"{path} is cut short: {len(content)} bytes follow its header, which says {size}; {WHOLE}")
    if len(content) > size:
        raise InputError(f"{path} is longer than the {size} bytes that its header says; {WHOLE}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def write(path: Path, array: np.ndarray) -> None:
    """A uint8 array as an IDX file."""
    header = bytes([0, 0, UNSIGNED_BYTES, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + np.ascontiguousarray(array, np.uint8).tobytes())
