"""Speed of the default preset's network on the processor: training, sampling, aligning.

    python plugins/molecules/benchmarks/speed.py [--threads 2] [--out speed.json]

A hundred molecules of the default set's sizes in a hundred steps, and training steps of the preset's own batch, each
beside what the same matrix products take alone (the arithmetic ceiling of this machine, measured as one large product).
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowcore.couplings import Coupled
from flowcore.seeds import generator
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat_molecules.sampler import draw, draw_sizes


def timed(work: Any, times: int) -> tuple[float, float]:
    """Seconds on the wall and of the processor for each of ``times`` calls, after one to warm up."""
    work()
    wall, own = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - wall) / times, (time.process_time() - own) / times


def flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    experiment = Experiment(resolve("molecules", ["engine.accelerator=cpu", "eval.metrics=[]"], "molecules"))
    network, parts = experiment.network(), experiment.steered()
    size = experiment.config.train.batch_size
    batch = experiment.source.batch(torch.arange(size), generator(0, "speed"))

    def step() -> None:
        network.zero_grad()
        experiment.loss(network, batch, generator(0, "loss")).mean().backward()

    condition = experiment.data.condition(100, None)
    sizes = draw_sizes(parts.spec, condition, 100, generator(0, "sizes"))

    def sample(steps: int) -> None:
        network.eval()
        draw(parts, network, sizes, condition, steps, generator(0, "draw"))

    a = torch.randn(2048, 2048)
    peak = 2 * 2048**3 / timed(lambda: a @ a, 5)[0]
    source = Coupled(experiment.data.train(), None, experiment.parts.coupling)
    train, train_own = timed(step, 10)
    drawn, drawn_own = timed(lambda: sample(100), 1)
    align, align_own = timed(lambda: source.batch(torch.arange(256), generator(0, "align")), 3)
    found = {
        "machine": f"{platform.machine()}, {options.threads} threads",
        "torch": torch.__version__,
        "peak_gflop_per_s": round(peak / 1e9, 1),
        "train_step_s": round(train, 4),
        "train_molecules_per_s": round(size / train, 1),
        "train_molecules_per_processor_s": round(size / train_own, 1),
        "train_share_of_peak": round(flops(step) / train / peak, 3),
        "sample_100_molecules_100_steps_s": round(drawn, 2),
        "sample_processor_s": round(drawn_own, 2),
        "sample_share_of_peak": round(100 * flops(lambda: sample(1)) / drawn / peak, 3),
        "aligned_molecules_per_s": round(256 / align, 1),
        "aligned_molecules_per_processor_s": round(256 / align_own, 1),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
