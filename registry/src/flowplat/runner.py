"""A run from config to report: train, evaluate, sample, tell."""

import logging
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flowcore.errors import FlowError, MachineError
from flowcore.training import checkpoints
from flowcore.training.loop import TrainState, begin, fit
from flowplat import provenance, signals
from flowplat.components import one_line
from flowplat.config import resolve, to_yaml
from flowplat.evaluation import evaluate
from flowplat.experiment import Experiment
from flowplat.progress import progress
from flowplat.report import write_report
from flowplat.rundir import RunDir, write_json, write_text
from flowplat.settings import RunConfig

log = logging.getLogger("flowplat")


@dataclass(frozen=True)
class Finished:
    """A run that is done: its folder and its figures (``evaluation.evaluate``)."""

    folder: Path
    figures: dict[str, Any]


def run(
    plugin: str,
    *overrides: str,
    preset: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    smoke: bool = False,
) -> Finished:
    """Train, evaluate, sample and report: ``run("images", "train.steps=500")``.

    The arguments are those of ``platform run``, and the errors are those of ``flowcore.errors``.
    """
    return execute(resolve(plugin, overrides, preset, config, smoke), None if out is None else Path(out))


def execute(config: RunConfig, out: Path | None) -> Finished:
    """Carry a resolved config out in a new run folder."""
    RunDir.refuse_used(out)
    experiment = Experiment(config)
    network = experiment.network()
    experiment.rehearse(network)  # what can be known to fail is told before a folder is made
    run = RunDir.create(config.plugin, (config.preset or "config").replace("/", "-"), out)
    record = provenance.collect(experiment)
    write_text(run.config, to_yaml(config))
    write_json(run.provenance, record)
    with run.logging(), signals.raised():
        log.info("run folder %s", run.folder)
        try:
            figures = _stages(experiment, network, run, record)
        except BaseException as error:
            raised, status, code = _ending(error, run)
            log.error("%s: %s\n%s", type(error).__name__, error, traceback.format_exc())
            _end(run, record, status, code)
            if raised is error:
                raise
            raise raised from error
        _end(run, record, "done", 0)
    return Finished(run.folder, figures)


def _ending(error: BaseException, run: RunDir) -> tuple[BaseException, str, int]:
    """What to raise for ``error``, the run's status, and its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return error, "interrupted", getattr(error, "exit_code", 130)
    if isinstance(error, OSError):
        error = MachineError(f"{error}; the run so far is in {run.folder}")
    elif not isinstance(error, Exception):  # a plugin that calls sys.exit() has no say in the exit code
        error = FlowError(f"{one_line(error)}; the run so far is in {run.folder}")
    return error, "failed", getattr(error, "exit_code", 1)


def _end(run: RunDir, record: dict[str, Any], status: str, code: int) -> None:
    log.info("status %s, exit code %d", status, code)
    try:
        write_json(run.provenance, provenance.finish(record, status, code))
    except OSError as error:  # a full disk must not hide the error that ended the run
        log.error("provenance.json cannot be completed: %s", error)


def _stages(experiment: Experiment, network: nn.Module, run: RunDir, record: dict[str, Any]) -> dict[str, Any]:
    config = experiment.config
    count = sum(p.numel() for p in network.parameters())
    log.info("%s on %s, %d parameters", config.network.component.full_name, experiment.device, count)
    state = _train(experiment, run, begin(network, config.train))
    trained = state.ema.module
    figures = evaluate(experiment, trained, run)
    write_json(run.figures, figures)
    samples = experiment.sample(trained, config.sample.count, config.sample.steps, config.seed)
    run.samples.mkdir(exist_ok=True)
    experiment.data.write(samples, run.samples)
    write_report(run, config, record, figures, experiment.data.show(samples), count)
    return figures


def _train(experiment: Experiment, run: RunDir, state: TrainState) -> TrainState:
    config = experiment.config
    with progress("train", config.train.steps, "step") as bar, signals.noted() as came:

        def logged(row: dict[str, Any]) -> None:
            run.append_metrics(row)
            log.info("step %d loss %.4f", row["step"], row["loss"])
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)

        def saved(state: TrainState) -> None:
            checkpoints.save(run.checkpoints, state)

        def after(step: int) -> None:
            bar.update()
            if came:
                saved(state)
                raise came[0]

        return fit(
            state,
            experiment.loss,
            experiment.source,
            config.train,
            config.seed,
            logged,
            saved,
            after_step=after,
            workers=config.engine.workers,
        )
