"""Blanks filled, texts scored: what a user of the command sees, and one line for what cannot be done."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from flowcore.errors import InputError, UsageError
from flowcore.masked import Generated
from flowplat_text.tasks import fill, score
from flowplat_text.templates import around, onward, template
from flowplat_text.vocabulary import Vocabulary

BYTES = Vocabulary()


def test_a_template_is_its_tokens_and_the_rest_of_the_context_is_masked() -> None:
    made = template("ab[MASK:3]c[MASK]", "it", BYTES, 10)
    assert made.x.tolist() == [97, 98, 256, 256, 256, 99, 256, 256, 256, 256]
    assert made.free.tolist() == [False, False, True, True, True, False, True, False, False, False]
    assert made.length == 7
    assert around("ab", "c", 2, BYTES, 10).x.tolist() == [97, 98, 256, 256, 99, *[256] * 5]
    assert int(around("ab", "c", None, BYTES, 10).free.sum()) == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [("no blank", "it has no blank; write"), ("[MASK:0]", "has no blank"), ("[mask]", "has no blank"),
     ("x" * 9 + "[MASK:2]", "it has 11 tokens, and the model's context is 10: shorten it"), ("", "has no blank")],
)  # fmt: skip
def test_a_template_that_cannot_be_filled_is_told(text, line) -> None:
    with pytest.raises(InputError, match=line):
        template(text, "it", BYTES, 10)


@pytest.mark.parametrize("method", ["first_hitting", "ordered", "tweedie", "euler", "confidence"])
def test_blanks_anywhere_are_filled_and_the_rest_is_left(small, method) -> None:
    rows = fill(small, ["[MASK:4]cat sat on[MASK:4]e ma"], None, method=method, number=3, seed=1)
    assert len(rows) == 3
    for row in rows:
        assert row["text"][4:14] == "cat sat on"
        assert row["text"].endswith("e ma")
        assert len(row["tokens"]) == len(row["times"]) == 22
        assert 256 not in row["tokens"]
        assert 0 < row["nfe"] <= (8 if method in ("first_hitting", "ordered") else 32)


def test_a_model_fills_in_what_it_has_learned_by_heart(small) -> None:
    """What stands behind a blank decides, which no model from left to right could tell."""
    rows = fill(small, ["the cat s[MASK:2] on the mat; the dog "], None, number=20)
    assert sum(row["text"] == "the cat sat on the mat; the dog " for row in rows) >= 18
    rows = fill(small, ["at on the log. the [MASK:3] sat on"], None, number=20, temperature=0.3)
    assert sum(row["text"][19:22] in ("cat", "dog") for row in rows) >= 15


def test_a_seed_decides_and_prefix_and_suffix_are_a_template(small) -> None:
    def texts(**options):
        return [row["text"] for row in fill(small, [], None, **options)]

    one = texts(prefix="the ", suffix=" mat", length=9, number=4)
    assert one == texts(template="the [MASK:9] mat", number=4) == texts(template="the [MASK:9] mat", number=4, seed=0)
    assert one != texts(prefix="the ", suffix=" mat", length=9, number=4, seed=1)
    assert len(texts(prefix="the cat")[0]) <= 32
    assert texts(prefix="the ", length=5, block=2, order="forward", method="ordered")[0].startswith("the ")


def test_a_beginning_is_written_on_past_the_context_block_by_block(small) -> None:
    """Each block is what the model makes of as much as it can see."""
    rows = fill(small, [], None, prefix="the cat sat", length=101, block=8, number=3, seed=2)
    first = fill(small, [], None, prefix="the cat sat", length=8, number=3, seed=2)
    assert [row["text"][:19] for row in rows] == [row["text"] for row in first]
    for row in rows:
        assert row["text"].startswith("the cat sat")
        assert len(row["tokens"]) == len(row["times"]) == 112
        assert row["nfe"] == 101
        assert 256 not in row["tokens"]
    asked = []

    def unmasked(x, free):
        asked.append((x.clone(), free[0].nonzero().flatten().tolist()))
        return Generated(torch.where(free, 7, x), torch.ones(len(x), dtype=torch.long), torch.zeros(x.shape))

    x = torch.tensor([[1, 2, 3, 9, 9, 9, 9, 9]])
    drawn = onward(unmasked, x, x == 9, 2, 4)
    assert drawn.x.tolist() == [[1, 2, 3, 7, 7, 7, 7, 7]]
    assert [(window[0].tolist(), places) for window, places in asked] == [
        ([2, 3, 9, 9], [2, 3]), ([7, 7, 9, 9], [2, 3]), ([7, 7, 7, 9], [3])
    ]  # fmt: skip
    assert drawn.calls.tolist() == [3]


def test_files_in_and_files_out(small, write, tmp_path) -> None:
    lines = write("in.jsonl", "".join(json.dumps({"line": f"the [MASK:{n}] sat"}) + "\n" for n in (3, 4)))
    plain = write("in.txt", "on the [MASK:3]")
    told = fill(small, [Path(lines)], tmp_path / "out.jsonl", field="line", number=2)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (told["templates"], told["texts"], len(rows)) == (2, 4, 4)
    assert [row["template"] for row in rows] == [f"{lines}:1"] * 2 + [f"{lines}:2"] * 2
    assert told["nfe"] == 3.5
    fill(small, [Path(plain)], tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text().startswith("on the ")
    fill(small, [Path(plain)], tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["texts.csv", "texts.jsonl", "texts.txt"]


@pytest.mark.parametrize(
    ("inputs", "options", "line"),
    [([], {}, "there is nothing to fill"), (["a"], {"template": "[MASK]"}, "not both"),
     ([], {"template": "[MASK]", "prefix": "x"}, "leave prefix and suffix out"), (["plain"], {}, "text 1 has no blank"),
     ([], {"prefix": "x" * 40}, "prefix and suffix has 41 tokens, and the model's context is 32"),
     ([], {"prefix": "x", "length": 40}, "are 41 tokens, and the model's context is 32: set block"),
     ([], {"prefix": "x", "length": 40, "block": 32}, "to fewer tokens than that"),
     ([], {"prefix": "x", "suffix": "y", "length": 40, "block": 8}, "has 42 tokens")],
)  # fmt: skip
def test_what_cannot_be_filled_is_one_line(small, inputs, options, line) -> None:
    with pytest.raises(UsageError, match=line):
        fill(small, inputs, None, **options)


def test_a_score_is_what_the_text_costs(small, tmp_path) -> None:
    known, rubbish, long = (
        "the cat sat on the mat",
        "qz#vk!jx 0pw&bn =ygh^",
        "the cat sat on the mat; the dog sat on the log. ",
    )
    rows = score(small, [known, rubbish, long], None)
    assert [row["blocks"] for row in rows] == [1, 1, 2]
    assert rows[0]["bits_per_byte"] < 2 < 6 < rows[1]["bits_per_byte"]
    for row in rows:
        assert row["bits_per_byte"] == pytest.approx(row["nats"] / math.log(2) / row["bytes"])
        assert row["perplexity"] == pytest.approx(math.exp(row["nats"] / row["tokens"]))
        assert 0 < row["standard_error"] < row["nats"]
    both = [score(small, [known], None, bound=bound)[0] for bound in ("forward", "backward")]
    assert both[0]["standard_error"] == both[1]["standard_error"] == 0
    assert both[0]["nats"] != both[1]["nats"]
    told = score(small, [known], tmp_path / "out.csv")
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert float(row["nats"]) == pytest.approx(rows[0]["nats"], rel=0.2)
    assert told["bits_per_byte"] == pytest.approx(float(row["bits_per_byte"]), abs=1e-4)
    assert told["perplexity"] == pytest.approx(float(row["perplexity"]), abs=1e-4)
    error = float(row["standard_error"]) / int(row["tokens"]) * told["perplexity"]
    assert told["perplexity_standard_error"] == pytest.approx(error, abs=1e-4)
    assert row["text"] == known


def test_the_exact_score_of_a_short_text_is_the_chain_rule_with_the_rest_masked(small) -> None:
    text = "cat"
    x, nats = torch.full((1, 32), 256), 0.0
    for place, byte in enumerate(text.encode()):
        logits = small.network(x).detach()[0, place]
        logits[256] = -torch.inf
        nats -= logits.log_softmax(0)[byte].item()
        x[0, place] = byte
    assert score(small, [text], None, bound="forward")[0]["nats"] == pytest.approx(nats, rel=1e-5)


def test_only_what_follows_what_is_given_is_paid_for(small, write, tmp_path) -> None:
    path = write(
        "in.jsonl", "".join(json.dumps({"text": text, "q": "the cat sat on the "}) + "\n" for text in ("mat", "fog"))
    )
    score(small, [Path(path)], tmp_path / "out", given="q", bound="forward")
    right, wrong = (json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines())
    assert right["nats"] < wrong["nats"]
    both = ("the cat sat on the mat", "the cat sat on the ")
    whole, before = (row["nats"] for row in score(small, both, None, bound="forward"))
    assert right["nats"] == pytest.approx(whole - before, rel=1e-4)
    with pytest.raises(InputError, match=r"in.jsonl, row 1 has no text in 'p', which given=p asks for"):
        score(small, [Path(path)], None, given="p")
    long = write("long.jsonl", json.dumps({"text": "x" * 30, "q": "the cat"}))
    with pytest.raises(InputError, match=r"long.jsonl:1 has 37 tokens, and the model's context is 32"):
        score(small, [long], None, given="q")


def test_lines_are_texts_where_asked_and_bad_wishes_are_told(small, write, tmp_path) -> None:
    path = write("a.txt", "the cat\n\nthe dog\n")
    assert [row["name"] for row in score(small, [tmp_path / "a.txt"], None, lines=True, draws=2)] == [
        f"{path}:1",
        f"{path}:3",
    ]
    with pytest.raises(InputError, match="there is nothing to score"):
        score(small, [], None)
    with pytest.raises(UsageError, match=r"out.pdf: its ending is none of .csv, .jsonl"):
        score(small, [Path(path)], tmp_path / "out.pdf")
    with pytest.raises(InputError, match="does not exist"):
        score(small, [tmp_path / "gone.txt"], tmp_path / "out.csv")
