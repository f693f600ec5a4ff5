"""The rectified-flow family on the digits: `python plugins/images/benchmarks/digits.py OUT.json [--seeds 0 1 2]`.

Each way of training in turn, through the platform and its presets, in the folder where the command is given: the first
flow, reflow once and twice, both distilled, weighted pairs and optimal transport; SlimFlow, its student and what it is
compared with; a diffusion model, rectified; digits by caption, in one step. Fréchet distance by solver steps,
straightness and transport cost by seed; seeds run side by side. --quick is for a look whether it works.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VELOCITY = ("path=linear", "predicts=velocity", "loss=l2", "objective.compares=velocity", "sample.solver=euler")
WAYS: dict[str, tuple[str, ...]] = {
    "1-RF": ("--preset", "digits"),
    "2-RF": ("--preset", "rectified-flow"),
    "3-RF": ("--preset", "rectified-flow", "teacher.preset=rectified-flow"),
    "1-RF distilled": ("--preset", "distilled", "teacher.preset=digits"),
    "2-RF distilled": ("--preset", "distilled"),
    "W-CFM, eps 4": ("--preset", "w-cfm", "coupling.eps=4"),
    "W-CFM, eps 2": ("--preset", "w-cfm", "coupling.eps=2"),
    "W-CFM, eps 1": ("--preset", "w-cfm", "coupling.eps=1"),
    "W-CFM, ESS .8": ("--preset", "w-cfm"),
    "OT-CFM": ("--preset", "ot-cfm", "engine.workers=2"),
    "small 2-RF": ("--preset", "slimflow", "objective=matching"),
    "SlimFlow": ("--preset", "slimflow"),
    "from scratch": ("--preset", "slimflow-distilled", "objective=one_step", "teacher.start=null"),
    "plain": ("--preset", "slimflow-distilled", "objective=one_step"),
    "FGD, teacher": ("--preset", "slimflow-distilled", "objective.first_step=teacher"),
    "FGD": ("--preset", "slimflow-distilled"),
    "diffusion": ("--preset", "diffusion"),
    "RD": ("--preset", "rectified-diffusion"),
    "RD as velocity": ("--preset", "rectified-diffusion", *VELOCITY),
    "RD phased": ("--preset", "rectified-diffusion-phased"),
    "captions": ("--preset", "captions"),
    "InstaFlow, reflow": ("--preset", "instaflow-reflow"),
    "InstaFlow": ("--preset", "instaflow"),
    "InstaFlow, direct": (
        "--preset", "instaflow", "teacher.preset=captions", "teacher.config={network: {frozen: false}}",
        "teacher.pairs.guidance=[{name: classifier_free, scale: 2}]",
    ),
}  # fmt: skip
FIRST = ("digits", "w-cfm", "ot-cfm", "diffusion", "captions")
"""Presets without a teacher."""
QUICK = ("train.steps=40", "eval.count=64", "eval.paths=32")
QUICK_TEACHER = ("teacher.pairs.count=64", "teacher.config={train: {steps: 40}}")


def measure(seed: int, ways: list[str], more: list[str], quick: bool) -> dict[str, Any]:
    """The ways under one seed."""
    found: dict[str, Any] = {}
    for name, words in ((name, WAYS[name]) for name in ways):
        small = [*QUICK, *(() if words[1] in FIRST else QUICK_TEACHER)] if quick else []
        command = [sys.executable, "-m", "flowplat", "run", "images", *words, f"seed={seed}", *small, *more, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        figures = json.loads(done.stdout)["figures"]
        by_steps = {row["steps"]: row["figures"]["frechet"]["value"] for row in figures["by_steps"]}
        accuracy = {
            row["steps"]: row["figures"]["class_accuracy"]["value"]
            for row in figures["by_steps"]
            if "class_accuracy" in row["figures"]
        }
        floor = figures["by_steps"][0]["figures"]["frechet"]
        found[name] = {
            "frechet": by_steps,
            "floor": floor["floor"],
            "gaussian": floor["baselines"]["gaussian"],
            **({"accuracy": accuracy} if accuracy else {}),
            **{key: figure["value"] for key, figure in figures["paths"].items()},
        }
        print(f"seed {seed}  {name:16}", line(found[name]), flush=True)
    return found


def line(row: dict[str, Any]) -> str:
    """One way's figures."""
    distances = "  ".join(f"{steps}: {value:7.2f}" for steps, value in row["frechet"].items())
    defect = f"  defect {row['first_order_defect']:.4f}" if "first_order_defect" in row else ""
    return f"S {row['straightness']:.4f}  cost {row['transport_cost']:.4f}{defect}  FD {distances}"


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other data, another network")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        options.out.write_text(
            json.dumps(measure(options.seeds[0], options.ways, options.set, options.quick), indent=1) + "\n"
        )
        return
    parts = {seed: options.out.with_suffix(f".{seed}.json") for seed in options.seeds}
    more = ["--ways", *options.ways, *(["--set", *options.set] if options.set else [])]
    more += ["--quick"] if options.quick else []
    running = [
        subprocess.Popen([sys.executable, __file__, str(part), "--alone", "--seeds", str(seed), *more])
        for seed, part in parts.items()
    ]
    codes = [process.wait() for process in running]  # all of them, whatever the first says
    if any(codes):
        raise SystemExit("a seed has failed")
    options.out.write_text(json.dumps({seed: json.loads(part.read_text()) for seed, part in parts.items()}, indent=1))
    for part in parts.values():
        part.unlink()


if __name__ == "__main__":
    main()
