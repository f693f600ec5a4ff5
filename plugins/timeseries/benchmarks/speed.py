"""One training step of the full-size backbone on the CPU, beside an S4D written plainly with FFTs:

    python plugins/timeseries/benchmarks/speed.py [--length 360] [--batch 64] [--repeats 5]

The plain one forms the powers exp(l dt A) of every l, for each direction of time a kernel of its own, and lets autograd
go back through transforms of 2 L points. Both take the same step: loss, backward, Adam. Times are CPU seconds of this
process, least of the repeats, the two taken in turn.
"""

import argparse
import math
import time

import torch
from torch import Tensor, nn

from flowplat_timeseries.networks import Backbone, S4DOptions


class PlainS4D(nn.Module):
    """u (B, H, L) -> (B, H, L)."""

    def __init__(self, hidden: int, state: int) -> None:
        super().__init__()
        pairs = state // 2
        self.log_step = nn.Parameter(math.log(1e-3) + math.log(100) * torch.rand(2, hidden))
        self.log_decay = nn.Parameter(torch.full((2, hidden, pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(pairs).float().repeat(2, hidden, 1))
        self.c = nn.Parameter(torch.randn(2, hidden, pairs, 2))
        self.d = nn.Parameter(torch.randn(hidden, 1))

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[-1]
        a = -self.log_decay.exp() + 1j * self.frequency
        z = a * self.log_step.exp()[..., None]
        powers = torch.exp(z[..., None] * torch.arange(length))
        c = torch.view_as_complex(self.c) * (z.exp() - 1) / a
        ahead, behind = 2 * torch.einsum("dhn,dhnl->dhl", c, powers).real
        n = 2 * length

        def convolve(v: Tensor, k: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(v, n) * torch.fft.rfft(k, n), n)[..., :length]

        return convolve(u, ahead) + convolve(u.flip(-1), behind).flip(-1) + self.d * u


class PlainBlock(nn.Module):
    """One residual block (B, H, L)."""

    def __init__(self, hidden: int, state: int) -> None:
        super().__init__()
        self.time, self.norm, self.layer = nn.Linear(hidden, hidden), nn.LayerNorm(hidden), PlainS4D(hidden, state)
        self.mix, self.a, self.b = (nn.Conv1d(hidden, hidden, 1) for _ in range(3))

    def forward(self, h: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        u = h + self.time(time)[..., None]
        normed = self.norm(u.transpose(1, 2)).transpose(1, 2)
        y = u + self.mix(nn.functional.gelu(self.layer(normed)))
        gate = torch.tanh(y) * torch.sigmoid(y)
        return h + self.a(gate), self.b(gate)


class Plain(nn.Module):
    """The backbone, plainly."""

    def __init__(self, channels: int, hidden: int, blocks: int, state: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(128, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.enter = nn.Conv1d(channels, hidden, 1)
        self.blocks = nn.ModuleList(PlainBlock(hidden, state) for _ in range(blocks))
        self.inner, self.leave = nn.Conv1d(hidden, hidden, 1), nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = 100 * t[:, None] * torch.exp(-math.log(1e4) * torch.arange(64) / 63)
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h, total = self.enter(x).relu(), torch.zeros(())
        for block in self.blocks:
            h, skip = block(h, time)
            total = total + skip
        return x + self.leave(self.inner(total).relu())


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x1: Tensor) -> float:
    """CPU seconds of one training step."""
    start = time.process_time()
    x0, t = torch.randn_like(x1), torch.rand(len(x1))
    x = torch.lerp(x0, x1, t[:, None, None])
    loss = (network(x, t) - (x1 - x0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=360)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x1 = torch.randn(options.batch, options.channels, options.length)
    ours = Backbone(options.channels, S4DOptions())
    plain = Plain(options.channels, 64, 3, 128)
    both = [(network, torch.optim.Adam(network.parameters(), 1e-3)) for network in (ours, plain)]
    for network, optimizer in both:
        step(network, optimizer, x1)
    seconds = [[step(network, optimizer, x1) for network, optimizer in both] for _ in range(options.repeats)]
    fast, slow = (min(column) for column in zip(*seconds, strict=True))
    print(f"B={options.batch} L={options.length} H=64, CPU seconds a step: {fast:.3f} here, {slow:.3f} plain FFT S4D")
    print(f"ratio {slow / fast:.2f}")


if __name__ == "__main__":
    main()
