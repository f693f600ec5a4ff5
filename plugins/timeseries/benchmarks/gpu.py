"""Exchange rates or M4 hourly on one GPU in some eight minutes: training, forecasts, gaps, refinement, samples' use.

    python plugins/timeseries/benchmarks/gpu.py --data DIR --set exchange|m4 --out FILE.json [--minutes 8.5] [--tiny]
        [--prior ou] [--no-lags] [--share 0.55]

DIR holds exchange_rate.txt.gz and m4_hourly.npz, split as everybody splits them. FILE.json is written after every
stage, with whatever went wrong in one. What is chosen (the checkpoint, the guidance, the rates of refinement) is chosen
on the last part of the training series, which is not trained on; the test windows are looked at once. --tiny is for a
look whether it works, anywhere.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resident import fit  # beside this file
from scipy.stats import norm
from torch import nn

from flowcore import losses, solvers, times
from flowcore.couplings import independent
from flowcore.data import Batch
from flowcore.objectives import matching
from flowcore.plugin.contracts import Parts
from flowplat_timeseries import baselines, calendar
from flowplat_timeseries.asking import gapped, permuted, told
from flowplat_timeseries.data import BuiltinConfig, Given
from flowplat_timeseries.forecasting import forecast
from flowplat_timeseries.metrics import LEVELS, quantile, scores
from flowplat_timeseries.networks import S4DOptions, s4d
from flowplat_timeseries.priors import Kernel, gaussian_process
from flowplat_timeseries.reading import Series
from flowplat_timeseries.refining import refine, representative_time
from flowplat_timeseries.synthesis import missed, taught

SEED = 0


@dataclass
class Task:
    """Series, and the windows at their ends that are to be forecast: ``val`` within ``train``, ``test`` after it."""

    name: str
    train: list[Series]
    val: list[Series]
    test: list[Series]
    config: BuiltinConfig
    kernel: Kernel = "iso"

    @property
    def horizon(self) -> int:
        return self.config.horizon

    def data(self, tests: list[Series], **changed: Any) -> Given:
        """The training series without what is held out for validation, and some windows."""
        back = self.horizon * (5 if self.name == "exchange" else 1)
        config = self.config.model_copy(update=changed)
        return Given(config, [one.until(len(one.values) - back) for one in self.train], tests)


def exchange(folder: Path, tiny: bool) -> Task:
    """Eight currencies: 6,071 days, then five windows of 30. Validation: windows ten days apart in the last 150."""
    table = np.loadtxt(folder / "exchange_rate.txt.gz", delimiter=",")
    start = calendar.period("1990-01-01", "B")
    whole = [Series(f"rate-{i}", start, table[:, i]) for i in range(table.shape[1])]
    train = [one.until(6071) for one in whole]
    test = [one.until(6071 + 30 * w) for w in range(1, 6) for one in whole]
    val = [one.until(6071 - back) for back in range(120, -1, -10) for one in whole]
    size: dict[str, Any] = {"context": 360, "horizon": 30, "lags": "tsdiff", "scaling": "standard"}
    if tiny:
        size |= {"context": 60, "lags": [30]}
        val, test = val[-16:], test[-16:]
    return Task("exchange", train, val, test, BuiltinConfig(**size))


def m4(folder: Path, tiny: bool) -> Task:
    """414 hourly series of 700 or 960 hours, then 48. Validation: the last 48 before."""
    held = np.load(folder / "m4_hourly.npz")
    start = calendar.period("2000-01-01 00:00", "h")
    pasts = np.split(held["train_values"].astype(np.float64), np.cumsum(held["train_lengths"])[:-1])
    train = [Series(str(name), start, past) for name, past in zip(held["ids"], pasts, strict=True)]
    ahead = held["test"].astype(np.float64)
    test = [Series(one.name, start, np.concatenate([one.values, row])) for one, row in zip(train, ahead, strict=True)]
    size: dict[str, Any] = {"context": 312, "horizon": 48}
    if tiny:
        size |= {"context": 96}
        train, test = train[::26], test[::26]
    return Task("m4", train, train, test, BuiltinConfig(**size))


class Report:
    """What was found, on the disk after every stage."""

    def __init__(self, file: Path, seconds: float, told: dict[str, Any]) -> None:
        self.file, self.seconds, self.start = file, seconds, time.perf_counter()
        self.found: dict[str, Any] = dict(told)

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)

    def stage(self, name: str, work: Callable[[], Any], least: float = 0.0) -> Any:
        """What ``work`` returns, kept as ``name``; None where it fails, or less than ``least`` seconds are left."""
        began, result = time.perf_counter(), None
        print(f"== {name}, {self.left:.0f} s left", flush=True)
        if self.left < least:
            self.found.setdefault("left_out", []).append(name)
            return None
        try:
            result = work()
        except Exception as error:  # the stages after it are still worth having
            traceback.print_exc()
            self.found.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
        if isinstance(result, dict):
            self.found[name] = result
            print(json.dumps(result)[:1500], flush=True)
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        self.write()
        return result

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.found, indent=1))


class Model:
    """What the plugin's functions ask of a trained model."""

    def __init__(self, data: Given, network: nn.Module, device: torch.device, kernel: Kernel = "iso") -> None:
        self.data, self.network, self.device, self.seed = data, network, device, SEED
        self.path = gaussian_process(kernel, data.spec().period)

    def parts(self) -> Parts:
        return Parts(
            self.data.spec(), self.data, self.device, path=self.path, coupling=independent(),
            times=times.uniform(), loss=losses.l2(), predicts="velocity", solver=solvers.euler(),
        )  # fmt: skip

    def generator(self, seed: int = SEED) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def ahead(self, tests: list[Series], samples: int, steps: int, pattern: Any = "none", **way: Any) -> np.ndarray:
        """Forecasts (n, S, horizon) of the last horizons of ``tests``, half of each context hidden by ``pattern``."""
        context, horizon = self.data.config.context, self.data.config.horizon
        draws = torch.Generator().manual_seed(SEED)
        values = [gapped(one.values[:-horizon], context, pattern, draws) for one in tests]
        windows = told(self.data, values)
        x = forecast(
            self.parts(), self.network, windows.x, windows.mask, samples, steps, generator=self.generator(), **way
        )
        return permuted(windows.back(x.cpu()).numpy()[:, :, -horizon:], SEED)


def scored(tests: list[Series], made: np.ndarray, season: int) -> dict[str, float]:
    """The figures of forecasts of the last horizons of ``tests``. ``each`` is the mean of the windows' own CRPS, which
    no single large series decides: what is chosen is chosen by it."""
    horizon = made.shape[-1]
    truth = np.stack([one.values[-horizon:] for one in tests])
    found = scores(made, truth, [one.values[:-horizon] for one in tests], season)
    q = np.array(LEVELS)[None, :, None]
    at = np.stack([quantile(made, level) for level in LEVELS], 1)
    loss = 2 * np.abs((truth[:, None] - at) * ((truth[:, None] <= at) - q)).mean(1).sum(1)
    found["each"] = float((loss / np.abs(truth).sum(1).clip(1e-9)).mean())
    return {name: round(value, 5) for name, value in found.items()}


def simple(task: Task, season: int) -> dict[str, Any]:
    """Ways that need no training, on the test windows, beside what is known of them."""
    horizon = task.horizon
    past = [one.values[:-horizon] for one in task.test]
    steps = np.sqrt(np.arange(1, horizon + 1))
    walk = np.stack(
        [one[-1] + norm.ppf(LEVELS)[:, None] * np.std(np.diff(one[-251:])) * steps for one in past]
    )  # its deciles stand for the samples: level q is row round((S - 1) q') of nine rows
    drawn = {
        "seasonal_naive": np.stack([baselines.seasonal_naive(one, horizon, season) for one in past])[:, None],
        "last_value": np.stack([baselines.last_value(one, horizon) for one in past])[:, None],
    }
    found: dict[str, Any] = {name: scored(task.test, one, season) for name, one in drawn.items()}
    truth = np.stack([one.values[-horizon:] for one in task.test])
    q = np.array(LEVELS)[None, :, None]
    y = truth[:, None]
    found["random_walk"] = {"crps": round(float(
        (2 * np.abs((y - walk) * ((y <= walk) - q))).sum((0, 2)).mean() / np.abs(truth).sum()
    ), 5)}  # fmt: skip
    return found


def _npts(part: list[Series], horizon: int) -> np.ndarray:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    past = [one.until(len(one.values) - horizon) for one in part]
    return baselines.npts(past, horizon, 100, SEED)


class Bench:
    """The stages, in order, and what they leave to each other."""

    def __init__(self, task: Task, report: Report, device: torch.device, tiny: bool, graph: bool) -> None:
        self.task, self.report, self.device, self.tiny, self.graph = task, report, device, tiny, graph
        self.fitting, self.testing = task.data(task.val), task.data(task.test)
        self.season = self.fitting.season
        self.size = S4DOptions(hidden=16, state=16, blocks=2) if tiny else S4DOptions()
        torch.manual_seed(SEED)
        self.model = Model(self.fitting, s4d(self.size, self.fitting.spec()).to(device), device, task.kernel)
        self.samples, self.steps = (10, 8) if tiny else (100, 32)
        self.few = min(20, self.samples)
        self.way: dict[str, Any] = {"scale": 4.0}  # until it is chosen

    def sync(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def crps(
        self, tests: list[Series], samples: int, steps: int, pattern: Any = "none", model: Any = None, **way: Any
    ) -> dict[str, float]:
        """The figures of forecasts, and the seconds they took."""
        began = self.sync()
        made = (model or self.model).ahead(tests, samples, steps, pattern, **way)
        took = self.sync() - began
        return scored(tests, made, self.season) | {"seconds": round(took, 2)}

    def train(self, seconds: float) -> dict[str, Any]:
        """The unconditional flow. The checkpoint is chosen by the CRPS of a few validation windows."""
        return self._fit(self.model, seconds, self.way)

    def _fit(self, model: Model, seconds: float, way: dict[str, Any]) -> dict[str, Any]:
        few = self.few_val()

        def look(average: nn.Module) -> float:
            model.network = average
            return self.crps(few, min(16, self.samples), self.steps, model=model, **way)["each"]

        model.network, told_ = fit(
            model.network, matching(model.parts()), model.data.train(), self.device, seconds, 3 if self.tiny else 8,
            look, graph=self.graph, batch=16 if self.tiny else 64, lr=5e-3 if self.tiny else 1e-3,
        )  # fmt: skip
        return told_ | {"parameters": sum(p.numel() for p in model.network.parameters())}

    def few_val(self) -> list[Series]:
        """Validation windows for what is looked at often: all of exchange, a quarter of M4."""
        return self.task.val[:: 1 if self.task.name == "exchange" else 4]

    def conditional(self, seconds: float) -> dict[str, Any]:
        """TSFlow's conditional model, trained for so many seconds: an Ornstein-Uhlenbeck process regressed on the
        context, no guidance."""
        data = self.task.data(self.task.val, conditional="ou")
        torch.manual_seed(SEED)
        size = self.size.model_copy(update={"skip": False})
        model = Model(data, s4d(size, data.spec()).to(self.device), self.device)
        found = self._fit(model, seconds, {})
        for steps in (4, 16, 32):
            found[f"{steps} steps"] = self.crps(self.task.test, self.samples, steps, model=model)
        return found

    def choose(self) -> dict[str, Any]:
        """The guidance with the least CRPS on validation windows: all on a part of them, the best three on all."""
        grid = [("quantile", s, weight) for s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0) for weight in ("tsflow", "constant")]
        grid += [("mse", s, "tsflow") for s in (0.25, 0.5, 1.0, 2.0)]
        ways = {
            f"{likelihood} {s:g} {weight}": {"likelihood": likelihood, "scale": s, "weight": weight}
            for likelihood, s, weight in (grid[::5] if self.tiny else grid)
        }
        samples = min(16, self.samples)
        first = {name: self.crps(self.few_val(), samples, self.steps, **way) for name, way in ways.items()}
        ranks = sorted(ways, key=lambda name: first[name]["each"])
        found = {name: self.crps(self.task.val, self.few, self.steps, **ways[name]) for name in ranks[:3]}
        best = min(found, key=lambda name: found[name]["each"])
        self.way = ways[best]
        brief = {name: (one["crps"], one["each"], one["coverage_80"]) for name, one in first.items()}
        return {"chosen": best, "validation": found, "part_of_validation_crps_each_coverage": brief}

    def test(self) -> dict[str, Any]:
        """The figures on the test windows: 100 samples of 32 steps."""
        made = self.crps(self.task.test, self.samples, self.steps, **self.way)
        if self.device.type == "cuda":
            made["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        return made | {"windows": len(self.task.test), "samples": self.samples, "steps": self.steps, **self.way}

    def gaps(self) -> dict[str, Any]:
        """Half of each context hidden in three ways, one model; and the ratio to nothing hidden, as many draws."""
        found: dict[str, Any] = {}
        for pattern in ("none", "random", "start", "end"):
            found[pattern] = self.crps(self.task.test, self.few, self.steps, pattern, **self.way)
            found[pattern]["ratio"] = round(found[pattern]["crps"] / found["none"]["crps"], 3)
        return found | {"samples": self.few}

    def step_counts(self) -> dict[str, Any]:
        """16, 32 and 100 steps; and 32 without guidance."""
        found: dict[str, Any] = {
            str(steps): self.crps(self.task.test, self.few, steps, **self.way) for steps in (16, 32, 100)
        }
        return found | {"unguided": self.crps(self.task.test, self.few, self.steps, scale=0.0), "samples": self.few}

    def refined(self) -> dict[str, Any]:
        """Seasonal naive and ridge regression before and after 20 steps, the rate chosen on validation windows."""
        tau_batch = self._windows(64)
        tau = representative_time(self.model.parts(), self.model.network, tau_batch, self.model.generator())
        found: dict[str, Any] = {"tau": round(tau, 3)}
        few = self.few_val()
        learned = self._windows(500 if self.tiny else 10_000)
        for base in ("seasonal_naive", "linear"):
            tries = {
                rate: self._refined(base, few, rate, tau, learned)[1]["each"]
                for rate in (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)
            }
            rate = min(tries, key=lambda one: tries[one])
            before, after = self._refined(base, self.task.test, rate, tau, learned)
            found[base] = {"before": before, "after": after, "rate": rate, "validation": tries}
        return found

    def _refined(
        self, base: str, tests: list[Series], rate: float, tau: float, learned: Batch
    ) -> tuple[dict[str, float], dict[str, float]]:
        context, horizon = self.fitting.config.context, self.task.horizon
        windows = told(self.fitting, [one.values[:-horizon] for one in tests])
        if base == "linear":
            made = taught(learned.x1[:, 0].cpu(), context, windows.x[:, 0, :context])
            guess = torch.from_numpy(made).float()
            first = windows.back(guess).numpy()
        else:
            first = np.stack([baselines.seasonal_naive(one.values[:-horizon], horizon, self.season) for one in tests])
            guess = ((torch.from_numpy(first) - windows.loc[:, None]) / windows.scale[:, None]).float()
        whole = torch.zeros(len(tests), self.few, context + horizon)
        whole[:, :, context:] = guess[:, None]
        before = scored(tests, first[:, None], self.season)
        if rate == 0:
            return before, before
        x = refine(
            self.model.parts(), self.model.network, windows.x, windows.mask, whole, rate=rate, tau=tau,
            generator=self.model.generator(),
        )  # fmt: skip
        return before, scored(tests, windows.back(x.cpu()).numpy()[:, :, -horizon:], self.season)

    def _windows(self, count: int) -> Batch:
        """Training windows, drawn anywhere."""
        source = self.fitting.train()
        return source.batch(torch.arange(count) % len(source), torch.Generator().manual_seed(SEED))

    def lps(self) -> dict[str, Any]:
        """The linear predictive score: ridge regression taught on drawn windows, beside as many real ones."""
        count = 200 if self.tiny else 10_000
        parts, draws = self.model.parts(), self.model.generator()
        drawn = []
        with torch.no_grad():
            for start in range(0, count, 2500):
                many = min(2500, count - start)
                like = torch.empty(many, *self.fitting.spec().state.shape, device=self.device)
                x0 = parts.path.draw_source(like, draws)
                drawn.append(solvers.solve(parts.field(self.model.network), x0, self.steps)[:, 0].cpu())
        context, horizon, tests = self.fitting.config.context, self.task.horizon, self.task.test
        windows = told(self.fitting, [one.values for one in tests], ahead=False)
        known = windows.mask[:, 0, context:].bool().numpy()
        truth = np.stack([one.values[-horizon:] for one in tests])
        score = {}
        for name, learned in (("synthetic", torch.cat(drawn)), ("real", self._windows(count).x1[:, 0])):
            made = taught(learned, context, windows.x[:, 0, :context])
            score[name] = round(missed(windows.back(torch.from_numpy(made)).numpy(), truth, known), 5)
        return score | {"ratio": round(score["synthetic"] / score["real"], 3), "windows": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=("exchange", "m4"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--prior", choices=("iso", "se", "ou", "periodic"), default="iso", help="noise it starts from")
    parser.add_argument("--no-lags", action="store_true", help="the series alone, without channels of its past")
    parser.add_argument("--share", type=float, default=0.55, help="of the minutes, to train the unconditional model")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    asked = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    warnings.simplefilter("ignore", FutureWarning)  # pandas', of business days
    task = {"exchange": exchange, "m4": m4}[asked.set](asked.data, asked.tiny)
    task.kernel = asked.prior
    if asked.no_lags:
        task.config = task.config.model_copy(update={"lags": "none"})
    seconds = 60 * asked.minutes
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    report = Report(asked.out, seconds, {
        "set": asked.set, "machine": card, "torch": torch.__version__, "python": platform.python_version(),
        "seed": SEED, "tiny": asked.tiny, "minutes": asked.minutes, "prior": asked.prior,
        "config": task.config.model_dump(),
    })  # fmt: skip
    if asked.eager and asked.out.exists():  # what went wrong with a graph
        report.found["before"] = json.loads(asked.out.read_text()).get("errors")
    pool, npts = None, []
    try:
        import gluonts  # noqa: F401

        pool = ProcessPoolExecutor(1 if asked.tiny else 8, mp_context=get_context("spawn"))
        parts = [task.test[i::8] for i in range(8) if task.test[i::8]]
        npts = [(part, pool.submit(_npts, part, task.horizon)) for part in parts]
    except ImportError:
        report.found["left_out"] = ["npts: gluonts is not there"]
    bench = Bench(task, report, device, asked.tiny, not asked.eager)
    report.stage("baselines", lambda: simple(task, bench.season))
    share = asked.share * seconds - (seconds - report.left)
    if report.stage("training", lambda: bench.train(share)) is None:
        if device.type == "cuda" and not asked.eager:  # what a failed capture leaves behind is best left behind
            rest = [*sys.argv, "--eager", "--minutes", f"{report.left / 60:.3f}"]
            os.execv(sys.executable, [sys.executable, *rest])
        return
    report.stage("guidance", bench.choose)
    report.stage("forecast", bench.test)
    if npts:
        report.stage("npts", lambda: scored(
            [one for part, _ in npts for one in part], np.concatenate([made.result(60) for _, made in npts]),
            bench.season,
        ))  # fmt: skip
    report.stage("gaps", bench.gaps, 5)
    report.stage("refinement", bench.refined, 5)
    report.stage("linear_predictive_score", bench.lps, 5)
    report.stage("steps", bench.step_counts, 5)
    spare = 4 if asked.tiny else 25  # for its forecasts
    report.stage("conditional", lambda: bench.conditional(report.left - spare), 3 if asked.tiny else 60)
    if pool is not None:
        pool.shutdown(cancel_futures=True)
    report.found["done"] = True
    report.write()


if __name__ == "__main__":
    main()
