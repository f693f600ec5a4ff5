"""Speed of the full network at QM9's sizes, 3 to 29 atoms and 18 on average, and its share of the card's peak.

    python plugins/molecules/benchmarks/gpu_speed.py --out speed.json [--graphs] [--quick]

512 molecules a training step and 512 drawn in 100 steps, in TF32 and in bf16; --graphs in TF32 alone, replayed as CUDA
graphs (engine.compile=true).
"""

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowcore.couplings import Coupled
from flowcore.data import batches
from flowcore.guidance import classifier_free
from flowcore.seeds import generator
from flowcore.training.loop import begin
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat_molecules.graphs import Molecules, centred, graph
from flowplat_molecules.sampler import draw

Told = dict[str, Any]
PEAK = {"bf16-mixed": 989e12, "32-true": 494e12}  # of an H100 SXM and an H200, dense, NVIDIA's data sheets; TF32
STEPS = 100  # of the sampler


class Variant:
    """The full network in one precision, with what a training step and a draw need."""

    def __init__(self, precision: str, graphs: bool, quick: bool) -> None:
        small = ("network.scalars=32", "network.vectors=4", "network.edges=16", "network.blocks=3") if quick else ()
        overrides = [f"engine.precision={precision}", "eval.metrics=[]", "sample.sampler.edges=400000", *small]
        self.experiment = Experiment(resolve("molecules", overrides, "propmolflow"))
        self.precision, self.device, self.quick = precision, self.experiment.device, quick
        self.network = self.experiment.network()
        self.state = begin(self.network, self.experiment.config.train, self.experiment.engine)
        if graphs:
            self.network.compile()
        self.draws = generator(0, "loss", device=self.device)

    def batches(self, count: int) -> list[Any]:
        """Four batches of ``count`` molecules, aligned."""
        made = batches(Coupled(molecules(4 * count), None, self.experiment.parts.coupling), count, 0, 4, 0)
        return [batch.to(self.device) for batch in made]

    def warm(self, what: str) -> None:
        """Do once, on a few molecules, what is to be timed."""
        if what == "train":
            for batch in self.batches(8):
                self.step(batch)
        else:
            self.draw(8, 2, None)
            self.draw(8, 2, 3.0)
        _wait(self.device)

    def step(self, batch: Any) -> None:
        """One step of training."""
        self.network.train()
        value = self.experiment.loss(self.state.module, batch, self.draws).mean()
        self.state.optimizer.zero_grad()
        self.experiment.engine.fabric.backward(value)
        self.state.optimizer.step()
        self.state.ema.update_parameters(self.network)

    def draw(self, count: int, steps: int, scale: float | None) -> None:
        """``count`` molecules, with guidance where there is a ``scale``."""
        self.network.eval()
        guidance = () if scale is None else (classifier_free(scale),)
        parts = replace(self.experiment.steered(), guidance=guidance)
        called = self.experiment.engine.called(self.network, self.precision)
        condition = torch.ones(count, 1, device=self.device)
        draw(parts, called, sizes(count), condition, steps, self.draws, edges=400_000)


def sizes(count: int) -> torch.Tensor:
    """Numbers of atoms as QM9 has them."""
    return (18 + 3 * torch.randn(count, generator=generator(0, "sizes"))).round().long().clamp(3, 29)


def molecules(count: int) -> Molecules:
    """Random molecules: only their sizes matter."""
    laid, draws = graph(sizes(count)), generator(0, "molecules")
    x1 = {
        "positions": centred(3 * torch.randn(len(laid.atom), 3, generator=draws), laid.atom, count),
        "atoms": torch.randint(5, (len(laid.atom),), generator=draws),
        "charges": torch.randint(6, (len(laid.atom),), generator=draws),
        "bonds": torch.randint(5, (len(laid.pair),), generator=draws),
    }
    return Molecules(x1, laid.sizes, torch.rand(count, 1, generator=draws))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds on the wall, until the GPU is done."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(work: Callable[[], Any]) -> int:
    """Of matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measured(one: Variant, what: str, told: Told, save: Callable[[], None], counts: Told) -> None:
    """Fill in ``told`` figure by figure. ``counts`` has the operations of a step and a call, or is to have them."""
    count, calls = (16, 4) if one.quick else (512, STEPS)
    if one.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if what == "train":
        some, steps = one.batches(count), 2 if one.quick else 12
        for number in range(3):
            one.step(some[number])
        took = timed(lambda: [one.step(some[number % 4]) for number in range(steps)], one.device) / steps
        told["train_molecules_per_s"], each = round(count / took, 1), lambda: one.step(some[0])
    else:
        for name, scale in (("sample_guided", 3.0), ("sample", None)):
            one.draw(count, 2, scale)
            took = timed(lambda scale=scale: one.draw(count, calls, scale), one.device) / calls
            told[f"{name}_molecules_per_s_at_100_steps"] = round(count / took / STEPS, 1)
            save()
        each = lambda: one.draw(count, 1, None)  # noqa: E731
    if one.device.type == "cuda":
        told[f"{what}_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    if what not in counts:
        counts[what] = flops(each)
    told[f"{what}_tflop_per_s"] = round(counts[what] / took / 1e12, 4)
    if one.device.type == "cuda":
        told[f"{what}_share_of_peak"] = round(counts[what] / took / PEAK[one.precision], 4)
    save()


def run(graphs: bool, quick: bool, save: Callable[[Told], None]) -> Told:
    """All figures, saved as they come."""
    edges = sizes(512) * (sizes(512) - 1)
    found: Told = {"molecules": 16 if quick else 512, "atoms": round(float(sizes(512).float().mean()), 2)}
    found |= {"edges": round(float(edges.float().mean()), 1)}
    counted = {"train": 2.10855e12, "sample": 0.70064e12} if graphs and not quick else {}  # as counted without graphs
    for precision in ("32-true",) if quick or graphs else ("32-true", "bf16-mixed"):
        told = found[f"{precision}{', graphs' if graphs else ''}"] = {}
        for what in ("sample", "train"):
            try:
                one = Variant(precision, graphs, quick)
                one.warm(what)
                measured(one, what, told, lambda: save(found), counted)
            except Exception as error:
                traceback.print_exc()
                told[f"{what}_error"] = f"{type(error).__name__}: {error}"[:500]
            save(found)
    found["tflop"] = {name: round(value / 1e12, 5) for name, value in counted.items()}
    save(found)
    return found


def agree(quick: bool) -> Told:
    """How far what graphs compute is from what the network does without, outputs and gradients, relative, in full
    single precision."""
    torch.set_float32_matmul_precision("highest")
    try:
        one = Variant("32-true", True, quick)
        batch, network = one.batches(64)[0], one.network.train()
        t = torch.rand(len(batch), generator=one.draws, device=one.device)
        told = (batch.x1 | batch.x0, t, batch.condition, batch.index)
        weights, found = None, []
        for call in (network.plain, network, network):  # twice: recorded, and replayed
            network.zero_grad()
            out = call(*told)
            weights = weights or {name: torch.randn_like(leaf) for name, leaf in out.items()}
            sum((leaf * weights[name]).sum() for name, leaf in out.items()).backward()
            grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            found.append(([leaf.detach().clone() for leaf in out.values()], grads))
        with torch.no_grad():
            found.append(([leaf.clone() for leaf in network(*told).values()], found[0][1]))
        assert all(len(grads) == len(found[0][1]) for _, grads in found)
        return {
            name: max(_apart(a, b) for other in found[1:] for a, b in zip(found[0][k], other[k], strict=True))
            for k, name in enumerate(("outputs", "gradients"))
        }
    finally:
        settings()


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    value = float((a - b).norm() / a.norm().clamp(min=1e-6))
    return value if value == value else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def save(found: Told) -> None:
        options.out.write_text(json.dumps({"machine": card, "torch": torch.__version__} | found, indent=1) + "\n")

    run(options.graphs, options.quick, save)


def settings() -> None:
    """As both programs compute: TF32, and one thread beside the loader's."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
