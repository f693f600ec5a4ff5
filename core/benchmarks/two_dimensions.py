"""Couplings in two dimensions: eight Gaussians to moons, every figure beside the sample floor, three seeds.

    python core/benchmarks/two_dimensions.py [--steps 5000] [--seeds 3] [--out docs/results/two-dimensions.json]

Protocol: three hidden layers of 64 SELU units, Adam 1e-3, batch 256, 5,000 steps, noise of 0.1 added along the path;
2,000 test points of each end; Euler with N steps. The rows by class learn the moon as a class and are measured in each.
"""

import argparse
import json
import math
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from flowcore import couplings, paths
from flowcore.couplings import Coupling, Pairs
from flowcore.diagnostics import normalised_path_energy, transport
from flowcore.distances import wasserstein
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.seeds import derive, generator
from flowcore.solvers import solve

POINTS, BATCH, NOISE = 2000, 256, 0.1


def gaussians(n: int, draws: torch.Generator) -> Tensor:
    """Eight Gaussians of standard deviation .5623 on a circle of radius 5."""
    angle = torch.randint(8, (n,), generator=draws) * math.pi / 4
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1**0.25 * torch.randn(n, 2, generator=draws)


def moons(n: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two unit half circles with noise .2, as 3 x - 1, and which moon each point is on."""
    angle = math.pi * torch.rand(n, generator=draws)
    lower = torch.rand(n, generator=draws) < 0.5
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    return 3 * (torch.stack([x, y], 1) + 0.2 * torch.randn(n, 2, generator=draws)) - 1, lower.long()


class Net(nn.Module):
    """(x, t, class) -> velocity."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = []
        for width in (3 + classes, 64, 64):
            layers += [nn.Linear(width, 64), nn.SELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        parts = [x, t[:, None]]
        if condition is not None:
            parts.append(nn.functional.one_hot(condition, self.classes).to(x.dtype))
        return self.layers(torch.cat(parts, 1))


def train(coupling: Coupling, conditional: bool, steps: int, seed: int) -> Field:
    """A field trained under a coupling."""
    torch.manual_seed(derive(seed, "weights"))
    field = Field(Net(2 if conditional else 0), paths.linear())
    optimizer = torch.optim.Adam(field.network.parameters(), lr=1e-3)  # type: ignore[attr-defined]
    for step in range(steps):
        draws = generator(seed, "step", step)
        x1, label = moons(BATCH, draws)
        condition = label if conditional else None
        pairs = coupling(gaussians(BATCH, draws), x1, condition, draws)
        z = NOISE * torch.randn(BATCH, 2, generator=draws)  # the same at both ends: x_t + z, and u as it was
        noisy = Pairs(pairs.x0 + z, pairs.x1 + z, pairs.weight)
        loss = matching_loss(field.with_condition(condition), noisy, torch.rand(BATCH, generator=draws)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field


@torch.no_grad()
def measure(field: Field, conditional: bool, seed: int) -> dict[str, float]:
    """W2 by number of Euler steps, W1, path energy and its parts; for a conditional field, W2 within each class."""
    draws = generator(seed, "test")
    x0 = gaussians(POINTS, draws)
    real, label = moons(POINTS, draws)
    told = field.with_condition(label if conditional else None)

    def w2(made: Tensor) -> float:
        if not conditional:
            return wasserstein(made, real)
        squares = [wasserstein(made[label == k], real[label == k]) ** 2 for k in (0, 1)]
        return math.sqrt(sum(squares) / 2)

    ends = {n: solve(told, x0, n) for n in (1, 4, 100)}
    found = {f"W2 N={n}": w2(end) for n, end in ends.items()}
    if not conditional:
        walked = transport(told, x0)
        energy = normalised_path_energy(walked, wasserstein(x0, real))
        found |= {"W1 N=100": wasserstein(ends[100], real, order=1.0), "NPE": energy.npe}
        found |= {"S": walked.straightness, "cost": walked.cost}
    return found


def floors(seed: int) -> dict[str, float]:
    """Two data sets of as many points against each other, overall and within a class; W2^2 between the ends."""
    draws = generator(seed, "floor")
    (one, label), (other, also) = moons(POINTS, draws), moons(POINTS, draws)
    classes = [wasserstein(one[label == k], other[also == k]) ** 2 for k in (0, 1)]
    return {
        "W2 floor": wasserstein(one, other),
        "W2 floor in a class": math.sqrt(sum(classes) / 2),
        "W2^2 between ends": wasserstein(gaussians(POINTS, draws), one) ** 2,
    }


ROWS: dict[str, tuple[Callable[[], Coupling], bool]] = {
    "independent": (couplings.independent, False),
    "W-CFM eps 2.83": (lambda: couplings.gibbs(eps=2 * math.sqrt(2)), False),
    "W-CFM eps 5.66": (lambda: couplings.gibbs(eps=4 * math.sqrt(2)), False),
    "exact OT": (couplings.exact, False),
    "by class: independent": (couplings.independent, True),
    "by class: exact OT": (lambda: couplings.exact(condition_weight=0.0), True),
    "by class: conditional OT": (lambda: couplings.exact(condition_weight=math.inf), True),
}


def main() -> None:
    """Run the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, list[float]]] = {}
    for name, (make, conditional) in ROWS.items():
        for seed in range(options.seeds):
            found = measure(train(make(), conditional, options.steps, seed), conditional, seed)
            for key, value in found.items():
                table.setdefault(name, {}).setdefault(key, []).append(value)
        cells = {key: torch.tensor(values) for key, values in table[name].items()}
        print(f"{name:26}" + "  ".join(f"{k} {v.mean():.3f} +- {v.std():.3f}" for k, v in cells.items()), flush=True)
    floor = floors(0)
    print("  ".join(f"{key} {value:.3f}" for key, value in floor.items()))
    if options.out is not None:
        record = {
            "command": f"python core/benchmarks/two_dimensions.py --steps {options.steps} --seeds {options.seeds}",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
            "seeds": list(range(options.seeds)),
            "floors": floor,
            "rows": table,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
