"""The conditional model: told what is known of a window, it starts from a Gaussian process regressed on that.

    x_t = t x1 + (1 - t) x0,   x0 = x1 where it is known,  a draw of GP(0, K) given that elsewhere

It draws the series alone, (1, L). The network is told the condition (K + 2, L): the lags, what is known with the mean
of the regression in its place elsewhere, and which is which. No guidance is needed, and nothing else can be done with
it than what it was trained for: forecasts. (Kollovieh et al. 2024, TSFlow, arXiv 2410.03024, with their kernels and
season; their noise of 0.001 on the path is left out, and the regression is on the whole context.)
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Parts, Sampler
from flowcore.solvers import solve
from flowplat_timeseries.priors import Kernel, covariance
from flowplat_timeseries.spec import SeriesSpec

JITTER = 0.1  # white noise of the process, as the paper has it for this model
NUGGET = 1e-4  # of what is known


class Law(NamedTuple):
    """The process over a window: its kernel, the steps of its season, the window and its context."""

    kernel: Kernel
    season: int
    length: int
    context: int


@lru_cache(maxsize=16)
def _matrices(law: Law, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K, its Cholesky factor, the gain (L, L) where just the context is known, and the phases (L, season) as ones."""
    with torch.inference_mode(False):
        K = covariance(law.kernel, law.length, law.season, jitter=JITTER)
        known = (torch.arange(law.length) < law.context).to(K)
        phases = nn.functional.one_hot(torch.arange(law.length) % law.season, law.season).to(K)
        made = K, torch.linalg.cholesky(K), gains(K, known[None])[0], phases
        return tuple(one.to(device) for one in made)  # type: ignore[return-value]


def gains(K: Tensor, known: Tensor) -> Tensor:
    """K M (M K M + (1 - M) + 1e-4)^-1 M of masks ``known`` (n, L): (n, L, L), what takes known values to the mean of
    the process everywhere."""
    M = known.to(K)
    system = M[:, :, None] * K * M[:, None, :] + torch.diag_embed(1 - M + NUGGET)
    return torch.linalg.solve(system, M[:, :, None] * K).transpose(1, 2) * M[:, None, :]


def regress(x: Tensor, known: Tensor, law: Law, usual: bool = False) -> tuple[Tensor, Tensor]:
    """The mean (B, L) of the process given what is known of windows x (B, L), and the gain (B or 1, L, L).

    The process is about the mean of what is known of each phase of the season, of all that is known where of a phase
    nothing is. ``usual`` says that just the contexts are known, all of them.
    """
    K, _, gain, phases = _matrices(law, x.device)
    M = known.to(K)
    seen = x.to(K) * M
    count = M @ phases
    overall = seen.sum(1, keepdim=True) / M.sum(1, keepdim=True).clamp(min=1)
    middle = (seen @ phases + overall * (count == 0)) / count.clamp(min=1)
    about = middle @ phases.T
    gain = gain[None] if usual else _of(K, known)
    return about + _apply(gain, ((x.to(K) - about) * M)[:, None])[:, 0], gain


def _of(K: Tensor, known: Tensor) -> Tensor:
    """The gain of each row; rows of one mask share the work."""
    masks, which = torch.unique(known.bool(), dim=0, return_inverse=True)
    found = gains(K, masks)
    return found if len(masks) == 1 else found[which]


def _apply(gain: Tensor, rows: Tensor) -> Tensor:
    """Gain times rows (B, S, L), a gain for each of B or one for all."""
    return rows @ gain[0].T if len(gain) == 1 else torch.einsum("bij,bsj->bsi", gain, rows)


def start(
    x: Tensor, known: Tensor, law: Law, draws: torch.Generator, samples: int = 1, usual: bool = False
) -> tuple[Tensor, Tensor]:
    """x0 (B, S, L), and what is known with the mean elsewhere (B, L), of windows x (B, L).

    A draw f of the process itself is moved onto what is known by the gain, f + G (x - f): a draw given that.
    """
    mean, gain = regress(x, known, law, usual)
    factor = _matrices(law, x.device)[1]
    z = torch.randn(len(x), samples, law.length, generator=draws, device=draws.device).to(factor)
    f, there = z @ factor.T, known.bool()
    drawn = mean[:, None] + f - _apply(gain, f * known[:, None].to(f))
    x = x.to(factor)
    return torch.where(there[:, None], x[:, None], drawn).float(), torch.where(there, x, mean).float()


def posed(x: Tensor, mask: Tensor, lags: Sequence[int], law: Law, draws: torch.Generator, usual: bool = False) -> Batch:
    """Windows (B, 1 + K, L) as this model is trained on them: of their horizons nothing is told, nor by a lag."""
    place = torch.arange(law.length, device=x.device)
    ahead = torch.stack([place - lag >= law.context for lag in (0, *lags)])
    x1, known = x[:, :1], mask[:, 0].masked_fill(ahead[0], 0.0)
    x0, filled = start(x[:, 0], known, law, draws, usual=usual)
    return Batch(x1, condition(x.masked_fill(ahead, 0.0), filled, known), x0, mask=mask[:, :1])


def condition(x: Tensor, filled: Tensor, known: Tensor) -> Tensor:
    """What the network is told (B, K + 2, L)."""
    return torch.cat([x[:, 1:], filled[:, None], known[:, None].to(x)], 1)


def law_of(spec: SeriesSpec) -> Law:
    """The law that the spec of a conditional model states."""
    return Law(cast(Kernel, spec.kernel), spec.period, spec.context + spec.horizon, spec.context)


@torch.no_grad()
def drawn(
    parts: Parts, network: nn.Module, observed: Tensor, mask: Tensor, samples: int, steps: int, draws: torch.Generator
) -> Tensor:
    """Draws (B, S, L) for windows (B, 1 + K, L), known where ``mask`` is 1; see ``forecasting.forecast``."""
    x0, filled = start(observed[:, 0], mask[:, 0], law_of(cast(SeriesSpec, parts.spec)), draws, samples)
    told = condition(observed, filled, mask[:, 0]).repeat_interleave(samples, 0)
    x1 = solve(parts.field(network, told), x0.flatten(0, 1)[:, None], steps, parts.solver, generator=draws)
    return x1.reshape(len(observed), samples, -1)


def sampler(parts: Parts) -> Sampler:
    """Forecasts of held-out windows: each sample is one draw, its source made of its condition. Raises ``UsageError``
    for a model that is not conditional."""
    if parts.spec.condition is None:
        raise UsageError(
            "sampler conditional is for a conditional model: set data.conditional, or leave the sampler out"
        )

    def sample(network: nn.Module, told: Tensor, count: int, steps: int, generator: torch.Generator) -> Batch:
        filled, known = told[:, -2], told[:, -1]
        x0 = start(filled, known, law_of(cast(SeriesSpec, parts.spec)), generator)[0]
        field = parts.field(network, told)
        x1 = solve(field, x0, steps, parts.solver, parts.guidance, generator=generator)
        return Batch(x1, told, x0=x0, extra={"calls": field.calls})

    return sample  # type: ignore[return-value]
