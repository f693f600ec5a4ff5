"""What every image data set shares, and three of them: digits, a folder or zip of pictures, an npz."""

import hashlib
import io
import logging
import os
import warnings
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowcore.seeds import generator
from flowplat_images import pictures
from flowplat_images.captions import CaptionsConfig, Text, TextFacts, made
from flowplat_images.files import Fault, Files, Listing, Place, captions, listing, numbered
from flowplat_images.loaded import Loaded, Part, mirrored, random_rows, some

log = logging.getLogger("flowplat")

TINY = 128
COLUMNS = 16  # a sheet with more classes than this is laid out as a square


class ImagesConfig(BaseModel):
    """What every image data set can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditional: bool = Field(False, description="tell the network each image's class")
    flip: bool = Field(False, description="mirror half of the training images; not for digits or letters")
    holdout: float = Field(0.1, ge=0, lt=1, description="share held out for validation; 0 validates on training images")
    captions: CaptionsConfig | None = Field(None, description="tell the network each image's caption: labels or files")

    @field_validator("captions", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("captions")
    @classmethod
    def _one(cls, value: CaptionsConfig | None, info: Any) -> CaptionsConfig | None:
        if value is not None and info.data.get("conditional"):
            raise ValueError("the network is told classes or captions, not both; leave data.conditional out")
        return value


class DigitsConfig(ImagesConfig):
    """scikit-learn's digits."""

    holdout: float = Field(0.0, ge=0, lt=1, description="share held out for validation; 0 validates on training images")


class PublishedConfig(ImagesConfig):
    """A data set that was published with test images."""

    holdout: float = Field(
        0.0, ge=0, lt=1, description="share of the training images held out; 0 validates on the data set's test images"
    )


class FolderConfig(ImagesConfig):
    """A folder or zip of pictures."""

    path: Place = Field(description="the folder or .zip")
    size: int = Field(32, ge=4, le=512, description="height and width in pixels after cropping and resizing")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for colour")
    on_error: Literal["refuse", "skip"] = Field(
        "refuse", description="skip leaves out a file with a fault, and names it"
    )


class NpzConfig(ImagesConfig):
    """An .npz with images and, if there are any, labels."""

    path: Place = Field(description="the .npz")


class Facts(BaseModel):
    """All that sampling needs to know of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    names: list[str]
    captions: TextFacts | None = None


class Images:
    """What the data sets share; each says only how it is read. Satisfies ``flowcore.plugin.contracts.Portable``."""

    def __init__(self, config: ImagesConfig, facts: Any = None) -> None:
        self.config = config
        self._facts = None if facts is None else Facts.model_validate(facts)
        if self._facts is not None:
            _ = self.text  # facts that are damaged are told at once

    @abstractmethod
    def read(self, limit: int | None = None) -> Loaded:
        """Read everything, or ``limit`` images of it; the classes are those of everything."""

    def outline(self) -> tuple[tuple[int, ...], list[str]]:
        """The shape of one image and the classes' names: all that sampling needs to know."""
        return tuple(self.loaded.x.shape[1:]), self.loaded.names

    def own_captions(self) -> list[str]:
        """The captions that come with the images."""
        if self.loaded.captions is None:
            raise UsageError("these images come without captions; data.captions=labels writes them from the classes")
        return self.loaded.captions

    @cached_property
    def loaded(self) -> Loaded:
        """Everything, read once."""
        return self.read()

    def facts(self) -> dict[str, Any]:
        """See ``Portable.facts``."""
        shape, names = self._outline
        told = {"shape": list(shape), "names": names}
        return told if self.text is None else told | {"captions": self.text.facts.model_dump()}

    @cached_property
    def text(self) -> Text | None:
        """The captions, where the network is told any."""
        config = self.config.captions
        if config is None:
            return None
        shape, names = self._outline
        facts = None if self._facts is None else self._facts.captions
        if facts is None:
            facts = made(config, self.own_captions() if config.source == "files" else None, names, shape[0] == 1)
        return Text(config, facts, names, shape[0] == 1)

    @cached_property
    def _outline(self) -> tuple[tuple[int, ...], list[str]]:
        shape, names = self.outline() if self._facts is None else (self._facts.shape, self._facts.names)
        written = self.config.captions is not None and self.config.captions.source == "labels"
        if (self.config.conditional or written) and not names:
            raise UsageError(
                f"data.{'captions=labels' if written else 'conditional=true'} needs classes: a labels.csv, every "
                "picture in a sub-folder, or an array, a file or a column of labels"
            )
        return shape, names

    @property
    def names(self) -> list[str]:
        """The classes' names; empty if the images have none."""
        return self._outline[1]

    def spec(self) -> Spec:
        """See ``Data.spec``."""
        shape, names = self._outline
        if self.text is not None:
            return Spec(Leaf(shape), *self.text.spec())
        if not self.config.conditional:
            return Spec(Leaf(shape))
        return Spec(Leaf(shape), Leaf((), "int64", "class", len(names)), null=len(names))

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        n, test = len(self.loaded.x), self.loaded.test
        if test is not None and 0 < int(test.sum()) < n:
            return (~test).nonzero().flatten(), test.nonzero().flatten()
        held = min(round(n * self.config.holdout), n - 1)
        order = torch.randperm(n, generator=generator(0, "holdout"))
        train, val = order[held:].sort().values, order[:held].sort().values
        return train, val if held else train

    def _part(self, number: int, flip: bool) -> Part:
        _ = self.spec()  # before anything is decoded: it checks that there are classes
        x, labels, *_, own = self.loaded
        tokens = None if self.text is None else self.text.of(x, labels, own)
        return Part(self.loaded, self._split[number], self.config.conditional, flip, tokens)

    def train(self) -> Part:
        """See ``Data.train``."""
        return self._part(0, self.config.flip)

    def val(self) -> Part:
        """See ``Data.val``; the training images, unmirrored, where none are held out."""
        return self._part(1, False)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """See ``flowcore.plugin.contracts.Augmenting``: mirrored where the data is."""
        return mirrored(batch, generator) if self.config.flip else batch

    @property
    def holds_out(self) -> bool:
        """Whether ``val()`` are images that ``train()`` has not."""
        return self._split[0] is not self._split[1]

    def tiny(self) -> "Images":
        """128 of the images at random; of a folder nothing else is decoded."""
        return Fixed(self.config, self.read(TINY), None if self.config.captions is None else self.facts())

    def fingerprint(self) -> str:
        """sha256 of pixels, shape, labels, class names, of which are test images, and of captions that came along."""
        x, labels, names, white, test, texts = self.loaded
        digest = hashlib.sha256(x.numpy().tobytes())
        digest.update(repr((tuple(x.shape), white, None if labels is None else labels.tolist(), names)).encode())
        if test is not None:
            digest.update(test.numpy().tobytes())
        if texts is not None:
            digest.update("\n".join(texts).encode())
        return digest.hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor | None:
        """Class numbers for ``count`` samples: each class in turn, or those named in ``wanted``, as in ``"3"`` or
        ``"cat,dog"``; or captions as numbers, see ``Text.condition``."""
        if self.text is not None:
            return self.text.condition(count, wanted)
        if not self.config.conditional:
            if wanted is not None:
                raise UsageError("this model knows no classes; train it with data.conditional=true to ask for one")
            return None
        asked = self.names
        if wanted is not None:
            asked = [wanted] if wanted in self.names else [part.strip() for part in wanted.split(",")]
        unknown = [name for name in asked if name not in self.names]
        if unknown:
            raise UsageError(f"no class is called {unknown[0]!r}; the classes are {', '.join(self.names)}")
        numbers = torch.tensor([self.names.index(name) for name in asked])
        return numbers[torch.arange(count) % len(numbers)]

    def asked(self, condition: Tensor) -> Tensor:
        """The class number that each condition asks for; -1 where a caption names no class, or more than one."""
        return condition if self.text is None else self.text.classes(condition)

    def write(self, samples: Batch, folder: Path) -> None:
        """``images/`` with PNG files, labels.csv and captions, and ``samples.npz``; see ``pictures.write``."""
        told = samples.condition
        texts = None if told is None or self.text is None else self.text.tokens.texts(told)
        numbers = None if told is None else self.asked(told)
        if numbers is not None and bool((numbers < 0).any()):
            numbers = None
        pictures.write(samples.x1, folder, numbers, self.names, texts)

    def read_back(self, folder: Path) -> Batch:
        """See ``Checkable.read_back``: what ``samples.npz`` holds, or of a folder without one the pictures in it,
        cropped and resized as ``folder`` reads them."""
        shape, names = self._outline
        if (folder / "samples.npz").exists():
            found = _npz(folder / "samples.npz")
            if tuple(found.x.shape[1:]) != tuple(shape):
                raise InputError(
                    f"{folder}/samples.npz has images of {tuple(found.x.shape[1:])}, the data are of {tuple(shape)}; "
                    "only a folder of PNG or JPEG files is resized"
                )
        else:
            with Files(folder) as files:
                listed, texts = listing(files, _refuse), None
                if self.text is not None:
                    listed, texts = captions(files, listed, _refuse)
            images, _ = _opened(folder, listed.pictures, tuple(shape), _refuse)
            labels = None if listed.labels is None else torch.tensor(listed.labels)
            found = Loaded(images, labels, listed.classes, captions=texts)
        x = pictures.scaled(found.x)
        if self.text is not None:
            return Batch(x, None if found.captions is None else self.text.tokens.ids(found.captions))
        unknown = [name for name in found.names if name not in names]
        if unknown and self.config.conditional:
            raise InputError(f"{folder} has samples of the class {unknown[0]!r}; the data's are {', '.join(names)}")
        if found.labels is None or unknown:
            return Batch(x)
        return Batch(x, torch.tensor([names.index(name) for name in found.names])[found.labels])

    def show(self, samples: Batch) -> bytes:
        """A contact sheet; under their names in columns where up to 16 classes come in turn."""
        if samples.condition is None:
            return pictures.sheet(samples.x1)
        numbers = self.asked(samples.condition).tolist()
        turn = list(dict.fromkeys(numbers))
        if (
            not 1 < len(turn) <= COLUMNS
            or -1 in turn
            or any(turn[i % len(turn)] != number for i, number in enumerate(numbers))
        ):
            return pictures.sheet(samples.x1)
        return pictures.sheet(samples.x1, [self.names[number] for number in turn])


class Fixed(Images):
    """Images that are in memory already."""

    def __init__(self, config: ImagesConfig, loaded: Loaded, facts: Any = None) -> None:
        super().__init__(config, facts)
        self._given = loaded

    def read(self, limit: int | None = None) -> Loaded:
        """What was given."""
        return some(self._given, limit)


class Digits(Images):
    """1,797 real handwritten digits, 8x8, from scikit-learn: the UCI test set of Alpaydin and Kaynak (1998)."""

    def read(self, limit: int | None = None) -> Loaded:
        """Pixels are 0 to 16, so x / 8 - 1 is exact."""
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        digits = load_digits()
        x = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)
        return some(Loaded(x, torch.from_numpy(digits.target).long(), [str(d) for d in range(10)], white=16), limit)


class Folder(Images):
    """PNG and JPEG files below a folder or in a zip, with classes from labels.csv or from sub-folders.

    A fault of one file raises ``InputError`` naming it, or with ``on_error: skip`` is logged and the file left out.
    """

    config: FolderConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: sixteen digits as PNG files, and their labels."""
        return {"path": _example(folder) / "images", "size": 8, "channels": 1}

    def outline(self) -> tuple[tuple[int, ...], list[str]]:
        """Known without decoding a picture, so a trained model samples at once."""
        config = self.config
        return (config.channels, config.size, config.size), self._listing.classes

    @cached_property
    def _listing(self) -> Listing:
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[Listing, list[str] | None]:
        """What there is to read, and the captions beside it where they are what the network is told."""
        with Files(self.config.path) as files:
            found = listing(files, self._fault)
            if self.config.captions is None or self.config.captions.source != "files":
                return found, None
            found, texts = captions(files, found, self._fault)
        if not texts:
            raise InputError(f"{self.config.path} has no picture with a .txt of the same name beside it")
        return found, texts

    def own_captions(self) -> list[str]:
        """See ``Images.own_captions``; known without decoding a picture."""
        return self._found[1] or []

    def _fault(self, message: str) -> None:
        if self.config.on_error == "refuse":
            raise InputError(f"{message}; mend it or take it out, or leave such files out with data.on_error=skip")
        log.warning("%s; left out", message)

    def read(self, limit: int | None = None) -> Loaded:
        """Decode the pictures, in as many threads as there are processors."""
        names, labels, classes = self._listing
        rows = random_rows(len(names), limit)
        images, kept = _opened(self.config.path, [names[row] for row in rows], self.outline()[0], self._fault)
        if not kept:
            raise InputError(f"{self.config.path}: none of its {len(rows)} pictures can be read")
        kept, texts = [rows[i] for i in kept], self._found[1]
        numbers = None if labels is None else torch.tensor([labels[row] for row in kept])
        return Loaded(images, numbers, classes, captions=None if texts is None else [texts[row] for row in kept])


class Npz(Images):
    """``images`` (n, h, w) or (n, h, w, 3) uint8 and, if there, ``labels`` (n,) of integers or strings."""

    config: NpzConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: sixteen digits in one .npz, and their labels."""
        return {"path": _example(folder) / "samples.npz"}

    def read(self, limit: int | None = None) -> Loaded:
        """Raises ``InputError`` naming the file and the array that is missing or malformed."""
        return some(_npz(self.config.path), limit)


def decoded(decode: Callable[[Any], np.ndarray], given: Iterable[Any], fault: Fault) -> tuple[Tensor, list[int]]:
    """The pictures that ``decode`` makes of what is given, in as many threads as there are processors, as one uint8
    tensor, and which of the given they are. A fault of one, an ``InputError``, is told to ``fault``."""

    def tried(one: Any) -> np.ndarray | InputError:
        try:
            return decode(one)
        except InputError as error:
            return error

    images, kept = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and large pictures, without naming the file
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for i, found in enumerate(pool.map(tried, given)):
                if isinstance(found, InputError):
                    fault(str(found))
                else:
                    images.append(found)
                    kept.append(i)
        finally:
            pool.shutdown(cancel_futures=True)
    return pictures.to_tensor(np.stack(images)) if images else torch.empty(0), kept


def _opened(path: Path, names: Iterable[str], shape: tuple[int, ...], fault: Fault) -> tuple[Tensor, list[int]]:
    """Pictures of a folder or zip in the shape (c, h, w); see ``decoded``."""
    with Files(path) as files:

        def decode(name: str) -> np.ndarray:
            return pictures.read(io.BytesIO(files.read(name)), files.where(name), *shape)

        return decoded(decode, names, fault)


def _refuse(message: str) -> None:
    raise InputError(f"{message}; mend it or take it out")


def _example(folder: Path) -> Path:
    digits = Digits(DigitsConfig(conditional=True))
    digits.write(digits.val().batch(torch.arange(16), generator(0, "example")), folder)
    return folder


def _npz(path: Path) -> Loaded:
    """What is in an .npz. Raises ``InputError`` naming the file and the array that is missing or wrong."""
    images, labels, texts = _arrays(path)
    if images.dtype != np.uint8:
        raise InputError(
            f"{path}: `images` is {images.dtype}; it should be uint8, 0 for black and 255 for white, such as "
            "(255 * x).round().astype('uint8') for x from 0 to 1"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        turned = images.ndim == 4 and images.shape[1] in (1, 3)
        hint = "; channels come last: images.transpose(0, 2, 3, 1)" if turned else ""
        raise InputError(f"{path}: `images` is {images.shape}; it should be (n, h, w) or (n, h, w, 3){hint}")
    if images.size == 0:
        raise InputError(f"{path}: `images` is {images.shape}, which is empty")
    x = pictures.to_tensor(images)
    if texts is not None and (texts.shape != (len(images),) or texts.dtype.kind != "U"):
        raise InputError(f"{path}: `captions` is {texts.dtype} {texts.shape}; it should be {len(images)} strings")
    told = None if texts is None else texts.tolist()
    if labels is None:
        return Loaded(x, None, [], captions=told)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
        raise InputError(
            f"{path}: `labels` is {labels.dtype} {labels.shape}; it should be {len(images)} integers or strings"
        )
    numbers, names = numbered([str(label) for label in labels.tolist()])
    return Loaded(x, torch.tensor(numbers), names, captions=told)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The arrays ``images``, ``labels`` and ``captions`` of an .npz."""
    if not path.exists():
        raise InputError(f"{path} does not exist; data.path names an .npz")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is one bare array; save it with np.savez(file, images=array)")
        with file:
            if "images" not in file.files:
                raise InputError(f"{path} has no array `images`; it holds {', '.join(file.files) or 'nothing'}")
            labels, texts = (file[name] if name in file.files else None for name in ("labels", "captions"))
            return file["images"], labels, texts
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as an .npz: {error}") from error
