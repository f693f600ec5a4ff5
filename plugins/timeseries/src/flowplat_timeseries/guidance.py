"""Self-guidance: a model of windows is steered onto what was observed of a window, by its own prediction of it.

    v - s c(t) grad_x E(E[x1 | x]),    E the sum over what is known of a squared error, or of a quantile loss

(Kollovieh et al. 2023, arXiv 2307.11494, for any path of the core.) E is a sum, as in the paper: what s does depends on
how much is known, so a strength found with lags, or for one context, is not that for others; ``normalised`` makes it a
mean. The strengths of the two are not to be compared.
"""

from typing import Literal

import torch
from torch import Tensor

from flowcore.guidance import Guidance, Loss, observation, quantile, squared_error

Likelihood = Literal["quantile", "mse"]
Weight = Literal["tsflow", "score", "constant"]


def levels(samples: int) -> Tensor:
    """The quantile levels j / (S + 1), j = 1 .. S: (S,)."""
    return torch.arange(1, samples + 1) / (samples + 1)


def misfit(observed: Tensor, mask: Tensor, level: Tensor, likelihood: Likelihood, normalised: bool = False) -> Loss:
    """E of windows (R, C, L): squared errors, or quantile losses of one ``level`` (R,) a row."""
    if likelihood not in ("quantile", "mse"):
        raise ValueError(f"likelihood must be 'quantile' or 'mse', not {likelihood!r}")
    total = (
        squared_error(observed, mask, variance=0.5)
        if likelihood == "mse"
        else quantile(observed, mask, level.to(observed))
    )
    if not normalised:
        return total
    known = mask.flatten(1).sum(1).clamp(min=1)
    return lambda x1: total(x1) / known


def self_guidance(
    observed: Tensor,
    mask: Tensor,
    level: Tensor,
    likelihood: Likelihood = "quantile",
    scale: float = 4.0,
    weight: Weight = "tsflow",
    clip: float | None = None,
    normalised: bool = False,
) -> Guidance:
    """The core's ``observation`` with ``misfit``: rows (R, C, L) of which each is steered towards its own observation.

    ``weight`` is c(t): see ``flowcore.guidance.observation``; "score" is what a diffusion takes (TSDiff), "tsflow" is
    1 - t on straight lines. ``clip`` bounds the norm of a row's gradient.
    """
    return observation(misfit(observed, mask, level, likelihood, normalised), scale, "velocity", weight, clip)
