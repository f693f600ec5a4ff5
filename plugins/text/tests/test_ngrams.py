import math
from collections import Counter

import numpy as np
import pytest

from flowplat_text import corpora, ngrams


def by_hand(train: bytes, text: bytes, order: int) -> float:
    """The formula, with dictionaries."""
    grams, contexts, kinds = Counter(), Counter(), Counter()
    for k in range(order + 1):
        for i in range(k, len(train)):
            gram = train[i - k : i + 1]
            kinds[gram[:-1]] += gram not in grams
            grams[gram] += 1
            contexts[gram[:-1]] += 1
    total = 0.0
    for i in range(len(text)):
        p = 1 / 256
        for k in range(min(order, i) + 1):
            c = text[i - k : i]
            if contexts[c]:
                p = (grams[c + text[i : i + 1]] + kinds[c] * p) / (contexts[c] + kinds[c])
        total -= math.log2(p)
    return total / len(text)


def test_it_is_the_formula() -> None:
    train, text = b"abracadabra and abracadabras", b"a barn, abracad \xff"
    model = ngrams.fit(train)
    expected = [by_hand(train, text, order) for order in range(7)]
    assert ngrams.bits(text, model) == pytest.approx(expected, rel=1e-12)


def test_nothing_learned_costs_eight_bits_and_a_known_text_little() -> None:
    assert ngrams.bits(b"anything", ngrams.fit(b"", 3)) == [8.0] * 3
    text = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    assert ngrams.bits(text[:1000], ngrams.fit(text[1000:]))[0] == pytest.approx(8, abs=0.02)
    assert ngrams.bits(b"ab" * 50, ngrams.fit(b"ab" * 5000))[2] < 0.15
    assert all(map(math.isnan, ngrams.bits(b"", ngrams.fit(b"abc"))))


def test_the_help_topics_cost_what_they_are_known_to() -> None:
    """Within what versions of Python differ by; order 4 is the best."""
    text = "".join(corpora.pydoc()).encode()
    cut = int(len(text) * 0.9)
    costs = ngrams.bits(text[cut:], ngrams.fit(text[:cut]))
    assert costs == pytest.approx([4.684, 3.339, 2.466, 2.022, 1.902, 1.929, 1.997], rel=0.06)
    assert min(costs) == costs[4]
