"""Distributions of the training time t in (0, 1), each given by its quantile function and its density.

    t = quantile(u),  u ~ U(0, 1);   density(t) = 1 / quantile'(u)

Everything else follows: plain draws use independent u, stratified draws use u_i = (i + u) / n in random order (the same
law, a lower variance of the loss), and importance weights 1 / density(t) keep the loss that uniform times have.
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
    importance: bool = False

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times, shape (n,), on the generator's device."""
        device = generator.device
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        if self.stratified:
            order = torch.randperm(n, generator=generator, device=device)
            u = (order + u) / n
        return self.quantile(u).clamp_(MARGIN, 1 - MARGIN)

    def weights(self, t: Tensor) -> Tensor | None:
        """1 / density(t) where ``importance`` is set, else None: the factor on the loss at t."""
        return 1 / self.density(t) if self.importance else None


def uniform(stratified: bool = False) -> Times:
    """t ~ U(0, 1)."""
    return Times(lambda u: u, torch.ones_like, stratified)


def logit_normal(mean: float = 0.0, std: float = 1.0, stratified: bool = False, importance: bool = False) -> Times:
    """logit(t) ~ N(mean, std^2): the middle of the path more often (Esser et al. 2024, arXiv 2403.03206)."""

    def density(t: Tensor) -> Tensor:
        z = (torch.logit(t) - mean) / std
        return torch.exp(-z.square() / 2) / (std * math.sqrt(2 * math.pi) * t * (1 - t))

    return Times(lambda u: torch.sigmoid(mean + std * torch.special.ndtri(u)), density, stratified, importance)


def u_shaped(a: float = 4.0, stratified: bool = False, importance: bool = False) -> Times:
    """density a (e^(a t) + e^(a (1 - t))) / (2 (e^a - 1)): both ends more often, for reflow (Lee et al. 2024,
    arXiv 2405.20320). In closed form t = 1/2 + asinh((2 u - 1) sinh(a / 2)) / a."""
    scale = math.sinh(a / 2)

    def density(t: Tensor) -> Tensor:
        return a * (torch.exp(a * t) + torch.exp(a * (1 - t))) / (2 * math.expm1(a))

    return Times(lambda u: 0.5 + torch.asinh((2 * u - 1) * scale) / a, density, stratified, importance)


def mode(k: float = 1.29, stratified: bool = False, importance: bool = False) -> Times:
    """1 - t = 1 - u - k (cos^2(pi u / 2) - 1 + u), -1 <= k <= 2 / (pi - 2): more (k > 0) or less often in the middle
    (Esser et al. 2024, arXiv 2403.03206). The density is had by solving for u."""
    if not -1 <= k <= 2 / (math.pi - 2):
        raise ValueError(f"k must be between -1 and {2 / (math.pi - 2):.3f}, not {k}")

    def quantile(u: Tensor) -> Tensor:
        return u + k * (torch.cos(math.pi * u / 2).square() - 1 + u)

    def density(t: Tensor) -> Tensor:
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            middle = (low + high) / 2
            below = quantile(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 1 / (1 + k * (1 - math.pi / 2 * torch.sin(math.pi * (low + high) / 2)))

    return Times(quantile, density, stratified, importance)


def cosmap(stratified: bool = False, importance: bool = False) -> Times:
    """t = 1 - 1 / (tan(pi u / 2) + 1), density 2 / (pi (1 - 2 t + 2 t^2)): the linear path timed like the cosine one
    (Esser et al. 2024, arXiv 2403.03206)."""
    return Times(
        lambda u: 1 - 1 / (torch.tan(math.pi * u / 2) + 1),
        lambda t: 2 / (math.pi * (1 - 2 * t + 2 * t * t)),
        stratified,
        importance,
    )


def log_normal_noise(
    mean: float = -1.2, std: float = 1.2, sigma_max: float = 80.0, stratified: bool = False, importance: bool = False
) -> Times:
    """ln sigma ~ N(mean, std^2) on the path ``ve(sigma_max)``, t = 1 - sigma / sigma_max (Karras et al. 2022,
    arXiv 2206.00364). Noise above sigma_max, one draw in a million at the defaults, is cut to it."""

    def quantile(u: Tensor) -> Tensor:
        return 1 - torch.exp(mean - std * torch.special.ndtri(u)) / sigma_max

    def density(t: Tensor) -> Tensor:
        sigma = sigma_max * (1 - t)
        z = (sigma.log() - mean) / std
        return torch.exp(-z.square() / 2) / (std * math.sqrt(2 * math.pi) * sigma) * sigma_max

    return Times(quantile, density, stratified, importance)


def shifted(times: Times, k: float) -> Times:
    """The noise level 1 - t becomes k (1 - t) / (1 + (k - 1) (1 - t)): k > 1 for larger images (Esser et al. 2024).

    Applied once, here; a sampler uses the same map on its grid through ``shift``.
    """

    def density(t: Tensor) -> Tensor:
        noise = 1 - t
        before = noise / (k - (k - 1) * noise)
        return times.density(1 - before) * k / (k - (k - 1) * noise).square()

    return Times(lambda u: shift(times.quantile(u), k), density, times.stratified, times.importance)


def shift(t: Tensor, k: float) -> Tensor:
    """The times of a grid or a draw, moved towards the noise for k > 1; 0 and 1 stay."""
    noise = 1 - t
    return 1 - k * noise / (1 + (k - 1) * noise)
