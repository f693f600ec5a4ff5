"""An interpolant sampled with more and less noise: `python plugins/images/benchmarks/interpolant.py OUT.json`.

The preset `interpolant` is trained once for each gamma in the folder RUNS, where it is not there yet, and then sampled
by its ODE and its SDEs. Fréchet distances by epsilon and steps, one evaluation of the network a step; beside the
sampler's own steps those of the Euler-Maruyama method, which stays a thousandth from both ends and has less noise where
gamma is below FLOOR. --quick is for a look whether it works.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import flowplat
from flowcore.data import Batch
from flowcore.plugin.contracts import Measured
from flowcore.seeds import generator
from flowcore.solvers import euler_maruyama, solve
from flowcore.stochastic import read
from flowplat_images.metrics import frechet

GAMMAS = {"brownian": 2.0, "sine_squared": 1.0}  # and their scales
EPSILONS = (0.0, 0.25, 1.0, 4.0)
STEPS = (20, 100, 400)
EULER_STEPS = (20, 100)
FLOOR, COUNT, CHUNK = 0.05, 1797, 256


def platform(*words: str) -> Any:
    """What the command says, read as JSON."""
    done = subprocess.run([sys.executable, "-m", "flowplat", *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"platform {' '.join(words)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def trained(folder: Path, words: list[str]) -> str:
    """A run in ``folder``, trained if it is not there."""
    if not (folder / "eval" / "metrics.json").exists():
        platform("run", "images", *words, "eval.steps=[1]", "--out", str(folder))
    return str(folder)


def distances(run: str, steps: tuple[int, ...], *words: str) -> dict[int, float]:
    """Fréchet distance by steps."""
    asked = f"eval.steps={list(steps)}"
    rows = platform("eval", run, asked, "eval.metrics=[frechet]", "eval.paths=2", *words)["by_steps"]
    return {row["steps"]: row["figures"]["frechet"]["value"] for row in rows}


@torch.no_grad()
def by_euler(run: str, epsilon: float, steps: tuple[int, ...]) -> dict[int, float]:
    """Fréchet distance by steps of the Euler-Maruyama method."""
    model, found = flowplat.load(run), {}
    path, device = model.parts().path, model.device
    measured = Measured(model.data, Path(run) / "eval", model.seed, device)
    start = path.spread(torch.tensor(path.start)).item()

    def noise(t: torch.Tensor) -> torch.Tensor:
        return epsilon * (path.spread(t) / FLOOR).clamp(max=1)

    for count in steps:
        chunks = []
        for number in range(-(-COUNT // CHUNK)):
            draws = generator(model.seed, "sample", number, device=device)
            x0, z = (torch.randn(CHUNK, *model.data.spec().state.shape, generator=draws, device=device) for _ in "xz")
            field = read(model.network, path)
            chunks.append(solve(field, x0 + start * z, count, euler_maruyama(noise), generator=draws).cpu())
        found[count] = frechet(Batch(torch.cat(chunks)[:COUNT]), measured)["frechet"].value
    return found


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/interpolant"))
    parser.add_argument("--gammas", nargs="+", default=list(GAMMAS), choices=GAMMAS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all runs")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    more = [f"seed={options.seed}", *options.set, *(["train.steps=40", "eval.count=64"] if options.quick else [])]
    epsilons, steps = (EPSILONS[:2], STEPS[:1]) if options.quick else (EPSILONS, STEPS)
    found: dict[str, Any] = {}
    for gamma in options.gammas:
        words = ["--preset", "interpolant", f"path.gamma={gamma}", f"path.scale={GAMMAS[gamma]}", *more]
        run, found[gamma] = trained(options.runs / gamma, words), {}
        for epsilon in epsilons:
            found[gamma][epsilon] = {
                "steps": distances(run, steps, f"sample.sampler.epsilon={epsilon}"),
                "euler_maruyama": by_euler(run, epsilon, EULER_STEPS[:1] if options.quick else EULER_STEPS),
            }
            print(gamma, "epsilon", epsilon, found[gamma][epsilon], flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
