"""Stochastic interpolants in a run: what is minimised, and how samples are drawn with any amount of noise on the way.

The network returns v = E[dI/dt | x_t] and eta = E[z | x_t], one behind the other along the second dimension: both stay
finite where gamma' and 1 / gamma do not, and b = v + gamma' eta. ``path=interpolant`` says what I and gamma are
(Albergo, Boffi and Vanden-Eijnden 2023, arXiv 2303.08797).
"""

import math
from typing import Any

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.interpolants import Interpolant, InterpolantField, interpolant_loss
from flowcore.plugin.contracts import Objective, Parts, Sampler
from flowcore.samplers import source
from flowcore.solvers import Step, solve, time_grid
from flowcore.state import State, add, tree_map

NOTHING = 1e-6
"""A gamma this small says that x_t holds no noise: at both ends, up to rounding."""


def objective(parts: Parts) -> Objective:
    """|v|^2 / 2 - dI/dt . v + |eta|^2 / 2 - z . eta, over antithetic pairs.

    See ``flowcore.interpolants.interpolant_loss``. The batch brings x0 where the data or a coupling have it; otherwise
    it is drawn from the path's source. The value may be negative: a constant is left out. Raises ``UsageError`` for
    another path, and for a network that does not return v and eta.
    """
    path = _path(parts, "objective")
    if parts.drop_condition > 0:
        raise UsageError("objective interpolant has no use for dropped conditions; leave train.drop_condition at 0")
    times = parts.times

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.index is not None:
            raise UsageError("objective interpolant takes samples of one size, and this batch is ragged")
        x0 = path.draw_source(batch.x1, generator) if batch.x0 is None else batch.x0
        t = times(len(batch), generator)
        field = read(network, path, batch.condition)
        value = interpolant_loss(field, Pairs(x0, batch.x1, batch.weight), t.float(), generator)
        weight = times.weights(t)
        return value if weight is None else value * weight.to(value.dtype)

    return loss


def sampler(parts: Parts, epsilon: float = 0.0) -> Sampler:
    """x1 of the ODE, epsilon = 0, or of dX = (b + epsilon q) dt + sqrt(2 epsilon) dW, with the same marginals.

    x0 are the data's own source samples, or noise; see ``noisy`` for the steps. One evaluation of the network a step.
    """
    path, method = _path(parts, "sampler"), noisy(epsilon)

    def sample(network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator) -> Batch:
        x0 = source(parts, count, generator)
        field = read(network, path, condition)
        x1 = solve(field, x0, time_grid(steps), method, generator=generator)  # from 0 to 1, past the path's margins
        return Batch(x1, condition, x0=x0, extra={"calls": field.calls})

    return sample


def read(network: Any, path: Interpolant, condition: Any = None) -> InterpolantField:
    """A network that returns v and eta along the second dimension, as a field. Its calls raise ``UsageError`` where the
    network returns anything else."""

    def heads(x: State, t: Tensor, told: Any) -> tuple[State, State]:
        both = tree_map(_halves, x, network(x, t, told))
        return tree_map(lambda _, pair: pair[0], x, both), tree_map(lambda _, pair: pair[1], x, both)

    return InterpolantField(heads, path, condition, learns="v")


def _halves(x: Tensor, both: Any) -> tuple[Tensor, Tensor]:
    wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else None
    shape = tuple(both.shape) if isinstance(both, Tensor) else type(both).__name__
    if shape != wanted:
        raise UsageError(
            f"an interpolant needs a network with two outputs, the velocity and the denoiser, {wanted} for a state of"
            f" {tuple(x.shape)}; it returned {shape}: set network.outputs=2, where the network has that"
        )
    first, second = both.chunk(2, 1)
    return first, second


def _path(parts: Parts, kind: str) -> Interpolant:
    if not isinstance(parts.path, Interpolant):
        name = getattr(parts.path, "name", parts.path)
        raise UsageError(f"{kind} interpolant follows path=interpolant, not path={name}; set path=interpolant")
    return parts.path


def noisy(epsilon: float = 0.0) -> Step:
    """A solver's step for an interpolant, from t to r = t + h, exact where v and eta do not change on the way:

        x - gamma(t) eta + h v + gamma(r) (k eta + sqrt(1 - k^2) z),   k = exp(-epsilon |h| / (gamma(t) gamma(r))).

    Given its ends, the noise of x_t over gamma is an Ornstein-Uhlenbeck process of rate epsilon / gamma^2: k is what is
    left of it. Nothing is divided by gamma or multiplied by gamma', so both ends are reached, and at t = 1, where gamma
    is 0, no noise is added. Where x_t holds no noise yet, at t = 0, it is drawn, for epsilon = 0 too: a sample of the
    source says nothing of it. On a descending grid it is the time reversal. Raises ``ValueError`` for an epsilon
    below 0.
    """
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is a number from 0 on, not {epsilon}")

    def step(field: Any, x: State, t: Tensor, r: Tensor, h: float) -> State:
        now, then = (_gamma(field.path, time) for time in (t, r))
        v, eta, kept = field.drift(x, t), field.denoiser(x, t), 0.0
        x = add(x, v, h)
        if now >= NOTHING:
            kept = 1.0 if epsilon == 0 else math.exp(-epsilon * abs(h) / (now * then)) if then > 0 else 0.0
            x = add(x, eta, then * kept - now)
        if kept == 1.0 or then < NOTHING:
            return x
        draws: torch.Generator | None = step.draws  # type: ignore[attr-defined]
        if draws is None:
            raise ValueError("an interpolant's step draws noise: pass solve(..., generator=...)")
        z = tree_map(lambda leaf: torch.randn(leaf.shape, generator=draws, dtype=leaf.dtype, device=leaf.device), x)
        return add(x, z, then * math.sqrt(1 - kept * kept))

    step.draws = None  # type: ignore[attr-defined]
    step.needs_field = True  # type: ignore[attr-defined]
    return step


def _gamma(path: Interpolant, t: Tensor) -> float:
    return path.gamma.value(t.detach().double().cpu().clamp(0, 1)).item()
