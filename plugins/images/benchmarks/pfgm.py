"""PFGM++ and EDM on the digits: `python plugins/images/benchmarks/pfgm.py OUT.json [--seeds 0 1 2]`.

The preset pfgm-pp at several numbers D of added dimensions, null being EDM, in the folder where the command is given:
Fréchet distance at 35 and at 9 network calls, and at 35 with noise of alpha sigma added after every step, as an inexact
sampler would (Xu et al. 2023, arXiv 2302.04265, section 5.3). One run after the other.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import flowplat
from flowcore.data import Batch
from flowcore.plugin.contracts import Measured
from flowcore.samplers import source
from flowcore.seeds import generator
from flowcore.solvers import Step, edm_grid, heun, solve
from flowplat_images.metrics import frechet

DRAWS = 4  # of noise, whose distances are averaged: one is off by a tenth or two
SAMPLERS = {"9": (5, 0.0), "35": (18, 0.0), "alpha 0.1": (18, 0.1), "alpha 0.2": (18, 0.2), "alpha 0.3": (18, 0.3)}
QUICK = ("train.steps=40", "eval.count=64", "eval.paths=32")


def noisy(alpha: float, draws: torch.Generator) -> Step:
    """EDM's step, and then alpha sigma z."""
    inner = heun(correct_last=False)

    def step(field: Any, x: torch.Tensor, t: torch.Tensor, r: torch.Tensor, h: float) -> torch.Tensor:
        x = inner(field, x, t, r, h)
        return x + alpha * field.path.sigma(r) * torch.randn(x.shape, generator=draws, device=x.device)

    step.needs_field = True  # type: ignore[attr-defined]
    return step


@torch.no_grad()
def distances(folder: Path) -> dict[str, float]:
    """The Fréchet distance of a run's samples by sampler, in the features that its own figures are in."""
    model = flowplat.load(folder)
    config, parts = model.experiment.config, model.parts()
    measured = Measured(model.data, folder / "eval", config.seed, model.device)

    def distance(steps: int, alpha: float, draw: int) -> float:
        x0 = source(parts, config.eval.count, generator(config.seed, "source", draw, device=model.device))
        step, grid = (
            noisy(alpha, generator(config.seed, "noise", draw, device=model.device)),
            edm_grid(steps, path=parts.path),
        )
        x1 = solve(parts.field(model.network), parts.path.initial(x0), grid, step)
        return frechet(Batch(x1), measured)["frechet"].value

    return {name: fmean(distance(*how, draw) for draw in range(DRAWS)) for name, how in SAMPLERS.items()}


def measure(seed: int, dimension: str, more: list[str]) -> dict[str, Any]:
    """One run and its figures."""
    words = ["--preset", "pfgm-pp", f"path.dimension={dimension}", f"seed={seed}", *more, "--json"]
    done = subprocess.run([sys.executable, "-m", "flowplat", "run", "images", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"D {dimension}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    rows = told["figures"]["by_steps"]
    first = rows[0]["figures"]["frechet"]
    return {
        "frechet": distances(Path(told["folder"])),
        "copies": {row["nfe"]: row["figures"]["copies"]["value"] for row in rows},
        "floor": first["floor"],
        "gaussian": first["baselines"]["gaussian"],
    }


def main() -> None:
    """Measure, and write the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dimensions", nargs="+", default=["16", "64", "2048", "null"])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other data, another network")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for seed in options.seeds:
        for dimension in options.dimensions:
            one = measure(seed, dimension, [*options.set, *(QUICK if options.quick else ())])
            found.setdefault(str(seed), {})[dimension] = one
            print(f"seed {seed}  D {dimension:5}", *(f"{k}: {v:.2f}" for k, v in one["frechet"].items()), flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
