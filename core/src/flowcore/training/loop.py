"""The training loop: one function, every random draw seeded by (seed, step)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowcore.data import Batch, Source, batches
from flowcore.errors import FlowError
from flowcore.seeds import derive, generator
from flowcore.training.ema import averaged
from flowcore.training.settings import TrainSettings

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""``loss(network, batch, generator) -> (B,)``: one loss per sample, drawn with the generator alone."""


@dataclass
class TrainState:
    """All that a run is at one step; a checkpoint stores exactly this."""

    network: nn.Module
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0


def begin(network: nn.Module, settings: TrainSettings) -> TrainState:
    """A state at step 0."""
    parameters = list(network.parameters())
    fused = all(p.is_floating_point() for p in parameters)  # torch has no fused step for complex weights
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return TrainState(network, averaged(network, settings.ema), optimizer)


def rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of ``step``, counted from 0."""
    warm = min(1.0, (step + 1) / (settings.warmup + 1))
    if settings.schedule == "constant":
        return settings.lr * warm
    done = max(0.0, (step - settings.warmup) / max(1, settings.steps - settings.warmup))
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    state: TrainState,
    loss: Loss,
    source: Source,
    settings: TrainSettings,
    seed: int,
    log: Callable[[dict[str, Any]], None],
    save: Callable[[TrainState], None],
    after_step: Callable[[int], None] = lambda step: None,
    workers: int = 0,
) -> TrainState:
    """Train from ``state.step`` to ``settings.steps``.

    ``log`` gets a row every ``log_every`` steps: the mean loss since the last row, the gradient norm before clipping,
    the learning rate, samples a second. ``save`` is called every ``checkpoint_every`` steps and at the end. ``workers``
    processes make batches ahead and change nothing else. Raises ``FlowError`` naming the steps when the loss or a
    weight is no longer finite; what was saved before stays.
    """
    device = next(state.network.parameters()).device
    parameters = [p for p in state.network.parameters() if p.requires_grad]
    total, norm = torch.zeros((), device=device), torch.zeros((), device=device)
    since, clock = state.step, time.perf_counter()
    state.network.train()
    for batch in batches(source, settings.batch_size, state.step, settings.steps, seed, workers=workers):
        step = state.step
        torch.manual_seed(derive(seed, "network", step))  # dropout draws from the global generator
        value = loss(state.network, batch.to(device), generator(seed, "loss", step, device=device)).mean()
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
        for group in state.optimizer.param_groups:
            group["lr"] = rate(settings, step)
        state.optimizer.step()
        torch.autograd.graph.increment_version(parameters)  # a fused step does not; a Field knows new weights by it
        state.ema.update_parameters(state.network)
        total += value.detach()
        state.step += 1
        if state.step % settings.log_every == 0 or state.step == settings.steps:
            count, now = state.step - since, time.perf_counter()
            mean = total.item() / count
            if not math.isfinite(mean):
                raise _diverged(f"the loss is {mean}", since, state.step)
            speed = count * settings.batch_size / (now - clock)
            log({"step": state.step, "loss": mean, "grad_norm": norm.item(), "lr": rate(settings, step),
                 "samples_per_s": round(speed, 1)})  # fmt: skip
            total.zero_()
            since, clock = state.step, now
        if state.step % settings.checkpoint_every == 0 or state.step == settings.steps:
            # what is saved must be something a run can go on from
            if not math.isfinite(total.item()):
                raise _diverged(f"the loss is {total.item()}", since, state.step)
            if not all(bool(p.isfinite().all()) for p in parameters):
                raise _diverged("a weight is not finite", since, state.step)
            save(state)
        after_step(state.step)
    return state


def _diverged(what: str, since: int, step: int) -> FlowError:
    return FlowError(
        f"{what} between steps {since} and {step}: lower train.lr or train.clip, "
        "or look at the data for values that are not finite"
    )
