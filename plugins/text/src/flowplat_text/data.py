"""What every data set of texts shares, and two of them: what Python brings along, and a user's files."""

import json
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from filelock import FileLock
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from flowcore import files
from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowcore.files import write
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_text import corpora, packing, pages, reading
from flowplat_text.detokenize import Corpus, detokenized
from flowplat_text.packing import Blocks, Packed
from flowplat_text.vocabulary import Vocabulary, byte_pairs, from_facts, of_folder

EXCERPT = 80  # blocks that a tiny data set has at the least, where a token is a byte
SHOWN = 12


def _absolute(text: str) -> str:
    """A path or pattern that means the same from every working directory, so that a run's config.yaml does too."""
    return text if text == reading.STDIN else str(Path(text).expanduser().absolute())


def _tokenizer(text: str) -> str:
    return text if text in ("bytes", "bpe") else _absolute(text)


def _listed(value: Any) -> Any:
    if value == [None]:  # what YAML makes of a lone "-"
        return [reading.STDIN]
    return [value] if isinstance(value, str) else value


Place = Annotated[str, AfterValidator(_absolute)]


class TextConfig(BaseModel):
    """What every data set of texts can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(128, ge=2, description="tokens of a sample, the context that a model has")
    tokenizer: Annotated[str, AfterValidator(_tokenizer)] = Field(
        "bytes", description="bytes, bpe (trained on the texts), or a folder with a tokenizer that transformers reads"
    )
    vocabulary: int = Field(1024, ge=260, le=2**20, description="tokens of tokenizer=bpe")
    add_mask: bool = Field(False, description="give a tokenizer of a folder a mask token where it has none")
    detokenize: Corpus | None = Field(
        None, description="join what the preparation of a corpus has torn apart: wikitext, ptb, lm1b, lambada"
    )
    cache: Place | None = Field(
        None, description="a folder to keep the tokens in, mapped into memory from there; null keeps them in memory"
    )
    holdout: float = Field(0.1, ge=0, lt=1, description="share held out for validation; 0 validates on training texts")


class BuiltinConfig(TextConfig):
    """Texts that come with Python."""

    corpus: Literal["pydoc", "docstrings", "stdlib"] = Field(
        "pydoc", description="help topics (0.46 MB), docstrings (1.8 MB) or source (12 MB) of the standard library"
    )


class FilesConfig(TextConfig):
    """A user's files."""

    path: Annotated[list[Place], BeforeValidator(_listed)] = Field(
        description="files, folders or patterns of .txt, .md, .jsonl, .csv, .parquet, packed or not; - is stdin"
    )
    validation: Annotated[list[Place] | None, BeforeValidator(_listed)] = Field(
        None, description="held-out files, in place of a share of the others"
    )
    field: str = Field("text", description="the column or key of the texts in a table")


class Texts:
    """What the data sets share; each says only where its texts are. Satisfies ``flowcore.plugin.contracts.Portable``.

    Samples are blocks of ``length`` tokens, cut from the texts laid end to end with an EOS behind each.
    """

    in_order = False  # whether the last texts are held out, not those that their hash says

    def __init__(self, config: TextConfig, facts: Any = None) -> None:
        self.config = config
        self.cache = None if config.cache is None else Path(config.cache)
        self._facts = None if facts is None else from_facts(facts)

    @abstractmethod
    def documents(self) -> Iterable[str]:
        """Every text, each time in the same order."""

    def held_out(self) -> Iterable[str] | None:
        """The texts to validate on, where they are texts apart."""
        return None

    @abstractmethod
    def origin(self) -> Any:
        """What says that texts are the same as the last time, as plain JSON."""

    def _origin(self) -> Any:
        """That, and what is made of the texts."""
        config = self.config
        told = [config.tokenizer, config.vocabulary, config.add_mask, config.holdout, config.detokenize]
        return [told, self.origin()]

    def _parts(self) -> Iterator[tuple[int, str]]:
        """Every text with 0 to train on and 1 to hold out."""
        own = self._joined(self.documents())
        if (apart := self.held_out()) is None:
            yield from packing.split(own, self.config.holdout, self.in_order)
            return
        yield from ((0, text) for text in own)
        yield from ((1, text) for text in self._joined(apart))

    def _joined(self, texts: Iterable[str]) -> Iterable[str]:
        corpus = self.config.detokenize
        return texts if corpus is None else (detokenized(text, corpus) for text in texts)

    @cached_property
    def _manifest(self) -> dict[str, Any] | None:
        return None if self.cache is None else packing.manifest_of(self.cache, self._origin())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """How text becomes tokens; a byte-pair encoding is trained on the training texts."""
        if self._facts is not None:
            return self._facts
        if self._manifest is not None:
            return from_facts(self._manifest["vocabulary"])
        if self.config.tokenizer == "bytes":
            return Vocabulary()
        if self.config.tokenizer == "bpe":
            return byte_pairs((text for part, text in self._parts() if part == 0), self.config.vocabulary)
        return of_folder(Path(self.config.tokenizer), self.config.add_mask)

    @cached_property
    def packed(self) -> Packed:
        """All tokens. Raises ``InputError`` where they do not make one sample."""
        packed = packing.pack(self._parts(), self.vocabulary) if self.cache is None else self._kept(self.cache)
        if len(packed.train) < self.config.length:
            raise InputError(
                f"there are {len(packed.train)} tokens to train on, and data.length={self.config.length} asks for more "
                "in one sample: give more text, or a shorter length"
            )
        return packed

    def _kept(self, cache: Path) -> Packed:
        """The tokens in a cache, made by the first process that asks; the others of a run wait for it."""
        origin, lock = self._origin(), FileLock(cache / ".lock")
        with files.refusals(f"{cache} cannot be written"):
            cache.mkdir(parents=True, exist_ok=True)
            held = lock.acquire()
        with held:
            if (manifest := packing.manifest_of(cache, origin)) is not None:
                return packing.cached(cache, from_facts(manifest["vocabulary"]), manifest)
            return packing.pack(self._parts(), self.vocabulary, cache, origin)

    def facts(self) -> dict[str, Any]:
        """See ``Portable.facts``: the vocabulary."""
        return self.vocabulary.facts()

    def spec(self) -> Spec:
        """See ``Data.spec``."""
        if self._facts is None and self.config.tokenizer == "bpe":  # known without training it
            size, mask = self.config.vocabulary, 0
        else:
            size, mask = self.vocabulary.size, self.vocabulary.mask
        return Spec(Leaf((self.config.length,), "int64", "token", size, mask))

    def train(self) -> Blocks:
        """See ``Data.train``; the blocks of a batch begin anywhere."""
        return Blocks(self.packed.train, self.config.length, shifted=True)

    def val(self) -> Blocks:
        """See ``Data.val``; the training blocks where what is held out does not make one."""
        enough = len(self.packed.val) >= self.config.length
        return Blocks(self.packed.val if enough else self.packed.train, self.config.length, shifted=False)

    def tiny(self) -> "Texts":
        """The first texts, some 80 blocks of them."""
        own = self._joined(self.documents())
        return Excerpt(self.config, beginning(own, max(24_000, EXCERPT * self.config.length)))

    def fingerprint(self) -> str:
        """sha256 of the tokens, what is held out apart, and of the vocabulary."""
        return self.packed.digest

    def condition(self, count: int, wanted: str | None) -> None:
        """None: what a text is to hold is said to the task ``fill``."""
        if wanted is not None:
            raise UsageError("this model takes no condition; `platform apply text fill` writes around what is given")

    def write(self, samples: Batch, folder: Path) -> None:
        """``samples.txt`` to read, and ``samples.jsonl``, a line each with ``text`` and ``tokens``."""
        tokens = samples.x1.tolist()
        texts = [self.vocabulary.decode(row) for row in tokens]
        rule = "\n" + "-" * 80 + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "samples.txt", rule.join(texts) + "\n")
        lines = [
            json.dumps({"text": text, "tokens": row}, ensure_ascii=False) + "\n"
            for text, row in zip(texts, tokens, strict=True)
        ]
        write(folder / "samples.jsonl", "".join(lines))

    def read_back(self, folder: Path) -> Batch:
        """See ``Checkable.read_back``: samples.jsonl, or else every file of text in the folder, a sample each text.

        Of a line with ``tokens`` these are taken; a text is cut, or filled up with EOS, to the length of a sample.
        """
        own, length, rows = folder / "samples.jsonl", self.config.length, []
        for path in [str(own)] if own.exists() else reading.found([str(folder)]):
            for row in reading.rows(path, "text"):
                given = row.get("tokens")
                tokens = self.vocabulary.encode(row["text"]) if given is None else np.array(given)
                if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
                    raise InputError(f"{path}: the `tokens` of a sample are a list of whole numbers")
                row_of = np.full(length, self.vocabulary.eos, np.int64)
                row_of[: len(tokens)] = tokens[:length]
                rows.append(row_of)
        return Batch(torch.from_numpy(np.stack(rows)))

    def show(self, samples: Batch) -> bytes:
        """The first dozen texts on a page."""
        return pages.page([self.vocabulary.decode(row) for row in samples.x1[:SHOWN].tolist()])


class Excerpt(Texts):
    """Texts that are in memory already, the last of them held out."""

    in_order = True

    def __init__(self, config: TextConfig, texts: list[str]) -> None:
        super().__init__(config.model_copy(update={"cache": None, "detokenize": None}))
        self._texts = texts

    def documents(self) -> Iterable[str]:
        """What was given."""
        return self._texts

    def origin(self) -> None:
        """None: they are kept nowhere."""


def beginning(texts: Iterable[str], count: int) -> list[str]:
    """The first ``count`` letters of some texts."""
    some: list[str] = []
    for text in texts:
        some.append(text[:count])
        count -= len(text)
        if count <= 0:
            break
    return some


class Builtin(Texts):
    """Texts that come with the Python that runs; the last tenth held out, by position."""

    config: BuiltinConfig
    in_order = True

    def documents(self) -> Iterable[str]:
        """See ``corpora``."""
        return corpora.CORPORA[self.config.corpus]()

    def origin(self) -> Any:
        """The corpus, and the Python that brings it."""
        return [self.config.corpus, sys.version]


class Files(Texts):
    """Files of text, lines of JSON, columns of tables; see ``reading``."""

    config: FilesConfig

    @staticmethod
    def example(folder: Path) -> dict[str, Any]:
        """See ``Checkable.example``: a dozen help topics of Python as .txt files."""
        for number, text in zip(range(12), corpora.pydoc(), strict=False):
            (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
        return {"path": str(folder), "length": 32}

    @cached_property
    def _from_stdin(self) -> list[str]:
        return list(reading.texts([reading.STDIN], self.config.field))  # which can be read once

    def documents(self) -> Iterable[str]:
        """Every text of the files, in the order of their names."""
        for path in self.config.path:
            yield from self._from_stdin if path == reading.STDIN else reading.texts([path], self.config.field)

    def held_out(self) -> Iterable[str] | None:
        """The texts of ``validation``."""
        return None if self.config.validation is None else reading.texts(self.config.validation, self.config.field)

    def origin(self) -> Any:
        """The files as they are."""
        config = self.config
        if reading.STDIN in config.path:
            raise UsageError("data.cache keeps what comes from files; texts of the standard input stay in memory")
        validation = None if config.validation is None else reading.stamp(config.validation)
        return [config.field, reading.stamp(config.path), validation]
