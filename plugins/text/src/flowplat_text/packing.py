"""Texts packed end to end into one row of tokens, in memory or in files that a run maps into it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowcore import files
from flowcore.data import Batch
from flowcore.errors import IntegrityError
from flowplat_text.vocabulary import Vocabulary

MANIFEST, FEW = "manifest.json", 10
PARTS = ("train", "val")
Documents = Callable[[], Iterable[str]]


class Packed(NamedTuple):
    """Tokens to train on and held-out ones, each a row; a hex digest of both."""

    train: np.ndarray
    val: np.ndarray
    digest: str


class Blocks:
    """``length`` tokens in a row as samples, int64 (B, length): a ``flowcore.data.Source``.

    ``shifted``, the blocks of a batch begin anywhere in their place, so that no token always has the same neighbours
    out of sight; the row is a ring then.
    """

    def __init__(self, tokens: np.ndarray | Tensor, length: int, shifted: bool) -> None:
        self.tokens, self.length, self.shifted = tokens, length, shifted

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    @property
    def nbytes(self) -> int:
        """See ``flowcore.data.Resident``: eight bytes a token."""
        return 8 * len(self.tokens)

    def to(self, device: torch.device) -> "Blocks":
        """See ``flowcore.data.Resident``."""
        return Blocks(torch.from_numpy(self.tokens.astype(np.int64)).to(device), self.length, self.shifted)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        starts = rows * self.length
        if self.shifted:
            starts = starts + torch.randint(self.length, rows.shape, generator=generator)
        places = (starts[:, None] + torch.arange(self.length)) % len(self.tokens)
        if isinstance(self.tokens, Tensor):
            return Batch(self.tokens[places.to(self.tokens.device, non_blocking=True)])
        return Batch(torch.from_numpy(self.tokens[places.numpy()].astype(np.int64)))


def split(documents: Iterable[str], holdout: float, in_order: bool = False) -> Iterator[tuple[int, str]]:
    """Each text with 0 where it is trained on and 1 where it is held out.

    A text is held out by its own hash, so that others may come and go; of fewer than ten texts, and ``in_order``, the
    last characters are, wherever in a text that begins.
    """
    stream = iter(documents)
    first = list(stream if in_order else islice(stream, FEW))
    if not in_order and len(first) == FEW:
        for text in chain(first, stream):
            number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")
            yield int(number < holdout * 2**64), text
        return
    left = round(sum(map(len, first)) * (1 - holdout))
    for text in first:
        if text[:left]:
            yield 0, text[:left]
        if text[left:]:
            yield 1, text[left:]
        left = max(0, left - len(text))


def pack(
    texts: Iterable[tuple[int, str]], vocabulary: Vocabulary, cache: Path | None = None, origin: Any = None
) -> Packed:
    """Tokens of texts, an EOS behind each. With ``cache``, a folder, they are written there and mapped into memory.

    ``origin`` is plain JSON that tells of what texts they are: ``cached`` reads them again for the same.
    """
    digest = hashlib.sha256(vocabulary.digest().encode())
    if cache is None:
        rows: tuple[list[np.ndarray], ...] = ([], [])
        for part, text in texts:
            rows[part].append(_tokens(text, vocabulary))
        joined = [np.concatenate(part) if part else np.empty(0, vocabulary.dtype) for part in rows]
        for row in joined:
            digest.update(len(row).to_bytes(8, "big") + row.tobytes())
        return Packed(joined[0], joined[1], digest.hexdigest())
    with files.refusals(f"{cache} cannot be written"):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / MANIFEST).unlink(missing_ok=True)  # what is here is whole only once that is back
        with ExitStack() as open_files:
            handles = [open_files.enter_context((cache / f"{part}.bin").open("wb")) for part in PARTS]
            for part, text in texts:
                handles[part].write(_tokens(text, vocabulary).tobytes())
        sizes = {part: (cache / f"{part}.bin").stat().st_size for part in PARTS}
        for part in PARTS:
            digest.update(sizes[part].to_bytes(8, "big") + bytes.fromhex(files.sha256(cache / f"{part}.bin")))
        manifest = {"vocabulary": vocabulary.facts(), "origin": origin, "bytes": sizes, "digest": digest.hexdigest()}
        files.write(cache / MANIFEST, json.dumps(manifest, indent=1))
    return Packed(_mapped(cache, "train", vocabulary), _mapped(cache, "val", vocabulary), digest.hexdigest())


def manifest_of(cache: Path, origin: Any) -> dict[str, Any] | None:
    """The manifest of a cache, where it is whole and of ``origin``. Raises ``IntegrityError`` for one cut short."""
    try:
        manifest = json.loads((cache / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{cache / MANIFEST} cannot be read: {error}; delete the folder, it is made anew"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("origin") != origin:
        return None
    for part in PARTS:
        path = cache / f"{part}.bin"
        if not path.exists() or path.stat().st_size != manifest["bytes"][part]:
            raise IntegrityError(f"{path} is not as its manifest says; delete the folder, it is made anew")
    return manifest


def cached(cache: Path, vocabulary: Vocabulary, manifest: dict[str, Any]) -> Packed:
    """The tokens of a cache."""
    return Packed(_mapped(cache, "train", vocabulary), _mapped(cache, "val", vocabulary), manifest["digest"])


def _tokens(text: str, vocabulary: Vocabulary) -> np.ndarray:
    return np.append(vocabulary.encode(text), np.array([vocabulary.eos], vocabulary.dtype))


def _mapped(cache: Path, part: str, vocabulary: Vocabulary) -> np.ndarray:
    path = cache / f"{part}.bin"
    return np.memmap(path, vocabulary.dtype, "r") if path.stat().st_size else np.empty(0, vocabulary.dtype)
