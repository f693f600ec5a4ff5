"""What issue and method promise of one GPU, in some nine minutes: unseen scanners, real repeats, lesions, speed.

    python plugins/mri/benchmarks/gpu.py --out FOLDER [--data DIR] [--minutes 8.5] [--tiny]

DIR holds ``mri_ms_repeat`` and ``mri_ms_mni``. FOLDER/gpu.json is written after every stage, with what went wrong in
one; quality.html and pictures lie beside it. --tiny is for a look whether it works, anywhere.
"""

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowcore.plugin.contracts import Measured
from flowcore.training.loop import begin, fit
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.model import Model
from flowplat_mri import applying, data, harmonise, histogram, metrics, picture, reading, scoring, simulate
from flowplat_mri.data import Given, Scan
from flowplat_mri.scaling import common

SUBJECTS = 3  # held out, of the simulated
FOLDS = 4  # slabs of the real repeat
REPEAT = 21.72  # dB of exact histogram matching, T1W of visit 1 against visit 2: shared/data/mri_ms_repeat


class Report:
    """What was found, on the disk after every stage."""

    def __init__(self, folder: Path, minutes: float, tiny: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tiny, self.seconds = folder, tiny, 60 * minutes
        self.start = time.perf_counter()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor()
        self.found: dict[str, Any] = {"machine": card, "torch": torch.__version__, "tiny": tiny, "seconds": {}}

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)

    def stage(self, name: str, work: Callable[[], Any], needs: float = 0.0) -> Any:
        """``work`` if ``needs`` seconds are left for it; what it raises is noted and the next stage begins."""
        if self.left < needs and not self.tiny:
            self.found.setdefault("left_out", []).append(name)
            return None
        began, result = time.perf_counter(), None
        print(f"== {name}, {self.left:.0f} s left", flush=True)
        try:
            result = work()
        except Exception as error:
            traceback.print_exc()
            self.found.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
        if isinstance(result, dict):
            self.found[name] = result
        self.found["seconds"][name] = round(time.perf_counter() - began, 1)
        (self.folder / "gpu.json").write_text(json.dumps(self.found, indent=1))
        return result


def settled(report: Report, preset: str, *overrides: str) -> Experiment:
    """A preset at 2 mm with the larger network; at 6 mm with the smallest where the look is quick."""
    size = ("data.resolution=6", "data.subjects=3", "data.guises=1") if report.tiny else ("data.resolution=2",)
    tiny = ("train.batch_size=4",) if report.tiny else ()
    return Experiment(resolve("mri", [*size, *overrides, *tiny, "eval.metrics=[]"], preset))


def network(report: Report, channels: str = "[96, 160, 224]", blocks: int = 2) -> tuple[str, ...]:
    if report.tiny:
        return ("network.channels=[16, 16]", "network.blocks=1", "engine.precision=32-true")
    return (
        f"network.channels={channels}",
        f"network.blocks={blocks}",
        "network.patch=2",
        "engine.precision=bf16-mixed",
    )


def trained(report: Report, experiment: Experiment, seconds: float) -> tuple[Model, dict[str, Any]]:
    """Trained for about so many seconds, the rate falling to zero at the end; and how that went."""
    source = experiment.source

    def timed(steps: int, log: list[dict[str, Any]]) -> tuple[Any, float]:
        settings = experiment.config.train.model_copy(
            update={
                "steps": steps, "schedule": "cosine", "warmup": min(200, steps // 5), "validate_every": None,
                "log_every": max(1, steps // 40), "checkpoint_every": 10**9, "ema": min(0.998, 1 - 5 / max(10, steps)),
            }
        )  # fmt: skip
        state = begin(experiment.network(), settings, experiment.engine)
        began = time.perf_counter()
        seed, engine = experiment.config.seed, experiment.engine
        fit(state, experiment.loss, source, settings, seed, log.append, lambda state: None, engine=engine)
        if report.device.type == "cuda":
            torch.cuda.synchronize()
        return state, time.perf_counter() - began

    steps, pace = 4, 1.0
    if not report.tiny:
        timed(3, [])
        _, warm = timed(20, [])
        pace = warm / 20
        steps = max(40, int((seconds - warm) / pace))
    log: list[dict[str, Any]] = []
    state, took = timed(steps, log)
    model = Model(experiment, state.ema.module.eval(), report.folder)
    told = {
        "steps": steps, "batch_size": experiment.config.train.batch_size, "seconds": round(took, 1),
        "ms_per_step": round(1000 * took / steps, 2), "slices": len(source),
        "samples_per_s": round(steps * experiment.config.train.batch_size / took, 1),
        "parameters": sum(p.numel() for p in state.network.parameters()),
        "loss": [(row["step"], round(row["loss"], 5)) for row in log],
    }  # fmt: skip
    return model, told


def sources(report: Report, model: Model, scanners: Sequence[str]) -> list[tuple[str, Scan, Scan, np.ndarray]]:
    """Unseen subjects on each scanner, with the truth and the tissues of each."""
    numbers = range(9000, 9000 + (1 if report.tiny else SUBJECTS))
    drawn = data.drawn(numbers, model.data.config.resolution)
    truths = data.scanned(numbers, drawn, "target", 50)
    by_scanner = [data.scanned(numbers, drawn, scanner, place) for place, scanner in enumerate(scanners, 1)]
    return [
        (scanner, scans[row], truths[row], tissues.labels)
        for row, tissues in enumerate(drawn)
        for scanner, scans in zip(scanners, by_scanner, strict=True)
    ]


def table(report: Report, model: Model, scanners: Sequence[str], draws: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Means over subjects, by scanner and way: each of ``draws`` is (samples, steps), of which (0, 1) is the mean in
    one call; ``prior`` alone and ``combined`` with histogram matching."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for scanner, source, truth, labels in sources(report, model, scanners):
        found = rows.setdefault(scanner, {})
        ways = {
            "unchanged": source.x,
            "z-score": histogram.standardized(source.x, source.mask, model.data.target),
            "histogram matching": histogram.matched(source.x, source.mask, model.data.target),
        }
        weights = {}
        for samples, steps in draws:
            made = harmonise.harmonize(model, source.x, source.mask, samples=samples, steps=steps)
            name = "mean in one call" if samples == 0 else f"{samples} x {steps} steps"
            ways[f"prior, {name}"], ways[f"combined, {name}"] = made.prior, made.volume
            weights[f"combined, {name}"] = made.weight
        for way, x in ways.items():
            one = dict(metrics.compared(x, truth.x, source.mask, labels))
            found.setdefault(way, []).append(one | ({"weight": weights[way]} if way in weights else {}))
    return {
        scanner: {way: {key: round(float(np.mean([o[key] for o in ones])), 4) for key in ones[0]} for way, ones in
        found.items()} for scanner, found in rows.items()
    }  # fmt: skip


def speed(report: Report, model: Model) -> dict[str, Any]:
    """Seconds for a volume, all of ``harmonize`` included; the second of two."""
    _, source, _, _ = sources(report, model, ("S3",))[0]
    found: dict[str, Any] = {"shape": list(source.x.shape)}
    for samples, steps in ((0, 1), (1, 8), (4, 8))[: 1 if report.tiny else 3]:
        for _ in range(2):
            began = time.perf_counter()
            harmonise.harmonize(model, source.x, source.mask, samples=samples, steps=steps)
            took = time.perf_counter() - began
        found[f"{samples} x {steps}"] = round(took, 3)
    return found


def read(path: Path, mask: np.ndarray | None) -> tuple[Scan, reading.Volume]:
    """A file that lies in RAS order already, as a scan."""
    volume = reading.read(path)
    inside = volume.data > 0 if mask is None else mask
    x, scale = common(volume.data, inside, path.name)
    return Scan(x, inside, scale, path.name), volume


def repeat(report: Report, folder: Path, seconds: float) -> dict[str, Any]:
    """T1W of visit 1 towards visit 2, of which each quarter of slices is predicted by a model that has not seen it.

    PSNR is within the mask, for stored values over 255. "oracle" histogram matching knows the histogram of all of visit
    2, the truth; "held out" that of the other three quarters, as the model does."""
    mask = reading.read(folder / "patient01_brainmask.nii.gz").data > 0
    first, _ = read(folder / "patient01_visit1_T1W.nii.gz", mask)
    second, image = read(folder / "patient01_visit2_T1W.nii.gz", mask)
    voxel = tuple(float(v) for v in np.sqrt((image.affine[:3, :3] ** 2).sum(0)))
    depth = np.flatnonzero(mask.any(axis=(0, 1)))
    edges = np.linspace(depth[0], depth[-1] + 1, (2 if report.tiny else FOLDS) + 1).round().astype(int)
    truth = image.data / 255
    out = {name: np.zeros_like(truth) for name in ("matched", "combined", "prior", "unchanged")}
    weights, steps = [], 0
    guises = 1 if report.tiny else 24
    for low, high in pairwise(edges):
        seen = mask.copy()
        seen[:, :, low:high] = False
        x, scale = common(image.data, seen)
        train = Scan(x, seen, scale, "visit 2")
        experiment = settled(report, "brains", f"data.guises={guises}", *network(report, "[64, 96, 128]"))
        experiment.data = Given(experiment.config.data.options, [train], [train], voxel)
        model, told = trained(report, experiment, seconds / (len(edges) - 1))
        steps = told["steps"]
        made = harmonise.harmonize(model, first.x, mask, samples=0)
        weights.append(made.weight)
        for name, x in (
            ("matched", made.histogram_matched), ("combined", made.volume), ("prior", made.prior),
        ):  # fmt: skip
            out[name][:, :, low:high] = scale.undo(x)[:, :, low:high] / 255
    out["unchanged"] = reading.read(folder / "patient01_visit1_T1W.nii.gz").data / 255
    oracle = Given(experiment.config.data.options, [second], [second], voxel).target
    exact = second.scale.undo(histogram.matched(first.x, mask, oracle)) / 255
    figures = {
        name: dict(metrics.compared(np.where(mask, x, 0), np.where(mask, truth, 0), mask)) for name, x in out.items()
    }
    figures["oracle histogram matching"] = dict(
        metrics.compared(np.where(mask, exact, 0), np.where(mask, truth, 0), mask)
    )
    (report.folder / "repeat.png").write_bytes(
        picture.picture(first.x, second.scale.apply(out["combined"] * 255) * mask, mask, oracle, None, voxel)
    )
    return {"anchor": REPEAT, "folds": len(edges) - 1, "steps_a_fold": steps, "weights": weights, **figures}


def lesions(report: Report, model: Model, folder: Path) -> dict[str, Any]:
    """NCC of source and result within lesion masks and outside, protected and not; the model is of simulated brains."""
    found: dict[str, Any] = {}
    for patient in ("patient07", "patient19", "patient26"):
        volume = reading.read(folder / f"{patient}_T1.nii.gz")
        lesion = reading.read(folder / f"{patient}_lesion.nii.gz").data > 0
        for protect in (False, True):
            asked = applying.Asked(samples=0, protect=protect)
            made = applying.harmonized(model, volume, asked, volume.data > 0, lesion)
            keys = ("lesion_ncc", "outside_ncc", "lesion_change", "outside_change", "likeness", "weight")
            found.setdefault(patient, {})["protected" if protect else "as it comes"] = {
                key: round(float(made.look.figures[key]), 4) for key in keys if key in made.look.figures
            }
        t2 = reading.read(folder / f"{patient}_T2.nii.gz")
        try:
            applying.harmonized(model, t2, applying.Asked(samples=0), t2.data > 0)
            found[patient]["T2"] = "harmonized"
        except Exception as error:
            found[patient]["T2"] = f"refused: {error}"
    return found


def blocks(report: Report, seconds: float) -> dict[str, Any]:
    """A 3D network on blocks of 2 mm: its figures, and the time of a volume of 1 mm at ten steps."""
    edge = 16 if report.tiny else 48
    more = () if report.tiny else ("train.batch_size=8", "data.guises=3", "data.subjects=48", "train.lr=5e-4")
    experiment = settled(report, "brains-blocks", f"data.block={edge}", *more, *network(report, "[48, 96, 128]", 1))
    model, told = trained(report, experiment, seconds)
    found: dict[str, Any] = {"training": told, "table": table(report, model, simulate.UNSEEN, ((0, 1),))}
    tissues = simulate.subject(9100, 6.0 if report.tiny else 1.0)
    scan, _ = common(simulate.scan(tissues, "S3", 1), tissues.mask)
    for _ in range(2):
        began = time.perf_counter()
        harmonise.harmonize(model, scan, tissues.mask, samples=1, steps=10)
        took = time.perf_counter() - began
    return found | {"one_mm": {"shape": list(scan.shape), "voxels": int(tissues.mask.sum()), "seconds": round(took, 2)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    report = Report(asked.out, asked.minutes, asked.tiny)
    share = report.seconds

    def main_model() -> Model:
        big = () if report.tiny else ("train.batch_size=64", "train.lr=6e-4", "data.subjects=64", "data.guises=6")
        experiment = settled(report, "brains", *big, *network(report))
        began = time.perf_counter()
        _ = experiment.source
        made = time.perf_counter() - began
        model, told = trained(report, experiment, 0.33 * share)
        known = model.network.known.double().cpu()  # type: ignore[union-attr, operator]
        report.found["conditional"] = told | {
            "data_seconds": round(made, 1),
            "trust": (known[0] / known[1]).nan_to_num(-1).tolist(),
            "validation_loss": round(experiment.validate(model.network), 5),
        }
        return model

    model = report.stage("train", main_model)
    scanners = ("S3", "exp") if report.tiny else ("target", *simulate.UNSEEN, *simulate.REMAPPED)
    draws = ((0, 1), (2, 2)) if report.tiny else ((0, 1), (1, 8), (4, 8), (8, 16))
    if model is not None:
        report.stage("unseen", lambda: table(report, model, scanners, draws))
        report.stage("speed", lambda: speed(report, model))
        report.stage("page", lambda: page(report, model))
    if asked.data is not None:
        report.stage("repeat", lambda: repeat(report, asked.data / "mri_ms_repeat", 0.2 * share), 0.25 * share)
        if model is not None:
            report.stage("lesions", lambda: lesions(report, model, asked.data / "mri_ms_mni"), 15)
    report.stage("blocks", lambda: blocks(report, 0.1 * share), 0.16 * share)
    for preset in ("blindharmony-flow", "blindharmony"):
        report.stage(preset, lambda preset=preset: loops(report, preset, 0.06 * share), 0.08 * share)
    print(json.dumps(report.found["seconds"]), flush=True)


def loops(report: Report, preset: str, seconds: float) -> dict[str, Any]:
    """A prior that is told nothing, and BlindHarmony's rounds, on the scanner that differs most and two remapped."""
    own = network(report, "[64, 96, 128]", 1) if preset.endswith("flow") else ("network.hidden=64", "network.steps=6")
    more = () if report.tiny else ("train.batch_size=64", "data.subjects=48", "train.lr=6e-4")
    model, told = trained(report, settled(report, preset, *more, *own), seconds)
    return {
        "training": told,
        "table": table(
            report, model, ("S3",) if report.tiny else ("S3", "gamma0.7", "exp"), ((1, 2 if report.tiny else 16),)
        ),
    }


def page(report: Report, model: Model) -> dict[str, Any]:
    measured = Measured(model.data, report.folder, 0, report.device, model)
    figures = scoring.harmonization(None, measured, subjects=1)  # type: ignore[arg-type]
    return {name: {"value": round(one.value, 3), **one.baselines} for name, one in figures.items()}


if __name__ == "__main__":
    main()
