"""What a trained field is like: how far it carries mass, and how straight.

    cost = E |x(1) - x(0)|^2,   energy = E int |v|^2 dt,   S = E int |(x(1) - x(0)) - v|^2 dt,   energy = cost + S

The identity holds exactly for the N-step Euler sums too (Liu et al. 2022, arXiv 2209.03003, eq. 13).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowcore.solvers import Velocity, solve
from flowcore.state import State, leaves, tree_map


class Transport(NamedTuple):
    """Means over samples of squared norms summed over all dimensions; ``dimension`` d of one sample divides them."""

    cost: float
    energy: float
    straightness: float
    dimension: int


def _squared(x: State) -> Tensor:
    return torch.stack([leaf.double().square().sum() for leaf in leaves(x)]).sum()


@torch.no_grad()
def transport(field: Velocity, x0: State, steps: int = 100) -> Transport:
    """Cost, energy and straightness S of the field's paths from ``x0``, on an Euler grid of ``steps`` steps.

    S = 0 exactly where every path is a straight line run at constant speed, so that one step is as good as many.
    The path is walked twice instead of stored, so memory does not grow with ``steps``.
    """
    n = next(leaves(x0)).shape[0]
    x1 = solve(field, x0, steps)
    move = tree_map(torch.sub, x1, x0)
    sums = torch.zeros(2, dtype=torch.float64, device=next(leaves(x0)).device)

    def measured(x: State, t: Tensor) -> State:
        v = field(x, t)
        sums[0] += _squared(v)
        sums[1] += _squared(tree_map(torch.sub, move, v))
        return v

    path = getattr(field, "path", None)
    start, stop = (0.0, 1.0) if path is None else (path.start, path.stop)
    solve(measured, x0, torch.linspace(start, stop, steps + 1, dtype=torch.float64))
    energy, straightness = (sums / (steps * n)).tolist()
    dimension = sum(leaf[0].numel() for leaf in leaves(x0))
    return Transport((_squared(move) / n).item(), energy, straightness, dimension)
