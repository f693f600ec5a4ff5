"""The network: residual blocks around a diagonal state-space layer, which sees the whole window in both directions.

    x_{l+1} = exp(dt A) x_l + B u_l,   y_l = 2 Re(C x_{l+1}) + D u_l,   B = (exp(dt A) - 1) / A

with a diagonal A is the convolution of u with K[l] = 2 Re sum_n C_n B_n exp(l dt A_n) (Gu et al. 2022, S4D, arXiv
2206.11893; the blocks are those of Kollovieh et al. 2023, arXiv 2307.11494). What makes it quick without a kernel of
our own is said at each function. Inside, a batch is (H, B, L): a layer over channels is then one product of matrices.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy.fft import next_fast_len
from torch import Tensor, nn

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec

STRIDE = 16  # steps that one row of the table of powers covers
CACHED = 2**19  # numbers of one layer that a processor takes at a time
TOLD = 100.0  # the network is told t as a diffusion of 100 steps would be


class S4DOptions(BaseModel):
    """The size of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(64, ge=1, description="channels")
    blocks: int = Field(3, ge=1, description="residual blocks")
    state: int = Field(128, ge=2, multiple_of=2, description="numbers that a channel remembers, in conjugate pairs")
    embedding: int = Field(128, ge=4, multiple_of=2, description="sines and cosines that tell the time")
    step_min: float = Field(1e-3, gt=0, description="shortest step dt of a channel at first")
    step_max: float = Field(0.1, gt=0, description="longest step dt of a channel at first")
    skip: bool = Field(True, description="the input is added to the output")


class _Circulant(torch.autograd.Function):
    """y = irfft(rfft(u) rfft(k))[:L] of u (H, B, L) and k (H, n): three real transforms forward and three back.

    Written out, as autograd goes back through a real transform by a complex one of twice the work, and keeps more.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        n = k.shape[-1]
        U, K = torch.fft.rfft(u, n), torch.fft.rfft(k).unsqueeze(1)
        return torch.fft.irfft(U * K, n)[..., : u.shape[-1]].contiguous(), U, K

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.length, ctx.n = inputs[0].shape[-1], inputs[1].shape[-1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *rest: Any) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        U, K = ctx.saved_tensors
        Y, du, dk = torch.fft.rfft(dy, ctx.n), None, None
        if ctx.needs_input_grad[0]:
            du = torch.fft.irfft(Y * K.conj(), ctx.n)[..., : ctx.length]
        if ctx.needs_input_grad[1]:
            dk = torch.fft.irfft((Y * U.conj()).sum(1), ctx.n)
        return du, dk

    @staticmethod
    def jvp(ctx: Any, du: Tensor | None, dk: Tensor | None) -> tuple[Tensor, None, None]:  # type: ignore[override]
        U, K = ctx.saved_tensors
        parts = []
        if du is not None:
            parts.append(torch.fft.rfft(du, ctx.n) * K)
        if dk is not None:
            parts.append(U * torch.fft.rfft(dk).unsqueeze(1))
        return torch.fft.irfft(sum(parts), ctx.n)[..., : ctx.length], None, None  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _points(length: int) -> int:
    """Points of a transform long enough that no lag from 1 - L to L - 1 meets another, and quick."""
    return int(next_fast_len(2 * length - 1, real=True))


class S4D(nn.Module):
    """u (H, B, L) -> (H, B, L): two kernels a channel, one for each direction of time, and D u."""

    def __init__(self, hidden: int, state: int, step_min: float = 1e-3, step_max: float = 0.1) -> None:
        super().__init__()
        pairs = state // 2
        low, high = math.log(step_min), math.log(step_max)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(hidden))
        self.log_decay = nn.Parameter(torch.full((hidden, pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(pairs, dtype=torch.float32).repeat(hidden, 1))
        self.c = nn.Parameter(torch.randn(2, hidden, pairs, 2) * math.sqrt(0.5))
        self.d = nn.Parameter(torch.randn(hidden))

    def kernels(self, length: int) -> Tensor:
        """K (2, H, L), forward and backward.

        exp((16 i + j) dt A) = exp(16 i dt A) exp(j dt A): two short tables, and the sum over n is a product of real
        matrices. Angles are formed in double precision: at l = 400 they reach thousands of radians.
        """
        exact = torch.float64 if self.c.device.type != "mps" else torch.float32
        a = torch.complex(-self.log_decay.to(exact).exp(), self.frequency.to(exact))
        z = self.log_step.to(exact).exp()[:, None] * a
        rows = -(-length // STRIDE)
        coarse = torch.exp(z[..., None] * torch.arange(0, rows * STRIDE, STRIDE, device=z.device))  # (H, N, I)
        fine = torch.exp(z[..., None] * torch.arange(STRIDE, device=z.device))  # (H, N, J)
        kind = torch.promote_types(self.c.dtype, torch.complex32 if self.c.dtype == torch.half else torch.complex64)
        weight = torch.view_as_complex(self.c) * ((fine[..., 1] - 1) / a).to(kind)  # (2, H, N)
        coarse, fine = coarse.to(kind), fine.to(kind)
        left = torch.view_as_real(weight[..., None] * coarse)  # (2, H, N, I, 2)
        right = torch.stack([fine.real, -fine.imag], 2)  # (H, N, 2, J)
        hidden = len(z)
        table = left.permute(1, 0, 3, 2, 4).reshape(hidden, 2 * rows, -1) @ right.flatten(1, 2)
        return 2 * table.view(hidden, 2, -1)[..., :length].transpose(0, 1)

    def circular(self, length: int) -> Tensor:
        """Both kernels as one of n points (H, n), lag -l at n - l: one convolution does both directions."""
        ahead, behind = self.kernels(length)
        gap = ahead.new_zeros(len(ahead), _points(length) - 2 * length + 1)
        middle = ahead[:, :1] + behind[:, :1] + self.d[:, None]
        return torch.cat([middle, ahead[:, 1:], gap, behind[:, 1:].flip(1)], 1)

    def forward(self, u: Tensor, kernel: Tensor | None = None) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):  # no transform is there in 16 bits
            kernel = self.circular(u.shape[-1]) if kernel is None else kernel
            y: Tensor = _Circulant.apply(u.to(kernel.dtype), kernel)[0]  # type: ignore[no-untyped-call]
        return y


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (H, B, L)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden, 1, 1))
        self.bias = nn.Parameter(torch.zeros(hidden, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(0)
        return torch.addcmul(self.bias, x * (x.square().mean(0) + 1e-5).rsqrt(), self.weight)


class Channels(nn.Linear):
    """A linear layer over the channels of (H, B, L)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        bias = self.bias[:, None]
        return (self.weight @ flat + bias).view(-1, *x.shape[1:])


class Block(nn.Module):
    """h, time -> (h, skip): the state-space layer, a gate and two ways out, of which the ``last`` one has but skip."""

    def __init__(self, options: S4DOptions, last: bool = False, told: int = 0) -> None:
        super().__init__()
        hidden = options.hidden
        self.told = Channels(told, hidden) if told else None
        self.time = nn.Linear(hidden, hidden)
        self.norm = ChannelNorm(hidden)
        self.layer = S4D(hidden, options.state, options.step_min, options.step_max)
        self.mix = Channels(hidden, hidden)
        self.out = Channels(hidden, hidden if last else 2 * hidden)
        self.last = last

    def forward(self, h: Tensor, time: Tensor, kernel: Tensor, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = h + self.time(time).T[..., None]
        y = u + self.mix(nn.functional.gelu(self.layer(self.norm(u), kernel)))
        if self.told is not None:
            y = y + self.told(told)
        gate = (2 * torch.sigmoid(2 * y) - 1) * torch.sigmoid(
            y
        )  # tanh(y) sigmoid(y); tanh itself takes six times as long
        out = self.out(gate)
        if self.last:
            return h, out
        moved, skip = out.chunk(2)
        return h + moved, skip


class Backbone(nn.Module):
    """x (B, C, L), t (B,), of a conditional model what it is told (B, F, L) -> (B, C, L)."""

    def __init__(self, channels: int, options: S4DOptions, told: int = 0) -> None:
        super().__init__()
        hidden = options.hidden
        self.skip = options.skip
        half = options.embedding // 2
        self.register_buffer("rates", torch.exp(-math.log(1e4) * torch.arange(half) / (half - 1)), persistent=False)
        self.rates: Tensor
        self.time = nn.Sequential(nn.Linear(options.embedding, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.enter = Channels(channels, hidden)
        last = options.blocks - 1
        self.blocks = nn.ModuleList(Block(options, number == last, told) for number in range(options.blocks))
        self.inner = Channels(hidden, hidden)
        self.leave = Channels(hidden, channels)

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        angle = TOLD * t[:, None] * self.rates
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        length = x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            kernels = [block.layer.circular(length) for block in self.blocks]  # type: ignore[operator, union-attr]
        # a processor goes through a few rows at a time: what they need stays in its cache from layer to layer
        rows = len(x) if x.device.type != "cpu" else max(1, CACHED // (length * len(self.inner.weight)))
        told = [None] * -(-len(x) // rows) if condition is None else condition.split(rows)
        parts = [self._rows(*part, kernels) for part in zip(x.split(rows), time.split(rows), told, strict=True)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return x + y if self.skip else y

    def _rows(self, x: Tensor, time: Tensor, told: Tensor | None, kernels: list[Tensor]) -> Tensor:
        h = self.enter(x.transpose(0, 1)).relu()
        told = None if told is None else told.transpose(0, 1)
        total: Tensor | None = None
        for block, kernel in zip(self.blocks, kernels, strict=True):
            h, skip = block(h, time, kernel, told)
            total = skip if total is None else total + skip
        assert total is not None  # there is a block
        y: Tensor = self.leave(self.inner(total).relu()).transpose(0, 1)
        return y


def s4d(config: S4DOptions, spec: Spec) -> Backbone:
    """The S4D backbone of TSDiff for windows (C, L) of a data set (arXiv 2307.11494): 137 thousand weights."""
    state = spec.state
    if not isinstance(state, Leaf) or state.kind != "continuous" or len(state.shape) != 2:
        raise UsageError(f"network s4d is for windows (channels, steps) of numbers, not for {state}")
    told = spec.condition.shape[0] if isinstance(spec.condition, Leaf) else 0
    return Backbone(state.shape[0], config, told)
