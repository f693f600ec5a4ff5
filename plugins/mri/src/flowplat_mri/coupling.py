"""A coupling flow of slices, Glow's layout with spline couplings: the prior of BlindHarmony (arXiv 2305.10732).

    z = f(x),  log p(x) = log N(f(x); 0, I) + log |det df/dx|

Each level squeezes 2x2 pixels into channels; its steps are actnorm, an invertible 1x1 convolution and a coupling, whose
first half of the channels says by which monotone rational-quadratic splines (Durkan et al. 2019, arXiv 1906.04032;
zuko) the other half moves. At the end of a level half of the channels are latent already (Kingma and Dhariwal 2018,
arXiv 1807.03039)."""

import math
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Objective, Parts, Sampler, Spec
from flowcore.state import State

BOUND = 5.0  # beyond it splines are the identity
LEAST = 1e-2  # slope of a spline; less, and single precision does not come back to within 1e-4

Bits = Annotated[
    int, Field(ge=4, le=16, description="2^bits levels of intensity, between which data are spread evenly")
]
RANGE = 6.0  # standard deviations that the levels cover


class GlowConfig(BaseModel):
    """Options of the coupling flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: int = Field(2, ge=1, le=4, description="how often pixels are squeezed, each halving height and width")
    steps: int = Field(4, ge=1, description="couplings at each level")
    hidden: int = Field(32, ge=8, description="channels of the networks inside couplings")
    bins: int = Field(4, ge=2, description="pieces of a spline")


class Glow(nn.Module):
    """Slices (B, 1, H, W) to latents of that shape and back; H and W divisible by 2^levels.

    Called as a network, with t, it returns the latents, whatever t and the condition are: the prior is told nothing.
    Called with x alone it returns log p(x), so that training goes through what precision and other processes wrap
    around a network's call."""

    def __init__(self, config: GlowConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        channels = 1
        for level in range(config.levels):
            channels *= 4
            self.levels.append(nn.ModuleList(_Step(channels, config.hidden, config.bins) for _ in range(config.steps)))
            if level < config.levels - 1:
                channels //= 2
        self.multiple = 2**config.levels

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, 1, H, W) and log |det dz/dx| (B,)."""
        total, parts, last = x.new_zeros(len(x)), [], len(self.levels) - 1
        for number, level in enumerate(self.levels):
            x = squeeze(x)
            for step in level:  # type: ignore[union-attr]
                x, change = step.encode(x)
                total = total + change
            if number < last:
                x, out = x.chunk(2, 1)
                parts.append(out)
        for out in reversed(parts):
            x = torch.cat([unsqueeze(x), out], 1)
        return unsqueeze(x), total

    def decode(self, z: Tensor) -> Tensor:
        """x (B, 1, H, W) of a latent."""
        parts, last = [], len(self.levels) - 1
        x = squeeze(z)
        for _ in range(last):
            x, out = x.chunk(2, 1)
            parts.append(out)
            x = squeeze(x)
        for number in range(last, -1, -1):
            for step in reversed(self.levels[number]):  # type: ignore[call-overload]
                x = step.decode(x)
            x = unsqueeze(x)
            if number:
                x = torch.cat([x, parts[number - 1]], 1)
        return x

    def forward(self, x: Tensor, t: Tensor | None = None, condition: Any = None) -> Tensor:
        return self.log_prob(x) if t is None else self.encode(x)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,)."""
        z, change = self.encode(x)
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return normal + change


class _Step(nn.Module):
    """Actnorm, 1x1 convolution, coupling."""

    def __init__(self, channels: int, hidden: int, bins: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.ready: Tensor
        self.register_buffer("ready", torch.zeros(()))
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.first = channels // 2
        self.second, self.bins = channels - self.first, bins
        self.net = nn.Sequential(
            nn.Conv2d(self.first, hidden, 3, padding=1), nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.SiLU(),
            nn.Conv2d(hidden, self.second * (3 * bins - 1 + 2), 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not self.ready:
            self._set(x)
        pixels = x.shape[2] * x.shape[3]
        x = (x + _wide(self.shift)) * _wide(self.log_scale.exp())
        x = nn.functional.conv2d(x, self.weight[:, :, None, None])
        change = pixels * (self.log_scale.sum() + torch.linalg.slogdet(self.weight.double())[1].to(x.dtype))
        kept, moved = x[:, : self.first], x[:, self.first :]
        spline, log_scale, shift = self._told(kept)
        moved, slope = spline.call_and_ladj(moved * log_scale.exp() + shift)
        return torch.cat([kept, moved], 1), change + (slope + log_scale).flatten(1).sum(1)

    def decode(self, z: Tensor) -> Tensor:
        kept, moved = z[:, : self.first], z[:, self.first :]
        spline, log_scale, shift = self._told(kept)
        moved = (_inverse(spline, moved) - shift) * (-log_scale).exp()
        inverse = torch.linalg.inv(self.weight.double()).to(z.dtype)
        x = nn.functional.conv2d(torch.cat([kept, moved], 1), inverse[:, :, None, None])
        return x * _wide((-self.log_scale).exp()) - _wide(self.shift)

    def _told(self, kept: Tensor) -> tuple[Any, Tensor, Tensor]:
        """The splines of the second half of the channels, and what scales and shifts it before: all told by the first.
        The scale is bounded by e^(+-1), so that nothing overflows on the way back."""
        from zuko.transforms import MonotonicRQSTransform

        told = self.net(kept)
        batch, _, height, width = told.shape
        told = told.view(batch, self.second, -1, height, width).movedim(2, -1)
        spline, log_scale, shift = told.split([3 * self.bins - 1, 1, 1], -1)
        widths, heights, slopes = spline.split([self.bins, self.bins, self.bins - 1], -1)
        return MonotonicRQSTransform(widths, heights, slopes, BOUND, LEAST), log_scale[..., 0].tanh(), shift[..., 0]

    @torch.no_grad()
    def _set(self, x: Tensor) -> None:
        """Actnorm begins with mean 0 and standard deviation 1 of the first batch."""
        self.shift.copy_(-x.mean((0, 2, 3)))
        self.log_scale.copy_(-x.std((0, 2, 3)).clamp(min=1e-2).log())
        self.ready.fill_(1.0)


def _inverse(spline: Any, y: Tensor) -> Tensor:
    """The inverse of splines. zuko's own takes the root of a discriminant that rounding can push below 0; here that is
    0, which is what it stands for."""
    place = spline.searchsorted(spline.vertical, y) - 1
    mask, x0, x1, y0, y1, d0, d1, s = spline.bin(place)
    above, bend = mask * (y - y0), d0 + d1 - 2 * s
    a = (y1 - y0) * (s - d0) + above * bend
    b = (y1 - y0) * d0 - above * bend
    c = -s * above
    root = (b * b - 4 * a * c).clamp(min=0).sqrt()
    return torch.where(mask, x0 + 2 * c / (-b - root) * (x1 - x0), y)


def squeeze(x: Tensor) -> Tensor:
    """2x2 pixels as channels: (B, C, H, W) -> (B, 4C, H/2, W/2)."""
    return nn.functional.pixel_unshuffle(x, 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The way back."""
    return nn.functional.pixel_shuffle(x, 2)


def _wide(one: Tensor) -> Tensor:
    return one[None, :, None, None]


def glow(config: GlowConfig, spec: Spec) -> nn.Module:
    """The coupling flow. Raises ``UsageError`` for what is no slices, or slices that cannot be halved so often."""
    if not isinstance(spec.state, Leaf) or len(spec.state.shape) != 3 or spec.state.shape[0] != 1:
        raise UsageError(f"network=glow takes slices (1, H, W), not {spec.state}")
    height, width = spec.state.shape[1:]
    if height % 2**config.levels or width % 2**config.levels:
        raise UsageError(f"slices of {height}x{width} cannot be halved {config.levels} times; lower network.levels")
    return Glow(config)


def likelihood(parts: Parts, bits: Bits = 8) -> Objective:
    """-log p(x + u) per pixel in nats, with u ~ U(-1/2, 1/2) a level of intensity wide (dequantisation), of which
    2^bits cover six standard deviations. Raises ``UsageError`` for a network without a density."""
    width = RANGE / 2**bits

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        if not hasattr(network, "log_prob"):
            raise UsageError("objective=likelihood trains a network with a density: set network=glow")
        noise = torch.rand(batch.x1.shape, generator=generator, device=generator.device).to(batch.x1) - 0.5
        return -network(batch.x1 + width * noise) / batch.x1[0].numel()

    return loss


def inverse(parts: Parts, temperature: Annotated[float, Field(ge=0, description="times the latents")] = 0.7) -> Sampler:
    """x = f^-1(temperature z) with z ~ N(0, I), in one call whatever the steps are."""

    def sample(network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator) -> Batch:
        if not hasattr(network, "decode"):
            raise UsageError("sample.sampler=inverse draws from a coupling flow: set network=glow")
        shape = parts.spec.state.shape  # type: ignore[union-attr]
        z = torch.randn(count, *shape, generator=generator, device=generator.device).to(parts.device)
        return Batch(network.decode(temperature * z), condition, x0=z, extra={"calls": 1})

    return sample
