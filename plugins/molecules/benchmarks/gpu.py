"""The full network on one GPU in some nine minutes: speed, small molecules, QM7, asked dipoles, five embeddings.

    python plugins/molecules/benchmarks/gpu.py --out FOLDER [--qm7 qm7.sdf.gz] [--seconds 480]
        [--quick | --small [--embeddings]]

qm7.sdf.gz is what scripts/qm7_to_sdf.py makes of QM7. FOLDER/gpu.json is written after every stage, with whatever went
wrong in one, and FOLDER/drawn.tar.gz with all that was drawn so far. xTB's values are computed in other processes
meanwhile, where tblite and dftd4 are there. The network is replayed as CUDA graphs (engine.compile=true) where these
compute what it does without. --quick is for a look whether it works, anywhere; --small takes the default preset's
network and fixed numbers of steps, for a processor, and --embeddings the five embeddings alone.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gpu_speed
import torch

from flowcore.plugin.contracts import Measured
from flowcore.training.loop import TrainState, begin, fit
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.model import Model
from flowplat_molecules import chemistry, metrics

ASKED = (0.5, 1.0, 2.0, 3.0, 4.0)
EMBEDDINGS = ("concatenate", "sum", "multiply", "concatenate_sum", "concatenate_multiply")
SCALES = (1.0, 3.0, 2.0)  # of classifier-free guidance; the default preset has 3
Told = dict[str, Any]


class Report:
    """What was found, on the disk after every stage."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder, self.quick, self.small, self.seconds = options.out, options.quick, options.small, options.seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp())  # what is drawn, packed into the folder after every stage
        self.start, self.written, self.graphs = time.perf_counter(), 0, False
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine()
        self.found: Told = {
            "machine": card, "torch": torch.__version__, "python": platform.python_version(), "quick": self.quick,
        }  # fmt: skip
        self.waiting: dict[str, tuple[list[tuple[Future[Any], int]], Callable[[], Told]]] = {}

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        gc.collect()  # a network and its graphs know each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        began = time.perf_counter()
        print(f"== {name}, {self.left:.0f} s left", flush=True)
        result = None
        try:
            result = work()
        except Exception as error:  # the stages after it are still worth having
            traceback.print_exc()
            self.found.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"[:500]
        if isinstance(result, dict):
            self.found.setdefault(name, {}).update(result)
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        self.settle(0)
        self.write()
        return result

    def settle(self, patience: float) -> None:
        """Fill in what xTB has told by now, or within so many seconds."""
        until = time.perf_counter() + patience
        for name in list(self.waiting):
            futures, compared = self.waiting[name]
            while not all(one.done() for one, _ in futures) and time.perf_counter() < until:
                time.sleep(0.1)
            if patience or all(one.done() for one, _ in futures):
                del self.waiting[name]
                try:
                    self.found.setdefault(name, {}).update(compared())
                except Exception as error:
                    traceback.print_exc()
                    self.found.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"[:500]

    def write(self) -> None:
        text = self.folder / "gpu.json.tmp"
        text.write_text(json.dumps(self.found, indent=1) + "\n")
        text.rename(self.folder / "gpu.json")
        drawn = sorted(self.work.glob("drawn/*/*"))
        if len(drawn) != self.written:
            packed = self.folder / "drawn.tar.gz.tmp"
            with tarfile.open(packed, "w:gz", compresslevel=4) as archive:
                for path in drawn:
                    archive.add(path, path.relative_to(self.work))
            packed.rename(self.folder / "drawn.tar.gz")
            self.written = len(drawn)


def settled(report: Report, *overrides: str) -> Experiment:
    """The full network's preset, or the small one's, made smaller still where the look is quick."""
    if report.small:
        usual = ("eval.metrics=[]", "engine.threads=1", "sample.guidance=[]", "sample.batch_size=60")
        return Experiment(resolve("molecules", [*usual, *overrides], "molecules"))
    quick = (
        "network.scalars=32", "network.vectors=4", "network.edges=16", "network.blocks=3", "train.batch_size=16",
        "sample.steps=4", "train.validate_samples=32", "sample.batch_size=20",
    )  # fmt: skip
    usual = (
        "train.batch_size=128", "train.clip_by=norm", "train.weight_decay=1e-4", "train.ema=0.998",
        "network.normaliser=10", f"engine.compile={str(report.graphs).lower()}",
        "train.validate_every=null", "sample.batch_size=1000", "sample.sampler.edges=400000", "eval.metrics=[]",
        "engine.threads=1", f"engine.workers={2 if report.quick else 8}",
    )  # fmt: skip
    return Experiment(resolve("molecules", [*usual, *overrides, *(quick if report.quick else ())], "propmolflow"))


class LateError(Exception):
    """The time of a stage is over."""


def fitted(
    experiment: Experiment, steps: int, lr: float, log: list[Told], limit: float
) -> tuple[TrainState, list[float]]:
    """A run trained for ``steps`` steps, or for ``limit`` seconds, and when each step was made."""
    settings = experiment.config.train.model_copy(
        update={
            "steps": steps, "lr": lr, "schedule": "cosine", "warmup": min(200, steps // 4),
            "log_every": max(1, steps // 40), "checkpoint_every": 10**9,
        }
    )  # fmt: skip
    state = begin(experiment.network(), settings, experiment.engine)
    began, times = time.perf_counter(), []

    def after(step: int) -> BaseException | None:
        times.append(time.perf_counter() - began)
        return LateError() if times[-1] > limit else None

    seed, engine = experiment.config.seed, experiment.engine
    try:
        fit(state, experiment.loss, experiment.source, settings, seed, log.append, lambda state: None, after,
            engine=engine)  # fmt: skip
    except LateError:
        print(f"stopped after {state.step} of {steps} steps", flush=True)
    return state, times


def pace_of(report: Report, experiment: Experiment) -> float:
    """Seconds a training step takes, the start of the loader left out."""
    count = 6 if report.quick else 40
    _, times = fitted(experiment, count, 1e-4, [], 60)
    return (times[-1] - times[count // 4]) / (len(times) - 1 - count // 4)


def trained(report: Report, experiment: Experiment, steps: int, limit: float) -> tuple[Model, Told]:
    """The run trained, its rate falling to zero at the end; and how that went. Where it diverges, once more at a lower
    rate in the time that is left."""
    lr, log = (experiment.config.train.lr if report.small else 7e-4), []
    began = time.perf_counter()
    try:
        state, times = fitted(experiment, steps, lr, log, limit)
    except Exception as error:
        if "not finite" not in str(error) and " is nan" not in str(error):
            raise
        print(error, flush=True)
        rest = 1 - (time.perf_counter() - began) / limit
        lr, log = lr / 4, []
        state, times = fitted(experiment, max(2, int(rest * steps)), lr, log, rest * limit)
    model = Model(experiment, state.ema.module.eval(), report.folder)
    size = experiment.config.train.batch_size
    told = {
        "steps": state.step, "batch_size": size, "lr": lr, "seconds": round(times[-1], 1),
        "molecules_per_s": round(state.step * size / times[-1], 1), "train_molecules": len(experiment.data.train()),
        "loss": [(row["step"], round(row["loss"], 4)) for row in log],
        "validation_loss": round(experiment.validate(model.network), 4),
        "precision": experiment.config.engine.precision,
        "parameters": sum(p.numel() for p in state.network.parameters()),
    }  # fmt: skip
    return model, told


def guided(report: Report, model: Model, scale: float) -> Model:
    """The same model under guidance."""
    words = "[]" if scale == 1 else f"[{{name: classifier_free, scale: {scale}}}]"
    other = settled(report, f"sample.guidance={words}")
    config = model.experiment.config
    sample = config.sample.model_copy(update={"guidance": other.config.sample.guidance})
    experiment = Experiment(config.model_copy(update={"sample": sample}))
    experiment.data = model.data  # read once
    return Model(experiment, model.network, report.folder)


def drawn(report: Report, model: Model, count: int, name: str, pool: Any, wish: str | None, whole: bool) -> Told:
    """``count`` molecules, asked what training molecules have or what is wished: how many are sound, and later what
    xTB says of them. ``whole`` has every figure of soundness, with its floor and its baseline."""
    began = time.perf_counter()
    samples = model.sample(count, seed=1, condition=wish)
    took = time.perf_counter() - began
    folder = report.work / "drawn" / name.replace(": ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    model.data.write(samples, folder)
    checked = list(chemistry.verdicts(samples, model.data.vocabulary))
    verdicts = [verdict for _, verdict in checked]
    told: Told = {"count": count, "seconds": round(took, 2), "molecules_per_s": round(count / took, 1)} | {
        key: round(sum(getattr(one, key) for one in verdicts) / count, 4)
        for key in ("valid", "stable", "closed_shell", "masked")
    }
    if whole:
        figures = metrics.structure(samples, Measured(model.data, report.folder, 0, report.device, model))
        told |= {key: {"value": one.value, "floor": one.floor, **one.baselines} for key, one in figures.items()}
    jobs: list[Any] = []
    for raw, verdict in checked:
        fit_for = not verdict.masked and verdict.fragments == 1 and verdict.closed_shell
        numbers = [atom.GetAtomicNum() for atom in raw.GetAtoms()]
        jobs.append((numbers, raw.GetConformer().GetPositions(), verdict.charge) if fit_for else None)
    parts = [jobs[k : k + 25] for k in range(0, len(jobs), 25)]
    futures = [(pool.submit(_dipoles, part), len(part)) for part in parts]
    sizes = torch.bincount(samples.index["positions"], minlength=len(samples))
    column = [one.name for one in model.data.spec().properties].index("mu")
    wanted, valid = samples.condition[:, column].double(), torch.tensor([one.valid for one in verdicts])

    def compared() -> Told:
        values = torch.tensor([value for one, many in futures for value in _of(one, many)], dtype=torch.float64)
        known = ~values.isnan()
        found: Told = {"xtb_counted": int(known.sum())}
        for label, which in (("all", known), ("of_valid", known & valid)):
            a, c = wanted[which], values[which]
            if len(a) < 3:
                continue
            found[label] = {
                "count": len(a), "spearman": metrics.spearman(a, c), "mae": float((a - c).abs().mean()),
                "mae_shuffled": metrics.shuffled(a, c),
                "mae_size_only": metrics.size_only(a, sizes[which], model.data, column),
            }  # fmt: skip
            if wish is not None:
                by = {t: c[a == t] for t in ASKED if bool((a == t).any())}
                found[label] |= {
                    "mean_by_target": {str(t): round(float(part.mean()), 3) for t, part in by.items()},
                    "mae_by_target": {str(t): round(float((part - t).abs().mean()), 3) for t, part in by.items()},
                }
        return found

    report.waiting[name] = futures, compared
    return told


def _of(future: Future[Any], count: int) -> list[float]:
    """What a process has told of ``count`` molecules; NaN where it did not end, or not in time."""
    try:
        values: list[float] = future.result(timeout=0)
        return values
    except Exception as error:
        print(f"no values of xTB: {type(error).__name__}: {error}", flush=True)
        return [math.nan] * count


def _dipoles(jobs: list[Any]) -> list[float]:
    """GFN2-xTB's dipoles in Debye, in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from flowplat_molecules import xtb

    return [math.nan if job is None else xtb.properties(*job)["mu"] for job in jobs]


def collection(report: Report, pool: Any, name: str, data: str, seconds: float) -> None:
    """One data set: trained, and drawn from with and without guidance."""
    experiment, box, began = settled(report, data), {}, time.perf_counter()

    def train() -> Told:
        steps = 1500
        if not report.small:
            pace = pace_of(report, experiment)
            ahead = seconds - (time.perf_counter() - began) - 3
            steps = 6 if report.quick else max(60, int(0.97 * ahead / pace))
        limit = math.inf if report.small else max(seconds - (time.perf_counter() - began), 20)
        box["model"], told = trained(report, experiment, steps, limit)
        return told

    report.stage(f"{name}: training", train)
    if "model" not in box:
        return
    count, wish = (20 if report.quick else 120 if report.small else 1000), _wish()
    for scale in SCALES:
        one, label = guided(report, box["model"], scale), f"{name}: scale {scale:g}"
        if scale != SCALES[-1]:
            report.stage(
                f"{label}, usual", lambda o=one, n=f"{label}, usual": drawn(report, o, count, n, pool, None, True)
            )
        report.stage(
            f"{label}, asked", lambda o=one, n=f"{label}, asked": drawn(report, o, count, n, pool, wish, False)
        )


def _wish() -> str:
    return "mu=" + "|".join(map(str, ASKED))


def embeddings(report: Report, pool: Any, data: str, seconds: float) -> None:
    """Five networks for as many steps each."""
    count, steps, first = (10 if report.quick else 100 if report.small else 500), 600, None
    for embedding in EMBEDDINGS:
        calls = ["sample.steps=50", "train.ema=0.99"] if report.small else []
        experiment = settled(report, data, f"network.embedding={embedding}", f"sample.batch_size={count}", *calls)
        if first is not None:
            experiment.data = first.data  # read once
        if not report.small and not report.quick and report.left < 0.6 * seconds:
            report.found.setdefault("errors", {})[f"embedding {embedding}"] = "no time was left"
            continue
        if first is None and not report.small:  # all have the steps of the first
            pace = report.stage("embeddings: pace", lambda one=experiment: pace_of(report, one)) or 0.05
            steps = 6 if report.quick else max(60, int(0.8 * seconds / pace))
        first = first or experiment

        def one(embedding: str = embedding, experiment: Experiment = experiment, steps: int = steps) -> Told:
            limit = math.inf if report.small else 1.3 * seconds
            model, told = trained(report, experiment, steps, limit)
            label = f"embedding {embedding}: asked, scale 3"
            found = drawn(report, guided(report, model, 3.0), count, label, pool, _wish(), False)
            report.found.setdefault(label, {}).update(found)
            return told

        report.stage(f"embedding {embedding}", one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--qm7", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--embeddings", action="store_true")
    options = parser.parse_args()
    gpu_speed.settings()
    report, whole = Report(options), options.seconds
    processes = 1 if report.small else 2 if report.quick else 6
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    if report.device.type == "cuda":
        report.stage("graphs", lambda: gpu_speed.agree(report.quick))
        worst = [report.found.get("graphs", {}).get(name, math.inf) for name in ("outputs", "gradients")]
        report.graphs = max(worst) < 1e-3
    small = "data={name: builtin, judge_share: 0}"
    parts = (0.23, 0.23) if options.qm7 is not None else (0.55 if report.graphs else 0.67, 0)
    if not options.embeddings:
        collection(report, pool, "small", small, parts[0] * whole)
    if options.qm7 is not None:
        fields = "properties: [mu], judge_share: 0, units: {mu: D}, method: GFN2-xTB"
        data = f"data={{name: sdf, path: {options.qm7.absolute()}, {fields}}}"
        collection(report, pool, "qm7", data, parts[1] * whole)
    if not report.small:

        def save(found: Told) -> None:
            report.found["speed"] = found
            report.write()

        report.stage("speed", lambda: gpu_speed.run(report.graphs, report.quick, save))
    embeddings(report, pool, small, max(8.0, (report.left - 15) / len(EMBEDDINGS) - 7))
    report.settle(60 if report.small or report.quick else max(1, report.left))
    pool.shutdown(wait=False, cancel_futures=True)
    report.found["seconds"]["whole"] = round(time.perf_counter() - report.start, 1)
    report.write()
    print(json.dumps(report.found, indent=1))


if __name__ == "__main__":
    main()
