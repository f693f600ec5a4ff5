"""Witten-Bell n-grams of bytes: what a text costs that is told by the bytes before it, and by counting alone.

    P_k(w | c) = (n(c w) + T(c) P_{k-1}(w | c')) / (n(c) + T(c)),    P_{-1} = 1 / 256

with n how often something was seen in training, T(c) how many different bytes followed the k bytes c, and c' the k - 1
nearest of them (Witten and Bell 1991). A context that was never seen says what the shorter one says.
"""

from dataclasses import dataclass

import numpy as np

ORDERS = 7  # 0 to 6: with the byte itself, seven bytes to a number of 64 bits


@dataclass(frozen=True)
class Order:
    """Counts of one order: grams c w and their n, contexts c and their n and T, all sorted."""

    grams: np.ndarray
    seen: np.ndarray
    contexts: np.ndarray
    total: np.ndarray
    kinds: np.ndarray


def fit(text: bytes, orders: int = ORDERS) -> list[Order]:
    """The counts of orders 0 to ``orders`` - 1 of a text."""
    row, found = np.frombuffer(text, np.uint8), []
    for order in range(orders):
        grams, seen = np.unique(_coded(row, order), return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        kinds = np.diff(np.append(first, len(grams)))
        found.append(Order(grams, seen, contexts, np.add.reduceat(seen, first) if len(first) else seen, kinds))
    return found


def bits(text: bytes, model: list[Order]) -> list[float]:
    """Bits a byte of a text under each order; the first bytes have the context that there is. NaN of no text."""
    row, told = np.frombuffer(text, np.uint8), []
    p = np.full(len(row), 1 / 256)
    for order, counts in enumerate(model):
        coded = _coded(row, order)
        n = _looked_up(coded, counts.grams, counts.seen)
        total, kinds = (_looked_up(coded >> np.uint64(8), counts.contexts, of) for of in (counts.total, counts.kinds))
        shorter = p[order:]
        p[order:] = np.where(total > 0, (n + kinds * shorter) / np.maximum(total + kinds, 1), shorter)
        told.append(float(-np.log2(p).mean()) if len(row) else float("nan"))
    return told


def _coded(row: np.ndarray, order: int) -> np.ndarray:
    """Each ``order`` + 1 bytes in a row as one number, the last byte lowest."""
    count = max(0, len(row) - order)
    code = np.zeros(count, np.uint64)
    for k in range(order + 1):
        code = (code << np.uint64(8)) | row[k : k + count].astype(np.uint64)
    return code


def _looked_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each key, 0 where it is not known."""
    if len(known) == 0:
        return np.zeros(len(keys))
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, values[place], 0)
