"""Fields that are known exactly: Gaussian mixtures and finite sets of points as data, Gaussian noise as source.

    r_k ~ w_k N(x; alpha m_k, C_k I),   C_k = alpha^2 S_k^2 + sigma^2,
    v(x, t) = sum_k r_k (alpha' m_k + (alpha alpha' S_k^2 + sigma sigma') / C_k (x - alpha m_k))

They check solvers, likelihoods and diagnostics without training, and a finite set (S = 0) is the exact minimiser that a
network trained on those points approaches: a free teacher.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flowcore.field import Field
from flowcore.paths import Affine
from flowcore.state import expand


class MixtureVelocity(nn.Module):
    """``forward(x, t, condition)`` is the exact velocity; ``posterior`` is E[x1 | x_t]."""

    def __init__(self, path: Affine, means: Tensor, std: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.path = path
        self.shape = means.shape[1:]
        self.register_buffer("means", means.flatten(1))
        self.register_buffer("variance", std.square())
        self.register_buffer("log_weights", weights.log())
        self.means: Tensor
        self.variance: Tensor
        self.log_weights: Tensor

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Responsibilities (B, K), total variances (B, K), flat x (B, d), and the path's coefficients (B, 1)."""
        flat = x.flatten(1)
        a, s, da, ds = self.path.coefficients(expand(t, flat).expand(len(flat), 1))
        total = a.square() * self.variance + s.square()
        if len(self.means) == 1:
            return torch.ones_like(total), total, flat, (a, s, da, ds)
        # |x - a m|^2 without a (B, K, d) tensor
        cross = flat @ self.means.T
        squared = flat.square().sum(1, keepdim=True) - 2 * a * cross + a.square() * self.means.square().sum(1)
        logits = self.log_weights - squared / (2 * total) - 0.5 * flat.shape[1] * total.log()
        return logits.softmax(1), total, flat, (a, s, da, ds)

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        r, total, flat, (a, s, da, ds) = self._parts(x, t)
        gain = (a * da * self.variance + s * ds) / total
        v = (r * (da - gain * a)) @ self.means + (r * gain).sum(1, keepdim=True) * flat
        return v.view_as(x)

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t = x], finite at t = 0 and t = 1 alike wherever S > 0."""
        r, total, flat, (a, _, _, _) = self._parts(x, t)
        gain = a * self.variance / total
        return ((r * (1 - gain * a)) @ self.means + (r * gain).sum(1, keepdim=True) * flat).view_as(x)


def mixture(path: Affine, means: Tensor, std: float | Tensor = 0.0, weights: Tensor | None = None) -> Field:
    """The exact field for data sum_k w_k N(m_k, S_k^2 I) and source N(0, I).

    ``means`` has shape (K, *sample), ``std`` is S (a number or (K,)), ``weights`` (K,), equal by default. With
    ``std = 0`` the data are the K points themselves and the field is singular at t = 1. The mixture itself is
    ``field.network``, whose ``posterior(x, t)`` is E[x1 | x_t].
    """
    count = len(means)
    spread = torch.as_tensor(std, dtype=means.dtype, device=means.device).expand(count)
    shares = torch.full((count,), 1 / count, dtype=means.dtype, device=means.device) if weights is None else weights
    return Field(MixtureVelocity(path, means, spread, shares / shares.sum()), path)
