"""Texts with blanks: "The [MASK:12] sat on" has one of twelve tokens."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowcore.errors import InputError
from flowcore.masked import Generated
from flowplat_text.vocabulary import Vocabulary

BLANK = re.compile(r"\[MASK(?::(\d+))?\]")


class Template(NamedTuple):
    """A template as tokens: ``x`` (L,) with MASK where something is missing and behind its end; ``free`` (L,) says what
    is to be drawn, ``length`` how many tokens it has."""

    name: str
    x: Tensor
    free: Tensor
    length: int


def template(text: str, name: str, vocabulary: Vocabulary, context: int) -> Template:
    """The tokens of a text with blanks: ``[MASK]`` is one token, ``[MASK:12]`` are twelve.

    Raises ``InputError`` where it has no blank, or more tokens than the model's ``context``.
    """
    pieces: list[np.ndarray] = []
    place = 0
    for blank in BLANK.finditer(text):
        pieces.append(vocabulary.encode(text[place : blank.start()]))
        pieces.append(np.full(int(blank[1] or 1), vocabulary.mask, vocabulary.dtype))
        place = blank.end()
    if not pieces or not sum(len(one) for one in pieces[1::2]):
        raise InputError(f"{name} has no blank; write [MASK:12] where twelve tokens are missing")
    pieces.append(vocabulary.encode(text[place:]))
    tokens = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
    return placed(tokens, tokens == vocabulary.mask, name, vocabulary, context)


def around(
    prefix: str, suffix: str, length: int | None, vocabulary: Vocabulary, context: int, block: int | None = None
) -> Template:
    """``length`` missing tokens between a beginning and an end; as many as the context has left where it is None.

    With a ``block``, what follows a beginning may be more than the context: see ``onward``.
    """
    before, after = (vocabulary.encode(text).astype(np.int64) for text in (prefix, suffix))
    missing = context - len(before) - len(after) if length is None else length
    tokens = torch.from_numpy(np.concatenate([before, np.full(max(1, missing), vocabulary.mask, np.int64), after]))
    if len(tokens) > context and len(after) == 0 and len(before) < len(tokens) and missing > 0:
        if block is None or block >= context:
            raise InputError(
                f"prefix and length are {len(tokens)} tokens, and the model's context is {context}: set block, to "
                "fewer tokens than that, to write on so many at once"
            )
        return Template("prefix", tokens, tokens == vocabulary.mask, len(tokens))
    return placed(tokens, tokens == vocabulary.mask, "prefix and suffix", vocabulary, context)


def placed(tokens: Tensor, free: Tensor, name: str, vocabulary: Vocabulary, context: int) -> Template:
    """Tokens at the beginning of a context of which the rest is masked and never asked for: the model has learned from
    whole contexts, and what is masked says nothing. Raises ``InputError`` where there are more than fit."""
    if len(tokens) > context:
        raise InputError(
            f"{name} has {len(tokens)} tokens, and the model's context is {context}: shorten it or cut it up"
        )
    x, asked = torch.full((context,), vocabulary.mask), torch.zeros(context, dtype=torch.bool)
    x[: len(tokens)], asked[: len(tokens)] = tokens, free
    return Template(name, x, asked, len(tokens))


def onward(
    unmasked: Callable[[Tensor, Tensor], Generated], x: Tensor, free: Tensor, block: int, context: int
) -> Generated:
    """The last tokens of x (B, n), which are ``free`` from one place on, drawn ``block`` at a time, left to right.

    ``unmasked(window, free)`` draws in a context of its own, of which the beginning is as much as is left of what
    stands before the block (Sahoo et al. 2024, arXiv 2406.07524, section 4.2).
    """
    x, times, calls = x.clone(), torch.zeros(x.shape, dtype=torch.float64), torch.zeros(len(x), dtype=torch.long)
    mask = int(x[0, -1])
    place = int(free[0].long().argmax())
    while place < x.shape[1]:
        size = min(block, x.shape[1] - place)
        seen = x[:, max(0, place - (context - size)) : place]
        window = torch.full((len(x), context), mask, device=x.device)
        window[:, : seen.shape[1]] = seen
        where = torch.arange(context, device=x.device)
        here = (where >= seen.shape[1]) & (where < seen.shape[1] + size)
        drawn = unmasked(window, here.expand(len(x), -1))
        x[:, place : place + size], times[:, place : place + size] = drawn.x[:, here], drawn.times[:, here].cpu()
        calls += drawn.calls.cpu()
        place += size
    return Generated(x, calls, times)
