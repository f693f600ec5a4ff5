"""Distributions of the training time t in (0, 1), each given by its quantile function and its density.

    t = quantile(u),  u ~ U(0, 1);   density(t) = 1 / quantile'(u)

Everything else follows: plain draws use independent u, stratified draws use u_i = (i + u) / n in random order (the same
law, a lower variance of the loss), and importance weights 1 / density(t) give back the uniform optimum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 1e-5  # draws stay inside [MARGIN, 1 - MARGIN], where every density here is finite


@dataclass(frozen=True)
class Times:
    """A distribution of t: ``times(n, generator) -> (n,)`` in float64, and ``times.density(t)``."""

    quantile: Callable[[Tensor], Tensor]
    density: Callable[[Tensor], Tensor]
    stratified: bool = False

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times, shape (n,), on the generator's device."""
        device = generator.device
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        if self.stratified:
            order = torch.randperm(n, generator=generator, device=device)
            u = (order + u) / n
        return self.quantile(u).clamp(MARGIN, 1 - MARGIN)


def uniform(stratified: bool = False) -> Times:
    """t ~ U(0, 1)."""
    return Times(lambda u: u, torch.ones_like, stratified)


def logit_normal(mean: float = 0.0, std: float = 1.0, stratified: bool = False) -> Times:
    """logit(t) ~ N(mean, std^2): the middle of the path more often (Esser et al. 2024, arXiv 2403.03206)."""

    def density(t: Tensor) -> Tensor:
        z = (torch.logit(t) - mean) / std
        return torch.exp(-z.square() / 2) / (std * math.sqrt(2 * math.pi) * t * (1 - t))

    return Times(lambda u: torch.sigmoid(mean + std * torch.special.ndtri(u)), density, stratified)
