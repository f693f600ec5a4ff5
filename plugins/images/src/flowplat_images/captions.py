"""Captions: what a picture is in words, and those words as numbers.

They are written from the classes, or read from the files beside the pictures. The tokenizer is a byte pair encoding of
the captions themselves, or one that the user has; `tokenizers` is imported when captions are asked for, and brought by
``flowplat-images[diffusers]``.
"""

import json
import logging
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from flowcore.errors import InputError, MissingPackageError, UsageError
from flowcore.plugin.contracts import Leaf
from flowcore.seeds import generator
from flowplat_images.files import Place

log = logging.getLogger("flowplat")

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WEIGHTS, SLANTS = ("thin", "", "thick"), ("upright", "", "slanted")
PAD, START, END = "<pad>", "<start>", "<end>"
VOCABULARY = 4096
LONGEST = 77  # tokens, as CLIP reads
PROMPTS = 2048  # captions that stand for all of them where a run samples a mix
BETWEEN = "|"


class CaptionsConfig(BaseModel):
    """Where captions come from, and how they are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["labels", "files"] = Field(
        description="labels writes them from the classes; files reads the .txt of the same name beside each picture"
    )
    templates: list[str] = Field(
        default_factory=lambda: ["a {class}", "a {weight} {class}", "a {slant} {class}", "a {weight} {slant} {class}"],
        min_length=1,
        description="what source=labels writes, one at random each time: {class}; of grey pictures {weight}, {slant}",
    )
    length: int = Field(0, ge=0, le=4096, description="tokens the network reads; 0 for what the longest caption needs")
    tokenizer: Place | None = Field(None, description="a folder with a tokenizer; trained on the captions if not given")

    @field_validator("templates")
    @classmethod
    def _known(cls, templates: list[str]) -> list[str]:
        for template in templates:
            fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
            if "class" not in fields or set(fields) - {"class", "weight", "slant"}:
                raise ValueError(f"{template!r} needs {{class}}, and may have {{weight}} and {{slant}} beside it")
        return templates


class TextFacts(BaseModel):
    """All that sampling needs to know of the captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: dict[str, Any]
    pad: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=1)]
    prompts: Annotated[list[str], Field(min_length=1)]


class Tokens(NamedTuple):
    """A tokenizer that gives ``length`` numbers whatever the text; ``pad`` fills up."""

    tokenizer: Any
    pad: int
    length: int

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(self.tokenizer.get_vocab_size())

    def count(self, text: str) -> int:
        """The numbers that all of a text takes."""
        return len(self.tokenizer.encode(text).ids)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """(n, length) int64; what is too long loses its words before the last token, which says that it ends."""
        rows = []
        for one in self.tokenizer.encode_batch(list(texts)):
            ids = one.ids if len(one.ids) <= self.length else [*one.ids[: self.length - 1], one.ids[-1]]
            rows.append(ids + [self.pad] * (self.length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)

    def texts(self, ids: Tensor) -> list[str]:
        """The texts of (n, length) numbers, in the tokenizer's own spelling: mostly lower case."""
        return [text.strip() for text in self.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)]


class Text:
    """The captions of a data set: how they are written as numbers, and some of them to sample by.

    ``names`` are the classes', by which a caption tells its class.
    """

    def __init__(self, config: CaptionsConfig, facts: TextFacts, names: list[str], grey: bool) -> None:
        self.config, self.facts, self.names = config, facts, names
        tokenizer = tokenizers().Tokenizer.from_str(json.dumps(facts.tokenizer))
        self.tokens = Tokens(tokenizer, facts.pad, facts.length)
        # all that there are, where captions are written of classes
        self.words = None if config.source == "files" else _words(" ".join(possible(names, config.templates, grey)))

    def spec(self) -> tuple[Leaf, tuple[int, ...]]:
        """What the network is told, and the empty caption."""
        leaf = Leaf((self.tokens.length,), "int64", "token", self.tokens.size)
        return leaf, tuple(self.tokens.ids([""])[0].tolist())

    def of(self, x: Tensor, labels: Tensor | None, own: list[str] | None) -> Tensor:
        """The captions of images, ``own`` or written of their classes, as (n, k, length) numbers."""
        if self.config.source == "files" or labels is None:
            rows = [[caption] for caption in own or ()]
        else:
            rows = written(x, labels, self.names, self.config.templates)
        texts = [text for row in rows for text in row]
        long = sum(self.tokens.count(text) > self.tokens.length for text in set(texts))
        if long:
            log.warning("%d captions are longer than the %d tokens that are read", long, self.tokens.length)
        return self.tokens.ids(texts).view(len(rows), -1, self.tokens.length)

    def condition(self, count: int, wanted: str | None) -> Tensor:
        """The numbers of ``count`` captions: a mix, or what is ``wanted``, several parted by ``|`` in turn.

        Raises ``UsageError`` on a word that no caption has, where that can be known, and on too many words.
        """
        texts = self.facts.prompts if wanted is None else [part.strip() for part in wanted.split(BETWEEN)]
        for text in texts if wanted is not None else ():
            strange = set() if self.words is None else _words(text) - self.words
            if strange:
                words = ", ".join(sorted(self.words or ()))
                raise UsageError(f"no caption of the data has the word {min(strange)!r}; its words are {words}")
            if (needed := self.tokens.count(text)) > self.tokens.length:
                raise UsageError(f"{text!r} takes {needed} tokens and the model reads {self.tokens.length}; say less")
        return self.tokens.ids(texts)[torch.arange(count) % len(texts)]

    def classes(self, ids: Tensor) -> Tensor:
        """The class that each caption names, (n,) int64; -1 where it names none, or more than one."""
        return torch.tensor([class_of(text, self.names) for text in self.tokens.texts(ids)], dtype=torch.int64)


def made(config: CaptionsConfig, own: Sequence[str] | None, names: list[str], grey: bool) -> TextFacts:
    """The facts of captions that were read, ``own``, or are to be written of ``names``."""
    known = [*own] if own is not None else possible(names, config.templates, grey)
    tokenizer, pad = trained(known) if config.tokenizer is None else given(config.tokenizer)
    longest = max(len(one.ids) for one in tokenizer.encode_batch(known))
    length = config.length or min(longest, LONGEST)
    if length < (least := len(tokenizer.encode("").ids)):
        raise UsageError(f"data.captions.length={length} has no room for a word; an empty caption takes {least} tokens")
    draws = generator(0, "prompts")
    if own is not None:
        prompts = [known[row] for row in torch.randperm(len(known), generator=draws)[:PROMPTS].tolist()]
    else:
        prompts = []
        for i in range(PROMPTS):
            template, *thirds = torch.randint(2**31, (3,), generator=draws).tolist()
            weight, slant = (
                kinds[third % 3] if grey else "" for kinds, third in zip((WEIGHTS, SLANTS), thirds, strict=True)
            )
            prompts.append(
                phrase(config.templates[template % len(config.templates)], names[i % len(names)], weight, slant)
            )
    return TextFacts(tokenizer=json.loads(tokenizer.to_str()), pad=pad, length=length, prompts=prompts)


def phrase(template: str, name: str, weight: str, slant: str) -> str:
    """One caption: "a {weight} {class}" as "a thick seven", and as "an eight" where nothing is said of its weight."""
    word = WORDS[int(name)] if name.isdecimal() and len(name) == 1 else name.replace("_", " ")
    text = template.format_map({"class": word, "weight": weight, "slant": slant})
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!one\b|uni)", r"\1n ", " ".join(text.split()))


def possible(names: list[str], templates: list[str], grey: bool) -> list[str]:
    """Every caption that can be written, in order."""
    weights, slants = (WEIGHTS, SLANTS) if grey else (("",), ("",))
    return sorted({phrase(t, n, w, s) for t in templates for n in names for w in weights for s in slants})


def written(x: Tensor, labels: Tensor, names: list[str], templates: list[str]) -> list[list[str]]:
    """A caption by each template for every image: uint8 (n, c, h, w) and class numbers (n,).

    Of grey images, taken as light strokes on a dark ground, the third of a class with the most ink is called thick and
    the third with the least thin; the third that leans furthest to the right slanted, and the third that does so least
    upright. Ink is the sum of the pixels, lean -m_xy / m_yy of their second central moments, y counted downwards.
    """
    weights = slants = [""] * len(x)
    if x.shape[1] == 1:
        ink, lean = moments(x[:, 0].double())
        weights = [WEIGHTS[third] for third in _thirds(ink, labels)]
        slants = [SLANTS[third] for third in _thirds(lean, labels)]
    told = zip(labels.tolist(), weights, slants, strict=True)
    return [[phrase(template, names[label], weight, slant) for template in templates] for label, weight, slant in told]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ink and lean of images (n, h, w), float64: see ``written``. An empty image has neither."""
    ink = x.sum((1, 2))
    share = x / ink.clamp(min=1e-9)[:, None, None]
    rows, columns = (torch.arange(size, dtype=x.dtype) for size in x.shape[1:])
    down = rows - (share.sum(2) @ rows)[:, None]
    right = columns - (share.sum(1) @ columns)[:, None]
    both = torch.einsum("nij,ni,nj->n", share, down, right)
    return ink, -both / torch.einsum("nij,ni->n", share, down.square()).clamp(min=1e-9)


def class_of(text: str, names: list[str]) -> int:
    """The number of the class that a caption names as a word of it; -1 for none, and for more than one."""
    rest, found = text.lower(), []
    for number, name in sorted(enumerate(names), key=lambda one: -len(one[1])):  # "t-shirt" is no "shirt"
        word = re.escape(phrase("{class}", name, "", "").lower())
        rest, times = re.subn(rf"(?<!\w){word}(?!\w)", " ", rest)
        found += [number] if times else []
    return found[0] if len(found) == 1 else -1


def trained(captions: Iterable[str]) -> tuple[Any, int]:
    """A byte pair encoding of lower-case captions, the same for the same captions, and the number that fills up.

    Every text can be written in it, if need be byte by byte. (Sennrich et al. 2016, arXiv 1508.07909.)
    """
    package = tokenizers()
    tokenizer = package.Tokenizer(package.models.BPE())
    plain = package.normalizers
    spaces = plain.Replace(package.Regex(r"\s+"), " ")
    tokenizer.normalizer = plain.Sequence([plain.NFC(), plain.Lowercase(), spaces, plain.Strip()])
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = package.decoders.ByteLevel()
    alphabet = sorted(package.pre_tokenizers.ByteLevel.alphabet())
    trainer = package.trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=[PAD, START, END], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(sorted(captions), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = package.processors.TemplateProcessing(f"{START} $A {END}", special_tokens=ends)
    return tokenizer, tokenizer.token_to_id(PAD)


def given(folder: Path) -> tuple[Any, int]:
    """The tokenizer in a folder as transformers saves it, and the number that fills up. Raises ``InputError``."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise _missing("data.captions.tokenizer", "transformers") from error
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; data.captions.tokenizer names one that holds a tokenizer")
    try:
        whole = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer = tokenizers().Tokenizer.from_str(whole.backend_tokenizer.to_str())
    except Exception as error:  # of any kind, on files that may be anything
        raise InputError(
            f"{folder} holds no tokenizer that can be read: {' '.join(str(error).split())[:200]}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad = whole.eos_token_id if whole.pad_token_id is None else whole.pad_token_id
    return tokenizer, pad or 0


def tokenizers() -> Any:
    """The package. Raises ``MissingPackageError`` where it is not there."""
    try:
        import tokenizers as package
    except ImportError as error:
        raise _missing("data.captions", "tokenizers") from error
    return package


def _missing(what: str, package: str) -> MissingPackageError:
    return MissingPackageError(f"{what} needs `{package}`; `pip install 'flowplat-images[diffusers]'` brings it")


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\s,.;:!?]+", text.lower()))


def _thirds(values: Tensor, labels: Tensor) -> list[int]:
    """0, 1 or 2 for each value: its third among those of its class, by rank; a class of one is in the middle."""
    thirds = torch.ones(len(values), dtype=torch.int64)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        place = values[rows].argsort(stable=True).argsort()
        thirds[rows] = (3 * (2 * place + 1)) // (2 * len(rows))
    return thirds.tolist()
