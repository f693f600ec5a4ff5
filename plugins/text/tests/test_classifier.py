"""The classifier of pairs against counting by hand, and what it makes of a model's texts."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from flowcore.errors import InputError, UsageError
from flowplat_text.classifier import PRIOR, reward_of
from flowplat_text.tasks import fill
from flowplat_text.vocabulary import Vocabulary

BYTES = Vocabulary()


def one_hot(text: str) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([list(text.encode())]), BYTES.size).double()


def test_it_is_the_ratio_of_two_chains() -> None:
    wanted, others = "abab", "aabb"
    value = reward_of([wanted], BYTES.encode(others), BYTES)(one_hot("ab"))

    def share(text: str, prior: float) -> float:
        pairs = [a + b for a, b in pairwise(text)]
        return (pairs.count("ab") + PRIOR * prior) / (sum(pair[0] == "a" for pair in pairs) + PRIOR)

    b = share(others, (4 + 1) / (8 + 258))
    assert value.item() == pytest.approx(math.log(share(wanted, b) / b), rel=1e-10)
    assert reward_of([others], BYTES.encode(wanted * 9), BYTES)(one_hot("xyzx")).item() == pytest.approx(0, abs=1e-12)


def test_it_tells_one_kind_of_text_from_another() -> None:
    tell = reward_of(["the dog sat on the log. " * 50], BYTES.encode("a cat may pet a rat; " * 50), BYTES)
    assert tell(one_hot("the log sat on the dog")).item() > 5
    assert tell(one_hot("may a rat pet a cat")).item() < -5


def test_what_is_written_is_drawn_towards_the_texts_wanted(small, write) -> None:
    """The model knows cats and dogs by heart, half and half."""
    dogs, cats = write("dogs.txt", "the dog sat on the log. " * 40), write("cats.txt", "the cat sat on the mat; " * 40)

    def share(animal: str, **options) -> float:
        rows = fill(small, [], None, template="the [MASK:3] sat on the ", number=200, seed=3, **options)
        return sum(row["text"][4:7] == animal for row in rows) / 200

    dog, cat = share("dog"), share("cat")
    assert max(dog, cat) < 0.7
    assert share("dog", towards=dogs, against=cats) > 0.7
    assert share("cat", towards=cats, against=dogs) > 0.7
    assert share("dog", towards=dogs, against=cats, weight=0.0) == dog
    assert share("dog", towards=dogs) > dog + 0.1  # against what the model learned from


def test_what_cannot_be_told_apart_is_one_line(small, write, tmp_path) -> None:
    with pytest.raises(UsageError, match="set towards too"):
        fill(small, [], None, template="[MASK]", against="x")
    with pytest.raises(InputError, match="does not exist"):
        fill(small, [], None, template="[MASK]", towards=str(tmp_path / "gone.txt"))
    with pytest.raises(InputError, match="pairs of at most 8192 tokens"):
        reward_of(["a"], np.zeros(4, np.int64), Vocabulary(None, 9000))
