"""To transformers and from there: a trained model as one of its folders, and the published weights of RADD and MDLM."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast
from transformers.utils import logging

from flowcore.errors import InputError, UsageError
from flowcore.files import refusals
from flowcore.plugin.contracts import Trained
from flowplat_text.data import Texts
from flowplat_text.modeling_radd import Radd, RaddConfig, RaddForMaskedLM
from flowplat_text.vocabulary import BYTES, EOS, MASK, Vocabulary

AutoConfig.register("radd", RaddConfig, exist_ok=True)
AutoModelForMaskedLM.register(RaddConfig, RaddForMaskedLM, exist_ok=True)
RaddConfig.register_for_auto_class()
RaddForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")

WEIGHTS = "model.safetensors"
HEAD = 64  # features of an attention head in both published models


def export_hf(trained: Trained, inputs: Sequence[Any], out: Path | None) -> Any:
    """The model and its tokenizer as transformers keeps them: config.json, model.safetensors, tokenizer.json.

    The folder holds the code of the network too, and is read without this plugin:

        AutoModelForMaskedLM.from_pretrained(out, trust_remote_code=True)

    From Python, without ``out``, it returns the model and the tokenizer.
    """
    if inputs:
        raise InputError(f"export-hf takes no input, and {inputs[0]} is one; the model is named by --model")
    network = trained.network
    if not isinstance(network, Radd):
        raise UsageError(f"export-hf writes models of network radd, not {type(network).__name__}")
    data = cast(Texts, trained.data)
    vocabulary, block = data.vocabulary, cast(Any, network.blocks[0])
    size, width = network.embedding.weight.shape
    config = RaddConfig(
        size, vocabulary.mask, vocabulary.eos, width, len(network.blocks), block.heads, data.config.length,
        block.dropout, network.theta,
    )  # fmt: skip
    model = RaddForMaskedLM(config)
    model.radd.load_state_dict(network.state_dict())
    tokenizer = fast(vocabulary, data.config.length)
    if out is None:
        return model.eval(), tokenizer
    _save(model, out)
    tokenizer.save_pretrained(out)
    return {"parameters": sum(p.numel() for p in model.parameters()), "context": data.config.length}


def import_hf(
    trained: Trained | None,
    inputs: Sequence[Any],
    out: Path | None,
    heads: Annotated[int | None, Field(ge=1, description="attention heads; null for 64 features each")] = None,
    length: Annotated[int, Field(ge=1, description="the context, which the weights do not tell")] = 1024,
) -> Any:
    """Published weights of RADD, or of MDLM where it is told no time, as a folder for transformers.

    The input is a .safetensors file or the folder it is in. The last token is the mask. Raises ``InputError`` naming
    what is missing.
    """
    if len(inputs) != 1:
        raise UsageError("import-hf takes one input: a .safetensors file, or the folder it is in")
    config, weights = converted(_state(Path(inputs[0])), heads, length, str(inputs[0]))
    model = RaddForMaskedLM(config)
    model.radd.load_state_dict(weights)
    if out is None:
        return model.eval()
    _save(model, out)
    return {"parameters": sum(p.numel() for p in model.parameters()), "layers": config.num_hidden_layers}


def _save(model: RaddForMaskedLM, out: Path) -> None:
    logging.disable_progress_bar()
    with refusals(f"{out} cannot be written"):
        model.save_pretrained(out)


def fast(vocabulary: Vocabulary, length: int) -> Any:
    """The vocabulary as a tokenizer of transformers."""
    tokenizer = _bytes() if vocabulary.json is None else Tokenizer.from_str(vocabulary.json)
    names = {"mask_token": tokenizer.id_to_token(vocabulary.mask), "eos_token": tokenizer.id_to_token(vocabulary.eos)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names)


def _bytes() -> Tokenizer:
    """Bytes as a byte-pair encoding without pairs, byte b being token b.

    Its alphabet has a letter for each byte: itself where it can be printed, else the next one from U+0100 on.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(BYTES) if byte not in printed]
    letters = {chr(byte): byte for byte in printed} | {chr(BYTES + n): byte for n, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (MASK, EOS)])
    return tokenizer


def _state(path: Path) -> dict[str, Tensor]:
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist; name a .safetensors file, or a folder with {WEIGHTS}")
    if file.suffix != ".safetensors":
        way_out = "save its tensors by safetensors.torch.save_file"
        raise InputError(f"{file} is no .safetensors file, and a pickle is a program, which is not run: {way_out}")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} holds no weights that are safe to read: {' '.join(str(error).split())}") from error


def converted(
    state: Mapping[str, Tensor], heads: int | None, length: int, name: str
) -> tuple[RaddConfig, dict[str, Any]]:
    """Weights under the names of RADD or MDLM as those of ``Radd``, and the config that they belong to.

    MDLM adds to each layer norm a shift and a scale, and to each branch a gate, that depend on the time. Told none, it
    is told that of 0: shifts, scales and gates are numbers then, and go into the weights beside them.
    """
    known = {
        re.sub(r"^(module\.|model\.|backbone\.|_orig_mod\.)+", "", key): value.float() for key, value in state.items()
    }
    try:
        table = known["vocab_embed.embedding"]
        depth = 1 + max(int(key.split(".")[1]) for key in known if key.startswith("blocks."))
        told = _time_zero(known)
        weights: dict[str, Tensor] = {"embedding.weight": table}
        for number in range(depth):
            weights |= _block(known, f"blocks.{number}", told)
        shift, scale = _modulated(known, "output_layer", told, 2, table.shape[1])
        weights |= _norm(known, "output_layer.norm_final", "norm", shift, scale)
        weights |= {f"head.{part}": known[f"output_layer.linear.{part}"] for part in ("weight", "bias")}
    except KeyError as error:
        raise InputError(f"{name} has no {error.args[0]!r}; these are no weights of RADD or MDLM") from error
    except ValueError as error:
        raise InputError(f"{name} has no blocks.0; these are no weights of RADD or MDLM") from error
    size, width = table.shape
    config = RaddConfig(size, size - 1, None, width, depth, heads or max(1, width // HEAD), length)
    return config, weights


def _time_zero(known: Mapping[str, Tensor]) -> Tensor | None:
    """What MDLM's time embedding says of time 0; None where there is none, as in RADD."""
    if "sigma_map.mlp.0.weight" not in known:
        return None
    count = known["sigma_map.mlp.0.weight"].shape[1]
    waves = torch.cat([torch.ones(count // 2), torch.zeros(count - count // 2)])  # cosines, then sines
    for layer in (0, 2):
        waves = F.linear(waves, known[f"sigma_map.mlp.{layer}.weight"], known[f"sigma_map.mlp.{layer}.bias"])
        waves = F.silu(waves)
    return waves


def _modulated(known: Mapping[str, Tensor], where: str, told: Tensor | None, parts: int, width: int) -> list[Tensor]:
    """The numbers that a layer is modulated by: shift and scale, and of a block shift, scale and gate twice."""
    if told is None:
        plain = [torch.zeros(width), torch.zeros(width), torch.ones(width)]
        return (plain * 2)[:parts]
    name = f"{where}.adaLN_modulation"
    return list(F.linear(told, known[f"{name}.weight"], known[f"{name}.bias"]).chunk(parts))


def _norm(known: Mapping[str, Tensor], of: str, to: str, shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """(w n + b) (1 + scale) + shift as one weight and one bias; MDLM's norms have no b."""
    weight, bias = known[f"{of}.weight"], known.get(f"{of}.bias")
    return {f"{to}.weight": weight * (1 + scale), f"{to}.bias": (0 if bias is None else bias * (1 + scale)) + shift}


def _block(known: Mapping[str, Tensor], name: str, told: Tensor | None) -> dict[str, Tensor]:
    width = known[f"{name}.norm1.weight"].shape[0]
    shift1, scale1, gate1, shift2, scale2, gate2 = _modulated(known, name, told, 6, width)
    return {
        **_norm(known, f"{name}.norm1", f"{name}.norm1", shift1, scale1),
        **_norm(known, f"{name}.norm2", f"{name}.norm2", shift2, scale2),
        f"{name}.attn_qkv.weight": known[f"{name}.attn_qkv.weight"],
        f"{name}.attn_out.weight": gate1[:, None] * known[f"{name}.attn_out.weight"],
        f"{name}.mlp.0.weight": known[f"{name}.mlp.0.weight"],
        f"{name}.mlp.0.bias": known[f"{name}.mlp.0.bias"],
        f"{name}.mlp.2.weight": gate2[:, None] * known[f"{name}.mlp.2.weight"],
        f"{name}.mlp.2.bias": gate2 * known[f"{name}.mlp.2.bias"],
    }
