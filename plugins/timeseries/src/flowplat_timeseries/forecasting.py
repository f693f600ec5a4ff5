"""Forecasting, which is filling in: windows are drawn from the model under guidance by what is known of them."""

import math

import torch
from torch import Tensor, nn

from flowcore.guidance import Loss
from flowcore.plugin.contracts import Parts
from flowcore.solvers import solve
from flowplat_timeseries import conditional
from flowplat_timeseries.guidance import Likelihood, Weight, levels, misfit, self_guidance

PULL, STEP, SHAKEN, AHEAD = 16.0, 0.005, 0.5, 4  # of Langevin on the noise, the first three as TSFlow has them
ROWS = {"cpu": 256, "cuda": 4096}
"""Windows drawn at once: what is in memory does not grow with the number of series. Part of the draws, as are the
generator and its device: a forecast is the same wherever it is repeated with these."""


def forecast(
    parts: Parts,
    network: nn.Module,
    observed: Tensor,
    mask: Tensor,
    samples: int = 100,
    steps: int = 32,
    *,
    likelihood: Likelihood = "quantile",
    scale: float = 4.0,
    weight: Weight = "tsflow",
    clip: float | None = None,
    normalised: bool = False,
    prior_steps: int = 0,
    generator: torch.Generator,
) -> Tensor:
    """Draws (B, S, L) of the series of windows ``observed`` (B, C, L), known where ``mask`` is 1; scaled as these are.

    Row j of S is steered by the quantile level (j + 1) / (S + 1) where the likelihood is "quantile", so rows come in
    order of level: shuffle them where some may be cut off. What is known comes back as the model draws it, near to what
    was observed. ``scale`` 0 does not look at the observation. One evaluation of the network forward and one back a
    step. ``prior_steps`` moves the noise first: see ``nearer``. A conditional model needs no guidance and goes forward
    alone; its rows are in no order. Works under ``torch.no_grad`` and in inference mode. Raises ``ValueError`` where
    the shapes differ or an observed value is not finite.
    """
    if observed.shape != mask.shape or observed.ndim != 3:
        raise ValueError(f"windows (B, C, L) and a mask like them, not {tuple(observed.shape)} and {tuple(mask.shape)}")
    if len(observed) == 0:
        return observed.new_zeros(0, samples, observed.shape[2])
    many = max(1, ROWS.get(parts.device.type, ROWS["cpu"]) // samples)
    drawn = []
    with torch.inference_mode(False), torch.no_grad():
        known = mask.to(parts.device) > 0
        y = torch.where(known, observed.to(parts.device, torch.float32), 0.0)
        if not bool(y.isfinite().all()):
            raise ValueError("an observed value is not finite: mask it")
        for part, there in zip(y.split(many), known.float().split(many), strict=True):
            if parts.spec.condition is not None:
                drawn.append(conditional.drawn(parts, network, part, there, samples, steps, generator))
                continue
            told = part.repeat_interleave(samples, 0), there.repeat_interleave(samples, 0)
            level = levels(samples).repeat(len(part))
            steered = self_guidance(*told, level, likelihood, scale, weight, clip, normalised)
            x0 = parts.path.draw_source(torch.empty(told[0].shape, device=generator.device), generator)
            x0 = x0.to(parts.device)
            if prior_steps:
                loss = misfit(*told, level, likelihood, normalised)
                x0 = nearer(parts, network, x0, loss, prior_steps, generator)
            start = parts.path.initial(x0)
            x1 = solve(parts.field(network), start, steps, parts.solver, [steered], generator=generator)
            drawn.append(x1[:, 0].reshape(len(part), samples, -1))
    return torch.cat(drawn)


def nearer(parts: Parts, network: nn.Module, x0: Tensor, loss: Loss, steps: int, generator: torch.Generator) -> Tensor:
    """Noise (R, C, L) whose windows are nearer to what was observed: conditional prior sampling.

        x0 <- x0 - 0.005 grad (16 E(flow(x0)) - log q0(x0)) + sqrt(2 0.005) 0.5 z,   z ~ N(0, I)

    ``steps`` times: Langevin on the noise, q0 = N(0, K) its own law and E the ``loss`` of the window that its flow ends
    at, here in 4 steps of Euler's, which is differentiated through. Guidance goes on from there. It costs 4 evaluations
    forward and 4 back a step. (Kollovieh et al. 2024, TSFlow, arXiv 2410.03024; Gaussian z, where their code's is
    uniform.)
    """
    source = parts.path.source
    for _ in range(steps):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x0.detach().clone().requires_grad_()
            x1 = solve(parts.field(network), parts.path.initial(leaf), AHEAD, "euler")
            (gradient,) = torch.autograd.grad(loss(x1).sum(), leaf)
        law = source.precision(x0) if hasattr(source, "precision") else x0
        z = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0.device)
        x0 = x0 - STEP * (PULL * gradient + law) + math.sqrt(2 * STEP) * SHAKEN * z
    return x0
