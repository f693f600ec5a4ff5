"""The full network on one GPU in some eight minutes: speed, small molecules, QM7, asked dipoles, five embeddings.

    python plugins/molecules/benchmarks/gpu.py --out FOLDER [--qm7 qm7.sdf.gz] [--seconds 450] [--quick | --small]

qm7.sdf.gz is what scripts/qm7_to_sdf.py makes of QM7. FOLDER/gpu.json is written after every stage, with whatever went
wrong in one; what is drawn lies under FOLDER/drawn. xTB's values are computed in other processes meanwhile, where
tblite and dftd4 are there. --quick is for a look whether it works, anywhere; --small takes the default preset's network
and fixed numbers of steps, for a processor.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowcore.couplings import Coupled
from flowcore.data import Batch, batches, end_to_end
from flowcore.seeds import generator
from flowcore.training.loop import begin, fit
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.model import Model
from flowplat_molecules import chemistry, metrics
from flowplat_molecules.graphs import Molecules, centred, graph
from flowplat_molecules.sampler import draw

ASKED = (0.5, 1.0, 2.0, 3.0, 4.0)
EMBEDDINGS = ("concatenate", "sum", "multiply", "concatenate_sum", "concatenate_multiply")
PEAK = {
    "H100": {"bf16": 989e12, "tf32": 494e12},
    "H200": {"bf16": 989e12, "tf32": 494e12},
}  # dense, NVIDIA's data sheets


class Report:
    """What was found, on the disk after every stage."""

    def __init__(self, folder: Path, quick: bool, small: bool, seconds: float) -> None:
        self.folder, self.quick, self.small, self.seconds = folder, quick, small, seconds
        self.start = time.perf_counter()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor()
        self.found: dict[str, Any] = {
            "machine": card, "torch": torch.__version__, "python": platform.python_version(), "quick": quick,
        }  # fmt: skip

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        print(f"== {name}, {self.left:.0f} s left", flush=True)
        try:
            result = work()
        except Exception as error:  # the stages after it are still worth having
            traceback.print_exc()
            result = None
            self.found.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
        if isinstance(result, dict):
            self.found[name] = result
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        self.write()
        return result

    def write(self) -> None:
        (self.folder / "gpu.json").write_text(json.dumps(self.found, indent=1))


def settled(report: Report, *overrides: str) -> Experiment:
    """The full network's preset, or the small one's, made smaller still where the look is quick."""
    if report.small:
        usual = ("eval.metrics=[]", "engine.threads=1", "sample.batch_size=60")
        return Experiment(resolve("molecules", [*usual, *overrides], "molecules"))
    quick = (
        "network.scalars=32", "network.vectors=4", "network.edges=16", "network.blocks=3", "train.batch_size=16",
        "sample.batch_size=16", "sample.steps=4", "train.validate_samples=32",
    )  # fmt: skip
    usual = (
        "train.batch_size=256", "train.clip_by=norm", "train.weight_decay=1e-4", "train.ema=0.998",
        "train.validate_every=null", "sample.batch_size=200", "eval.metrics=[]",
        "engine.workers=0" if report.quick else "engine.workers=8",
    )  # fmt: skip
    return Experiment(resolve("molecules", [*usual, *overrides, *(quick if report.quick else ())], "propmolflow"))


def trained(report: Report, experiment: Experiment, seconds: float, steps: int) -> tuple[Model, dict[str, Any]]:
    """The run trained for about so many seconds, or of a small network for ``steps`` steps, the rate falling to zero at
    the end; and how that went."""
    lr = experiment.config.train.lr if report.small else 6e-4

    def timed(steps: int, source: Any, log: list[dict[str, Any]]) -> tuple[Any, float]:
        settings = experiment.config.train.model_copy(
            update={
                "steps": steps, "lr": lr, "schedule": "cosine", "warmup": min(100, steps // 4),
                "log_every": max(1, steps // 40), "checkpoint_every": 10**9,
            }
        )  # fmt: skip
        state = begin(experiment.network(), settings, experiment.engine)
        began = time.perf_counter()
        seed, engine = experiment.config.seed, experiment.engine
        fit(state, experiment.loss, source, settings, seed, log.append, lambda state: None, engine=engine)
        return state, time.perf_counter() - began

    source = experiment.source
    if not report.small:
        short = 4 if report.quick else 24
        timed(2, source, [])
        _, first = timed(short, source, [])
        _, more = timed(2 * short, source, [])  # what the start of the loader costs is in both
        pace = max((more - first) / short, 1e-4)
        steps = 6 if report.quick else max(60, int(0.93 * (seconds - 2 * (first + more)) / pace))
    log: list[dict[str, Any]] = []
    state, took = timed(steps, source, log)
    model = Model(experiment, state.ema.module.eval(), report.folder)
    size = experiment.config.train.batch_size
    told = {
        "steps": steps, "batch_size": size, "seconds": round(took, 1), "molecules_per_s": round(steps * size / took, 1),
        "train_molecules": len(experiment.data.train()), "loss": [(row["step"], round(row["loss"], 4)) for row in log],
        "validation_loss": round(experiment.validate(model.network), 4),
        "precision": experiment.config.engine.precision,
        "parameters": sum(p.numel() for p in state.network.parameters()),
    }  # fmt: skip
    return model, told


def structure(report: Report, model: Model, count: int, name: str) -> dict[str, Any]:
    """Shares of sound molecules among ``count``, properties as the training data has them, and how fast they came."""
    began = time.perf_counter()
    samples = model.sample(count, seed=1)
    _wait()
    took = time.perf_counter() - began
    model.data.write(samples, made(report, name))
    measured = Measured_(report, model)
    figures = metrics.structure(samples, measured)
    return {
        "count": count, "steps": model.experiment.config.sample.steps, "molecules_per_s": round(count / took, 1),
    } | {key: {"value": one.value, "floor": one.floor, **one.baselines} for key, one in figures.items()}  # fmt: skip


def Measured_(report: Report, model: Model) -> Any:
    from flowcore.plugin.contracts import Measured

    return Measured(model.data, report.folder, 0, report.device, model)


def made(report: Report, name: str) -> Path:
    folder = report.folder / "drawn" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def asked(report: Report, model: Model, count: int, name: str, pool: Any) -> Callable[[], dict[str, Any]]:
    """``count`` molecules for each of five dipoles; a function that waits for xTB's values of them and compares."""
    parts = []
    for number, target in enumerate(ASKED):
        parts.append(model.sample(count, seed=10 + number, condition=f"mu={target}"))

    samples = end_to_end(parts)
    model.data.write(samples, made(report, name))
    checked = list(chemistry.verdicts(samples, model.data.vocabulary))
    jobs = []
    for raw, verdict in checked:
        if verdict.masked or verdict.fragments != 1 or not verdict.closed_shell:
            jobs.append(None)
        else:
            numbers = [atom.GetAtomicNum() for atom in raw.GetAtoms()]
            jobs.append((numbers, raw.GetConformer().GetPositions(), verdict.charge))
    futures = [pool.submit(_dipoles, jobs[k : k + 25]) for k in range(0, len(jobs), 25)]
    sizes = torch.bincount(samples.index["positions"], minlength=len(samples))
    wanted = samples.condition[:, [one.name for one in model.data.spec().properties].index("mu")].double()
    valid = [verdict.valid for _, verdict in checked]
    column = [one.name for one in model.data.spec().properties].index("mu")

    def compared() -> dict[str, Any]:
        values = torch.tensor([value for future in futures for value in _of(future)], dtype=torch.float64)
        told = {"count": len(wanted), "valid": sum(valid) / len(valid)}
        known = ~values.isnan()
        told["xtb_counted"] = int(known.sum())
        if int(known.sum()) < 10:
            return told
        for label, which in (("all", known), ("valid", known & torch.tensor(valid))):
            a, c = wanted[which], values[which]
            told[label] = {
                "count": len(a), "spearman": metrics.spearman(a, c), "mae": float((a - c).abs().mean()),
                "mae_shuffled": metrics.shuffled(a, c),
                "mae_size_only": metrics.size_only(a, sizes[which], model.data, column),
                "mean_by_target": {str(t): float(c[a == t].mean()) for t in ASKED if bool((a == t).any())},
                "median_by_target": {str(t): float(c[a == t].median()) for t in ASKED if bool((a == t).any())},
            }  # fmt: skip
        return told

    return compared


def _of(future: Future) -> list[float]:
    return future.result(timeout=120)


def _dipoles(jobs: list[Any]) -> list[float]:
    """GFN2-xTB's dipoles in Debye; in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from flowplat_molecules import xtb

    return [math.nan if job is None else xtb.properties(*job)["mu"] for job in jobs]


def speed(report: Report) -> dict[str, Any]:
    """Training and sampling speed at QM9's sizes (3 to 29 atoms, 18 on average), and the share of the card's peak."""
    count = 32 if report.quick else 512
    sizes = (18 + 3 * torch.randn(4 * count, generator=generator(0, "sizes"))).round().long().clamp(3, 29)
    laid, draws = graph(sizes), generator(0, "molecules")
    x1 = {
        "positions": centred(3 * torch.randn(len(laid.atom), 3, generator=draws), laid.atom, len(sizes)),
        "atoms": torch.randint(5, (len(laid.atom),), generator=draws),
        "charges": torch.randint(6, (len(laid.atom),), generator=draws),
        "bonds": torch.randint(5, (len(laid.pair),), generator=draws),
    }
    source = Molecules(x1, sizes, torch.rand(len(sizes), 1, generator=draws))
    told: dict[str, Any] = {
        "batch": count, "atoms": float(sizes.float().mean()), "edges": float((sizes * (sizes - 1)).float().mean()),
    }  # fmt: skip
    card = next((peak for name, peak in PEAK.items() if name in report.found["machine"]), None)
    variants = [(precision, compiled) for compiled in (False, True) for precision in ("32-true", "bf16-mixed")]
    if report.quick:
        variants = variants[:1]
    for precision, compiled in variants:
        name = f"{precision}{', compiled' if compiled else ''}"
        if compiled and report.left < 0.82 * report.seconds:
            continue
        try:
            told[name] = _speed(report, source, count, precision, compiled, card)
        except Exception as error:
            traceback.print_exc()
            told[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        report.found["speed"] = told
        report.write()
    began = time.perf_counter()  # the loader alone, in this process
    aligned = Coupled(source, None, settled(report).parts.coupling)
    for number in range(2):
        aligned.batch(torch.arange(count), generator(0, "loader", number))
    told["loader_molecules_per_s_per_process"] = round(2 * count / (time.perf_counter() - began), 1)
    return told


def _speed(report: Report, source: Molecules, count: int, precision: str, compiled: bool, card: Any) -> dict[str, Any]:
    experiment = settled(report, f"engine.precision={precision}")
    settings = experiment.config.train.model_copy(update={"steps": 10, "batch_size": count})
    device, steps = report.device, 2 if report.quick else 12
    network = experiment.network()
    state = begin(network, settings, experiment.engine)
    if compiled:
        network.compile()
    some = list(batches(Coupled(source, None, experiment.parts.coupling), count, 0, 4, 0))
    some = [batch.to(device) for batch in some]
    draws = generator(0, "loss", device=device)

    def step(batch: Batch) -> None:
        value = experiment.loss(state.module, batch, draws).mean()
        state.optimizer.zero_grad()
        experiment.engine.fabric.backward(value)
        state.optimizer.step()
        state.ema.update_parameters(network)

    told: dict[str, Any] = {}
    began = time.perf_counter()
    for number in range(3 if report.quick else 8):
        step(some[number % 4])
    _wait()
    told["warm_up_s"] = round(time.perf_counter() - began, 1)
    began = time.perf_counter()
    for number in range(steps):
        step(some[number % 4])
    _wait()
    pace = (time.perf_counter() - began) / steps
    told["train_molecules_per_s"] = round(count / pace, 1)
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            step(some[0])
        flops = counter.get_total_flops()
        told["train_tflop_per_step"] = round(flops / 1e12, 3)
        report.found.setdefault("flops", {})["train"] = flops
    flops = report.found.get("flops", {}).get("train", 0)
    peak = None if card is None else card["bf16" if precision.startswith("bf16") else "tf32"]
    told["train_tflop_per_s"] = round(flops / pace / 1e12, 2)
    if peak:
        told["train_share_of_peak"] = round(flops / pace / peak, 4)
    network.eval()
    calls = 4 if report.quick else 100
    called = experiment.engine.called(network, precision)
    sizes, parts = source.sizes[:count], experiment.steered()
    condition = torch.ones(count, 1, device=device)
    draw(parts, called, sizes, condition, 2, draws)
    _wait()
    began = time.perf_counter()
    draw(parts, called, sizes, condition, calls, draws)
    _wait()
    took = time.perf_counter() - began
    told["sample_molecules_per_s_at_100_steps"] = round(count / took * calls / 100, 1)
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            draw(parts, called, sizes, condition, 1, draws)
        report.found["flops"]["sample"] = counter.get_total_flops()
    flops = report.found.get("flops", {}).get("sample", 0)
    told["sample_tflop_per_s"] = round(flops * calls / took / 1e12, 2)
    if peak:
        told["sample_share_of_peak"] = round(flops * calls / took / peak, 4)
    if device.type == "cuda":
        told["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
        torch.cuda.reset_peak_memory_stats()
    return told


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--qm7", type=Path)
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    quick = options.quick
    small_one = options.small
    report = Report(options.out, quick, small_one, options.seconds)
    pool = ProcessPoolExecutor(1 if small_one else 2 if quick else 10, mp_context=multiprocessing.get_context("spawn"))
    waiting: dict[str, Callable[[], dict[str, Any]]] = {}
    whole = options.seconds

    if not small_one:
        report.stage("speed", lambda: speed(report))
    compiles = _faster_compiled(report.found.get("speed", {}))
    report.found["compiled_training"] = compiles
    common = ["engine.compile=true"] if compiles else []
    count, each = (8, 2) if quick else (120, 60) if small_one else (1000, 200)

    def run(name: str, data: str, seconds: float, guided: bool) -> None:
        box: dict[str, Any] = {}

        def train() -> dict[str, Any]:
            box["model"], told = trained(report, settled(report, data, *common), seconds, 1500)
            return told

        report.stage(f"{name}: training", train)
        if "model" not in box:
            return
        model: Model = box["model"]
        report.stage(f"{name}: structure", lambda: structure(report, model, count, name))

        def ask(label: str, one: Model) -> None:
            waiting[label] = asked(report, one, each, label.replace(": ", "-").replace(" ", "-"), pool)

        report.stage(f"{name}: drawn for dipoles", lambda: ask(f"{name}: dipoles", model))
        if guided:
            config = model.experiment.config
            over = [data, *common, "sample.guidance=[{name: classifier_free, scale: 2}]"]
            other = Model(settled(report, *over), model.network, report.folder)
            assert other.experiment.config.network == config.network
            report.stage(f"{name}: drawn guided", lambda: ask(f"{name}: dipoles, guided w=2", other))

    small = "data={name: builtin, judge_share: 0}"
    run("small", small, 0.24 * whole, True)
    if options.qm7 is not None:
        place = options.qm7.absolute()
        fields = "properties: [mu], judge_share: 0, units: {mu: D}, method: GFN2-xTB"
        run("qm7", f"data={{name: sdf, path: {place}, {fields}}}", 0.24 * whole, False)

    def settle() -> None:
        for label in list(waiting):
            report.stage(label, waiting.pop(label))

    share = max(8.0, (report.left - 45) / len(EMBEDDINGS) - 6)
    for embedding in EMBEDDINGS:
        if report.left < 25 and not quick and not small_one:
            break

        def one(embedding: str = embedding) -> dict[str, Any]:
            model, told = trained(report, settled(report, small, f"network.embedding={embedding}", *common), share, 500)
            label = f"embedding {embedding}"
            waiting[f"{label}: dipoles"] = asked(report, model, each, label.replace(" ", "-"), pool)
            return told

        report.stage(f"embedding {embedding}", one)
        if embedding == EMBEDDINGS[1]:
            settle()
    settle()
    pool.shutdown(wait=False, cancel_futures=True)
    report.found["seconds"]["whole"] = round(time.perf_counter() - report.start, 1)
    report.write()
    print(json.dumps(report.found, indent=1))


def _faster_compiled(told: dict[str, Any]) -> bool:
    """Whether the compiled blocks trained more than a tenth faster, in 32 bits."""
    plain, compiled = told.get("32-true", {}), told.get("32-true, compiled", {})
    key = "train_molecules_per_s"
    return bool(key in compiled and compiled[key] > 1.1 * plain.get(key, math.inf))


if __name__ == "__main__":
    main()
