"""Refinement: the forecast of any other method is moved to where the model finds windows likelier.

    E(z) = |u - f(x_tau, tau)|^2 + s R(z, z~),    x_tau = alpha z + sigma x0,   x0 fresh each time

f is the network and u what it was trained to say of (x0, z), so the first term is the model's own training loss, an
upper bound on -log p(z) up to constants, at the one time tau that stands for all; R holds z to what is known and, as a
quantile loss, to the forecast z~ it began from. (Kollovieh et al. 2023, arXiv 2307.11494, section 4.)
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from flowcore.couplings import Pairs
from flowcore.data import Batch, everything
from flowcore.losses import matching_loss
from flowcore.plugin.contracts import Parts
from flowplat_timeseries.forecasting import ROWS
from flowplat_timeseries.guidance import Likelihood, levels, misfit
from flowplat_timeseries.spec import SeriesSpec

GRID = 20  # times among which the representative one is sought
SHAKEN = 0.1  # of Langevin's noise: the reference takes a tenth


def closest_to_mean(losses: Tensor) -> int:
    """argmin_t (l_t - mean l)^2."""
    return int((losses - losses.mean()).square().argmin())


@torch.no_grad()
def representative_time(parts: Parts, network: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """The time tau, of ``GRID`` in the middles of equal parts of the path, whose loss on a batch is nearest to the mean
    loss over them all."""
    x1 = batch.x1.to(parts.device)
    mask = None if batch.mask is None else batch.mask.to(parts.device)
    x0 = parts.path.draw_source(torch.empty(x1.shape, device=generator.device), generator).to(parts.device)
    grid = parts.path.start + (parts.path.stop - parts.path.start) * (torch.arange(GRID) + 0.5) / GRID
    field = parts.field(network)
    losses = [matching_loss(field, Pairs(x0, x1), t.expand(len(x1)).to(parts.device), mask=mask).mean() for t in grid]
    return float(grid[closest_to_mean(torch.stack(losses))])


def time_of(parts: Parts, network: nn.Module, generator: torch.Generator, windows: int = 64) -> float:
    """``representative_time`` on the first training windows of the model's own data, or the middle of the path where
    its data are not there."""
    try:
        batch = everything(parts.data.train(), windows)
    except (OSError, ValueError):
        return (parts.path.start + parts.path.stop) / 2
    return representative_time(parts, network, batch, generator)


def _energy(
    parts: Parts, network: nn.Module, x: Tensor, tau: float, mask: Tensor | None, draws: torch.Generator
) -> Tensor:
    """sum (u - f(x_tau, tau))^2 over the known entries of windows (R, C, L): (R,)."""
    x0 = parts.path.draw_source(torch.empty(x.shape, device=draws.device), draws).to(x.device)
    t = torch.full((len(x),), tau, device=x.device)
    mean = matching_loss(parts.field(network), Pairs(x0, x), t, mask=mask)
    return mean * (x[0].numel() if mask is None else mask.flatten(1).sum(1))


@torch.no_grad()
def energy(
    parts: Parts,
    network: nn.Module,
    x: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    tau: float | None = None,
    repeats: int = 8,
) -> Tensor:
    """How unlikely the model finds windows ``x`` (B, C, L): the first term of E a known entry, the mean of ``repeats``
    draws of the noise: (B,). ``tau`` is found by ``time_of`` where it is not given."""
    tau = time_of(parts, network, generator) if tau is None else tau
    many = ROWS.get(parts.device.type, ROWS["cpu"])
    found = []
    for part, known in zip(x.to(parts.device).split(many), mask.to(parts.device).split(many), strict=True):
        totals = [_energy(parts, network, part, tau, known, generator) for _ in range(repeats)]
        found.append(torch.stack(totals).mean(0) / known.flatten(1).sum(1).clamp(min=1))
    return torch.cat(found)


def refine(
    parts: Parts,
    network: nn.Module,
    observed: Tensor,
    mask: Tensor,
    guess: Tensor,
    *,
    method: Literal["langevin", "ml"] = "ml",
    iterations: int = 20,
    rate: float = 0.02,
    likelihood: Likelihood = "quantile",
    scale: float = 1.0,
    tau: float | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Forecasts ``guess`` (B, S, L) of windows (B, C, L), known where ``mask`` is 1, made likelier: (B, S, L).

        ml         z <- z - rate grad E(z)
        langevin   z <- z - rate grad E(z) + sqrt(2 rate) 0.1 noise

    Where the window is known ``guess`` is not read. With the quantile likelihood its samples are sorted at each step in
    time, so that row j is quantile j, and R ties z to them. Lags that reach into the forecast are those of the guess.
    Raises ``ValueError`` for an unknown method.
    """
    if method not in ("langevin", "ml"):
        raise ValueError(f"method must be 'langevin' or 'ml', not {method!r}")
    tau = time_of(parts, network, generator) if tau is None else tau
    samples = guess.shape[1]
    guess = guess.to(parts.device, torch.float32)
    if likelihood == "quantile":
        guess = guess.sort(1).values
    many = max(1, ROWS.get(parts.device.type, ROWS["cpu"]) // samples)
    lags = parts.spec.lags if isinstance(parts.spec, SeriesSpec) else ()
    done = []
    chunks = (observed.to(parts.device, torch.float32), mask.to(parts.device, torch.float32), guess)
    for y, known, first in zip(*(chunk.split(many) for chunk in chunks), strict=True):
        y, known = y.repeat_interleave(samples, 0), known.repeat_interleave(samples, 0)
        z = filled(y, known, first.flatten(0, 1), lags)
        base = z.clone()
        held = known if likelihood == "mse" else torch.ones_like(known)
        loss = misfit(base, held, levels(samples).repeat(len(first)), likelihood)
        for _ in range(iterations):
            with torch.inference_mode(False), torch.enable_grad():
                leaf = z.detach().clone().requires_grad_()
                total = _energy(parts, network, leaf, tau, None, generator) + scale * loss(leaf)
                (gradient,) = torch.autograd.grad(total.sum(), leaf)
            z = z - rate * gradient
            if method == "langevin":
                noise = torch.randn(z.shape, generator=generator, device=generator.device).to(z.device)
                z = z + math.sqrt(2 * rate) * SHAKEN * noise
        done.append(z[:, 0].reshape(len(first), samples, -1))
    return torch.cat(done)


def filled(observed: Tensor, mask: Tensor, guess: Tensor, lags: tuple[int, ...]) -> Tensor:
    """Windows (R, C, L), known where ``mask`` is 1, with the series of ``guess`` (R, L) where it is 0, in every channel
    as far as its lag reaches into the window."""
    x, length = observed.clone(), observed.shape[2]
    for channel, lag in enumerate((0, *lags)):
        if lag < length:
            there = mask[:, channel, lag:].bool()
            x[:, channel, lag:] = torch.where(there, observed[:, channel, lag:], guess[:, : length - lag])
    return x
