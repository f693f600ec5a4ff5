"""What a causal language model of transformers, such as GPT-2, says of the samples."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch.nn import functional as F

from flowcore.data import Batch
from flowcore.errors import InputError
from flowcore.plugin.contracts import Figure, Measured
from flowplat_text.data import Texts
from flowplat_text.metrics import entropy, held_out, repeated


def _absolute(text: str) -> str:
    return str(Path(text).expanduser().absolute())


class JudgeConfig(BaseModel):
    """Who judges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: Annotated[str, AfterValidator(_absolute)] = Field(
        description="a folder with a causal model of transformers and its tokenizer, as save_pretrained writes them"
    )
    batch_size: int = Field(8, ge=1, description="texts the judge reads at once")


def generative_perplexity(config: JudgeConfig, samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """exp(nats a token) of the samples under another model, which reads them as text, from left to right.

    Neither less nor more of it is better alone: a text that repeats itself is cheap, and so is one drawn at a low
    temperature or in single precision. So the note tells the entropy and the repetition of the same samples. The first
    token is free. Floor: as many held-out blocks; shuffled: their tokens in any order. Raises ``InputError`` for a
    folder that holds no such model.
    """
    data, judge = cast(Texts, measured.data), config.judge
    model, tokenizer = _read(judge, measured.device)
    real = held_out(data, len(samples)).numpy()
    drawn = samples.x1.numpy()
    mixed = np.random.default_rng(measured.seed).permutation(real.flatten()).reshape(real.shape)

    def told(tokens: np.ndarray) -> float:
        texts = [data.vocabulary.decode(row, special=False) for row in tokens.tolist()]
        return _perplexity(model, tokenizer, texts, config.batch_size)

    note = (
        f"of {judge} in {str(model.dtype).removeprefix('torch.')}; of these samples the tokens' entropy is "
        f"{entropy(drawn):.3f} nats ({entropy(real):.3f} of held-out text) and their repetition {repeated(drawn):.3f} "
        f"({repeated(real):.3f}); tokens drawn in float64; floor: {len(real)} held-out blocks"
    )
    value, floor = told(drawn), told(real)
    figure = Figure(value, better="neither", floor=floor, baselines={"shuffled": told(mixed)}, note=note)
    return {"generative_perplexity": figure}


def _example(folder: Path) -> dict[str, Any]:
    """See ``Checkable.example``: a judge of bytes that has learned nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    from flowplat_text.hugging import fast
    from flowplat_text.vocabulary import Vocabulary

    logging.disable_progress_bar()
    sizes = {"vocab_size": 258, "n_positions": 256, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=257, eos_token_id=257)).save_pretrained(folder)
    fast(Vocabulary(), 256).save_pretrained(folder)
    return {"judge": str(folder)}


generative_perplexity.example = _example  # type: ignore[attr-defined]


def _read(folder: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not Path(folder).is_dir():
        raise InputError(f"judge={folder} is no folder; save_pretrained of a causal model writes one")
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any kind, on files that transformers does not know
        raise InputError(f"judge={folder} holds no causal model: {' '.join(str(error).split())}") from error
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def _perplexity(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int) -> float:
    """exp of the mean over all tokens of all texts, each cut to the judge's context."""
    limit = getattr(model.config, "max_position_embeddings", None) or 1024
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:limit] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        longest = max(map(len, part))
        x = torch.tensor([row + [0] * (longest - len(row)) for row in part], device=model.device)
        seen = torch.arange(longest, device=x.device) < torch.tensor([[len(row)] for row in part], device=x.device)
        logits = model(input_ids=x, attention_mask=seen.long()).logits.float()
        cost = F.cross_entropy(logits[:, :-1].transpose(1, 2), x[:, 1:], reduction="none").double()
        total += (cost * seen[:, 1:]).sum().item()
        count += int(seen[:, 1:].sum())
    return math.exp(min(700.0, total / count)) if count else math.nan
