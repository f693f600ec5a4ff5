"""Corpora of language modelling as the texts that they were: what their preparation has torn apart is joined.

Perplexity between models is compared on these texts (Radford et al. 2019; Ou et al. 2024, arXiv 2406.03736, section 5).
What cannot be known any more, letters that became small, <unk>, stays as it is.
"""

import re
from collections.abc import Callable
from typing import Literal

Corpus = Literal["wikitext", "ptb", "lm1b", "lambada"]
Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), by) for pattern, by in pairs)


_CLOSING = (r" +([.,;:!?%)\]}])", r"\1")
_OPENING = (r"([(\[{$£€]) +", r"\1")
_CLITIC = (r" +('(?:s|S|m|d|ll|re|ve)|n't)\b", r"\1")

_WIKITEXT = _rules(
    (r" @([-,.])@ ", r"\1"),  # inside of words and numbers
    _CLOSING, _OPENING, _CLITIC,
    (r" ' s\b", "'s"), (r"s ' ", "s' "),
    (r'" ([^"\n]*?) "', r'"\1"'), (r"(?<= )' ([^'\n]*?) '(?= |$)", r"'\1'"),
    (r"= (?==)", "="),  # = = Title = =
    (r"(\d) °", r"\1°"), (r"(?m)^ +| +$", ""),
)  # fmt: skip
_PTB = _rules(
    (r"\bN\b", "1"), _CLITIC, (r" +(')(?= )", r"\1"), _CLOSING, _OPENING, (r"# (?=\d)", "#"), ("<unk>", "?")
)  # fmt: skip
_LM1B = _rules(
    (r"http : / / ", "http://"), (r"https : / / ", "https://"), (r" / ", "/"),
    _CLITIC, _CLOSING, _OPENING, (r'" ([^"\n]*?) "', r'"\1"'), (r"(\w) - (?=\w)", r"\1-"),
)  # fmt: skip
_LAMBADA = _rules(("[\u201c\u201d]|``", '"'), ("''", '"'), ("[\u2018\u2019]", "'"))  # curly ones


def _by(rules: Rules) -> Callable[[str], str]:
    def joined(text: str) -> str:
        for pattern, by in rules:
            text = pattern.sub(by, text)
        return text

    return joined


def _lambada(text: str) -> str:
    """A passage on a line of its own, with plain quotation marks."""
    return "\n" + _by(_LAMBADA)(text.strip())


DETOKENIZERS: dict[Corpus, Callable[[str], str]] = {
    "wikitext": _by(_WIKITEXT), "ptb": _by(_PTB), "lm1b": _by(_LM1B), "lambada": _lambada
}  # fmt: skip


def detokenized(text: str, corpus: Corpus | None) -> str:
    """``text`` as it was before it became part of a corpus; as it is where that is None."""
    return text if corpus is None else DETOKENIZERS[corpus](text)
