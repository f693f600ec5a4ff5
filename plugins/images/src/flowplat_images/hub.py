"""Data sets in the format of Hugging Face's ``datasets``: on the disk, or on the Hub where one is named.

The package is imported when something is read, and brought by ``flowplat-images[hf]``.
"""

import io
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from flowcore.errors import FlowError, InputError, MachineError, MissingPackageError, UsageError
from flowplat_images import pictures
from flowplat_images.data import (
    TINY,
    Digits,
    DigitsConfig,
    Fixed,
    Images,
    Loaded,
    PublishedConfig,
    decoded,
    random_rows,
    some,
)  # fmt: skip
from flowplat_images.files import numbered

SAVED = ("dataset_dict.json", "state.json")
ENDING = ".parquet"


def _place(text: str) -> str:
    """A path that means the same from every working directory; what is none is the id of a data set on the Hub."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() or text.startswith(("/", ".", "~")) else text


class HfConfig(PublishedConfig):
    """A data set of pictures, on the disk or on the Hub."""

    path: Annotated[str, AfterValidator(_place)] = Field(
        description="a folder of save_to_disk or of .parquet files, or a data set on the Hub, such as ylecun/mnist"
    )
    subset: str | None = Field(None, description="which of the configurations that a data set on the Hub has")
    revision: str | None = Field(None, description="the branch, tag or commit of a data set on the Hub")
    split: str = Field("train", description="what is trained on")
    test: str = Field("test", description="what is validated on where it is there and holdout is 0")
    image: str = Field("", description="the column of pictures; the only one if not given")
    label: str = Field("", description="the column of classes; the only one, or `label`, if not given")
    size: int = Field(32, ge=4, le=512, description="height and width in pixels after cropping and resizing")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for colour")


class Hf(Images):
    """Pictures and classes of a ``datasets.DatasetDict``, each picture made square and resized as by ``folder``."""

    config: HfConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: sixteen digits and their labels, saved to disk, if the package is there."""
        with suppress(MachineError):  # a smoke run does without them
            write(folder, some(Digits(DigitsConfig()).loaded, 16))
        return {"path": str(folder), "size": 8, "channels": 1}

    def outline(self) -> tuple[tuple[int, ...], list[str]]:
        """Known without reading anything where the network is told no classes."""
        shape = (self.config.channels, self.config.size, self.config.size)
        return shape, self._classes[1] if self.config.conditional or self.config.captions else []

    def tiny(self) -> Images:
        """128 of the bundled digits in the shape of these pictures: a smoke run asks the Hub for nothing."""
        digits = Digits(DigitsConfig()).read(TINY)
        shape, names = self._outline
        size = torch.arange(shape[1]) * digits.x.shape[2] // shape[1]
        x = (digits.x * 15)[:, :, size][:, :, :, size].expand(-1, shape[0], -1, -1)
        if not names:
            return Fixed(self.config, Loaded(x, digits.labels, digits.names))
        assert digits.labels is not None
        facts = None if self.config.captions is None else self.facts()
        return Fixed(self.config, Loaded(x, digits.labels % len(names), names), facts)

    def read(self, limit: int | None = None) -> Loaded:
        """Decode the pictures, in as many threads as there are processors.

        Raises ``InputError`` naming the data set and what it lacks, or the row of a picture that cannot be decoded, and
        ``MachineError`` where the package or the network is not there.
        """
        splits, column, (labels, names) = self._splits, self._column, self._classes
        size, channels = self.config.size, self.config.channels
        rows = random_rows(sum(map(len, splits.values())), limit)
        first = len(splits[self.config.split])
        whole = datasets().concatenate_datasets([_bytes(split, column) for split in splits.values()])

        def decode(row: int) -> np.ndarray:
            where, cell = f"{self.config.path}, row {row}", whole[row][column] or {}
            if cell.get("bytes") is not None:
                return pictures.read(io.BytesIO(cell["bytes"]), where, channels, size)
            try:
                with open(cell.get("path") or "", "rb") as file:
                    return pictures.read(file, where, channels, size)
            except OSError as error:
                raise InputError(f"{where} has no picture: neither bytes nor a file that can be read") from error

        def refuse(message: str) -> None:
            raise InputError(message)

        x, _ = decoded(decode, rows, refuse)
        test = torch.tensor(rows) >= first if len(splits) > 1 else None
        return Loaded(x, None if labels is None else torch.tensor([labels[row] for row in rows]), names, test=test)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """The data sets to read, by name: what is trained on and, if it is there and wanted, what is tested on."""
        found = self._dataset()
        split, test, path = self.config.split, self.config.test, self.config.path
        if split not in found:
            raise InputError(f"{path} has no split {split!r}; there are {', '.join(found)}: name one with data.split")
        if not len(found[split]):
            raise InputError(f"{path}: its split {split!r} is empty")
        wanted = [split, test] if self.config.holdout == 0 and test in found and test != split else [split]
        return {name: found[name] for name in wanted}

    def _dataset(self) -> dict[str, Any]:
        path = Path(self.config.path)
        if not path.exists():
            if path.is_absolute():
                raise InputError(f"{path} does not exist; data.path names a folder, or a data set on the Hub")
            return self._download()
        package = datasets()
        try:
            if any((path / name).exists() for name in SAVED):
                saved = package.load_from_disk(str(path))
                return dict(saved) if isinstance(saved, dict) else {self.config.split: saved}
            files = [path] if path.suffix == ENDING else sorted(path.rglob(f"*{ENDING}"))
            if not files:
                raise InputError(f"{path} holds neither a data set saved by save_to_disk nor a {ENDING} file")
            return _parquet(files, package)
        except FlowError:
            raise
        except Exception as error:  # of pyarrow and of datasets, of many kinds
            raise InputError(f"{path} cannot be read: {_line(error)}; save it anew, by save_to_disk") from error

    def _download(self) -> dict[str, Any]:
        name, package = self.config.path, datasets()
        try:
            found = package.load_dataset(name, self.config.subset, revision=self.config.revision)
        except FileNotFoundError as error:  # what datasets raises where the Hub has none of that name
            raise InputError(f"{name} is neither a folder here nor a data set on the Hub that you may read") from error
        except ValueError as error:
            raise UsageError(f"{name}: {_line(error)}; data.subset and data.revision choose") from error
        except Exception as error:
            raise MachineError(f"{name} cannot be fetched from the Hub: {_line(error)}") from error
        return dict(found)

    @cached_property
    def _column(self) -> str:
        """The column of pictures."""
        package, features = datasets(), self._splits[self.config.split].features

        def is_picture(feature: Any) -> bool:
            return isinstance(feature, package.Image) or (isinstance(feature, dict) and "bytes" in feature)

        return self._named("image", [name for name, feature in features.items() if is_picture(feature)], features)

    @cached_property
    def _classes(self) -> tuple[list[int] | None, list[str]]:
        """The class number of every row, or None, and the classes' names."""
        package, splits = datasets(), self._splits
        features = splits[self.config.split].features
        named = [name for name, feature in features.items() if isinstance(feature, package.ClassLabel)]
        named = ["label"] if "label" in features else named
        if not named and not self.config.label:
            return None, []
        column = self._named("label", named, features)
        missing = [split for split, part in splits.items() if column not in part.column_names]
        if missing:
            raise InputError(f"{self.config.path}: its split {missing[0]!r} has no column {column!r}")
        values = [value for part in splits.values() for value in part[column]]
        if any(value is None or value == -1 for value in values):
            raise InputError(f"{self.config.path} has rows without a {column}; data.test='' leaves the test split out")
        if isinstance(features[column], package.ClassLabel):
            return values, list(features[column].names)
        return numbered([str(value) for value in values])

    def _named(self, option: str, candidates: list[str], features: Any) -> str:
        asked = getattr(self.config, option)
        if asked:
            candidates = [asked] if asked in features else []
        if len(candidates) != 1:
            which = f"{' and '.join(candidates)} are {option}s" if candidates else f"no {asked or option} is there"
            raise InputError(
                f"{self.config.path} has the columns {', '.join(features)}: {which}; name one with data.{option}"
            )
        return candidates[0]


def datasets() -> Any:
    """The package. Raises ``MissingPackageError`` where it is not there."""
    try:
        import datasets as package  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingPackageError("data=hf needs `datasets`; `pip install 'flowplat-images[hf]'` brings it") from error
    package.disable_progress_bars()  # the platform has its own
    return package


def write(folder: Path, loaded: Loaded) -> None:
    """Images and labels as ``Dataset.save_to_disk`` lays them out."""
    from PIL import Image

    package = datasets()
    assert loaded.labels is not None
    images = (loaded.x.long() * 255 // loaded.white).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    features = package.Features({"image": package.Image(), "label": package.ClassLabel(names=loaded.names)})
    table = {"image": cells, "label": loaded.labels.tolist()}
    package.DatasetDict({"train": package.Dataset.from_dict(table, features)}).save_to_disk(str(folder))


def _parquet(files: list[Path], package: Any) -> dict[str, Any]:
    """Parquet files by split: what comes before the first hyphen of a name, as the Hub writes them."""
    import pyarrow.parquet  # type: ignore[import-not-found]

    found: dict[str, list[Any]] = {}
    for file in files:
        found.setdefault(file.stem.partition("-")[0], []).append(package.Dataset(pyarrow.parquet.read_table(file)))
    return {split: package.concatenate_datasets(parts) for split, parts in found.items()}


def _bytes(split: Any, column: str) -> Any:
    """The column alone, as bytes: pictures are decoded as those of a folder are."""
    return split.select_columns([column]).cast_column(column, datasets().Image(decode=False))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
