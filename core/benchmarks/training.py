"""What the training loop costs beyond one written by hand: `python core/benchmarks/training.py [--quick] [--device D]`.

The same network, batches, loss, AdamW, clipping and average of the weights; by hand without logging, checkpoints,
seeds for every step or processes. Blocks of steps in turn, the least time of each (processor time on one thread, wall
time on a GPU). What the loop adds is a number of microseconds a step that does not grow with the network.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.couplings import Pairs
from flowcore.data import Batch, Rows
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.paths import linear
from flowcore.seeds import generator
from flowcore.training.engine import Engine
from flowcore.training.loop import begin, fit
from flowcore.training.settings import EngineSettings, TrainSettings

BLOCK = 50  # steps between looks at the clock
BATCH = 256


class Net(nn.Module):
    """Hidden layers of SELU units on (x, t)."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        sizes = [dimension + 1, width, width, width, dimension]
        layers = [[nn.Linear(a, b), nn.SELU()] for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*[layer for pair in layers for layer in pair][:-1])

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], 1))


class Block(nn.Module):
    """A residual block of two convolutions, told the time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(1, channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(x) + self.time(t[:, None])[:, :, None, None]))


class Convolutions(nn.Module):
    """Residual convolutions on 3 x 32 x 32 images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 3, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(4))

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, t)
        return self.leave(x)


def by_hand(network: nn.Module, data: Tensor, seed: int) -> Iterator[None]:
    """The loop one would write; stops after every block."""
    device = data.device
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.0, fused=True)
    means = [p.detach().clone() for p in network.parameters()]
    draws = torch.Generator(device).manual_seed(seed)
    step = 0
    while True:
        for _ in range(BLOCK):
            x1 = data[torch.randint(len(data), (BATCH,), generator=draws, device=device)]
            x0 = torch.randn(x1.shape, generator=draws, device=device)
            t = torch.rand(BATCH, generator=draws, device=device)
            s = t.reshape(-1, *(1,) * (x1.ndim - 1))
            loss = (network(s * x1 + (1 - s) * x0, t) - (x1 - x0)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            torch._foreach_lerp_(
                means, [p.detach() for p in network.parameters()], 1 - min(0.999, (1 + step) / (10 + step))
            )
            step += 1
        loss.item()
        yield


def ours(network: nn.Module, data: Tensor, seed: int, engine: Engine, pause: Callable[[], bool]) -> None:
    """The platform's loop, which calls ``pause`` after every block, until that returns True."""
    path = linear()

    def loss(network: nn.Module, batch: Batch, draws: torch.Generator) -> Tensor:
        x0 = path.draw_source(batch.x1, draws)
        t = torch.rand(len(batch), generator=draws, device=draws.device)
        return matching_loss(Field(network, path), Pairs(x0, batch.x1), t)

    def after_step(step: int) -> BaseException | None:
        return StopIteration() if step % BLOCK == 0 and pause() else None

    settings = TrainSettings(steps=10**6, batch_size=BATCH, log_every=BLOCK, checkpoint_every=10**6)
    with suppress(StopIteration):
        state = begin(network, settings, engine)
        fit(state, loss, Rows(data), settings, seed, lambda row: None, lambda state: None, after_step, engine=engine)


def clock(device: str) -> float:
    """Seconds: of the processor, or on a GPU of the wall when all is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(make: Callable[[], nn.Module], data: Tensor, steps: int, device: str) -> tuple[float, float]:
    """Seconds a step, by hand and by the loop."""
    torch.manual_seed(0)
    plain, engine = make().to(device), Engine(EngineSettings(accelerator=device))  # type: ignore[arg-type]
    torch.manual_seed(0)
    data = data.to(device)
    hand, best, blocks = by_hand(plain, data, 0), [float("inf")] * 2, 0
    next(hand)
    begun = 0.0

    def pause() -> bool:
        nonlocal begun, blocks
        if blocks:  # the first block warms up
            best[1] = min(best[1], (clock(device) - begun) / BLOCK)
        begun = clock(device)
        next(hand)
        best[0] = min(best[0], (clock(device) - begun) / BLOCK)
        blocks += 1
        begun = clock(device)
        return blocks > steps // BLOCK

    ours(make(), data, 0, engine, pause)
    return best[0], best[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 200 if options.quick else 1000
    draws = generator(0, "data")
    points, images = torch.randn(4096, 64, generator=draws), torch.randn(2048, 3, 32, 32, generator=draws)
    cases: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        f"MLP of width {width}": (lambda width=width: Net(64, width), points) for width in (64, 256, 512)
    }
    if options.device == "cuda":
        cases |= {f"convolutions of {c} channels": (lambda c=c: Convolutions(c), images) for c in (32, 64)}
    print(f"torch {torch.__version__}, {options.device}, batch {BATCH}, {steps} steps each")
    for name, (make, data) in cases.items():
        hand, loop = measure(make, data, steps, options.device)
        print(f"  {name:28} by hand {1e6 * hand:8.0f} us   loop {1e6 * loop:8.0f} us   {loop / hand:.3f} x"
              f"   {1e6 * (loop - hand):+6.0f} us a step", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
