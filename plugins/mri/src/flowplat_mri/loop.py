"""BlindHarmony (arXiv 2305.10732): a source is drawn to what the target's prior finds likely, and held by two terms.

    min_x  -beta_f <x, y> / (|x| |y|)  +  beta_g (|M_x S_x x|_1 + |M_y S_y x|_1)  +  |f(x)|^2 / 2

y is the source, f takes images to the latents of the prior, S are Sobel's filters and M is 1 where the source is flat.
Each round takes a gradient step on the first two terms and shrinks the latent of the third. f is a coupling flow, or a
velocity followed backwards in time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6  # on norms
FLAT, DARK = 0.30, 0.05  # share of pixels that count as flat; intensity below which none does
LARGEST = 100.0  # beyond it the inverse of a flow has failed

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """``fidelity`` is beta_f for each pixel: 0.0395 is the paper's 1000 at 144 x 176; a step of it changes a pixel by
    the same amount whatever the size of the slice. ``flatness`` is beta_g, ``shrink`` alpha, ``rounds`` R."""

    fidelity: float = 0.0395
    flatness: float = 1e-3
    shrink: float = 1e-3
    rounds: int = 10


def sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's derivatives along the last two axes of (B, 1, H, W), zeros beyond the border: minus their own
    adjoints."""
    kernel = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]], dtype=x.dtype, device=x.device)[None, None]
    return F.conv2d(x, kernel, padding=1), F.conv2d(x, kernel.mT, padding=1)


def flat(y: Tensor) -> tuple[Tensor, Tensor]:
    """Where a source (B, 1, H, W) is flat along each axis: its derivative is among the smallest 30 % of its slice, and
    it is not dark."""
    masks = []
    for derivative in sobel(y):
        size = derivative.abs()
        least = size.flatten(1).quantile(FLAT, dim=1)[:, None, None, None]
        masks.append(((size < least) & (y > DARK)).to(y.dtype))
    return masks[0], masks[1]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> / (|x| |y|) of each slice, (B,), no mean taken off."""
    return (x * y).flatten(1).sum(1) / (_norm(x) * _norm(y))[:, 0, 0, 0]


def fidelity_gradient(x: Tensor, y: Tensor) -> Tensor:
    """The gradient of -cosine(x, y): -y / (|x| |y|) + <x, y> x / (|x|^3 |y|)."""
    a, b = _norm(x), _norm(y)
    product = (x * y).flatten(1).sum(1)[:, None, None, None]
    return -y / (a * b) + product * x / (a**3 * b)


def flatness(x: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
    """|M_x S_x x|_1 + |M_y S_y x|_1 of each slice, (B,)."""
    return torch.stack([(m * s).abs().flatten(1).sum(1) for m, s in zip(masks, sobel(x), strict=True)]).sum(0)


def flatness_gradient(x: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
    """Its gradient: -(S_x sign(M_x S_x x) + S_y sign(M_y S_y x))."""
    signs = [(m * s).sign() for m, s in zip(masks, sobel(x), strict=True)]
    return -(sobel(signs[0])[0] + sobel(signs[1])[1])


def objective(x: Tensor, y: Tensor, masks: tuple[Tensor, Tensor], encode: Map, settings: Settings) -> Tensor:
    """What is minimised, of each slice, (B,)."""
    pull = settings.fidelity * y[0].numel() * cosine(x, y)
    return -pull + settings.flatness * flatness(x, masks) + 0.5 * encode(x).square().flatten(1).sum(1)


@torch.no_grad()
def harmonized(start: Tensor, y: Tensor, encode: Map, decode: Map, settings: Settings) -> tuple[Tensor, Tensor]:
    """``settings.rounds`` rounds from ``start``, the target's mean, for sources ``y`` (B, 1, H, W), both in [0, 1]; the
    slices and their last latents. Where the inverse fails, the gradient step alone counts."""
    masks, x, z = flat(y), start, torch.zeros_like(start)
    weight = settings.fidelity * y[0].numel()
    for _ in range(settings.rounds):
        moved = x - weight * fidelity_gradient(x, y) - settings.flatness * flatness_gradient(x, masks)
        z = encode(moved)
        back = decode((1 - settings.shrink) * z)
        failed = ~back.isfinite() | (back.abs() > LARGEST)
        failed = failed.flatten(1).any(1) | ~(back != 0).flatten(1).any(1)
        x = torch.where(failed[:, None, None, None], moved, back).clamp(0, 1)
    return x, z


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None] + EPS
