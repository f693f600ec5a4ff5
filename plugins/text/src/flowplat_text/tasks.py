"""The plugin's verbs: blanks filled in, texts scored."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowcore.errors import FlowError, InputError, UsageError
from flowcore.files import refusals, refuse_ending
from flowcore.guidance import reward, steered
from flowcore.masked import Generated, Network
from flowcore.plugin.contracts import Leaf, Trained
from flowcore.seeds import generator
from flowcore.tokens import Block, Direction, Method, Temperature, TopP, masked_path, unmask
from flowplat_text import reading
from flowplat_text.classifier import reward_of
from flowplat_text.data import Texts
from flowplat_text.detokenize import Corpus, detokenized
from flowplat_text.likelihood import Bound, nats
from flowplat_text.metrics import LIMIT
from flowplat_text.templates import Template, around, onward, placed, template
from flowplat_text.vocabulary import Vocabulary

CHUNK = 64
FILLED, SCORED = (".txt", ".jsonl", ".csv"), (".csv", ".jsonl")
Key = Annotated[str, Field(description="the column or key of the texts in a table")]
Seed = Annotated[int, Field(ge=0, description="the source of every draw")]


def fill(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    template: Annotated[str, Field(description="a text with blanks, in place of files: 'The [MASK:12] sat on'")] = "",
    prefix: Annotated[str, Field(description="write on from here, in place of a template")] = "",
    suffix: Annotated[str, Field(description="write towards this, in place of a template")] = "",
    length: Annotated[
        int | None, Field(ge=1, description="tokens to write there; null for all there is room for")
    ] = None,
    number: Annotated[int, Field(ge=1, description="texts for each template")] = 1,
    method: Annotated[
        Method, Field(description="how it is settled when a token is drawn; ordered and first_hitting know no error")
    ] = "first_hitting",
    steps: Annotated[int | None, Field(ge=1, description="of the other methods; null for the model's context")] = None,
    order: Direction = "random",
    block: Block = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    towards: Annotated[str, Field(description="files of texts that what is written is to be like")] = "",
    against: Annotated[
        str, Field(description="files of texts it is to be unlike; empty for those the model learned from")
    ] = "",
    weight: Annotated[
        float, Field(allow_inf_nan=False, description="how much that counts, for towards; 1 is Bayes' rule")
    ] = 1.0,
    field: Key = "text",
    seed: Seed = 0,
) -> Any:
    """Every blank of a template drawn from the model given all that is there, before it and behind it.

    ``[MASK]`` is one missing token, ``[MASK:12]`` are twelve. A template is a text file, each row of a .jsonl, .csv or
    .parquet, or the option; from Python also a plain string. A ``prefix`` is written on past the context where
    ``block`` says by how many tokens at once: each block sees as much before it as the context holds. ``towards``
    guides by a classifier of pairs of tokens, see ``flowplat_text.classifier``. By its ending ``out`` is .jsonl
    (``text``, ``tokens``, ``times`` at which each was asked for, ``nfe``), .csv or .txt, without one a folder with all
    three; from Python it returns the rows. Raises ``InputError`` naming a template without a blank, or longer than the
    context.
    """
    vocabulary, context = _known(trained)
    refuse_ending(out, *FILLED)
    if inputs and (template or prefix or suffix):
        raise UsageError("give templates as inputs or as options, not both")
    if template and (prefix or suffix):
        raise UsageError("a template says itself what comes before and behind: leave prefix and suffix out")
    if against and not towards:
        raise UsageError("against says what towards is told apart from: set towards too")
    network: Network = trained.network
    if towards:
        network = _towards(trained, towards, against, weight, field)
    if prefix or suffix:
        asked = [around(prefix, suffix, length, vocabulary, context, block)]
    else:
        given = [("the template", template)] if template else list(_brought(inputs, field))
        asked = [_templated(text, name, vocabulary, context) for name, text in given]
    if not asked:
        raise InputError(
            "there is nothing to fill: name a file with a text in it, or set template=, prefix= or suffix="
        )
    many = [one for one in asked for _ in range(number)]
    path, draws = masked_path(trained.data.spec().state), generator(seed, "fill", device=trained.device)
    rows: list[dict[str, Any]] = []
    trained.network.eval()
    for start in range(0, len(many), CHUNK):
        mine = many[start : start + CHUNK]
        x, free = (torch.stack([getattr(one, part) for one in mine]).to(trained.device) for part in ("x", "free"))

        def unmasked(x: Tensor, free: Tensor, inside: int | None = None) -> Generated:
            return unmask(
                network, path, x, steps or context, draws, None, free, method, order, inside, temperature, top_p
            )

        drawn = unmasked(x, free, block) if x.shape[1] == context else onward(unmasked, x, free, block or 1, context)
        for one, tokens, times, calls in zip(mine, drawn.x.cpu(), drawn.times.cpu(), drawn.calls.tolist(), strict=True):
            told = tokens[: one.length].tolist()
            when = [round(t, 4) for t in times[: one.length].tolist()]
            text = vocabulary.decode(told)
            rows.append({"template": one.name, "text": text, "tokens": told, "times": when, "nfe": calls})
    if out is None:
        return rows
    _write(out, "texts", FILLED, rows, ("template", "text", "nfe"))
    return {"templates": len(asked), "texts": len(rows), "nfe": round(sum(row["nfe"] for row in rows) / len(rows), 1)}


def score(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    bound: Annotated[
        Bound, Field(description="any_order and lambda bound it; forward and backward are exact")
    ] = "any_order",
    draws: Annotated[int, Field(ge=2, description="draws of each block of a text, of the bounds")] = 64,
    lines: Annotated[bool, Field(description="each line of a plain file is a text of its own")] = False,
    field: Key = "text",
    given: Annotated[str, Field(description="the column of what comes before each text and is not paid for")] = "",
    detokenize: Annotated[
        Corpus | None, Field(description="join what the preparation of a corpus has torn apart, as data.detokenize")
    ] = None,
    seed: Seed = 0,
) -> Any:
    """What each text costs the model: nats with their standard error, bits for each byte, exp(nats a token).

    A text longer than the context is cut into blocks that know nothing of each other. With ``given`` the text is scored
    where it follows what that column holds, and both together have to fit. By its ending ``out`` is .csv or .jsonl,
    without one a folder with both; from Python, where inputs may be plain strings, it returns the rows.
    """
    vocabulary, context = _known(trained)
    refuse_ending(out, *SCORED)
    blocks: list[Template] = []
    rows: list[dict[str, Any]] = []
    whose: list[int] = []
    for name, text, before in _texts(inputs, field, lines, given):
        text, before = detokenized(text, detokenize), detokenized(before, detokenize)
        ahead, tokens = vocabulary.encode(before), vocabulary.encode(text)
        if given:
            joined = torch.from_numpy(np.concatenate([ahead, tokens]).astype(np.int64))
            pieces = [placed(joined, torch.arange(len(joined)) >= len(ahead), name, vocabulary, context)]
        else:
            cut = torch.from_numpy(tokens.astype(np.int64)).split(context)
            pieces = [placed(one, torch.ones(len(one), dtype=torch.bool), name, vocabulary, context) for one in cut]
        blocks += pieces
        whose += [len(rows)] * len(pieces)
        rows.append(
            {"name": name, "tokens": len(tokens), "bytes": len(text.encode()), "blocks": len(pieces), "text": text}
        )
    if not rows:
        raise InputError("there is nothing to score: name a file with a text in it")
    if any(int((one.x[: one.length] == vocabulary.mask).sum()) for one in blocks):
        raise InputError("a text to score holds the mask token itself; take it out")
    trained.network.eval()
    x, free = torch.stack([one.x for one in blocks]), torch.stack([one.free for one in blocks])
    told = nats(trained, x, free, bound, draws, seed)
    index = torch.tensor(whose)
    total, variance = (torch.zeros(len(rows), dtype=torch.float64).index_add(0, index, part) for part in told)
    for row, cost, spread in zip(rows, total.tolist(), variance.tolist(), strict=True):
        row |= {"nats": cost, "standard_error": math.sqrt(spread), "bits_per_byte": cost / math.log(2) / row["bytes"]}
        row["perplexity"] = math.exp(min(700.0, cost / row["tokens"]))
    if out is None:
        return rows
    columns = ("name", "nats", "standard_error", "bits_per_byte", "perplexity", "bytes", "tokens", "blocks", "text")
    _write(out, "scores", SCORED, rows, columns)
    size = sum(row["bytes"] for row in rows)
    error = math.sqrt(float(variance.sum())) / math.log(2) / size
    bits = float(total.sum()) / math.log(2) / size
    exact, count = bound in ("forward", "backward"), sum(row["tokens"] for row in rows)
    perplexity = math.exp(min(700.0, float(total.sum()) / count))
    of_it = perplexity * math.sqrt(float(variance.sum())) / count
    return {
        "texts": len(rows), "bits_per_byte": round(bits, 4), "standard_error": round(error, 4),
        "perplexity": round(perplexity, 4), "perplexity_standard_error": round(of_it, 4), "exact": exact,
    }  # fmt: skip


def _towards(trained: Trained, towards: str, against: str, weight: float, field: str) -> Network:
    """The network under a reward for what is like the texts of some files."""
    vocabulary = _known(trained)[0]
    if against:
        others = np.concatenate([vocabulary.encode(text) for text in reading.texts([against], field)])
    else:
        try:
            others = cast(Texts, trained.data).packed.train[:LIMIT]
        except FlowError as error:
            raise UsageError(
                f"the texts this model learned from are not here ({error}): name some, against="
            ) from error
    value = reward_of(reading.texts([towards], field), others, vocabulary)
    return steered(trained.network, vocabulary.mask, [reward(value, weight)])


def _known(trained: Trained) -> tuple[Vocabulary, int]:
    state = trained.data.spec().state
    if not isinstance(state, Leaf) or state.kind != "token":
        raise UsageError(f"this task works on models of text, not of {state}")
    return cast(Texts, trained.data).vocabulary, state.shape[0]


def _brought(inputs: Sequence[Any], field: str) -> Iterator[tuple[str, str]]:
    """Names and texts of what a task is called with: paths, or from Python strings that are the texts themselves."""
    for number, one in enumerate(inputs, 1):
        if isinstance(one, str) and one != reading.STDIN:
            yield f"text {number}", one
            continue
        for path in reading.found([str(one)]):
            rows = list(reading.rows(path, field))
            for place, row in enumerate(rows, 1):
                yield path if len(rows) == 1 else f"{path}:{place}", row[field]


def _texts(inputs: Sequence[Any], field: str, lines: bool, given: str) -> Iterator[tuple[str, str, str]]:
    """Names, texts and what comes before each."""
    if not given:
        for name, text in _brought(inputs, field):
            if not lines:
                yield name, text, ""
                continue
            for place, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield f"{name}:{place}", line, ""
        return
    for one in inputs:
        for path in reading.found([str(one)]):
            for place, row in enumerate(reading.rows(path, field), 1):
                if not isinstance(row.get(given), str):
                    raise InputError(f"{path}, row {place} has no text in {given!r}, which given={given} asks for")
                yield f"{path}:{place}", row[field], row[given]


def _write(out: Path, name: str, kinds: Sequence[str], rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """A file in the format that its ending says, or a folder with one in each format."""
    with refusals(f"{out} cannot be written"):
        if not out.suffix:
            out.mkdir(parents=True, exist_ok=True)
        places = [out] if out.suffix else [out / f"{name}{kind}" for kind in kinds]
        for place in places:
            _written(place, rows, columns)


def _written(out: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    kind = out.suffix.lower()
    if kind == ".jsonl":
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == ".txt":
        rule = "\n" + "-" * 80 + "\n"
        out.write_text(rule.join(row["text"] for row in rows) + "\n", encoding="utf-8")
    else:
        with out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)


_templated = template  # the option of ``fill`` has the same name
