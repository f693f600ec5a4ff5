"""Bits a byte of held-out text: RADD, and a network from left to right of the same size, in the same processor seconds.

    python plugins/text/benchmarks/bytes.py docs/results/text.json --seconds 90 200 --seeds 0

Both are the network of preset radd (0.66 M parameters) on the bytes of Python's help topics, the last tenth held out;
each is trained on one thread for so many processor seconds, its learning rate falling to zero over the last 30 %.
RADD's figure is a bound with its standard error, the other's is exact. Beside them Witten-Bell n-grams, zlib and xz.
"""

import argparse
import json
import lzma
import math
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcore.data import Batch, everything
from flowcore.plugin.contracts import Parts
from flowcore.seeds import generator
from flowcore.tokens import objective
from flowcore.training.ema import Average
from flowplat_text import ngrams
from flowplat_text.data import Builtin, BuiltinConfig
from flowplat_text.networks import RaddOptions, radd

CPU = torch.device("cpu")
BATCH, RATE, WARM, DRAWS = 16, 1e-3, 50, 8
Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]


def onward(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """-log p of each token given those before it, the first of a block given an end of text; nats a token."""
    x = batch.x1
    before = torch.cat([x.new_full((len(x), 1), 257), x[:, :-1]], 1)
    return F.cross_entropy(network(before).transpose(1, 2), x, reduction="none").mean(1)


def trained(data: Builtin, loss: Loss, causal: bool, seconds: float, seed: int) -> tuple[nn.Module, int]:
    """The averaged network after so many seconds of the processor, and how many steps these were."""
    torch.manual_seed(seed)
    network = radd(RaddOptions(depth=3), data.spec())
    mean = Average(network, 0.995)
    for module in (network, mean.module):
        for block in module.blocks:  # type: ignore[union-attr]
            block.causal = causal
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    source, step, start = data.train(), 0, time.process_time()
    while (done := (time.process_time() - start) / seconds) < 1:
        draws = generator(seed, "bench", step)
        batch = source.batch(torch.randint(len(source), (BATCH,), generator=draws), draws)
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM, (1 - done) / 0.3)
        optimizer.zero_grad()
        loss(network, batch, draws).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        mean.update_parameters(network)
        step += 1
    return mean.module.eval(), step


@torch.no_grad()
def cost(network: nn.Module, loss: Loss, x: Tensor, draws: int) -> tuple[float, float]:
    """Nats of all tokens of x (n, L), and the standard error of that."""
    found = (
        torch.stack(
            [
                torch.cat([loss(network, Batch(part), generator(k, "cost", i)) for i, part in enumerate(x.split(64))])
                for k in range(draws)
            ]
        ).double()
        * x.shape[1]
    )
    error = (found.var(0) / draws).sum().sqrt().item() if draws > 1 else 0.0
    return found.mean(0).sum().item(), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[90, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Builtin(BuiltinConfig())
    x = everything(data.val()).x1
    text, training = (bytes(row[row < 256].astype("uint8")) for row in (x.numpy().flatten(), data.packed.train))
    scale = 1 / math.log(2) / len(text)
    told: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv), "torch": torch.__version__, "python": sys.version.split()[0],
        "held_out_bytes": len(text), "training_bytes": len(training),
        "witten_bell": [round(b, 4) for b in ngrams.bits(text, ngrams.fit(training))],
        "zlib": round(8 * len(zlib.compress(text, 9)) / len(text), 4),
        "xz": round(8 * len(lzma.compress(text, preset=9)) / len(text), 4),
        "rows": [],
    }  # fmt: skip
    bound = objective(Parts(data.spec(), data, CPU))
    for seconds in given.seconds:
        for seed in given.seeds:
            for name, loss, causal, draws in (("radd", bound, False, DRAWS), ("left_to_right", onward, True, 1)):
                network, steps = trained(data, loss, causal, seconds, seed)
                nats, error = cost(network, loss, x, draws)
                row = {"network": name, "cpu_seconds": seconds, "seed": seed, "steps": steps,
                       "bits_per_byte": round(nats * scale, 4), "standard_error": round(error * scale, 4)}  # fmt: skip
                told["rows"].append(row)
                print(row, flush=True)
                given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
