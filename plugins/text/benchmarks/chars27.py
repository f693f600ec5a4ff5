"""RADD of 25 M parameters on 27 letters of WikiText-2, on one GPU, within some minutes: quality and speed.

    python plugins/text/benchmarks/chars27.py --data DIR --out text-gpu.json [--minutes 9] [--dropout 0.2]

DIR holds wt2_27char_{train,valid,test}.txt.gz: a-z and space, 1.0, 0.6 and 0.6 million letters. --tiny is for a look on
a CPU whether it works. The network is size base (width 512, 8 blocks, 8 heads) on blocks of 256 letters, trained by the
platform's loop (flowcore.training) in bf16, compiled; the averaged weights of the lowest validation loss are measured.
In turn: Witten-Bell n-grams; RADD trained, its bound on the test text; texts of L = 1,024 drawn with and without what
they can skip, by wall clock; a network from left to right of the same size, in at most the same time. The figures are
written after each.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bytes import onward  # the benchmark beside this one
from torch import Tensor, nn

from flowcore import masked
from flowcore.data import Batch
from flowcore.plugin.contracts import Parts
from flowcore.seeds import derive, generator
from flowcore.tokens import objective
from flowcore.training.engine import Engine
from flowcore.training.loop import TrainState, begin, fit
from flowcore.training.settings import EngineSettings, TrainSettings
from flowplat_text import ngrams, reading
from flowplat_text.data import Files, FilesConfig
from flowplat_text.likelihood import nats
from flowplat_text.networks import RaddOptions, radd

LOOK = 40  # steps that say how fast it is
JUDGE = 4  # the order of the n-gram that samples are told to
Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]


@dataclass
class Bench:
    """What all stages share: the arguments, the texts, the engine, and what was found so far."""

    given: argparse.Namespace
    data: Files
    engine: Engine
    options: RaddOptions
    test: str
    judge: list[ngrams.Order]
    start: float
    told: dict[str, Any]

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return 60 * self.given.minutes - (time.perf_counter() - self.start)

    def tell(self, **found: Any) -> None:
        """Keep and print what a stage found."""
        self.told |= found
        self.told["seconds"] = round(time.perf_counter() - self.start, 1)
        self.given.out.write_text(json.dumps(self.told, indent=1) + "\n", encoding="utf-8")
        print(f"[{self.told['seconds']:.0f} s]", json.dumps(found)[:2000], flush=True)


class OverError(Exception):
    """The time of a stage is over."""


def trained(bench: Bench, loss: Loss, causal: bool, seconds: float, name: str) -> nn.Module:
    """The network with the averaged weights of its lowest validation loss, after at most so many seconds."""
    given, engine = bench.given, bench.engine
    torch.manual_seed(derive(given.seed, name))
    network = radd(bench.options, bench.data.spec())
    for block in network.blocks:
        block.causal = causal  # type: ignore[assignment]
    begun, clock, rows, best = time.perf_counter(), 0.0, [], {"loss": math.inf, "step": 0}
    held = bench.data.val().batch(
        torch.linspace(0, len(bench.data.val()) - 1, given.held).round().long(), torch.Generator()
    )
    kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def validate(average: nn.Module) -> float:
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.device.type == "cuda"):
            parts = [
                loss(average, Batch(part.to(engine.device)), generator(7, "validate", n, device=engine.device))
                for n, part in enumerate(held.x1.split(given.batch))
            ]
        value = torch.cat(parts).double().mean().item()
        if value < best["loss"]:
            best.update(loss=value, step=state.step)
            kept.update({key: tensor.clone() for key, tensor in average.state_dict().items()})
        return value

    def log(row: dict[str, Any]) -> None:
        rows.append({key: round(value, 6) for key, value in row.items()})
        print(f"{name} {json.dumps(rows[-1])}", flush=True)

    def watch(step: int) -> BaseException | None:
        return OverError() if time.perf_counter() - begun > seconds else None

    common = {"batch_size": given.batch, "lr": given.lr, "warmup": given.warmup, "ema": given.ema,
              "weight_decay": given.weight_decay, "log_every": LOOK // 2, "checkpoint_every": 10**9}  # fmt: skip
    state = begin(network, TrainSettings(**common), engine)
    source = bench.data.train()

    def run(settings: TrainSettings) -> TrainState:
        return fit(state, loss, source, settings, given.seed, log, lambda state: None, watch, validate, engine)

    try:
        run(TrainSettings(steps=LOOK // 2, **common))  # with what is compiled
        clock = time.perf_counter()
        run(TrainSettings(steps=LOOK, **common))
        each = (time.perf_counter() - clock) / (LOOK - LOOK // 2)
        validate(state.ema.module)
        held_clock = time.perf_counter()
        validate(state.ema.module)
        held_seconds = time.perf_counter() - held_clock
        often = max(given.validate_every, LOOK * round(10 * held_seconds / each / LOOK))  # a tenth of the time
        steps = max(0, int((seconds - (time.perf_counter() - begun)) * 0.97 / (each + held_seconds / often)))
        run(
            TrainSettings(
                steps=LOOK + steps, schedule="linear", validate_every=often, patience=given.patience, **common
            )
        )
    except OverError:
        print(f"{name}: its time is over at step {state.step}", flush=True)
    speeds = sorted(row["samples_per_s"] for row in rows[2:] or rows)
    length = bench.data.config.length
    bench.tell(**{
        f"{name}_training": {
            "parameters": sum(p.numel() for p in network.parameters()), "steps": state.step, "batch": given.batch,
            "length": length, "tokens_per_s": round(speeds[len(speeds) // 2] * length),
            "tokens": state.step * given.batch * length,
            "epochs": round(state.step * given.batch * length / len(bench.data.packed.train), 1),
            "best_step": best["step"], "best_validation_bits_per_char": round(best["loss"] / math.log(2), 4),
            "seconds": round(time.perf_counter() - begun, 1), "rows": rows[:: max(1, len(rows) // 60)],
            "validation": [[row["step"], row["val_loss"]] for row in rows if "val_loss" in row],
        }
    })  # fmt: skip
    model = state.ema.module
    if kept:
        model.load_state_dict(kept)
    return model.eval()


def blocks_of(bench: Bench) -> tuple[Tensor, Tensor]:
    """The whole test text in blocks (n, L), and which tokens are it; the last block is filled up with MASK."""
    vocabulary, length = bench.data.vocabulary, bench.data.config.length
    tokens = torch.from_numpy(vocabulary.encode(bench.test).astype("int64"))
    count = -(-len(tokens) // length)
    x = torch.full((count * length,), vocabulary.mask)
    x[: len(tokens)] = tokens
    return x.view(count, length), (torch.arange(count * length) < len(tokens)).view(count, length)


def costs(cost: Tensor, variance: Tensor, free: Tensor) -> dict[str, float]:
    """Bits and perplexity of a letter with two standard errors: of the draws, and of which text it is."""
    letters = int(free.sum())
    each = cost.sum().item() / letters
    drawn = variance.sum().sqrt().item() / letters
    whole = cost / free.sum(1)
    text = (whole.var() / len(whole)).sqrt().item()
    return {
        "bits_per_char": round(each / math.log(2), 4), "standard_error_draws": round(drawn / math.log(2), 4),
        "standard_error_text": round(text / math.log(2), 4), "perplexity": round(math.exp(each), 4),
        "perplexity_standard_error": round(math.exp(each) * math.hypot(drawn, text), 4), "chars": letters,
    }  # fmt: skip


def quality(bench: Bench, network: nn.Module) -> None:
    """The bounds on the test text, in single precision."""
    x, free = blocks_of(bench)
    model: Any = SimpleNamespace(data=bench.data, network=network, device=bench.engine.device)
    for bound, draws in (("any_order", bench.given.draws), ("lambda", bench.given.draws)):
        clock = time.perf_counter()
        found = nats(model, x, free, bound, draws, bench.given.seed)  # type: ignore[arg-type]
        bench.tell(**{
            f"radd_{bound}": costs(*found, free) | {"draws": draws, "seconds": round(time.perf_counter() - clock, 1)}
        })  # fmt: skip


@torch.no_grad()
def every_step(network: masked.Network, path: masked.Masked, x: Tensor, steps: int, draws: Any, limit: float) -> Any:
    """Ancestral sampling that evaluates every sample at every step; where ``limit`` seconds do not suffice, how many
    steps were made. The draws are those of ``masked.generate``."""
    missing = x == path.mask
    rounds = masked.tweedie(steps)(path, missing, draws)[0]
    u = torch.rand(x.shape, generator=draws, dtype=torch.float64, device=x.device)
    x, begun = x.clone(), time.perf_counter()
    for number in range(steps):
        t = torch.full((len(x),), number / steps, device=x.device)
        logits = network(x, t, None)
        now = missing & (rounds == number)
        x[now] = masked.categorical(masked.without_mask(logits[now], path.mask), u[now])
        if time.perf_counter() - begun > limit:
            return x, number + 1
    return x, steps


def sampling(bench: Bench, network: nn.Module) -> None:
    """Wall clock of texts drawn in n = L, 2 L, 4 L steps, with the evaluations that change nothing and without."""
    given, device = bench.given, bench.engine.device
    length, cuda = given.sample_length, device.type == "cuda"
    path = masked.linear(bench.data.vocabulary.mask)
    called: Any = torch.compile(network) if cuda and not given.no_compile else network

    def ask(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            return called(x).float()  # type: ignore[no-any-return]

    def waited() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    rows: list[dict[str, Any]] = []
    for count in given.samples:
        x = torch.full((count, length), path.mask, device=device)
        with torch.no_grad():  # what is compiled, is before the clock runs: one number of rows, any, and one
            for size in dict.fromkeys((count, max(1, count - 1), max(1, count // 3), 1, count)):
                ask(x[:size], x[:size, 0].float(), None)
        every_step(ask, path, x, 4, generator(given.seed, "warm", device=device), math.inf)
        masked.generate(ask, path, x, masked.tweedie(8), generator(given.seed, "warm", device=device))
        for times in (1, 2, 4):
            steps, seed = times * length, derive(given.seed, "sample", count, times)
            clock = waited()
            skipped = masked.generate(ask, path, x, masked.tweedie(steps), torch.Generator(device).manual_seed(seed))
            cached = waited() - clock
            limit = min(given.uncached_seconds, bench.left - 30)
            clock = waited()
            drawn, made = every_step(ask, path, x, steps, torch.Generator(device).manual_seed(seed), limit)
            each = (waited() - clock) / made
            calls = steps * (1 - (1 - 1 / steps) ** length)
            rows.append({
                "samples": count, "steps": steps, "cached_s": round(cached, 3), "uncached_s": round(each * steps, 3),
                "uncached_steps_timed": made, "ratio": round(each * steps / cached, 3),
                "nfe": round(skipped.calls.double().mean().item(), 2), "expected_nfe": round(calls, 2),
                "expected_ratio": round(steps / calls, 3),
                "same_tokens": round((drawn == skipped.x).double().mean().item(), 4) if made == steps else None,
            })  # fmt: skip
            bench.tell(sampling=rows)
        texts = [bench.data.vocabulary.decode(one) for one in skipped.x.tolist()]
        bits = ngrams.bits("".join(texts).encode(), bench.judge[: JUDGE + 1])[-1]
        bench.tell(**{f"sample_of_{count}": {"text": texts[0], f"order_{JUDGE}_bits": round(bits, 4)}})


def left_to_right(bench: Bench, network: nn.Module) -> None:
    """What the test text costs a network from left to right, exactly, each block on its own as RADD's."""
    x, free = blocks_of(bench)
    cost = []
    with torch.no_grad():
        for mine, known in zip(x.split(32), free.split(32), strict=True):
            before = torch.cat([torch.full((len(mine), 1), bench.data.vocabulary.eos), mine[:, :-1]], 1)
            logits = network(before.to(bench.engine.device)).cpu()
            each = nn.functional.cross_entropy(logits.transpose(1, 2), mine, reduction="none")
            cost.append((each * known).double().sum(1))
    found = torch.cat(cost)
    bench.tell(left_to_right=costs(found, torch.zeros_like(found), free))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--train-share", type=float, default=0.6, help="of the minutes, for RADD's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=256, help="of a block in training")
    parser.add_argument("--sample-length", type=int, default=1024, help="L of the texts that are drawn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--validate-every", type=int, default=200)
    parser.add_argument("--held", type=int, default=1024, help="held-out blocks of a validation")
    parser.add_argument("--patience", type=int, default=10, help="validations without improvement that end training")
    parser.add_argument("--draws", type=int, default=16, help="of each test block, of each bound")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 32], help="texts that are drawn at once")
    parser.add_argument("--uncached-seconds", type=float, default=40, help="after which its steps are scaled")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--left-to-right", choices=("after", "only", "none"), default="after", help="the network to compare with"
    )
    parser.add_argument("--tiny", action="store_true", help="a look on a CPU whether it works")
    given = parser.parse_args()
    if given.tiny:
        vars(given).update(
            minutes=3,
            train_share=0.1,
            held=64,
            length=64,
            sample_length=64,
            batch=8,
            warmup=20,
            validate_every=20,
            draws=2,
        )
        vars(given).update(samples=[1, 4], no_compile=True)
    return given


def main() -> None:
    start, given = time.perf_counter(), arguments()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    path = {part: str(given.data / f"wt2_27char_{part}.txt.gz") for part in ("train", "valid", "test")}
    data = Files(FilesConfig(path=path["train"], validation=path["valid"], length=given.length))  # type: ignore[arg-type]
    cuda = torch.cuda.is_available()
    engine = Engine(EngineSettings(precision="bf16-mixed" if cuda else "32-true", compile=not given.no_compile))
    engine.launch()
    options = RaddOptions(size="base", dropout=given.dropout)
    if given.tiny:
        options = RaddOptions(width=64, depth=2, heads=2, dropout=given.dropout)
    test = next(iter(reading.texts([path["test"]])))
    judge = ngrams.fit(next(iter(reading.texts([path["train"]]))).encode())
    bench = Bench(given, data, engine, options, test, judge, start, {
        "command": "python " + " ".join(sys.argv), "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__, "python": sys.version.split()[0], "size": "tiny" if given.tiny else "base",
        "precision": engine.settings.precision, "compiled": engine.settings.compile,
        "options": {key: value for key, value in vars(given).items() if isinstance(value, int | float)},
    })  # fmt: skip
    bench.tell(witten_bell=[round(b, 4) for b in ngrams.bits(test.encode(), judge)])
    loss = objective(Parts(data.spec(), data, engine.device), "any_order")
    seconds = given.train_share * 60 * given.minutes

    def peer() -> None:
        if bench.left > 20:
            left_to_right(bench, trained(bench, onward, True, min(seconds, bench.left - 15), "left_to_right"))

    stages: list[Callable[[], None]] = []
    if given.left_to_right != "only":
        network = trained(bench, loss, False, seconds, "radd")
        stages = [lambda: quality(bench, network), lambda: sampling(bench, network)]
    failed = False
    for stage in [*stages, peer] if given.left_to_right != "none" else stages:
        try:
            stage()
        except Exception:  # of any kind: the others are worth having
            failed = True
            traceback.print_exc()
    bench.tell(done=not failed)


if __name__ == "__main__":
    main()
