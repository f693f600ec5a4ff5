"""Log-likelihood by a midpoint solve, ours against flow_matching's, in one run on one thread.

    python core/benchmarks/likelihood.py [--quick]

Prints our time over theirs (processor time, the smaller of several repeats of each, taken in turn) and how far the two
results are apart; and for images, where theirs has no right answer, how far each is from the closed form. Without
flow_matching installed only the closed form is checked; `make bench` installs it beside this.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.closed_form import mixture
from flowcore.field import Field
from flowcore.likelihood import log_likelihood
from flowcore.paths import linear
from flowcore.seeds import generator

STEPS = 20


class Net(nn.Module):
    """Two hidden layers of 256."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension + 1, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, dimension)
        )

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.layers(torch.cat([x, t.expand(len(x))[:, None]], 1))


def log_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I)."""
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))


def smallest(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The smallest processor time of each call."""
    times = dict.fromkeys(calls, math.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name] = min(times[name], time.process_time() - start)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        from flow_matching.solver import ODESolver
    except ImportError:
        ODESolver = None
        print("flow_matching is not installed: no ratios")
    for dimension in (2, 16, 64):
        if ODESolver is None:
            break
        network, x = Net(dimension), torch.randn(256, dimension)
        field, peer = Field(network, linear()), ODESolver(network)
        found: dict[str, Tensor] = {}

        def ours(field: Field = field, x: Tensor = x, found: dict[str, Tensor] = found) -> None:
            found["ours"] = log_likelihood(field, x, STEPS).log_p

        def theirs(peer: Any = peer, x: Tensor = x, found: dict[str, Tensor] = found) -> None:
            found["theirs"] = peer.compute_likelihood(
                x.clone(), log_normal, step_size=1 / STEPS, method="midpoint", exact_divergence=True
            )[1].detach()

        times = smallest({"ours": ours, "theirs": theirs}, 1 if options.quick else 3)
        apart = (found["ours"] - found["theirs"]).abs().max().item()
        ratio = times["ours"] / times["theirs"]
        print(f"exact, (256, {dimension:2}): ours / flow_matching {ratio:.2f}, results {apart:.1e} apart")
    exact = mixture(linear(), torch.zeros(1, 1, 4, 4, dtype=torch.float64), 0.5)
    x = 0.5 * torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=generator(0, "images"))
    truth = log_normal(x / 0.5) - 16 * math.log(0.5)
    off = (log_likelihood(exact, x, 100).log_p - truth).abs().max().item()
    print(f"images (8, 1, 4, 4), Gaussian: ours {off:.1e} from the closed form")
    if ODESolver is not None:
        try:
            peer = ODESolver(lambda x, t: exact.network(x, t)).compute_likelihood(
                x.clone(), log_normal, step_size=0.01, method="midpoint", exact_divergence=True
            )[1]
            print(f"images, flow_matching: {(peer - truth).abs().max().item():.1e} from the closed form")
        except Exception as error:
            print(f"images, flow_matching: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
