"""From text to tokens and back: bytes, a byte-pair encoding trained on the spot, or a tokenizer that is there."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flowcore.errors import InputError

BYTES, MASK, EOS = 256, "[MASK]", "[EOS]"


class Facts(BaseModel):
    """A vocabulary as plain JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str | None = Field(description="tokenizer.json; null for bytes")
    size: int = Field(ge=2)
    mask: int = Field(ge=0)
    eos: int = Field(ge=0)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens 0 to ``size`` - 1, of which ``mask`` is the one not yet known and ``eos`` ends a text.

    ``json`` is the tokenizer as its library writes it; None stands for the bytes of UTF-8.
    """

    json: str | None = None
    size: int = BYTES + 2
    mask: int = BYTES
    eos: int = BYTES + 1

    @cached_property
    def _tokenizer(self) -> Any:
        return Tokenizer.from_str(self.json)

    @property
    def dtype(self) -> type:
        """The smallest type of numpy that holds the tokens."""
        return np.uint16 if self.size <= 2**16 else np.uint32

    def encode(self, text: str) -> np.ndarray:
        """The tokens of ``text``, without an end."""
        if self.json is None:
            return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(self.dtype)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, self.dtype)

    def decode(self, tokens: Sequence[int], special: bool = True) -> str:
        """The text of some tokens; what is no whole character is shown as U+FFFD, and EOS and MASK by their names."""
        if self.json is not None:
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=not special)
            return text
        parts, run = [], bytearray()
        for token in tokens:
            if token < BYTES:
                run.append(token)
            elif special:
                parts += [run.decode("utf-8", "replace"), MASK if token == self.mask else EOS]
                run = bytearray()
        return "".join([*parts, run.decode("utf-8", "replace")])

    def bytes_of(self, tokens: np.ndarray) -> int:
        """How many bytes of UTF-8 the text of some tokens has, MASK and EOS not counted."""
        if self.json is None:
            return int((tokens < BYTES).sum())
        return len(self.decode(tokens.tolist(), special=False).encode())

    def facts(self) -> dict[str, Any]:
        """As plain JSON, from which ``from_facts`` makes it again."""
        return {"tokenizer": self.json, "size": self.size, "mask": self.mask, "eos": self.eos}

    def digest(self) -> str:
        """A hex sha256 of it all."""
        return hashlib.sha256(repr((self.json, self.size, self.mask, self.eos)).encode()).hexdigest()


def from_facts(facts: Any) -> Vocabulary:
    """The vocabulary of ``Vocabulary.facts``."""
    known = Facts.model_validate(facts)
    return Vocabulary(known.tokenizer, known.size, known.mask, known.eos)


def byte_pairs(texts: Iterable[str], size: int) -> Vocabulary:
    """A byte-level BPE of ``size`` tokens, MASK and EOS among them, trained on ``texts``.

    Where the texts are too short to fill it, the last numbers are never used.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[MASK, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer.to_str(), size, tokenizer.token_to_id(MASK), tokenizer.token_to_id(EOS))


def of_folder(folder: Path, add_mask: bool = False) -> Vocabulary:
    """The tokenizer in a folder that transformers reads.

    Raises ``InputError`` where it cannot be read, or has no token for a mask and ``add_mask`` does not ask for one past
    its others. A text is ended by its end-of-text token, or else by its separator.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; data.tokenizer is bytes, bpe, or a folder with a tokenizer")
    from transformers import AutoTokenizer

    try:
        read: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer = Tokenizer.from_str(read.backend_tokenizer.to_str())
    except Exception as error:  # of any kind, on files that transformers does not know
        raise InputError(
            f"{folder} holds no tokenizer that transformers reads: {' '.join(str(error).split())}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    mask = read.mask_token_id
    if mask is None and not add_mask:
        way_out = "data.add_mask=true adds one past its others"
        raise InputError(
            f"the tokenizer in {folder} has no mask token, which stands for what is not yet known; {way_out}"
        )
    if mask is None:
        tokenizer.add_special_tokens([MASK])
        mask, size = tokenizer.token_to_id(MASK), max(size, tokenizer.token_to_id(MASK) + 1)
    eos = next((one for one in (read.eos_token_id, read.sep_token_id) if one is not None), None)
    if eos is None:
        raise InputError(f"the tokenizer in {folder} has no token that ends a text: neither eos_token nor sep_token")
    return Vocabulary(tokenizer.to_str(), size, mask, eos)
