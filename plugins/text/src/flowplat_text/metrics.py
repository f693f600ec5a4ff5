"""What a model says of held-out text, and how like it its own texts are."""

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowcore.data import Batch, everything
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Figure, Measured
from flowplat_text import ngrams
from flowplat_text.data import Texts
from flowplat_text.likelihood import Bound, nats
from flowplat_text.packing import Blocks
from flowplat_text.vocabulary import Vocabulary

LIMIT = 20_000_000  # bytes that n-grams are counted on
WINDOW, JUDGE = 16, 4
DRAWS = Annotated[int, Field(ge=2, description="draws of each block, spread over how much is masked")]


def bits_per_byte(
    samples: Batch,
    measured: Measured,
    bound: Annotated[
        Bound, Field(description="any_order and lambda bound it; forward and backward are exact")
    ] = "any_order",
    draws: DRAWS = 8,
    blocks: Annotated[int, Field(ge=1, description="held-out blocks at most")] = 256,
) -> Mapping[str, Figure]:
    """What the held-out text costs under the model, in bits for each byte of UTF-8, and exp(nats a token).

    It is a property of the model and the same for any number of steps. The end of each text is paid for and is no byte.
    Baselines: Witten-Bell n-grams of orders 0 to 6 counted on the training text, and zlib. Raises ``UsageError`` for
    samples that are files, which no model is there to be asked about.
    """
    return _bits_per_byte(measured, bound, draws, blocks)


@lru_cache(maxsize=4)
def _bits_per_byte(measured: Measured, bound: Bound, draws: int, blocks: int) -> Mapping[str, Figure]:
    if measured.trained is None:
        raise UsageError(
            "bits_per_byte is measured of a model; leave it out of eval.metrics for samples that are files"
        )
    data = cast(Texts, measured.data)
    x = held_out(data, blocks)
    told = nats(measured.trained, x, None, bound, draws, measured.seed)
    text = _bytes(x.numpy(), data.vocabulary)
    scale = 1 / math.log(2) / max(1, len(text))
    error = told.variance.sum().sqrt().item()
    exact = bound in ("forward", "backward")
    what = f"in {bound} order, exact" if exact else f"{bound} bound, {draws} draws a block"
    perplexity = math.exp(min(700, told.nats.sum().item() / x.numel()))

    def within(spread: float) -> str:
        return "" if exact else f", standard error {spread:.4f}"

    where = f"{len(x)} held-out blocks of {x.shape[1]} tokens, {len(text)} bytes"
    costs = ngrams.bits(text, _fitted(measured))
    baselines = {f"witten_bell_{order}": cost for order, cost in enumerate(costs)}
    baselines["zlib"] = 8 * len(zlib.compress(text, 9)) / max(1, len(text))
    counts = np.bincount(data.train().tokens[:LIMIT], minlength=data.vocabulary.size)
    unigram = (counts + 1) / (counts + 1).sum()
    return {
        "bits_per_byte": Figure(
            told.nats.sum().item() * scale,
            baselines=baselines,
            unit="bits",
            note=f"{what}{within(error * scale)}; {where}; {_counted(measured)}",
        ),
        "perplexity": Figure(
            perplexity,
            baselines={
                "unigram": float(np.exp(-np.log(unigram[x.numpy()]).mean())),
                "uniform": data.vocabulary.size - 1,
            },
            note=f"exp(nats a token), {what}{within(perplexity * error / x.numel())}; {where}",
        ),
    }


def likeness(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Three sides of how like held-out text the samples are, of which none tells it alone.

    ``ngram_bits``: what they cost a Witten-Bell n-gram of order 4 that has counted the training text; too little is as
    wrong as too much. ``token_entropy``: of the tokens' shares in all samples, in nats. ``repetition``: the share of
    16 tokens in a row that are there elsewhere in the samples too. Floors: as many held-out blocks.
    """
    data = cast(Texts, measured.data)
    real = held_out(data, len(samples)).numpy()
    drawn = samples.x1.numpy()
    judge = _fitted(measured)[: JUDGE + 1]

    def cost(tokens: np.ndarray) -> float:
        text = _bytes(tokens, data.vocabulary)
        return ngrams.bits(text, judge)[-1] if text else 0.0

    mixed = np.random.default_rng(measured.seed).permutation(real.flatten()).reshape(real.shape)
    note = f"floor: {len(real)} held-out blocks; shuffled: their tokens in any order"
    return {
        "ngram_bits": Figure(
            cost(drawn), better="neither", floor=cost(real), baselines={"shuffled": cost(mixed)}, unit="bits",
            note=f"bits a byte under a Witten-Bell n-gram of order {JUDGE}; {note}; {_counted(measured)}",
        ),
        "token_entropy": Figure(
            entropy(drawn), better="neither", floor=entropy(real), unit="nats", note=f"of the tokens' shares; {note}"
        ),
        "repetition": Figure(
            repeated(drawn), better="neither", floor=repeated(real), baselines={"shuffled": repeated(mixed)},
            note=f"share of {WINDOW} tokens in a row that come elsewhere too; {note}",
        ),
    }  # fmt: skip


def held_out(data: Texts, limit: int) -> Tensor:
    """Held-out blocks, spread over all there are."""
    source: Blocks = data.val()
    rows = torch.linspace(0, len(source) - 1, min(limit, len(source))).round().long()
    x: Tensor = source.batch(rows, torch.Generator()).x1 if limit < len(source) else everything(source).x1
    return x


def _bytes(tokens: np.ndarray, vocabulary: Vocabulary) -> bytes:
    if vocabulary.json is None:
        flat = tokens.flatten()
        return flat[flat < 256].astype(np.uint8).tobytes()
    return "".join(vocabulary.decode(row.tolist(), special=False) for row in np.atleast_2d(tokens)).encode()


@lru_cache(maxsize=2)
def _counts(data: Texts) -> tuple[list[ngrams.Order], int]:
    tokens = data.packed.train[:LIMIT]
    size = 1 << 16
    parts = [_bytes(np.asarray(tokens[start : start + size]), data.vocabulary) for start in range(0, len(tokens), size)]
    text = b"".join(parts)[:LIMIT]
    return ngrams.fit(text), len(text)


def _fitted(measured: Measured) -> list[ngrams.Order]:
    return _counts(cast(Texts, measured.data))[0]


def _counted(measured: Measured) -> str:
    return f"n-grams counted on {_counts(cast(Texts, measured.data))[1]} bytes of training text"


def entropy(tokens: np.ndarray) -> float:
    """Of the shares of tokens, in nats."""
    share = np.unique(tokens, return_counts=True)[1] / tokens.size
    return float(-(share * np.log(share)).sum())


def repeated(tokens: np.ndarray) -> float:
    """The share of ``WINDOW`` tokens in a row that come more than once."""
    if tokens.shape[1] < WINDOW:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW, axis=1).reshape(-1, WINDOW)
    _, where, count = np.unique(windows, axis=0, return_inverse=True, return_counts=True)
    return float((count[where.flatten()] > 1).mean())
