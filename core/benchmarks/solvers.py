"""What a solve and a training step cost beyond the network: `python core/benchmarks/solvers.py [--quick]`.

Processor time on one thread, the least of many repeats taken in turn, each beside its peers in the same run.

Solvers: Euler and midpoint on 64 points with a field that returns a constant, less the time of its calls alone; a ratio
above 1 says that the peer spends that many times as much a step. torchdiffeq is given the grid or its step length,
whichever is the faster, and once more a field that gives each sample its t, as a network wants it and a Field does.
Training: one step of an MLP with three hidden layers on 256 points in two dimensions (draws, loss, backward, Adam); the
floor is the same written out by hand, and what is beyond it does not grow with the network.
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from flowcore.couplings import independent
from flowcore.field import Field
from flowcore.losses import l2, matching_loss
from flowcore.paths import linear
from flowcore.seeds import generator
from flowcore.solvers import solve
from flowcore.times import uniform

try:
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper
except ImportError:
    ODESolver = None
try:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
except ImportError:
    ConditionalFlowMatcher = None

STEPS = 100  # of a solve
BLOCK = 20  # training steps of one kind in a row, as in training: the first after another kind finds its code cold
Work = Callable[[], Any]


def least(works: dict[str, Work], repeats: int) -> dict[str, float]:
    """The smallest processor time of each, in seconds, over rounds in which each has its turn, in any order: what ran
    before it decides what a work finds in the caches, up to 20 us of a training step."""
    for work in works.values():
        work()
    times, shuffle = dict.fromkeys(works, math.inf), random.Random(0).shuffle
    names = list(works)
    for _ in range(repeats):
        shuffle(names)
        for name in names:
            start = time.process_time()
            works[name]()
            times[name] = min(times[name], time.process_time() - start)
    return times


def by_hand(v: Callable[[Tensor, Tensor], Tensor], x: Tensor, method: str) -> Tensor:
    """The plain loop."""
    h = 1 / STEPS
    for t in torch.linspace(0, 1, STEPS + 1)[:-1]:
        x = x + h * v(x, t) if method == "euler" else x + h * v(x + h / 2 * v(x, t), t + h / 2)
    return x


def solver_overhead(method: str, repeats: int) -> dict[str, float]:
    """Seconds a step beyond the field's calls, for each way to solve."""
    x, constant = torch.zeros(64, 2), torch.ones(64, 2)
    t, grid, ends = torch.tensor(0.5), torch.linspace(0, 1, STEPS + 1), torch.tensor([0.0, 1.0])
    calls = STEPS * (1 if method == "euler" else 2)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return constant

    def reverse(t: Tensor, x: Tensor) -> Tensor:
        return constant

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return constant

    def expanded(t: Tensor, x: Tensor) -> Tensor:
        return network(x, t.expand(len(x)), None)

    field, step = Field(network, linear()), {"step_size": 1 / STEPS}
    works: dict[str, Work] = {
        "calls": lambda: [velocity(x, t) for _ in range(calls)],
        "flowcore, a function": lambda: solve(velocity, x, STEPS, method),
        "flowcore, a Field": lambda: solve(field, x, STEPS, method),
        "by hand": lambda: by_hand(velocity, x, method),
        "torchdiffeq, grid": lambda: odeint(reverse, x, grid, method=method)[-1],
        "torchdiffeq, step": lambda: odeint(reverse, x, ends, method=method, options=step)[-1],
        "expanded, grid": lambda: odeint(expanded, x, grid, method=method)[-1],
        "expanded, step": lambda: odeint(expanded, x, ends, method=method, options=step)[-1],
    }
    if ODESolver is not None:

        class Constant(ModelWrapper):
            def __init__(self) -> None:
                nn.Module.__init__(self)

            def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
                return constant

        theirs = ODESolver(velocity_model=Constant())
        works["flow_matching"] = lambda: theirs.sample(x, step_size=1 / STEPS, method=method)
    with torch.no_grad():
        for name, work in works.items():
            if name != "calls":
                torch.testing.assert_close(work(), constant)
        times = least(works, repeats)
    alone = times.pop("calls")
    times["torchdiffeq"] = min(times.pop("torchdiffeq, grid"), times.pop("torchdiffeq, step"))
    times["torchdiffeq, t per sample"] = min(times.pop("expanded, grid"), times.pop("expanded, step"))
    return {name: (spent - alone) / STEPS for name, spent in times.items()}


class Net(nn.Module):
    """Hidden layers of SELU units on (x, t), with the same weights each time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, width, width, width, 2]
        layers = [[nn.Linear(a, b), nn.SELU()] for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*[layer for pair in layers for layer in pair][:-1])
        draws = generator(0, "network")
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=draws) / math.sqrt(width)

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], 1))


def training(width: int, repeats: int) -> dict[str, float]:
    """Seconds a training step, for each way to write the loss."""
    x1 = torch.randn(256, 2, generator=generator(0, "data"))
    path, couple, times, metric = linear(), independent(), uniform(), l2()

    def ours(net: nn.Module, draws: torch.Generator) -> Tensor:
        pairs = couple(path.draw_source(x1, draws), x1, None, draws)
        return matching_loss(Field(net, path), pairs, times(len(x1), draws).float(), metric).mean()

    def floor(net: nn.Module, draws: torch.Generator) -> Tensor:
        x0 = torch.randn(x1.shape, generator=draws)
        t = torch.rand(len(x1), generator=draws)
        s = t[:, None]
        return (net(s * x1 + (1 - s) * x0, t) - (x1 - x0)).square().mean()

    losses = {"by hand": floor, "flowcore": ours}
    if ConditionalFlowMatcher is not None:
        matcher = ConditionalFlowMatcher(sigma=0.0)

        def theirs(net: nn.Module, draws: torch.Generator) -> Tensor:
            t, x, u = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            return (net(x, t) - u).square().mean()

        losses["torchcfm"] = theirs

    net = Net(width)  # one for all: where its weights lie in memory is worth 20 us a step
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)

    def work(loss: Callable[[nn.Module, torch.Generator], Tensor]) -> Work:
        draws = generator(0, "train")

        def run() -> None:
            for _ in range(BLOCK):
                optimiser.zero_grad()
                loss(net, draws).backward()
                optimiser.step()

        return run

    spent = least({name: work(loss) for name, loss in losses.items()}, repeats)
    return {name: seconds / BLOCK for name, seconds in spent.items()}


def verdict(value: float, bar: float) -> str:
    """Whether a ratio that must not exceed ``bar`` does."""
    return f"bar {bar:.2f}: {'met' if value <= bar else 'MISSED'}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats: a look, not a measurement")
    repeats = 5 if parser.parse_args().quick else 60
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    print(f"torch {torch.__version__}, one thread, the least of {repeats} repeats")
    for name, module in (("flow_matching", ODESolver), ("torchcfm", ConditionalFlowMatcher)):
        if module is None:
            print(f"{name} is not installed: left out")

    for method in ("euler", "midpoint"):
        overhead = solver_overhead(method, repeats)
        print(f"\n{method}: overhead a step, beyond the field's calls")
        for name, seconds in overhead.items():
            print(f"  {name:27} {1e6 * seconds:6.1f} us  {seconds / overhead['flowcore, a function']:5.2f} x")
        for name, peer in (
            ("flowcore, a function", "torchdiffeq"),
            ("flowcore, a Field", "torchdiffeq, t per sample"),
        ):
            ratio = overhead[name] / overhead[peer]
            print(f"  {name} / {peer} {ratio:.2f}   {verdict(ratio, 0.5)}")

    for width in (64, 256):
        spent = training(width, 2 * repeats)
        print(f"\ntraining step, MLP of width {width}")
        for name, seconds in spent.items():
            beyond = 1e6 * (seconds - spent["by hand"])
            print(f"  {name:27} {1e6 * seconds:6.0f} us  {seconds / spent['by hand']:5.2f} x  {beyond:+5.0f} us")
        ratio = spent["flowcore"] / spent["by hand"]
        print(f"  flowcore / by hand {ratio:.3f}   {verdict(ratio, 1.05)}")


if __name__ == "__main__":
    main()
