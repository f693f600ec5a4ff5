"""Round trips through transformers' files, and published weights by networks written as they were trained."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from flowcore.errors import InputError, UsageError
from flowplat_text.hugging import export_hf, import_hf
from flowplat_text.modeling_radd import RaddConfig, RaddForMaskedLM, rotated

D, HEADS, DEPTH, V, L = 32, 2, 2, 11, 9

FRESH = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("flowplat_text") or name.startswith("flowcore")]
x = tokenizer("the cat sat [MASK]n the mat", return_tensors="pt")["input_ids"]
torch.save({"x": x, "logits": model(x).logits}, sys.argv[2])
"""


def test_a_model_is_read_by_a_fresh_process_without_the_platform_to_the_last_bit(small, tmp_path) -> None:
    told = export_hf(small, [], tmp_path / "model")
    assert told["context"] == 32
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "modeling_radd.py", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    auto = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    assert auto == {"AutoConfig": "modeling_radd.RaddConfig", "AutoModelForMaskedLM": "modeling_radd.RaddForMaskedLM"}
    (tmp_path / "fresh.py").write_text(FRESH)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(tmp_path / "fresh.py"), str(tmp_path / "model"), str(tmp_path / "out.pt")],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    there = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        logits = small.network(there["x"])
    assert there["x"][0].tolist().count(256) == 1
    assert bool((there["logits"][..., 256] == -torch.inf).all())
    logits[..., 256] = -torch.inf
    assert torch.equal(there["logits"], logits)


def test_the_auto_classes_know_it_and_it_learns_as_transformers_learns(small, tmp_path) -> None:
    model, tokenizer = export_hf(small, [], None)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), RaddConfig)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(again, RaddForMaskedLM)
    x = AutoTokenizer.from_pretrained(str(tmp_path))(["the cat sat", "the dog"], padding=False)["input_ids"][0]
    x = torch.tensor([x])
    labels = torch.where(torch.arange(x.shape[1]) < 3, x, -100)
    out = again(torch.where(labels >= 0, 256, x), labels=labels)
    by_hand = F.cross_entropy(out.logits[0, :3], x[0, :3])
    torch.testing.assert_close(out.loss, by_hand)
    out.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in again.parameters() if p.grad is not None)


def test_padding_is_not_looked_at(small) -> None:
    model, _ = export_hf(small, [], None)
    x = torch.randint(256, (2, 12))
    seen = torch.ones_like(x)
    seen[:, 8:] = 0
    other = x.clone()
    other[:, 8:] = 5
    with torch.no_grad():
        torch.testing.assert_close(model(x, seen).logits[:, :8], model(other, seen).logits[:, :8])
        torch.testing.assert_close(model(x, seen).logits[:, :8], model(x[:, :8]).logits, rtol=1e-4, atol=1e-4)


class Published(nn.Module):
    """The network of RADD, and of MDLM where ``timed``, after their papers, with the names that their weights have."""

    def __init__(self, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        w: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (V, D)}
        for b in (f"blocks.{n}" for n in range(DEPTH)):
            w |= {f"{b}.norm1.weight": (D,), f"{b}.norm2.weight": (D,), f"{b}.attn_qkv.weight": (3 * D, D),
                  f"{b}.attn_out.weight": (D, D), f"{b}.mlp.0.weight": (4 * D, D), f"{b}.mlp.0.bias": (4 * D,),
                  f"{b}.mlp.2.weight": (D, 4 * D), f"{b}.mlp.2.bias": (D,)}  # fmt: skip
            more = {f"{b}.adaLN_modulation.weight": (6 * D, 16), f"{b}.adaLN_modulation.bias": (6 * D,)}
            w |= more if timed else {f"{b}.norm1.bias": (D,), f"{b}.norm2.bias": (D,)}
        w |= {
            "output_layer.norm_final.weight": (D,),
            "output_layer.linear.weight": (V, D),
            "output_layer.linear.bias": (V,),
        }
        if timed:
            w |= {"output_layer.adaLN_modulation.weight": (2 * D, 16), "output_layer.adaLN_modulation.bias": (2 * D,),
                  "sigma_map.mlp.0.weight": (16, 256), "sigma_map.mlp.0.bias": (16,),
                  "sigma_map.mlp.2.weight": (16, 16), "sigma_map.mlp.2.bias": (16,),
                  "rotary_emb.inv_freq": (8,)}  # fmt: skip
        else:
            w["output_layer.norm_final.bias"] = (D,)
        draws = torch.Generator().manual_seed(0)
        self.w = {name: torch.randn(shape, generator=draws) * 0.3 for name, shape in w.items()}

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, x, name, shift=0.0, scale=0.0):
        y = F.layer_norm(x, (D,)) * self.w[f"{name}.weight"]
        return (y + self.w.get(f"{name}.bias", 0)) * (1 + scale) + shift

    def forward(self, tokens):
        x = self.w["vocab_embed.embedding"][tokens]
        inverse = 1.0 / (10_000 ** (torch.arange(0, D // HEADS, 2).float() / (D // HEADS)))
        angle = torch.outer(torch.arange(tokens.shape[1]).float(), inverse)
        told, plain = None, (0.0, 0.0, 1.0) * 2
        if self.timed:
            frequencies = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(128) / 128)
            waves = torch.cat([torch.cos(0 * frequencies), torch.sin(0 * frequencies)])
            told = F.silu(self.linear(F.silu(self.linear(waves, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
        for b in (f"blocks.{n}" for n in range(DEPTH)):
            m = plain if told is None else self.linear(told, f"{b}.adaLN_modulation").chunk(6)
            q, k, v = (
                part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for part in self.linear(self.norm(x, f"{b}.norm1", m[0], m[1]), f"{b}.attn_qkv").chunk(3, -1)
            )
            q, k = rotated(q, angle.cos(), angle.sin()), rotated(k, angle.cos(), angle.sin())
            seen = ((q @ k.transpose(-1, -2) / (D // HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + m[2] * self.linear(seen, f"{b}.attn_out")
            y = F.gelu(self.linear(self.norm(x, f"{b}.norm2", m[3], m[4]), f"{b}.mlp.0"), approximate="tanh")
            x = x + m[5] * self.linear(y, f"{b}.mlp.2")
        m = (0.0, 0.0) if told is None else self.linear(told, "output_layer.adaLN_modulation").chunk(2)
        return self.linear(self.norm(x, "output_layer.norm_final", *m), "output_layer.linear")


@pytest.mark.parametrize(("timed", "prefix"), [(False, ""), (False, "module."), (True, "backbone.")])
def test_published_weights_give_the_logits_that_they_gave(timed, prefix, tmp_path) -> None:
    published = Published(timed)
    save_file({prefix + name: value for name, value in published.w.items()}, tmp_path / "model.safetensors")
    told = import_hf(None, [tmp_path], tmp_path / "out", heads=HEADS, length=L)
    assert told["layers"] == DEPTH
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert (model.config.vocab_size, model.config.mask_token_id, model.config.max_position_embeddings) == (V, V - 1, L)
    x = torch.randint(V, (4, L), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits[..., : V - 1], published(x)[..., : V - 1], rtol=1e-4, atol=1e-4)


def test_what_is_no_published_model_is_told_in_one_line(tmp_path) -> None:
    whole = Published(False).w
    save_file({k: v for k, v in whole.items() if k != "blocks.1.attn_out.weight"}, tmp_path / "a.safetensors")
    save_file({"vocab_embed.embedding": whole["vocab_embed.embedding"]}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"no")
    (tmp_path / "d.bin").write_bytes(b"no")
    for name, line in {"a.safetensors": "has no 'blocks.1.attn_out.weight'", "b.safetensors": "has no blocks.0",
                       "c.safetensors": "no weights that are safe to read", "d.bin": "a pickle is a program",
                       "e.safetensors": "does not exist"}.items():  # fmt: skip
        with pytest.raises(InputError, match=line) as told:
            import_hf(None, [tmp_path / name], None)
        assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="takes one input"):
        import_hf(None, [], None)


def test_export_takes_no_input_and_no_other_network(small, tmp_path) -> None:
    with pytest.raises(InputError, match=r"a.txt is one"):
        export_hf(small, [tmp_path / "a.txt"], None)

    with pytest.raises(UsageError, match="not Linear"):
        export_hf(replaced(small, nn.Linear(1, 1)), [], None)


def test_weights_are_those_of_the_run(small, tmp_path) -> None:
    export_hf(small, [], tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    for name, value in small.network.state_dict().items():
        assert torch.equal(kept[f"radd.{name}"], value)


def replaced(small, network):
    return SimpleNamespace(**vars(small) | {"network": network})
