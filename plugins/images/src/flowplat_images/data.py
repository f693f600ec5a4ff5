"""The data sets: digits, a folder or zip of pictures, an npz."""

import csv
import hashlib
import io
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flowcore.data import Batch, Rows
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowcore.seeds import generator
from flowplat_images import pictures

SUFFIXES = {".png", ".jpg", ".jpeg"}


class ImagesConfig(BaseModel):
    """What every image data set can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditional: bool = Field(False, description="tell the network each image's class")
    flip: bool = Field(False, description="mirror half of the training images; not for digits or letters")
    holdout: float = Field(0.1, ge=0, lt=1, description="share held out for validation")


class DigitsConfig(ImagesConfig):
    """scikit-learn's digits."""

    holdout: float = Field(0.0, ge=0, lt=1, description="share held out; 0 validates on the training images")


class FolderConfig(ImagesConfig):
    """A folder or zip of pictures."""

    path: Path = Field(description="the folder or .zip")
    size: int = Field(32, ge=4, le=512, description="height and width in pixels after cropping and resizing")
    channels: int = Field(3, description="1 for grey, 3 for colour", json_schema_extra={"enum": [1, 3]})


class NpzConfig(ImagesConfig):
    """An .npz with images and, if there are any, labels."""

    path: Path = Field(description="the .npz")


class Loaded(NamedTuple):
    """Images (n, c, h, w) in [-1, 1], class numbers (n,) or None, the classes' names."""

    x: Tensor
    labels: Tensor | None
    names: list[str]


class Images:
    """What the data sets share; each says only how it is read. Satisfies ``flowcore.plugin.contracts.Data``."""

    def __init__(self, config: ImagesConfig) -> None:
        self.config = config

    @abstractmethod
    def read(self) -> Loaded:
        """Read everything, once."""

    @cached_property
    def loaded(self) -> Loaded:
        """What ``read`` gave, checked against the config."""
        loaded = self.read()
        if self.config.conditional and loaded.labels is None:
            raise UsageError("data.conditional=true needs labels: a labels.csv, sub-folders, or an array `labels`")
        return loaded

    def spec(self) -> Spec:
        """See ``Data.spec``."""
        state = Leaf(tuple(self.loaded.x.shape[1:]))
        if not self.config.conditional:
            return Spec(state)
        classes = len(self.loaded.names)
        return Spec(state, Leaf((), "int64", "class", classes), null=classes)

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        n = len(self.loaded.x)
        held = round(n * self.config.holdout)
        order = torch.randperm(n, generator=generator(0, "holdout"))
        train, val = order[held:].sort().values, order[:held].sort().values
        return train, val if held else train

    def _rows(self, rows: Tensor, flip: bool) -> Rows:
        x, labels, _ = self.loaded
        mine = None if labels is None else labels[rows]
        extra = {} if mine is None else {"labels": mine}
        return Rows(x[rows], mine if self.config.conditional else None, extra, _flip if flip else None)

    def train(self) -> Rows:
        """See ``Data.train``."""
        return self._rows(self._split[0], self.config.flip)

    def val(self) -> Rows:
        """See ``Data.val``."""
        return self._rows(self._split[1], False)

    def tiny(self) -> "Images":
        """128 images of the same shape and classes."""
        x, labels, names = self.loaded
        return Fixed(self.config, Loaded(x[:128], None if labels is None else labels[:128], names))

    def fingerprint(self) -> str:
        """sha256 of pixels and labels."""
        digest = hashlib.sha256(self.loaded.x.numpy().tobytes())
        if self.loaded.labels is not None:
            digest.update(self.loaded.labels.numpy().tobytes())
        return digest.hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor | None:
        """Class numbers for ``count`` samples: each class in turn, or those named in ``wanted``, as in ``"3"`` or
        ``"cat,dog"``."""
        if not self.config.conditional:
            if wanted is not None:
                raise UsageError("this model knows no classes; train it with data.conditional=true to ask for one")
            return None
        names = self.loaded.names
        asked = names if wanted is None else [part.strip() for part in wanted.split(",")]
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise UsageError(f"no class is called {unknown[0]!r}; the classes are {', '.join(names)}")
        numbers = torch.tensor([names.index(name) for name in asked])
        return numbers[torch.arange(count) % len(numbers)]

    def write(self, samples: Batch, folder: Path) -> None:
        """PNG files, ``samples.npz``, ``labels.csv``; see ``pictures.write``."""
        pictures.write(samples.x1, folder, samples.condition, self.loaded.names)

    def show(self, samples: Batch) -> bytes:
        """A contact sheet; a class a column where there are up to 16."""
        classes = len(self.loaded.names)
        return pictures.sheet(samples.x1, classes if samples.condition is not None and classes <= 16 else None)


class Fixed(Images):
    """Images that are in memory already."""

    def __init__(self, config: ImagesConfig, loaded: Loaded) -> None:
        super().__init__(config)
        self._given = loaded

    def read(self) -> Loaded:
        """What was given."""
        return self._given


class Digits(Images):
    """1,797 real handwritten digits, 8x8, from scikit-learn: the UCI test set of Alpaydin and Kaynak (1998)."""

    def read(self) -> Loaded:
        """Pixels 0 to 16 as x / 8 - 1."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.from_numpy(digits.images).float().div(8).sub(1).unsqueeze(1)
        return Loaded(x, torch.from_numpy(digits.target).long(), [str(d) for d in range(10)])


class Folder(Images):
    """PNG and JPEG files below a folder or in a zip, with classes from labels.csv or from the first sub-folder."""

    config: FolderConfig

    def read(self) -> Loaded:
        """Decode everything; raises ``InputError`` naming the file that fails."""
        path, config = self.config.path.expanduser(), self.config
        with _opened(path) as files:
            names = sorted(n for n in files.names if Path(n).suffix.lower() in SUFFIXES and not Path(n).name.startswith("."))
            if not names:
                raise InputError(f"{path} holds no .png or .jpg file")
            labels = _labels(files, names)
            images = [pictures.read(files.open(n), files.where(n), config.channels, config.size) for n in names]
        x = pictures.to_tensor(np.stack(images))
        if labels is None:
            return Loaded(x, None, [])
        classes = sorted(set(labels), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        return Loaded(x, torch.tensor([classes.index(label) for label in labels]), classes)


class Npz(Images):
    """``images`` (n, h, w) or (n, h, w, 3) uint8 and, if there, ``labels`` (n,) of integers from 0."""

    config: NpzConfig

    def read(self) -> Loaded:
        """Raises ``InputError`` naming the file and the array that is missing or malformed."""
        path = self.config.path.expanduser()
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("images", "labels") if name in file.files}
                present = ", ".join(file.files) or "nothing"
        except (OSError, ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            raise InputError(f"{path} cannot be read as an .npz: {error}") from error
        images, labels = arrays.get("images"), arrays.get("labels")
        if images is None:
            raise InputError(f"{path} has no array `images`; it holds {present}")
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
            raise InputError(
                f"{path}: `images` is {images.dtype} {images.shape}; it should be uint8 (n, h, w), (n, h, w, 1) or (n, h, w, 3)"
            )
        if len(images) == 0:
            raise InputError(f"{path}: `images` is empty")
        x = pictures.to_tensor(images)
        if labels is None:
            return Loaded(x, None, [])
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise InputError(f"{path}: `labels` is {labels.dtype} {labels.shape}; it should be {len(images)} integers from 0")
        return Loaded(x, torch.from_numpy(labels.astype(np.int64)), [str(c) for c in range(int(labels.max()) + 1)])


class _Files:
    """The files of a folder or zip, by their names inside it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile | None) -> None:
        self.path, self.archive = path, archive
        if archive is not None:
            self.names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
        else:
            self.names = [str(f.relative_to(path).as_posix()) for f in path.rglob("*") if f.is_file()]

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def open(self, name: str) -> IO[bytes]:
        """The bytes of one file."""
        try:
            return io.BytesIO(self.path.joinpath(name).read_bytes() if self.archive is None else self.archive.read(name))
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise InputError(f"{self.where(name)} cannot be read: {error}") from error

    def where(self, name: str) -> str:
        """How a message names a file."""
        return f"{self.path}/{name}"


def _opened(path: Path) -> _Files:
    if path.is_dir():
        return _Files(path, None)
    if not path.exists():
        raise InputError(f"{path} does not exist; data.path names a folder or a .zip")
    try:
        return _Files(path, zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is neither a folder nor a zip: {error}") from error


def _labels(files: _Files, names: list[str]) -> list[str] | None:
    """A class name for each image: labels.csv if there is one, else the first sub-folder if every image is in one."""
    if "labels.csv" in files.names:
        where = files.where("labels.csv")
        try:
            rows = list(_rows(files.open("labels.csv"), where))
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 text: {error}") from error
        table: dict[str, str] = {}
        known = set(names)
        for line, file, label in rows:
            if file not in known:
                raise InputError(f"{where}, line {line}: there is no image {file!r}")
            if table.setdefault(file, label) != label:
                raise InputError(f"{where}, line {line}: {file!r} has two labels, {table[file]!r} and {label!r}")
        missing = [name for name in names if name not in table]
        if missing:
            raise InputError(f"{where} has no label for {missing[0]!r} ({len(missing)} of {len(names)} images have none)")
        return [table[name] for name in names]
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else None for name in names]
    if None in folders or len(set(folders)) < 2:
        return None
    return [str(folder) for folder in folders]


def _rows(file: IO[bytes], where: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    if not {"file", "label"} <= set(reader.fieldnames or []):
        raise InputError(f"{where} should start with the line `file,label`")
    for row in reader:
        if not row["file"] or not row["label"]:
            raise InputError(f"{where}, line {reader.line_num}: a file and a label are needed")
        yield reader.line_num, row["file"].strip(), row["label"].strip()


def _flip(batch: Batch, draws: torch.Generator) -> Batch:
    """Mirror each image with probability 1/2."""
    mirrored = torch.rand(len(batch), generator=draws) < 0.5
    x = torch.where(mirrored[:, None, None, None], batch.x1.flip(-1), batch.x1)
    return Batch(x, batch.condition, extra=batch.extra)
