"""Texts of Hugging Face's ``datasets``: on the disk, or on the Hub where one is named.

The package is imported when something is read, and brought by ``flowplat-text[hf]``.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from flowcore.errors import FlowError, InputError, MachineError
from flowplat_text.corpora import pydoc
from flowplat_text.data import EXCERPT, Excerpt, TextConfig, Texts, beginning

SAVED = ("dataset_dict.json", "state.json")


def _place(text: str) -> str:
    """A path that means the same from every working directory; what is none is the id of a data set on the Hub."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() or text.startswith(("/", ".", "~")) else text


class HfConfig(TextConfig):
    """A data set of texts, on the disk or on the Hub."""

    path: Annotated[str, AfterValidator(_place)] = Field(
        description="a folder of save_to_disk, or a data set on the Hub, such as Salesforce/wikitext"
    )
    subset: str | None = Field(None, description="which of the configurations that a data set on the Hub has")
    revision: str | None = Field(None, description="the branch, tag or commit of a data set on the Hub")
    split: str = Field("train", description="what is trained on")
    validation: str = Field(
        "validation", description="what is validated on; a share of the split where it is not there"
    )
    field: str = Field("text", description="the column of the texts")
    streaming: bool = Field(False, description="read it from the Hub as it comes, and keep nothing but the tokens")


class Hf(Texts):
    """The texts of a column, row by row; rows without text are left out."""

    config: HfConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: help topics of Python, saved to disk, if the package is there."""
        try:
            data = datasets().Dataset.from_dict({"text": [text for text, _ in zip(pydoc(), range(12), strict=False)]})
            data.save_to_disk(str(folder))
        except MachineError:  # a smoke run does without them
            pass
        return {"path": str(folder), "length": 32}

    def tiny(self) -> Texts:
        """Help topics of Python: a smoke run asks the Hub for nothing."""
        return Excerpt(self.config, beginning(pydoc(), max(24_000, EXCERPT * self.config.length)))

    def documents(self) -> Iterable[str]:
        """The texts of ``split``."""
        return self._column(self.config.split)

    def held_out(self) -> Iterable[str] | None:
        """The texts of ``validation``, where there is such a split."""
        wanted = self.config.validation
        return self._column(wanted) if wanted in self._splits and wanted != self.config.split else None

    def origin(self) -> Any:
        """The data set as its package knows it again; what is streamed has no more than its name."""
        config = self.config
        known = {name: getattr(rows, "_fingerprint", None) for name, rows in self._splits.items()}
        return [config.path, config.subset, config.revision, config.split, config.validation, config.field, known]

    @cached_property
    def _splits(self) -> dict[str, Any]:
        return self._dataset()

    def _column(self, split: str) -> Iterator[str]:
        path, field = self.config.path, self.config.field
        if split not in self._splits:
            raise InputError(f"{path} has no split {split!r}; there are {', '.join(self._splits)}: set data.split")
        rows = self._splits[split]
        if field in (rows.column_names or ()):  # which a stream may not know
            rows = rows.select_columns([field])
        for number, row in enumerate(rows):
            if field not in row:
                there = ", ".join(row)
                raise InputError(f"{path} has no column {field!r}; there are {there}: name one with data.field")
            text = row[field]
            if not isinstance(text, str):
                raise InputError(f"{path}, row {number}: {field!r} is {type(text).__name__}, not text")
            if text.strip():
                yield text

    def _dataset(self) -> dict[str, Any]:
        package, name = datasets(), self.config.path
        try:
            if Path(name).is_absolute():
                if not any((Path(name) / one).exists() for one in SAVED):
                    raise InputError(f"{name} is no folder that save_to_disk wrote; .parquet files are for data=files")
                saved = package.load_from_disk(name)
            else:
                saved = package.load_dataset(
                    name, self.config.subset, revision=self.config.revision, streaming=self.config.streaming
                )
        except FlowError:
            raise
        except (OSError, ConnectionError) as error:
            raise MachineError(f"{name} cannot be had from the Hub: {' '.join(str(error).split())}") from error
        except Exception as error:  # of any kind, on what is no data set
            raise InputError(f"{name} cannot be read as a data set: {' '.join(str(error).split())}") from error
        return dict(saved) if isinstance(saved, dict) else {self.config.split: saved}


def datasets() -> Any:
    """The package. Raises ``MachineError`` where it is not installed."""
    try:
        import datasets as package
    except ImportError as error:
        raise MachineError("data=hf needs the package datasets: pip install 'flowplat-text[hf]'") from error
    package.disable_progress_bars()
    return package
