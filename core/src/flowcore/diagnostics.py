"""What a trained field is like: how far it carries mass, how straight, how well it denoises, how near to a gradient.

    cost = E |x(1) - x(0)|^2,   energy = E int |v|^2 dt,   S = E int |(x(1) - x(0)) - v|^2 dt,   energy = cost + S

The identity holds exactly for the N-step Euler sums too (Liu et al. 2022, arXiv 2209.03003, eq. 13).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.field import Field
from flowcore.jacobian import EXACT, asymmetry, circle, line_integral, negative_mass, random_plane, to_rows
from flowcore.paths import Affine
from flowcore.solvers import Velocity, solve
from flowcore.state import State, first_leaf, leaves, tree_map
from flowcore.times import uniform


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
    Where the path leaves out a singular end, time is stretched so that the rest of it takes one unit.
    The path is walked twice instead of stored, so memory does not grow with ``steps``.
    """
    n = next(leaves(x0)).shape[0]
    path = getattr(field, "path", None)
    start, stop = (0.0, 1.0) if path is None else (path.start, path.stop)
    x1 = solve(field, x0, steps)
    move = tree_map(torch.sub, x1, x0)
    sums = torch.zeros(2, dtype=torch.float64, device=next(leaves(x0)).device)

    def measured(x: State, t: Tensor) -> State:
        v = field(x, t)
        speed = tree_map(lambda leaf: (stop - start) * leaf, v)
        sums[0] += _squared(speed)
        sums[1] += _squared(tree_map(torch.sub, move, speed))
        return v

    solve(measured, x0, torch.linspace(start, stop, steps + 1, dtype=torch.float64))
    energy, straightness = (sums / (steps * n)).tolist()
    dimension = sum(leaf[0].numel() for leaf in leaves(x0))
    return Transport((_squared(move) / n).item(), energy, straightness, dimension)


@torch.no_grad()
def first_order_defect(field: Field, x0: State, steps: int = 100) -> float:
    """E |e(x_t, t) - e(x_s, s)|^2 / d along the trajectories from ``x0`` at the path's start s, over ``steps`` times.

    e = E[x0 | x_t] is the noise that the field sees. 0 exactly where one step of order 1 (``exponential(order=1)``, by
    which the trajectories are followed) is as good as many, however curved they are; on the linear path that is where
    they are straight. (Wang et al. 2024, arXiv 2410.07303.) Raises ``ValueError`` where the path is no affine one.
    """
    if not isinstance(field.path, Affine):
        raise ValueError("the first-order defect is of an affine path, which has one sigma for all of the state")
    times = torch.linspace(field.path.start, field.path.stop, steps + 1, dtype=torch.float64)
    x, first, total = x0, None, torch.zeros((), dtype=torch.float64, device=first_leaf(x0).device)
    for t, r in pairwise(times):
        data, noise = field.x1(x, t), field.noise(x, t)
        first = noise if first is None else first
        total += _squared(tree_map(torch.sub, noise, first))
        x = field.path.interpolate(noise, data, r)
    return total.item() / (steps * sum(leaf.numel() for leaf in leaves(x0)))


class PathEnergy(NamedTuple):
    """``npe`` = |curved + miscoupled|; all three in units of W2^2(q0, q1)."""

    npe: float
    curved: float
    miscoupled: float


def normalised_path_energy(paths: Transport, w2: float) -> PathEnergy:
    """NPE = |energy - W2^2| / W2^2 with its two parts, curved = S / W2^2 and miscoupled = (cost - W2^2) / W2^2.

    ``paths`` is the field's ``transport``, ``w2`` the Wasserstein distance of order 2 between source and data. Dynamic
    optimal transport has all three at 0 (Tong et al. 2023, arXiv 2302.00482). No map onto the data costs less than
    W2^2, so ``miscoupled`` below 0, beyond the error of sampling, says that the field's samples are not the data.
    Raises ``ValueError`` where ``w2`` is not positive.
    """
    if not w2 > 0:
        raise ValueError(f"the path energy is normalised by W2^2 between source and data, which is not {w2}")
    curved, miscoupled = paths.straightness / w2**2, (paths.cost - w2**2) / w2**2
    return PathEnergy(abs(curved + miscoupled), curved, miscoupled)


class TimeLoss(NamedTuple):
    """``loss[i]`` between the times ``edges[i]`` and ``edges[i + 1]``: shapes (n,) and (n + 1,), float64."""

    edges: Tensor
    loss: Tensor


@torch.no_grad()
def denoising_loss(field: Field, pairs: Pairs, generator: torch.Generator, bins: int = 10) -> TimeLoss:
    """E |E[x1 | x_t] - x1|^2 / d over ``bins`` equal intervals of t, every pair once in each at a stratified time.

    The exact field leaves the mean posterior variance of the data, which no network undercuts on new data: from the
    variance of the data at the source to 0 at the end. ``pairs`` are weighted by their weights.
    """
    edges = torch.linspace(field.path.start, field.path.stop, bins + 1, dtype=torch.float64)
    data = to_rows(pairs.x1)
    weight = torch.ones(len(data), device=data.device) if pairs.weight is None else pairs.weight
    times, losses = uniform(stratified=True), []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        t = (start + (stop - start) * times(len(data), generator)).to(data)
        x = field.path.interpolate(pairs.x0, pairs.x1, t)
        errors = (to_rows(field.x1(x, t)) - data).double().square().mean(1)
        losses.append((errors * weight).sum() / weight.sum())
    return TimeLoss(edges, torch.stack(losses).cpu())


class Geometry(NamedTuple):
    """How far a field is from a gradient at time ``t``, means over samples; 0 for the exact field of independent pairs.

    ``asymmetry`` of the velocity's Jacobian, ``loop`` integral of the velocity around circles over that of its absolute
    value, and ``negative`` share of the eigenvalues of the Jacobian of E[x1 | x_t], None where d is too large.
    """

    t: float
    asymmetry: float
    loop: float
    negative: float | None


def diagnose(
    field: Field,
    x1: State,
    times: Sequence[float],
    generator: torch.Generator,
    radius: float = 0.5,
    probes: int | None = None,
) -> list[Geometry]:
    """The geometry of ``field`` at the ``times``, at points x_t of its path towards the data ``x1``.

    Circles have ``radius`` and 64 nodes. ``probes`` estimates the asymmetry, as it must above ``jacobian.EXACT``
    dimensions. Near t = 1 the exact field of few data points jumps between them: use float64 there.
    """
    exact = probes is None and to_rows(x1).shape[1] <= EXACT
    table = []
    for t in times:
        x = field.path.interpolate(field.path.draw_source(x1, generator), x1, t)
        skew = asymmetry(field, x, t, probes, generator)
        loop = line_integral(field, circle(x, random_plane(x, generator), radius), x, t).ratio
        negative = negative_mass(field.x1, x, t).mean().item() if exact else None
        table.append(Geometry(float(t), skew.mean().item(), loop.mean().item(), negative))
    return table
