"""Probability paths from the source x0 (t = 0) to the data x1 (t = 1), and the conversions between predictions.

    x_t = alpha(t) x1 + sigma(t) x0,      u = d x_t / dt = alpha'(t) x1 + sigma'(t) x0

A network may predict the velocity v = E[u | x_t], the data x1 = E[x1 | x_t], the noise e = E[x0 | x_t], or the score
q = -e / sigma (Gaussian source only). Any one gives the others; ``Affine.convert`` is the only place that does it.
Sources: Lipman et al. 2023 (arXiv 2210.02747), Albergo et al. 2023 (arXiv 2303.08797).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flowcore.state import State, branch, expand, tree_map

Prediction = Literal["velocity", "x1", "noise", "score"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Scalar = Callable[[Tensor], Tensor]
Source = Callable[[Tensor, torch.Generator], Tensor]


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """x0 ~ N(0, I) with the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Affine:
    """x_t = alpha(t) x1 + sigma(t) x0 with alpha' sigma - sigma' alpha > 0 on (0, 1).

    ``start`` and ``stop`` bound the times a sampler may use: they leave out an end at which a coefficient is infinite.
    All methods take states (tensors or dicts), ``t`` scalar or (B,), and an optional ragged ``index``.
    """

    name: str
    alpha: Scalar
    sigma: Scalar
    dalpha: Scalar
    dsigma: Scalar
    source: Source = gaussian
    start: float = 0.0
    stop: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(alpha, sigma, alpha', sigma') at ``t``, each of t's shape."""
        return self.alpha(t), self.sigma(t), self.dalpha(t), self.dsigma(t)

    def draw_source(self, like: State, generator: torch.Generator) -> State:
        """x0 from the source distribution, shaped like ``like``."""
        return tree_map(lambda leaf: self.source(leaf, generator), like)

    def interpolate(self, x0: State, x1: State, t: float | Tensor, index: Any = None) -> State:
        """x_t = alpha x1 + sigma x0."""
        if isinstance(x1, Tensor):
            time = expand(t, x1, index)
            return self.alpha(time) * x1 + self.sigma(time) * x0
        return {key: self.interpolate(x0[key], x1[key], t, branch(index, key)) for key in x1}

    def target(self, wanted: Prediction, x0: State, x1: State, t: float | Tensor, index: Any = None) -> State:
        """What a network predicting ``wanted`` is regressed on, given the pair (x0, x1)."""
        if not isinstance(x1, Tensor):
            return {key: self.target(wanted, x0[key], x1[key], t, branch(index, key)) for key in x1}
        time = expand(t, x1, index)
        match wanted:
            case "velocity":
                return self.dalpha(time) * x1 + self.dsigma(time) * x0
            case "x1":
                return x1
            case "noise":
                return x0
            case "score":
                return -x0 / self.sigma(time)
        raise ValueError(_unknown(wanted))

    def convert(
        self, value: State, x: State, t: float | Tensor, given: Prediction, wanted: Prediction, index: Any = None
    ) -> State:
        """Turn a prediction of one kind at (x, t) into another kind.

        With W = alpha' sigma - sigma' alpha:  x1 = (sigma v - sigma' x) / W,  e = (alpha' x - alpha v) / W,
        q = -e / sigma, and x = alpha x1 + sigma e closes the circle. Dividing by alpha is singular at t = 0, by sigma
        at t = 1: noise -> x1 and x1 -> noise inherit that, velocity -> anything but the score does not.
        """
        if given == wanted:
            return value
        if not isinstance(x, Tensor):
            return {key: self.convert(value[key], x[key], t, given, wanted, branch(index, key)) for key in x}
        a, s, da, ds = self.coefficients(expand(t, x, index))
        match given:
            case "velocity":
                W = da * s - ds * a
                if wanted == "x1":
                    return (s * value - ds * x) / W
                noise = (da * x - a * value) / W
                return noise if wanted == "noise" else -noise / s
            case "x1":
                x1, noise = value, (x - a * value) / s
            case "noise":
                x1, noise = (x - s * value) / a, value
            case "score":
                x1, noise = (x + s * s * value) / a, -s * value
            case _:
                raise ValueError(_unknown(given))
        match wanted:
            case "velocity":
                return da * x1 + ds * noise
            case "x1":
                return x1
            case "noise":
                return noise
            case "score":
                return -noise / s
        raise ValueError(_unknown(wanted))


def _unknown(kind: str) -> str:
    return f"unknown prediction {kind!r}; one of {', '.join(PREDICTIONS)}"


def linear() -> Affine:
    """x_t = t x1 + (1 - t) x0: straight lines, rectified flow and conditional OT (Liu et al., arXiv 2209.03003)."""
    return Affine("linear", lambda t: t, lambda t: 1 - t, torch.ones_like, lambda t: -torch.ones_like(t))


def cosine() -> Affine:
    """x_t = sin(pi t / 2) x1 + cos(pi t / 2) x0: variance preserving for unit-variance data."""
    half = math.pi / 2
    return Affine(
        "cosine",
        lambda t: torch.sin(half * t),
        lambda t: torch.cos(half * t),
        lambda t: half * torch.cos(half * t),
        lambda t: -half * torch.sin(half * t),
    )
