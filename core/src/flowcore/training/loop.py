"""The training loop: one function for one process and for many, every random draw seeded by (seed, step, rank)."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from flowcore.data import Batch, Resident, Share, Source, batches
from flowcore.errors import FlowError, UsageError
from flowcore.seeds import derive, generator, seed_global
from flowcore.training.ema import Average, shards
from flowcore.training.engine import Engine
from flowcore.training.settings import TrainSettings

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""``loss(network, batch, generator) -> (B,)``: one loss per sample, drawn with the generator alone."""


@dataclass
class TrainState:
    """All that a run is at one step; a checkpoint stores exactly this.

    ``network`` is the network as it was built, ``module`` what the loop calls: the same weights with what precision,
    compiler and the other processes ask for around them.
    """

    network: nn.Module
    ema: AveragedModel
    optimizer: Any
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the steps since the last row of the log
    score: float | None = None  # the validation loss of this step, where it was measured
    best: float = math.inf  # the lowest so far
    stale: int = 0  # validations since
    module: Any = None


def begin(network: nn.Module, settings: TrainSettings, engine: Engine | None = None) -> TrainState:
    """A state at step 0, on the engine's device."""
    engine = engine or Engine()
    engine.launch()
    mean = Average(network, settings.ema)
    mean.module.to(engine.device)
    called: Any = network
    if engine.settings.compile and type(network).compile is not nn.Module.compile:
        network.compile()  # in a way of its own: a network of ragged batches has none of one size
    elif engine.settings.compile:
        called = torch.compile(network, dynamic=False)
    module = engine.wrap(called)
    if engine.sharded:  # the average is sharded in its place as the weights are; what Fabric returns has other names
        engine.fabric.setup_module(mean.module)
    parameters = list(network.parameters())
    # torch has no fused step for complex weights, and a fused one hides the gradients that a scaler unscales to clip
    fused = all(p.is_floating_point() for p in parameters) and engine.settings.precision != "16-mixed"
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    wrapped = optimizer if engine.bare else engine.fabric.setup_optimizers(optimizer)
    return TrainState(network, mean, wrapped, module=module)


def rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of ``step``, counted from 0."""
    warm = min(1.0, (step + 1) / (settings.warmup + 1))
    if settings.schedule == "constant":
        return settings.lr * warm
    done = max(0.0, (step - settings.warmup) / max(1, settings.steps - settings.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1 - done
    return settings.lr * warm * fall


def fit(
    state: TrainState,
    loss: Loss,
    source: Source,
    settings: TrainSettings,
    seed: int,
    log: Callable[[dict[str, Any]], None],
    save: Callable[[TrainState], None],
    after_step: Callable[[int], BaseException | None] = lambda step: None,
    validate: Callable[[nn.Module], float] | None = None,
    engine: Engine | None = None,
) -> TrainState:
    """Train from ``state.step`` to ``settings.steps``, or until ``patience`` is at its end.

    ``log`` gets a row every ``log_every`` steps: the mean loss since the last row, the gradient norm before clipping,
    the learning rate, samples a second; and the validation loss where it was measured. ``save`` is called every
    ``checkpoint_every`` steps, at the end (of no steps too), and when ``validate`` finds its lowest value. What
    ``after_step`` returns is raised when the state has been saved. Raises ``FlowError`` naming the step when a loss or
    a weight is no longer finite; what was saved before stays.
    """
    engine = engine or Engine()
    fabric, device, parts = engine.fabric, engine.device, settings.accumulate
    parameters = [p for p in state.network.parameters() if p.requires_grad]
    count, seen, saved, clock = len(state.losses), 0, -1, time.perf_counter()
    recent = torch.zeros(count + settings.log_every, device=device)  # the losses since the last row
    recent[:count] = torch.tensor(state.losses)

    def unsaid() -> list[float]:
        """The losses since the last row. Raises where one is not finite: what is kept must be fit to go on from."""
        losses: list[float] = engine.mean(recent[:count].clone()).tolist()
        for place, value in enumerate(losses, 1):
            if not math.isfinite(value):
                raise _diverged(f"the loss is {value}", state.step - count + place, engine)
        return losses

    def keep() -> None:
        state.losses = unsaid()
        if not _finite(parameters, engine):
            raise _diverged("a weight is not finite", state.step, engine)
        save(state)

    if state.module is None:
        state.module = engine.wrap(state.network)
    with closing(_stream(source, state, settings, seed, engine)) as stream:
        state.module.train()
        if settings.steps == 0:
            keep()
        while state.step < settings.steps and not _exhausted(state, settings):
            step = state.step
            seed_global(derive(seed, "network", step, engine.rank), device)  # dropout draws from the global generator
            total: Tensor | None = None
            for part in range(parts):
                batch = replace(next(stream).to(device), step=step)
                seen += len(batch) * engine.world
                draws = generator(seed, "loss", step, engine.rank, part, device=device)
                with engine.apart(state.module) if part < parts - 1 else nullcontext():
                    value = loss(state.module, batch, draws).mean()
                    if part == 0:
                        state.optimizer.zero_grad()
                    fabric.backward(value if parts == 1 else value / parts)
                total = value.detach() if total is None else total + value.detach()
            recent[count] = total if parts == 1 else total / parts  # type: ignore[assignment, operator]
            count += 1
            norm = _clip(state, settings, fabric)
            for group in state.optimizer.param_groups:
                group["lr"] = rate(settings, step)
            state.optimizer.step()
            torch.autograd.graph.increment_version(parameters)  # a fused step does not; a Field knows new weights by it
            state.ema.update_parameters(state.network)
            state.step += 1
            over, row, pause = state.step == settings.steps, {}, time.perf_counter()
            state.score = None
            if state.step % settings.log_every == 0 or over:
                losses = unsaid()
                speed = seen / (pause - clock)
                row = {"loss": math.fsum(losses) / len(losses), "grad_norm": float(norm), "lr": rate(settings, step),
                       "samples_per_s": round(speed, 1)}  # fmt: skip
                if state.step % settings.log_every == 0:  # a run that goes on past its end has its rows where they were
                    seen = count = 0
                clock = pause = time.perf_counter()
            if validate is not None and settings.validate_every and (state.step % settings.validate_every == 0 or over):
                state.score = row["val_loss"] = validate(state.ema.module)
                state.module.train()
                improved = state.score < state.best
                state.best, state.stale = min(state.score, state.best), 0 if improved else state.stale + 1
                over = over or _exhausted(state, settings)
            if row:
                log({"step": state.step} | row)
            if state.step % settings.checkpoint_every == 0 or over or (state.score is not None and state.stale == 0):
                keep()
                saved = state.step
            clock += time.perf_counter() - pause  # the speed is that of training alone
            if (ending := after_step(state.step)) is not None:
                if saved < state.step:
                    keep()
                raise ending
    return state


def _exhausted(state: TrainState, settings: TrainSettings) -> bool:
    return settings.patience is not None and state.stale >= settings.patience


def _stream(source: Source, state: TrainState, settings: TrainSettings, seed: int, engine: Engine) -> Generator[Batch]:
    """The batches that are still to come, as near to the device as they can be had."""
    share = Share(engine.rank, engine.world, settings.accumulate)
    if settings.batch_size % (share.world * share.parts):
        parts = f"{share.world} processes" + (f" in {share.parts} parts each" if share.parts > 1 else "")
        raise UsageError(f"train.batch_size={settings.batch_size} cannot be shared evenly by {parts}")
    workers, pin = engine.settings.workers, engine.device.type == "cuda"
    if held := _resident(source, engine):
        source, workers, pin = held, 0, False
    return batches(source, settings.batch_size, state.step, settings.steps, seed, share, workers, pin)


def _resident(source: Source, engine: Engine) -> Source | None:
    """The source with its samples on the GPU, where that is wanted and possible."""
    wanted = engine.settings.resident
    if engine.device.type != "cuda" or wanted is False or not isinstance(source, Resident):
        return None
    if wanted is None and source.nbytes > torch.cuda.mem_get_info(engine.device)[0] // 4:
        return None
    return source.to(engine.device)


def _finite(parameters: list[nn.Parameter], engine: Engine) -> bool:
    strange = torch.stack([~p.isfinite().all() for p in shards(parameters)]).any().float()
    return not engine.mean(strange).item()


def _clip(state: TrainState, settings: TrainSettings, fabric: Any) -> Tensor:
    """Clip the gradients as set; their norm before."""
    limit = math.inf if settings.clip is None or settings.clip_by == "value" else settings.clip
    # a scaler skips a step whose gradients are not finite; elsewhere the loss or the weights tell
    norm: Tensor = fabric.clip_gradients(state.module, state.optimizer, max_norm=limit, error_if_nonfinite=False)
    if settings.clip is not None and settings.clip_by == "value":
        fabric.clip_gradients(state.module, state.optimizer, clip_val=settings.clip)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _diverged(what: str, step: int, engine: Engine) -> FlowError:
    error = FlowError(
        f"{what} at step {step}: lower train.lr or train.clip, or look at the data for values that are not finite"
    )
    error.echo = engine.rank > 0  # it is the mean over the processes, and they all know
    return error
