"""A run from config to report: train, evaluate, sample, tell; begun anew or gone on with."""

import logging
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from flowcore import files
from flowcore.data import Batch
from flowcore.errors import FlowError, IntegrityError, MachineError, UsageError
from flowcore.plugin.contracts import Watched
from flowcore.training import checkpoints
from flowcore.training.engine import needs_start
from flowcore.training.loop import TrainState, begin, fit
from flowplat import observers, provenance, runs, signals, stages, teacher
from flowplat.apart import run_apart
from flowplat.components import one_line
from flowplat.config import plain, resolve, to_yaml
from flowplat.evaluation import draw, evaluate
from flowplat.experiment import Experiment
from flowplat.progress import progress
from flowplat.report import write_report
from flowplat.resume import begun
from flowplat.rundir import RunDir, write_json
from flowplat.settings import FREE, RunConfig

log = logging.getLogger("flowplat")


@dataclass(frozen=True)
class Finished:
    """A run that is done: its folder and its figures (``evaluation.evaluate``); ``first`` in the process that tells."""

    folder: Path
    figures: dict[str, Any]
    first: bool = True


def run(
    plugin: str,
    *overrides: str,
    preset: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    smoke: bool = False,
    resume: str | Path | None = None,
) -> Finished:
    """Train, evaluate, sample and report: ``run("images", "train.steps=500")``.

    The arguments are those of ``platform run``, and the errors are those of ``flowcore.errors``. Where the config asks
    for several devices, the command is started as it would be by hand.
    """
    folder = None if resume is None else begun(plugin, resume, None if out is None else Path(out))
    if folder is not None and config is None and preset is None:
        config = folder / "config.yaml"
    settled = resolve(plugin, overrides, preset, config, smoke)
    place = folder or (None if out is None else Path(out))
    if needs_start(settled.engine):
        return run_apart(settled, place, folder is not None)
    return execute(settled, place, folder is not None)


def execute(config: RunConfig, out: Path | None, resume: bool = False) -> Finished:
    """Carry a resolved config out in a new run folder, or go on with the run in ``out``.

    Every process of the run calls it; the first one writes.
    """
    if resume:
        _refuse_changes(config, out)
    else:
        RunDir.refuse_used(out)
    config = stages.ready(config)
    experiment = Experiment(config)
    engine, network = experiment.engine, experiment.network()
    if config.teacher is not None and config.teacher.start is not None and experiment.teacher is not None:
        teacher.start(experiment.teacher, network, config.teacher.start == "averaged")
    experiment.rehearse(network)  # what can be known to fail is told before a folder is made
    observers.ready(config.observers)
    engine.launch()
    with ExitStack() as held:

        def place() -> RunDir:
            preset = (config.preset or "config").replace("/", "-")
            run = RunDir(out) if resume and out is not None else RunDir.create(config.plugin, preset, out)
            held.enter_context(run.held())
            if not run.config.exists():
                with files.refusals(f"{run.config} cannot be written"):
                    files.write(run.config, to_yaml(config))
            return run

        run = engine.first(place)
        session = _Session(experiment, run, resume)
        with signals.raised():
            try:
                figures = session.carry_out(network)
            except BaseException as error:
                raised, status, code = _ending(error, run)
                if session.first:  # whose log.txt it goes to
                    log.error("%s: %s\n%s", type(error).__name__, error, traceback.format_exc())
                session.end(status, code, None)
                if raised is error:
                    raise
                raise raised from error
        session.end("done", 0, figures)
    return Finished(run.folder, figures, engine.rank == 0)


def fixed(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that decide what is trained, as ``{key: value}``; a plain config's other keys are free to change."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in FREE:
            continue
        found |= fixed(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    if not prefix and found.get("train.schedule") == "constant":
        found.pop("train.steps", None)  # each step is the same however many follow
    return found


def _refuse_changes(config: RunConfig, folder: Path | None) -> None:
    """Raise ``UsageError`` where the run in ``folder`` was begun under other settings than ``config``."""
    from flowplat.plain_yaml import parse

    if folder is None:
        raise UsageError("no run to go on with; name its folder")
    path = RunDir.open(folder).config
    before = parse(path.read_text(encoding="utf-8"), str(path))
    _compare(before, config, str(path))


def _compare(before: Any, config: RunConfig, origin: str) -> None:
    old, new = fixed(before if isinstance(before, Mapping) else {}), fixed(plain(config))
    lines = [  # a key that is new since the run was begun has its default
        f"  {key}: it has {value}, asked for is {new.get(key, 'nothing')}"
        for key, value in old.items()
        if value != new.get(key)
    ]
    if len(lines) == 1 and lines[0].startswith("  train.steps"):
        lines[0] += f"; under schedule {new['train.schedule']} every step depends on it"
    if lines:
        raise UsageError(
            f"{origin} is of another run, which cannot go on under this config:\n"
            + "\n".join(lines)
            + "\n  leave these as they are, or start a new run"
        )


def _ending(error: BaseException, run: RunDir) -> tuple[BaseException, str, int]:
    """What to raise for ``error``, the run's status, and its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return error, "interrupted", getattr(error, "exit_code", 130)
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        text = f"another process of the run has ended or does not answer; the run so far is in {run.folder}"
        error = FlowError(f"{text}: go on with it by --resume")
    elif isinstance(error, OSError):
        error = MachineError(f"{error}; the run so far is in {run.folder}")
    elif not isinstance(error, Exception):  # a plugin that calls sys.exit() has no say in the exit code
        error = FlowError(f"{one_line(error)}; the run so far is in {run.folder}")
    return error, "failed", getattr(error, "exit_code", 1)


class _Session:
    """One start of a run: from where it stands to its end."""

    def __init__(self, experiment: Experiment, run: RunDir, resume: bool) -> None:
        self.experiment, self.run, self.resume = experiment, run, resume
        self.config, self.engine = experiment.config, experiment.engine
        self.first = experiment.engine.rank == 0
        self.record: dict[str, Any] = {}
        self.observers: observers.Observers | None = None
        self.held = ExitStack()

    def carry_out(self, network: nn.Module) -> dict[str, Any]:
        """All stages; the figures."""
        count = sum(p.numel() for p in network.parameters())
        self.engine.first(lambda: self._open(count))
        log.info("%s on %s, %d parameters", self.config.network.component.full_name, self.experiment.device, count)
        self._train(begin(network, self.config.train, self.engine))
        trained = self.experiment.network()  # what is measured is what was saved
        checkpoints.load_weights(checkpoints.chosen(self.run.checkpoints, self.config.train), trained)
        drawn, sample = draw(self.experiment, trained), self.config.sample
        kept = self.experiment.sample(trained, sample.count, sample.steps, self.config.seed)
        self.engine.close()  # the others are done, and metrics that would gather from them shall not wait
        if drawn is None or kept is None:
            return {}
        figures = evaluate(self.experiment, trained, drawn, self.run.eval)
        self._tell(kept, figures)
        return figures

    def _open(self, parameters: int) -> None:
        """Everything that is written before training; in the first process."""
        self.held.enter_context(self.run.logging())
        before = self.run.record() if self.resume else {}
        record = provenance.collect(self.experiment, before) | {"parameters": parameters}
        for what in ("data", "teacher"):
            if before and before.get(what) != record[what]:
                raise UsageError(
                    f"the {what} is not what the run in {self.run.folder} was begun with: its fingerprint has changed"
                )
        self.record = record  # from here on the run's own records are written, how it ends among them
        if self.resume:
            files.write(self.run.config, to_yaml(self.config))
        write_json(self.run.provenance, self.record)
        log.info("run folder %s", self.run.folder)
        name = f"{self.config.plugin}/{self.config.preset or 'config'}/{self.run.folder.name}"
        watched = Watched(self.run.folder, name, plain(self.config))
        self.observers = observers.Observers(watched, [self.config.plugin, *self.config.observers])

    def _watch(self, hook: str, **what: Any) -> None:
        if self.observers is not None:
            self.observers(hook, **what)

    def _train(self, state: TrainState) -> None:
        config, engine, run = self.config, self.engine, self.run
        if self.resume:
            self._go_on(state)
        self._watch("run_started")
        with (
            progress("train", config.train.steps, "step", state.step, self.first) as bar,
            signals.noted() as came,
        ):
            last: dict[str, Any] = {}

            def logged(row: dict[str, Any]) -> None:
                engine.first(lambda: run.append_metrics(row))
                last.update(row)
                if "loss" in row:
                    log.info("step %d loss %.4f", row["step"], row["loss"])
                    bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
                if "val_loss" in row:
                    log.info("step %d validation loss %.4f", row["step"], row["val_loss"])

            def saved(state: TrainState) -> None:
                folder = checkpoints.save(run.checkpoints, state, engine, plain(config))
                keep, best = config.train.keep, config.train.keep_best
                engine.first(lambda: checkpoints.prune(run.checkpoints, keep, best, folder))
                log.info("saved %s", folder.name)
                self._watch("checkpoint_saved", step=state.step, folder=folder)

            def asked() -> BaseException | None:
                number = engine.agree(came[0] if came else 0)
                return signals.KINDS[signal.Signals(number)]() if number else None

            def after(step: int) -> BaseException | None:
                bar.update()
                self._watch("after_step", step=step, row=dict(last) or None)
                last.clear()
                if (ending := asked()) and self.first:
                    bar.write(f"interrupted: saving step {step}; once more within 5 s stops at once", file=sys.stderr)
                return ending

            validate = self.experiment.validate if config.train.validate_every else None
            fit(
                state, self.experiment.loss, self.experiment.source, config.train, config.seed,
                logged, saved, after, validate, engine,
            )  # fmt: skip
            keep = config.train.keep, config.train.keep_best
            engine.first(
                lambda: checkpoints.prune(run.checkpoints, *keep)
            )  # a kill may have come between save and this
            for _ in range(2):  # of several processes one may have been asked at the last step, and the others not know
                if ending := asked():
                    raise ending

    def _go_on(self, state: TrainState) -> None:
        """Bring ``state`` to the newest whole checkpoint; to step 0 where the run has not saved any."""

        def find() -> Path | None:
            checkpoint, damaged = checkpoints.newest(self.run.checkpoints)
            for line in damaged:
                way = f"going on from {checkpoint.name}" if checkpoint else "no whole checkpoint is left"
                log.warning("%s; %s", line, way)
                print(f"platform: {line}; {way}", file=sys.stderr)
            if checkpoint is None and damaged:
                raise IntegrityError(
                    f"no checkpoint in {self.run.checkpoints} is whole; delete the folder to begin again from step 0"
                )
            return checkpoint

        checkpoint = self.engine.first(find)
        if checkpoint is not None:
            _compare(checkpoints.load(checkpoint, state, self.engine), self.config, str(checkpoint))

        def record() -> None:
            self.run.rewind(state.step)
            self.record = provenance.resumed(self.record, state.step, checkpoint)
            write_json(self.run.provenance, self.record)
            log.info("going on at step %d", state.step)

        self.engine.first(record)

    def _tell(self, samples: Batch, figures: dict[str, Any]) -> None:
        run, data = self.run, self.experiment.data
        write_json(run.figures, figures)
        run.samples.mkdir(exist_ok=True)
        data.write(samples, run.samples)
        files.write(run.samples / "sheet.png", data.show(samples))
        write_report(replace(runs.read(run.folder), status="done"))  # which its record says in a moment

    def end(self, status: str, code: int, figures: dict[str, Any] | None) -> None:
        """Record how it ended; in the first process."""
        if not self.record:
            self.held.close()
            return
        log.info("status %s, exit code %d", status, code)
        try:
            write_json(self.run.provenance, provenance.finish(self.record, status, code))
        except OSError as error:  # a full disk must not hide the error that ended the run
            log.error("provenance.json cannot be completed: %s", error)
        self._watch("run_finished", status=status, figures=figures)
        self.held.close()
