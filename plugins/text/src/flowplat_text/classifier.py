"""Texts like others: a classifier by pairs of tokens, as a reward for guidance.

    R(x) = sum_i log a(x_i+1 | x_i) / b(x_i+1 | x_i)

a and b are the shares of pairs in the texts that are wanted and in others: those of the others counted from a prior,
the share of the second token in both; those of the wanted from a prior that is b, so that pairs of which the wanted
texts tell nothing count for nothing. By Bayes' rule R is log p(wanted | x) - log p(other | x) up to a constant, for
texts that are chains.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from flowcore.errors import InputError
from flowplat_text.vocabulary import Vocabulary

LARGEST = 8192  # tokens that a table of pairs may have
PRIOR = 16.0  # pairs that the prior counts as


def reward_of(wanted: Iterable[str], others: np.ndarray, vocabulary: Vocabulary) -> Callable[[Tensor], Tensor]:
    """R of probabilities p (B, L, V), for ``flowcore.guidance.reward``; ``others`` are tokens in a row."""
    if vocabulary.size > LARGEST:
        raise InputError(f"likeness counts pairs of at most {LARGEST} tokens, and this model has {vocabulary.size}")
    own = np.concatenate([vocabulary.encode(text) for text in wanted]).astype(np.int64)
    others, size = others.astype(np.int64), vocabulary.size
    single = (np.bincount(own, minlength=size) + np.bincount(others, minlength=size) + 1.0) / (
        len(own) + len(others) + size
    )
    b = _chain(others, np.broadcast_to(single, (size, size)))
    table = torch.from_numpy(np.log(_chain(own, b)) - np.log(b))

    def reward(p: Tensor) -> Tensor:
        after = p[:, 1:] @ table.to(p).T
        return (p[:, :-1] * after).sum((1, 2))

    return reward


def _chain(tokens: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The share of each second token after each first, (V, V), counted from ``prior``."""
    size = len(prior)
    pairs = np.bincount(tokens[:-1] * size + tokens[1:], minlength=size * size).reshape(size, size)
    share: np.ndarray = (pairs + PRIOR * prior) / (pairs.sum(1, keepdims=True) + PRIOR)
    return share
