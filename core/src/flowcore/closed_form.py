"""Fields that are known exactly: Gaussian mixtures, or finite sets of points, at one end or both.

    x_t = alpha x1 + sigma x0 + gamma z,   x1 ~ sum_k w_k N(m_k, S_k^2 I),   x0 ~ sum_j u_j N(n_j, R_j^2 I)

For each pair (j, k), with mean mu = alpha m_k + sigma n_j, variance C = alpha^2 S_k^2 + sigma^2 R_j^2 + gamma^2 and
responsibility r ~ u_j w_k N(x; mu, C I),

    v(x, t) = sum r (mu' + C' / (2 C) (x - mu)),      score(x, t) = -sum r (x - mu) / C.

They check solvers, likelihoods and diagnostics without training. A finite set (S = 0) is the exact minimiser that a
network trained on those points approaches: a free teacher.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flowcore.field import Field
from flowcore.interpolants import Interpolant, InterpolantField
from flowcore.paths import Affine
from flowcore.state import expand


class MixtureVelocity(nn.Module):
    """``forward(x, t, condition)`` is the exact velocity, ``score(x, t)`` the score, ``posterior(x, t)`` E[x1 | x_t].

    ``ends`` holds (means, standard deviations, weights) of the data and of the source.
    """

    def __init__(self, path: Affine | Interpolant, ends: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> None:
        super().__init__()
        self.path = path
        (m, S, w), (n, R, u) = ends
        count, sources = len(m), len(n)
        self.m: Tensor
        self.n: Tensor
        self.data_variance: Tensor
        self.source_variance: Tensor
        self.log_weights: Tensor
        self.register_buffer("m", m.flatten(1).repeat(sources, 1))
        self.register_buffer("n", n.flatten(1).repeat_interleave(count, 0))
        self.register_buffer("data_variance", S.square().repeat(sources))
        self.register_buffer("source_variance", R.square().repeat_interleave(count))
        self.register_buffer("log_weights", (u[:, None] * w[None, :]).flatten().log())

    def _mixture(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Responsibilities and variances (B, pairs), flat x (B, d), and alpha, sigma, alpha', sigma', C' / 2."""
        flat = x.flatten(1)
        t = expand(t, flat).expand(len(flat), 1)
        a, s, da, ds = self.path.alpha(t), self.path.sigma(t), self.path.dalpha(t), self.path.dsigma(t)
        total = a.square() * self.data_variance + s.square() * self.source_variance
        half = a * da * self.data_variance + s * ds * self.source_variance
        if isinstance(self.path, Interpolant):
            total, half = total + self.path.gamma.value(t).square(), half + self.path.gamma.slope(t)
        if len(self.m) == 1:
            return torch.ones_like(total), total, flat, a, s, da, ds, half
        # |x - a m - s n|^2 without a (B, pairs, d) tensor
        means, cross = flat @ self.m.T, flat @ self.n.T
        squares = a.square() * self.m.square().sum(1) + s.square() * self.n.square().sum(1)
        both = 2 * a * s * (self.m * self.n).sum(1)
        squared = flat.square().sum(1, keepdim=True) - 2 * (a * means + s * cross) + squares + both
        logits = self.log_weights - squared / (2 * total) - 0.5 * flat.shape[1] * total.log()
        return logits.softmax(1), total, flat, a, s, da, ds, half

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        r, total, flat, a, s, da, ds, half = self._mixture(x, t)
        gain = half / total
        v = (r * (da - gain * a)) @ self.m + (r * (ds - gain * s)) @ self.n + (r * gain).sum(1, keepdim=True) * flat
        return v.view_as(x)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x)."""
        r, total, flat, a, s, *_ = self._mixture(x, t)
        share = r / total
        q = (share * a) @ self.m + (share * s) @ self.n - share.sum(1, keepdim=True) * flat
        return q.view_as(x)

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t = x], finite at t = 0 and t = 1 alike wherever S > 0."""
        r, total, flat, a, s, *_ = self._mixture(x, t)
        gain = a * self.data_variance / total
        data = (r * (1 - gain * a)) @ self.m - (r * gain * s) @ self.n + (r * gain).sum(1, keepdim=True) * flat
        return data.view_as(x)


def _end(means: Tensor, std: float | Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    count = len(means)
    spread = torch.as_tensor(std, dtype=means.dtype, device=means.device).expand(count)
    shares = means.new_full((count,), 1 / count) if weights is None else weights / weights.sum()
    return means, spread, shares


def mixture(path: Affine, means: Tensor, std: float | Tensor = 0.0, weights: Tensor | None = None) -> Field:
    """The exact field for data sum_k w_k N(m_k, S_k^2 I) and source N(0, I).

    ``means`` has shape (K, *sample), ``std`` is S (a number or (K,)), ``weights`` (K,), equal by default. With
    ``std = 0`` the data are the K points themselves and the field is singular at t = 1. The mixture itself is
    ``field.network``, whose ``posterior(x, t)`` is E[x1 | x_t].
    """
    source = _end(torch.zeros_like(means[:1]), 1.0, None)
    return Field(MixtureVelocity(path, (_end(means, std, weights), source)), path)


class CorrelatedVelocity(nn.Module):
    """``forward(x, t, condition)`` is the exact velocity of x (..., d) for data N(m, S) and white noise."""

    def __init__(self, path: Affine, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.path = path
        self.mean: Tensor
        self.spectrum: Tensor
        self.basis: Tensor
        spectrum, basis = torch.linalg.eigh(covariance)
        self.register_buffer("mean", mean)
        self.register_buffer("spectrum", spectrum)
        self.register_buffer("basis", basis)

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        a, s, da, ds = self.path.coefficients(expand(t, x))
        rate = (a * da * self.spectrum + s * ds) / (a.square() * self.spectrum + s.square())
        return da * self.mean + (((x - a * self.mean) @ self.basis) * rate) @ self.basis.T


def correlated(path: Affine, mean: Tensor, covariance: Tensor) -> Field:
    """The exact field for data N(m, S) along the last dimension, each row by itself, and source N(0, I).

        v(x, t) = alpha' m + (alpha alpha' S + sigma sigma' I) (alpha^2 S + sigma^2 I)^-1 (x - alpha m)

    ``mean`` is m, (d,) or a number of no dimension; ``covariance`` S (d, d).
    """
    return Field(CorrelatedVelocity(path, mean, covariance), path)


def interpolant_mixture(
    path: Interpolant, source: tuple[Tensor, float | Tensor], data: tuple[Tensor, float | Tensor]
) -> InterpolantField:
    """The exact interpolant field between two mixtures given as (means, std), equal weights."""
    exact = MixtureVelocity(path, (_end(*data, None), _end(*source, None)))

    def network(x: Tensor, t: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        return exact(x, t), -path.gamma.value(expand(t, x)) * exact.score(x, t)

    return InterpolantField(network, path)
