"""Sentences as corpora have them, and as they were."""

import json

import pytest

from flowplat_text.data import Files, FilesConfig
from flowplat_text.detokenize import detokenized
from flowplat_text.tasks import score

TORN = {
    "wikitext": {
        'He had a guest @-@ starring role ( as " Craig " ) in 1 @,@ 000 films at $ 2 @.@ 5 : it was the <unk> ; done !':
        'He had a guest-starring role (as "Craig") in 1,000 films at $2.5: it was the <unk>; done!',
        " = = Career = = \n \n The singer 's [ old ] boys ' club": "== Career ==\n\nThe singer's [old] boys' club",
    },
    "ptb": {
        "mr. <unk> is N years old and does n't pay $ N million or N % of the firm 's debt":
        "mr. ? is 1 years old and doesn't pay $1 million or 1% of the firm's debt",
    },
    "lm1b": {
        'He said , " we do n\'t know . " ( It \'s well - known : http : / / x.org / y )':
        'He said, "we don\'t know." (It\'s well-known: http://x.org/y)',
    },
    "lambada": {
        "  ``I don\u2019t know,'' she said. \u201cno\u201d  ": '\n"I don\'t know," she said. "no"',
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("corpus", "torn", "whole"), [(name, *pair) for name, pairs in TORN.items() for pair in pairs.items()]
)
def test_what_was_torn_apart_is_joined(corpus, torn, whole) -> None:
    assert detokenized(torn, corpus) == whole
    if "?" not in whole:  # which PTB's texts have for a word that nobody knows
        assert detokenized(whole, corpus).strip() == whole.strip()
    assert detokenized(torn, None) == torn


def test_data_and_scores_are_of_the_texts_that_were(small, write) -> None:
    path = write("a.jsonl", "".join(json.dumps({"text": f"the cat , the {n} dog s"}) + "\n" for n in range(30)))
    data = Files(FilesConfig(path=path, length=16, detokenize="wikitext", holdout=0))
    assert data.vocabulary.decode(data.packed.train[:21].tolist()) == "the cat, the 0 dog s["[:20] + "[EOS]"
    plain = Files(FilesConfig(path=path, length=16, holdout=0))
    assert plain.fingerprint() != data.fingerprint()
    (row,) = score(small, ["the cat , sat"], None, draws=2, detokenize="wikitext")
    assert (row["text"], row["bytes"]) == ("the cat, sat", 12)
