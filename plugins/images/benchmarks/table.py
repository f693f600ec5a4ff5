"""The rectified-flow family on Fashion-MNIST: `python plugins/images/benchmarks/table.py OUT.json --data train.npz`.

Each method of the images plugin through `platform run` and its preset, one UNet of 6.7 million parameters for all, from
first flow to pairs to student, in the folder where the command is given; several runs at a time on one GPU, since one
of them alone waits for the processor half of the time (three at once train 12,800 pictures a second on an H100). OUT is
written after each run: put it where it outlives the machine. What has no time left is not begun, and the same command
again goes on. A look whether it works, on a CPU: --scale .001 --batch 16 --chunk 50
--count 64 --pairs 100 --set engine.compile=false engine.precision=32-true eval.steps=[1,2] network.channels=[8,8,8]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pfgm
import rfpp
from digits import VELOCITY


@dataclass(frozen=True)
class Run:
    """A preset, the steps it trains, the run it learns from, another that makes the pairs first, further settings."""

    preset: str
    steps: int
    teacher: str | None = None
    after: str | None = None
    words: tuple[str, ...] = ()
    slim: bool = False


RUNS: dict[str, Run] = {
    "A 1-RF": Run("digits", 3000),
    "I EDM": Run("edm", 3000),
    "F diffusion": Run("diffusion", 3000),
    "H OT": Run("ot-cfm", 3000, words=("engine.workers=4",)),
    "H W, ESS .8": Run("w-cfm", 3000),
    "B 2-RF": Run("rectified-flow", 1200, "A 1-RF"),
    "F RD": Run("rectified-diffusion", 1200, "F diffusion"),
    "C B: uniform, L2": Run("rectified-flow-pp", 800, "I EDM", None, rfpp.WAYS["B"]),
    "C C: U, L2": Run("rectified-flow-pp", 800, "I EDM", "C B: uniform, L2", rfpp.WAYS["C"]),
    "D 1-RF distilled": Run("distilled", 800, "A 1-RF", "B 2-RF"),
    "D 2-RF distilled": Run("distilled", 800, "B 2-RF"),
    "F RD as velocity": Run("rectified-diffusion", 1200, "F diffusion", "F RD", VELOCITY),
    "C D: U, Huber": Run("rectified-flow-pp", 800, "I EDM", "C B: uniform, L2", rfpp.WAYS["D"]),
    "C E: t H + P": Run("rectified-flow-pp", 800, "I EDM", "C B: uniform, L2", rfpp.WAYS["E"]),
    "C F: t H + P / (1 - t)": Run("rectified-flow-pp", 800, "I EDM", "C B: uniform, L2", rfpp.WAYS["F"]),
    "C G: and real pairs": Run("rectified-flow-pp", 800, "I EDM", "C B: uniform, L2", rfpp.WAYS["G"]),
    "F phased": Run("rectified-diffusion-phased", 800, "F diffusion"),
    "E small 2-RF": Run("slimflow", 1600, "A 1-RF", "B 2-RF", ("objective=matching",), slim=True),
    "E SlimFlow": Run("slimflow", 1600, "A 1-RF", "B 2-RF", slim=True),
    "E from scratch": Run(
        "slimflow-distilled", 800, "E SlimFlow", None, ("objective=one_step", "teacher.start=null"), slim=True
    ),
    "E plain": Run("slimflow-distilled", 800, "E SlimFlow", "E from scratch", ("objective=one_step",), slim=True),
    "E FGD": Run("slimflow-distilled", 800, "E SlimFlow", "E from scratch", slim=True),
    "I D = 16": Run("pfgm-pp", 3000, words=("path.dimension=16",)),
    "I D = 128": Run("pfgm-pp", 3000, words=("path.dimension=128",)),
    "I D = 2048": Run("pfgm-pp", 3000, words=("path.dimension=2048",)),
}  # fmt: skip
"""In the order in which they are begun."""
EXTRA = {"C": rfpp.distances, "I": pfgm.distances}
"""What else is measured of a run."""


@dataclass
class State:
    """What has been done, and what is under way."""

    found: dict[str, Any] = field(default_factory=dict)
    running: dict[str, tuple[subprocess.Popen[str], float]] = field(default_factory=dict)


def words(name: str, run: Run, options: argparse.Namespace, folder: str | None) -> list[str]:
    """The command of one run."""
    size, steps = ([32, 64, 64] if run.slim else [64, 128, 128]), max(2, round(run.steps * options.scale))
    said = [
        "--preset", run.preset, f"data={{name: npz, path: {options.data}}}",
        f"network={{name: unet, channels: {size}, blocks: 2}}", f"seed={options.seed}",
        f"train.steps={steps}", f"train.batch_size={options.batch}", f"train.warmup={min(100, steps // 2)}",
        "train.lr=4.0e-4", f"train.ema={0.99 if run.teacher else 0.998}",
        "engine.compile=true", "engine.precision=bf16-mixed", "sample.precision=bf16-mixed",
        f"sample.batch_size={options.chunk}", f"eval.count={options.count}", f"eval.paths={options.chunk}",
        "eval.metrics=[frechet]", "eval.steps=[1,2,4,50]", "train.checkpoint_every=100000", "train.log_every=100",
    ]  # fmt: skip
    if run.preset in ("edm", "pfgm-pp", "rectified-flow-pp"):
        said += ["sigma_data=0.71"]  # of Fashion-MNIST in [-1, 1]
    if run.teacher:
        said += [f"teacher.model={folder}"]
        if "phased" not in run.preset:
            said += [f"teacher.pairs.count={options.pairs}", f"teacher.pairs.batch_size={options.chunk}"]
        if run.preset == "rectified-flow-pp":
            said += ["teacher.pairs.inverted=5000"]
        elif run.preset in ("rectified-flow", "distilled", "slimflow", "slimflow-distilled"):
            said += ["teacher.pairs.steps=20"]  # Heun's, 40 network calls
        if run.preset == "slimflow" and "objective=matching" not in run.words:
            said += [f"objective.steps={round(steps * 3 / 8)}"]
    return [*said, *run.words, *options.set]


def measure(name: str, options: argparse.Namespace, folder: str | None) -> dict[str, Any]:
    """One run and its figures, in a process of its own."""
    command = [sys.executable, "-m", "flowplat", "run", "images", *words(name, RUNS[name], options, folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    rows, paths = told["figures"]["by_steps"], told["figures"]["paths"]
    first = rows[0]["figures"]["frechet"]
    log = [json.loads(line) for line in (Path(told["folder"]) / "metrics.jsonl").read_text().splitlines()]
    return {
        "folder": told["folder"],
        "frechet": {row["steps"]: row["figures"]["frechet"]["value"] for row in rows},
        "floor": first["floor"],
        "gaussian": first["baselines"]["gaussian"],
        **{key: figure["value"] for key, figure in paths.items()},
        "samples_per_s": max((row.get("samples_per_s", 0) for row in log), default=0),
        **({"more": EXTRA[name[0]](Path(told["folder"]))} if options.more and name[0] in EXTRA else {}),
    }


def ready(state: State, wanted: list[str]) -> str | None:
    """The next run whose teacher and whose pairs are there."""
    for name in wanted:
        needed = [one for one in (RUNS[name].teacher, RUNS[name].after) if one]
        there = all("folder" in state.found.get(one, {}) for one in needed)
        if there and name not in state.found and name not in state.running:
            return name
    return None


def begin(name: str, state: State, options: argparse.Namespace) -> None:
    """One more process, which ends with all that it has started."""
    part = options.out.with_name(f"{options.out.stem}.part.{list(RUNS).index(name)}.json")
    teacher = RUNS[name].teacher
    folder = state.found[teacher]["folder"] if teacher else ""
    command = [sys.executable, __file__, str(part), *sys.argv[2:], "--alone", name, "--teacher", folder]
    state.running[name] = (subprocess.Popen(command, text=True, start_new_session=True), time.monotonic())


def settle(state: State, options: argparse.Namespace) -> None:
    """Take in what has ended."""
    for name, (process, since) in list(state.running.items()):
        if process.poll() is None:
            continue
        del state.running[name]
        part = options.out.with_name(f"{options.out.stem}.part.{list(RUNS).index(name)}.json")
        state.found[name] = json.loads(part.read_text()) if process.returncode == 0 else {"failed": True}
        part.unlink(missing_ok=True)
        state.found[name]["minutes"] = round((time.monotonic() - since) / 60, 2)
        print(f"{name:24} {line(state.found[name])}", flush=True)
        options.out.write_text(json.dumps(state.found, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    """One run's figures."""
    if "failed" in row:
        return "failed"
    distances = "  ".join(f"{steps}: {value:.3f}" for steps, value in row["frechet"].items())
    return f"FD {distances}  S {row.get('straightness', float('nan')):.4f}  {row['minutes']} min"


def main() -> None:
    """Measure, and write the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--runs", nargs="+", default=["A", "B", "C", "D", "E", "F", "H", "I"], help="rows of the table, or runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="after which nothing goes on")
    parser.add_argument("--workers", type=int, default=3, help="runs at a time")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of training steps")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=1000, help="samples drawn at once")
    parser.add_argument("--count", type=int, default=4000, help="samples for the distance")
    parser.add_argument("--pairs", type=int, default=20000)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--more", action="store_true", help="of C and I also what their own benchmarks measure")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--teacher", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        found = measure(options.alone, options, options.teacher or None)
        options.out.write_text(json.dumps(found))
        return
    state, start = State(), time.monotonic()
    if options.out.exists():  # what has been measured is not measured again
        state.found = {name: row for name, row in json.loads(options.out.read_text()).items() if "failed" not in row}
    wanted = [name for name in RUNS if name.startswith(tuple(options.runs))]
    while True:
        settle(state, options)
        late = time.monotonic() - start > 60 * options.minutes
        while not late and len(state.running) < options.workers and (name := ready(state, wanted)):
            begin(name, state, options)
        if late or not state.running:
            break
        time.sleep(0.5)
    for name, (process, _) in state.running.items():
        print(f"{name}: no time left", flush=True)
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
