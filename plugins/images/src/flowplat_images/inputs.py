"""Pictures as a user brings them to a task: files, folders and zips from the command line, arrays from Python."""

import io
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import InputError
from flowplat_images import pictures
from flowplat_images.files import Files, listing

Shape = tuple[int, ...]


class Brought(NamedTuple):
    """Images (n, c, h, w) in [-1, 1], what each is called, and its class where that was told: its name, its number
    among the model's classes, or None."""

    x: Tensor
    names: list[str]
    classes: list[str | int | None]


class _One(NamedTuple):
    name: str
    told: str | int | None
    read: Callable[[], Tensor]


def brought(inputs: Sequence[Any], shape: Shape, ends: bool = False) -> Brought:
    """The pictures of all inputs, in the shape (c, h, w) of the model's, or with ``ends`` the first and the last.

    A file is read as the data set ``folder`` reads one, cropped and resized; a folder or zip brings the classes of its
    labels.csv or sub-folders. Tensors are (n, c, h, w) or (c, h, w) in [-1, 1], arrays uint8 as an .npz holds them, and
    a ``Batch`` brings its condition. Raises ``InputError`` naming what is not there, or no picture, or of another
    shape.
    """
    with ExitStack() as opened:
        found: list[_One] = []
        for one in inputs:
            if isinstance(one, str | PathLike):
                found += _of_path(Path(one), shape, opened)
            else:
                found += _of_object(one, shape)
        if len(found) < (2 if ends else 1):
            raise InputError(
                f"there {'is one picture' if found else 'are no pictures'} to work on; name "
                f"{'two pictures, or a folder that holds more' if ends else 'pictures, or a folder of them'}"
            )
        chosen = [found[0], found[-1]] if ends else found
        x = torch.stack([one.read() for one in chosen])
        return Brought(x, [one.name for one in chosen], [one.told for one in chosen])


def _of_path(path: Path, shape: Shape, opened: ExitStack) -> list[_One]:
    if not path.exists():
        raise InputError(f"{path} is not there; name a PNG or JPEG file, or a folder or zip of them")
    if not path.is_dir() and not zipfile.is_zipfile(path):
        return [_One(str(path), None, partial(_file, path, shape))]
    files = opened.enter_context(Files(path))
    names, labels, classes = listing(files, _refuse)
    told = [None] * len(names) if labels is None else [classes[label] for label in labels]
    return [
        _One(files.where(name), label, partial(_member, files, name, shape))
        for name, label in zip(names, told, strict=True)
    ]


def _refuse(message: str) -> None:
    raise InputError(f"{message}; mend it or take it out")


def _file(path: Path, shape: Shape) -> Tensor:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return _decoded(content, str(path), shape)


def _member(files: Files, name: str, shape: Shape) -> Tensor:
    return _decoded(files.read(name), files.where(name), shape)


def _decoded(content: bytes, name: str, shape: Shape) -> Tensor:
    channels, height, width = shape
    image = pictures.read(io.BytesIO(content), name, channels, height, width)
    return pictures.scaled(pictures.to_tensor(np.stack([image])))[0]


def _of_object(given: Any, shape: Shape) -> list[_One]:
    told: Sequence[int] | None = None
    if isinstance(given, Batch):
        told = None if given.condition is None else given.condition.tolist()
        given = given.x1
    if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim in (2, 3, 4):
        if given.ndim == 2 or (given.ndim == 3 and given.shape[2] == shape[0] and given.shape[:2] == shape[1:]):
            given = given[None]
        x = pictures.scaled(pictures.to_tensor(given.copy()))
    elif isinstance(given, Tensor) and given.is_floating_point() and given.ndim in (3, 4):
        x = (given if given.ndim == 4 else given[None]).detach().cpu().float()
    else:
        what = (
            f"{given.dtype} of {tuple(given.shape)}" if isinstance(given, Tensor | np.ndarray) else type(given).__name__
        )
        raise InputError(
            f"{what} is no picture: give a file, a uint8 array (n, h, w) or (n, h, w, 3), or a tensor (n, c, h, w) in "
            "[-1, 1]"
        )
    if tuple(x.shape[1:]) != tuple(shape):
        raise InputError(
            f"images of {tuple(x.shape[1:])} are not of the model's shape, {tuple(shape)}; resize them first"
        )
    if not bool(x.isfinite().all()):
        raise InputError("an image has values that are no numbers, or infinite")
    return [_One(f"image {i}", None if told is None else told[i], partial(x.__getitem__, i)) for i in range(len(x))]
