"""Straight paths from a Gaussian process to the data, whose draws look like series before any is learnt.

    x_t = t x1 + (1 - t) x0,   x0 ~ GP(0, K + jitter I) along time, each channel by itself

With d the distance on a grid of pi i / season, K is exp(-g d^2) (se), exp(-g |d|) (ou) or exp(-g sin^2 d) (periodic),
divided by 1 + jitter so that x0 has variance 1; iso is white noise. (Kollovieh et al. 2024, TSFlow, arXiv 2410.03024.)
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowcore.paths import Affine, linear

Kernel = Literal["iso", "se", "ou", "periodic"]


def covariance(kernel: Kernel, length: int, season: int, gamma: float = 1.0, jitter: float = 0.01) -> Tensor:
    """K (L, L) in float64, with ones on its diagonal."""
    eye = torch.eye(length, dtype=torch.float64)
    if kernel == "iso":
        return eye
    place = math.pi / season * torch.arange(length, dtype=torch.float64)
    d = (place[:, None] - place).abs()
    distance = {"se": d.square(), "ou": d, "periodic": d.sin().square()}[kernel]
    return (torch.exp(-gamma * distance) + jitter * eye) / (1 + jitter)


@lru_cache(maxsize=16)
def _matrices(
    kernel: Kernel, length: int, season: int, gamma: float, jitter: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """K, its Cholesky factor and its inverse."""
    with torch.inference_mode(False):
        K = covariance(kernel, length, season, gamma, jitter)
        factor = torch.linalg.cholesky(K)
        return tuple(one.to(device, dtype) for one in (K, factor, torch.cholesky_inverse(factor)))  # type: ignore[return-value]


class Process:
    """A source of the core's paths: ``process(like, generator)`` draws x0 (..., L), ``covariance(x)`` is K x along the
    last dimension and ``precision(x)`` K^-1 x."""

    def __init__(self, kernel: Kernel, season: int, gamma: float, jitter: float) -> None:
        self.law = kernel, season, gamma, jitter

    def _of(self, like: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        kernel, season, gamma, jitter = self.law
        return _matrices(kernel, like.shape[-1], season, gamma, jitter, like.dtype, device)

    def __call__(self, like: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
        return (z @ self._of(like, z.device)[1].T).to(like.device)

    def covariance(self, x: Tensor) -> Tensor:
        """K x."""
        return x @ self._of(x, x.device)[0]

    def precision(self, x: Tensor) -> Tensor:
        """K^-1 x."""
        return x @ self._of(x, x.device)[2]


def gaussian_process(
    kernel: Annotated[Kernel, Field(description="covariance of the noise along time")] = "ou",
    season: Annotated[
        int, Field(ge=1, description="steps over which the noise repeats, or pi units of its distance")
    ] = 24,
    gamma: Annotated[float, Field(gt=0, description="how quickly it forgets")] = 1.0,
    jitter: Annotated[float, Field(gt=0, description="white noise added")] = 0.01,
) -> Affine:
    """x_t = t x1 + (1 - t) x0, x0 from a Gaussian process along the last dimension: see the module."""
    if kernel == "iso":
        return linear()
    return replace(linear(), name="gaussian_process", source=Process(kernel, season, gamma, jitter))
