"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as they were published for Python: pickles in a .tar.gz, or unpacked."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowcore.errors import InputError
from flowplat_images import pickles
from flowplat_images.data import Digits, DigitsConfig, Images, Loaded, Place, PublishedConfig, some
from flowplat_images.files import LARGEST

SHAPE = (3, 32, 32)


class Cifar10Config(PublishedConfig):
    """CIFAR-10's Python version."""

    path: Place = Field(description="cifar-10-python.tar.gz as published, or the folder unpacked from it")
    flip: bool = Field(True, description="mirror half of the training images")


class Cifar100Config(PublishedConfig):
    """CIFAR-100's Python version."""

    path: Place = Field(description="cifar-100-python.tar.gz as published, or the folder unpacked from it")
    flip: bool = Field(True, description="mirror half of the training images")
    labels: Literal["fine", "coarse"] = Field("fine", description="the 100 classes, or the 20 that they belong to")


class Cifar10(Images):
    """60,000 photographs of 32x32 pixels in ten classes; the 10,000 test images are what is validated on."""

    config: Cifar10Config | Cifar100Config

    folder: ClassVar[str] = "cifar-10-batches-py"
    training: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{i}" for i in range(1, 6))
    test: ClassVar[str] = "test_batch"
    meta: ClassVar[str] = "batches.meta"
    keys: ClassVar[dict[str, str]] = {"fine": "labels"}
    titles: ClassVar[dict[str, str]] = {"fine": "label_names"}

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: four digits a file, enlarged, in the archive's layout."""
        digits = some(Digits(DigitsConfig()).loaded, 4 * (len(cls.training) + 1))
        assert digits.labels is not None
        x = (digits.x * 15).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, *SHAPE)
        contents: dict[str, Any] = {cls.meta: dict.fromkeys(cls.titles.values(), digits.names)}
        for i, name in enumerate((*cls.training, cls.test)):
            rows = slice(4 * i, 4 * i + 4)
            contents[name] = {"data": x[rows].reshape(4, -1).numpy()}
            contents[name] |= {key: digits.labels[rows].tolist() for key in cls.keys.values()}
        path = folder / "example.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in contents.items():
                packed = pickle.dumps(content, protocol=2)
                info = tarfile.TarInfo(f"{cls.folder}/{name}")
                info.size = len(packed)
                archive.addfile(info, io.BytesIO(packed))
        return {"path": path}

    def outline(self) -> tuple[tuple[int, ...], list[str]]:
        """Known without reading an image."""
        for name, content in self._contents():
            if name == self.meta:
                return SHAPE, self._titles(content)
        raise self._lacks(self.meta)

    def read(self, limit: int | None = None) -> Loaded:
        """Everything; or for a part of it the first file of training images that comes.

        Raises ``InputError`` naming the file that is missing or damaged and ``IntegrityError`` naming one that is not
        safe to read.
        """
        wanted = {self.meta, *self.training} | ({self.test} if self.config.holdout == 0 else set())
        found: dict[str, bytes] = {}
        for name, content in self._contents():
            if name in wanted:
                found[name] = content
            if limit is not None and self.meta in found and len(found) > 1 + (self.test in found):
                wanted = set(found) - {self.test}
                break
        if missing := sorted(wanted - found.keys()):
            raise self._lacks(missing[0])
        names = self._titles(found[self.meta])
        files = [name for name in (*self.training, self.test) if name in wanted]
        parts = [self._images(found[name], name, len(names)) for name in files]
        test = torch.cat([torch.full((len(x),), name == self.test) for (x, _), name in zip(parts, files, strict=True)])
        x, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return some(Loaded(x, labels, names, test=test if self.test in wanted else None), limit)

    @property
    def _level(self) -> str:
        return getattr(self.config, "labels", "fine")

    def _titles(self, content: bytes) -> list[str]:
        where, key = self._where(self.meta), self.titles[self._level]
        names = pickles.load(content, where).get(key)
        if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
            raise InputError(f"{where} has no list {key!r} of the classes' names; fetch it again")
        return [name.decode("latin-1") if isinstance(name, bytes) else name for name in names]

    def _images(self, content: bytes, name: str, classes: int) -> tuple[Tensor, Tensor]:
        where, key = self._where(name), self.keys[self._level]
        found = pickles.load(content, where)
        data, labels = found.get("data"), found.get(key)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32 or not len(data):
            raise InputError(f"{where} has no array 'data' of (n, 3072) bytes; is it {self.folder} as published?")
        if not isinstance(labels, list) or len(labels) != len(data):
            raise InputError(f"{where} has no list {key!r} of {len(data)} labels; is it {self.folder} as published?")
        if not all(isinstance(one, int) and 0 <= one < classes for one in labels):
            raise InputError(f"{where} has labels other than 0 to {classes - 1}; fetch it again")
        return torch.from_numpy(data.copy()).view(-1, *SHAPE), torch.tensor(labels)

    def _contents(self) -> Iterator[tuple[str, bytes]]:
        """The files that are of interest, as (name, content), in the order in which they are come by."""
        path, wanted = self.config.path, {self.meta, *self.training, self.test}
        try:
            if path.is_dir():
                inner = path / self.folder if (path / self.folder).is_dir() else path
                for name in (self.meta, *self.training, self.test):
                    if (inner / name).exists():
                        yield name, (inner / name).read_bytes()
                return
            if not path.exists():
                raise InputError(f"{path} does not exist; data.path names the .tar.gz as published, or its folder")
            with tarfile.open(path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if name in wanted and member.isfile() and member.size <= LARGEST:
                        yield name, archive.extractfile(member).read()  # type: ignore[union-attr]
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            reason = "" if isinstance(error, tarfile.ReadError) else f": {' '.join(str(error).split())}"
            raise InputError(
                f"{path} is neither a folder nor a .tar.gz that can be read{reason}; fetch it again"
            ) from error

    def _where(self, name: str) -> str:
        return f"{self.config.path}/{name}"

    def _lacks(self, name: str) -> InputError:
        return InputError(f"{self.config.path} holds no file {name}; data.path names {self.folder} as published")


class Cifar100(Cifar10):
    """60,000 photographs of 32x32 pixels in 100 classes, which belong to 20."""

    config: Cifar100Config

    folder = "cifar-100-python"
    training = ("train",)
    test = "test"
    meta = "meta"
    keys: ClassVar = {"fine": "fine_labels", "coarse": "coarse_labels"}
    titles: ClassVar = {"fine": "fine_label_names", "coarse": "coarse_label_names"}
