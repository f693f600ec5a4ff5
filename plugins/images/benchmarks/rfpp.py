"""2-Rectified Flow++ on the digits, step by step: `python plugins/images/benchmarks/rfpp.py OUT.json [--seeds 0 1 2]`.

The preset rectified-flow-pp in the paper's configurations (Lee et al. 2024, arXiv 2405.20320), all of them from one
teacher, its pairs and as many steps, in the folder where the command is given. Fréchet distance by steps, with the
noise kept and with Euler's method, in the features of the metric and in those that the loss of E, F and G looks at.
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
from flowcore.data import Batch, everything
from flowcore.plugin.contracts import Measured
from flowcore.samplers import source
from flowcore.seeds import generator
from flowcore.solvers import solve
from flowplat_images.metrics import frechet
from flowplat_images.perceptual import judge
from flowplat_images.reference import Frechet

REFLOW = ("objective={name: matching, compares: velocity}", "teacher.pairs.inverted=0")
WAYS: dict[str, tuple[str, ...]] = {
    "B": (*REFLOW, "times=uniform", "loss=l2"),
    "C": (*REFLOW, "times=u_shaped", "loss=l2"),
    "D": (*REFLOW, "times=u_shaped", "loss=pseudo_huber"),
    "E": ("objective.over_noise=false", "teacher.pairs.inverted=0"),
    "F": ("teacher.pairs.inverted=0",),
    "G": (),
}
DRAWS = 4  # of noise, whose distances are averaged: one is off by a tenth or two
QUICK = ("train.steps=40", "eval.count=64", "teacher.pairs.count=64", "teacher.config={train: {steps: 40}}")


@torch.no_grad()
def distances(folder: Path) -> dict[str, Any]:
    """By features, solver and steps."""
    model = flowplat.load(folder)
    config, parts = model.experiment.config, model.parts()
    measured = Measured(model.data, folder / "eval", config.seed, model.device)
    features = judge(model.data, config.seed, model.device).network
    own = Frechet(features, everything(model.data.train()).x1, model.device)
    found: dict[str, Any] = {"metric": {}, "own": {}}
    for solver in ("euler", "kept_noise"):
        for steps in (1, 2, 4):
            drawn = []
            for draw in range(DRAWS):
                x0 = source(parts, config.eval.count, generator(config.seed, "source", draw, device=model.device))
                drawn.append(solve(parts.field(model.network), x0, steps, solver))
            metric = fmean(frechet(Batch(x), measured)["frechet"].value for x in drawn)
            found["metric"].setdefault(solver, {})[steps] = metric
            found["own"].setdefault(solver, {})[steps] = fmean(map(own, drawn))
    return found


def measure(seed: int, way: str, more: list[str]) -> dict[str, Any]:
    """One run and its figures."""
    words = ["--preset", "rectified-flow-pp", *WAYS[way], f"seed={seed}", *more, "--json"]
    done = subprocess.run([sys.executable, "-m", "flowplat", "run", "images", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    row = told["figures"]["by_steps"][-1]
    paths = {key: figure["value"] for key, figure in told["figures"]["paths"].items()}
    last = {"steps": row["steps"], "frechet": row["figures"]["frechet"]["value"]}
    floor = row["figures"]["frechet"]
    return distances(Path(told["folder"])) | {
        "last": last, **paths, "floor": floor["floor"], "gaussian": floor["baselines"]["gaussian"],
    }  # fmt: skip


def main() -> None:
    """Measure, and write the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other data, another network")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for seed in options.seeds:
        for way in options.ways:
            one = measure(seed, way, [*options.set, *(QUICK if options.quick else ())])
            found.setdefault(str(seed), {})[way] = one
            print(f"seed {seed}  {way}", json.dumps({key: one[key] for key in ("metric", "own", "last")}), flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
