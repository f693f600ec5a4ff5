"""What a field does locally: its Jacobian J = d v / d x, its line integrals, and the directions it keeps.

With a Gaussian source independent of the data the exact velocity is a gradient: J = J^T, every loop integral is 0, and
d E[x1 | x_t] / d x is a multiple of a covariance, so positive. A network is held to none of this. What it breaks need
not show in its samples: v splits into grad psi and a remainder r with div(p_t r) = 0, which moves no marginal (Horvat
and Pfister 2024, arXiv 2402.03845). With a coupling that looks at the data (optimal transport, reflow) the exact
velocity need not be a gradient either: there these are figures, not faults.

A field is any function (x, t) -> state shaped like x: ``field``, ``field.x1``, ``field.score``. Rows of d numbers stand
for a state's samples, in the order of its leaves. The functions go through torch.func, and differentiate a ``Field`` as
it is (its cached evaluation is never mistaken for one under a transform); only a guidance that calls torch.autograd
inside cannot be differentiated again. Samples must not see one another: put the network in evaluation mode. Use float64
where a figure near 0 is to be believed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import silu

from flowcore.field import Field
from flowcore.likelihood import estimated_divergence, exact_divergence, rademacher
from flowcore.solvers import Step, Velocity, solve, time_grid
from flowcore.state import State, leaves, tree_map

EXACT = 1024  # largest d whose Jacobian is formed; beyond it, random probes
CHUNK = 64  # rows of the Jacobian computed at once


def to_rows(x: State) -> Tensor:
    """The samples of a state as rows, (B, d)."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves(x)], 1)


def from_rows(rows: Tensor, like: State) -> State:
    """The inverse of ``to_rows``, in the shape of ``like``."""
    parts = iter(rows.split([leaf[0].numel() for leaf in leaves(like)], 1))
    return tree_map(lambda leaf: next(parts).reshape(leaf.shape), like)


def _on_rows(field: Velocity, like: State, t: float | Tensor) -> Callable[[Tensor], Tensor]:
    """``field`` at time ``t`` as a function of rows."""
    if getattr(getattr(field, "__self__", field), "index", None) is not None:
        raise ValueError("the rows of a ragged batch are not samples: take the Jacobian of one sample without an index")
    leaf = next(leaves(like))
    time = torch.as_tensor(t, dtype=leaf.dtype, device=leaf.device)
    return lambda rows: to_rows(field(from_rows(rows, like), time))


def _value_and_jacobian(function: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    # One pull-back for each output of all samples at once, so a condition of (B, ...) stays beside its sample
    count, d = rows.shape
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batched backward
        value, pull = vjp(function, rows)  # type: ignore[misc]  # a third value comes only with has_aux
    basis = torch.eye(d, dtype=rows.dtype, device=rows.device)[:, None].expand(d, count, d)
    return value, vmap(pull, chunk_size=CHUNK)(basis)[0].transpose(0, 1)


def jacobian(field: Velocity, x: State, t: float | Tensor) -> Tensor:
    """J[b, i, j] = d v_i / d x_j at sample b, shape (B, d, d), by d pull-backs of the batch; differentiable."""
    return _value_and_jacobian(_on_rows(field, x, t), to_rows(x))[1]


def jacobian_products(field: Velocity, x: State, t: float | Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """(J e, J^T e) for rows ``e`` (B, d), by one push-forward and one pull-back; differentiable."""
    function, rows = _on_rows(field, x, t), to_rows(x)
    with sdpa_kernel(SDPBackend.MATH):  # nor a forward derivative
        return jvp(function, (rows,), (e,))[1], vjp(function, rows)[1](e)[0]


def _probes(x: State, probes: int | None, generator: torch.Generator | None) -> Iterator[State]:
    """``probes`` independent states of random signs."""
    if probes is None:
        raise ValueError(f"samples of more than {EXACT} numbers: pass a number of probes and a generator")
    if generator is None or probes < 1:
        raise ValueError("random probes need a generator, and at least one of them")
    return (rademacher(x, generator) for _ in range(probes))


def _exact(x: State, probes: int | None) -> bool:
    return probes is None and sum(leaf[0].numel() for leaf in leaves(x)) <= EXACT


@torch.no_grad()
def asymmetry(
    field: Velocity, x: State, t: float | Tensor, probes: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """|J - J^T|_F / (2 |J|_F) per sample, (B,), in [0, 1]: 0 where J is symmetric, 1 for a rotation; 0 where J = 0.

    Exact for ``probes=None``. Otherwise by ``probes`` random sign vectors e, |J - J^T|_F^2 = E |J e - J^T e|^2 and
    |J|_F^2 = E (|J e|^2 + |J^T e|^2) / 2, each costing a forward and a reverse derivative. Raises ``ValueError`` above
    ``EXACT`` dimensions without probes.
    """
    if _exact(x, probes):
        J = jacobian(field, x, t)
        skew, total = (J - J.mT).square().sum((1, 2)), J.square().sum((1, 2))
    else:
        sums = []
        for e in _probes(x, probes, generator):
            along, back = jacobian_products(field, x, t, to_rows(e))
            sums.append(torch.stack([(along - back).square().sum(1), (along.square() + back.square()).sum(1) / 2]))
        skew, total = torch.stack(sums).mean(0)
    return (skew / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt() / 2


@torch.no_grad()
def negative_mass(posterior: Velocity, x: State, t: float | Tensor) -> Tensor:
    """sum |negative eigenvalues| / sum |eigenvalues| of (J + J^T) / 2 per sample, (B,), in [0, 1].

    ``posterior`` is ``field.x1``, whose exact Jacobian alpha / sigma^2 Cov[x1 | x_t] has none. Eigenvalues within d
    times the rounding of 1 count as 0, and where all do the mass is 0: near t = 1 a finite set of points leaves no
    covariance. Raises ``ValueError`` above ``EXACT`` dimensions.
    """
    if not _exact(x, None):
        raise ValueError(f"the eigenvalues of a Jacobian are computed up to {EXACT} dimensions")
    J = jacobian(posterior, x, t)
    values = torch.linalg.eigvalsh((J + J.mT) / 2)
    values = values * (values.abs() > J.shape[1] * torch.finfo(J.dtype).eps)
    return -values.clamp(max=0).sum(1) / values.abs().sum(1).clamp_min(torch.finfo(values.dtype).tiny)


class Curve(NamedTuple):
    """Nodes c_i of a curve for each sample, and the steps dl_i of a quadrature int v . dl = sum v(c_i) . dl_i."""

    points: Tensor  # (N, B, d)
    steps: Tensor  # (N, B, d)


class Integral(NamedTuple):
    """int v . dl and int |v . dl| along a curve, per sample, (B,) each."""

    value: Tensor
    absolute: Tensor

    @property
    def ratio(self) -> Tensor:
        """|int v . dl| / int |v . dl| in [0, 1]: 0 around any loop of a gradient; 0 where nothing is met."""
        return self.value.abs() / self.absolute.clamp_min(torch.finfo(self.absolute.dtype).tiny)


def random_plane(x: State, generator: torch.Generator) -> Tensor:
    """Two orthonormal directions for each sample, (B, d, 2), uniform over planes."""
    rows = to_rows(x)
    if rows.shape[1] < 2:
        raise ValueError("a plane needs samples of at least 2 numbers")
    directions = torch.randn(*rows.shape, 2, generator=generator, dtype=rows.dtype, device=rows.device)
    return torch.linalg.qr(directions).Q


def circle(x: State, plane: Tensor, radius: float, nodes: int = 64) -> Curve:
    """The circle around each sample in its ``plane``, from its first direction to its second.

    The trapezoid in the angle converges faster than any power of 1 / ``nodes``, and is exact for a linear field.
    """
    angle = torch.arange(nodes, dtype=plane.dtype, device=plane.device) * (2 * math.pi / nodes)
    outward = torch.stack([angle.cos(), angle.sin()], -1)
    along = torch.stack([-angle.sin(), angle.cos()], -1) * (2 * math.pi / nodes)
    points, steps = (radius * torch.einsum("bdk,nk->nbd", plane, part) for part in (outward, along))
    return Curve(to_rows(x) + points, steps)


def polyline(corners: Sequence[State], nodes: int = 32) -> Curve:
    """Straight edges from corner to corner, with ``nodes`` Gauss-Legendre nodes on each."""
    abscissae, weights = np.polynomial.legendre.leggauss(nodes)
    rows = [to_rows(corner) for corner in corners]
    u, w = (torch.as_tensor(a, dtype=rows[0].dtype, device=rows[0].device)[:, None, None] for a in (abscissae, weights))
    edges = list(pairwise(rows))
    points = [start + (1 + u) / 2 * (stop - start) for start, stop in edges]
    steps = [w / 2 * (stop - start) for start, stop in edges]
    return Curve(torch.cat(points), torch.cat(steps))


def triangle(x: State, plane: Tensor, radius: float, nodes: int = 32) -> Curve:
    """The loop x -> x + radius e1 -> x + radius e2 -> x in each sample's plane (e1, e2): half a square of that side."""
    first, second = (from_rows(to_rows(x) + radius * direction, x) for direction in plane.unbind(-1))
    return polyline([x, first, second, x], nodes)


@torch.no_grad()
def line_integral(field: Velocity, curve: Curve, like: State, t: float | Tensor) -> Integral:
    """int v . dl along ``curve`` at fixed time ``t``; ``like`` is a state whose shape the points take.

    Around a small circle it is Stokes' pi radius^2 e1 . (J^T - J) e2. One evaluation of the batch for each node.
    """
    function = _on_rows(field, like, t)
    parts = torch.stack([(function(c) * dl).sum(1) for c, dl in zip(curve.points, curve.steps, strict=True)])
    return Integral(parts.sum(0), parts.abs().sum(0))


class PathDependence(NamedTuple):
    """log p_t(stop) - log p_t(start) in nats per sample, (B,), along the straight line and along the detour."""

    direct: Tensor
    detour: Tensor


def path_dependence(
    score: Velocity, start: State, stop: State, via: State, t: float | Tensor, nodes: int = 32
) -> PathDependence:
    """The log density ratio of two states as the line integral of ``score`` on two ways: direct, and by way of ``via``.

    They agree where the score is a gradient; their difference is what a log density read from it is uncertain by.
    """
    ways = ([start, stop], [start, via, stop])
    return PathDependence(*(line_integral(score, polyline(way, nodes), start, t).value for way in ways))


@torch.no_grad()
def gauge_residual(
    remainder: Velocity,
    score: Velocity,
    x: State,
    t: float | Tensor,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """div r + r . grad log p_t = div(p_t r) / p_t per sample, (B,): 0 everywhere iff adding r moves no marginal p_t.

    ``remainder`` is r, what was added to a velocity or what is left of it beside the exact one. Its divergence is
    exact, or a mean over ``probes``, as in ``asymmetry``.
    """
    time = torch.as_tensor(t, dtype=to_rows(x).dtype, device=to_rows(x).device)
    if _exact(x, probes):
        r, divergence = exact_divergence(remainder, x, time)
    else:
        found = [estimated_divergence(remainder, x, time, e) for e in _probes(x, probes, generator)]
        r, divergence = found[0][0], torch.stack([part for _, part in found]).mean(0)
    return divergence + (to_rows(r) * to_rows(score(x, time))).sum(1)


def gauge_share(
    field: Velocity, x: State, t: float | Tensor, generator: torch.Generator, width: int = 64, steps: int = 500
) -> float:
    """min over psi of E |v - grad psi|^2 / E |v|^2 over samples ``x`` of p_t: the share of v that moves no marginal.

    The minimiser's remainder r obeys div(p_t r) = 0 and is orthogonal to every gradient. psi is a scalar network of two
    hidden layers, fitted by ``steps`` of Adam to one half of the samples; the other half is measured after 0, 1, 2, 4,
    ... steps, and the least share returned. Any psi gives an upper bound: what it is too small for, or cannot learn
    from so few samples, counts as remainder, so pass thousands. Raises ``ValueError`` on fewer than two samples.
    """
    with torch.no_grad():
        rows, v = to_rows(x), _on_rows(field, x, t)(to_rows(x))
        if len(rows) < 2:
            raise ValueError("the gauge share is fitted on one half of the samples, measured on the other: pass more")
        tiny = torch.finfo(rows.dtype).tiny
        u, v = (part / part.square().mean().sqrt().clamp_min(tiny) for part in (rows - rows.mean(0), v))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=u.dtype, device=u.device)

    d, half = u.shape[1], len(u) // 2
    first, second = 2 * draw(d, width) / math.sqrt(d), draw(width, width) / math.sqrt(width)
    parameters = [first, draw(width), second, draw(width), 0 * draw(width), v[:half].mean(0)]
    A, a, B, b, w, c = (p.requires_grad_() for p in parameters)

    def remainder(u: Tensor, v: Tensor) -> Tensor:
        u = u.clone().requires_grad_()
        psi = silu(silu(u @ A + a) @ B + b) @ w + u @ c
        (gradient,) = torch.autograd.grad(psi.sum(), u, create_graph=True)
        return (v - gradient).square().sum(1).mean()

    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    size, shares = v[half:].square().sum(1).mean().clamp_min(tiny), []
    with torch.enable_grad():
        for step in range(steps + 1):
            if step & (step - 1) == 0 or step == steps:
                shares.append((remainder(u[half:], v[half:]) / size).item())
            batch = torch.randint(half, (min(half, 256),), generator=generator, device=u.device)
            optimiser.zero_grad()
            remainder(u[batch], v[batch]).backward()
            optimiser.step()
            schedule.step()
    return min(shares)


class Spectrum(NamedTuple):
    """Singular values of Y(t) = d x_t / d x_0, descending, (T, B, d), at the times (T,), and the end x of the flow."""

    times: Tensor
    values: Tensor
    x: State


@torch.no_grad()
def flow_spectrum(field: Velocity, x0: State, grid: int | Tensor = 100, method: str | Step = "heun") -> Spectrum:
    """Singular values of Y along the flow, dY/dt = J(x_t, t) Y, Y(0) = I: how far a small ball of noise is stretched.

    Along the data manifold they saturate, across it they fall like sigma(t) (Horvat and Pfister 2024, arXiv
    2402.03845). ``grid`` is as in ``solve``, but a number of steps ends no later than t = 0.999, since the exact
    velocity of data on a manifold is singular at 1. d pull-backs an evaluation.
    """
    if not isinstance(grid, Tensor):
        path = getattr(field, "path", None)
        start, stop = (0.0, 1.0) if path is None else (path.start, path.stop)
        grid = time_grid(grid, start, min(stop, 0.999))
    rows = to_rows(x0)
    found = []

    def widened(state: State, t: Tensor) -> State:
        v, J = _value_and_jacobian(_on_rows(field, x0, t), state["x"])
        return {"x": v, "Y": J @ state["Y"]}

    def record(i: int, t: float, state: State) -> None:
        found.append(torch.linalg.svdvals(state["Y"]))

    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device).repeat(len(rows), 1, 1)
    end = solve(widened, {"x": rows, "Y": identity}, grid, method, callback=record)
    return Spectrum(grid, torch.stack(found), from_rows(end["x"], x0))


def flow_dimension(values: Tensor, floor: float) -> Tensor:
    """How many singular values (..., d), descending, stand before their largest gap in log: the intrinsic dimension.

    ``values`` are ``flow_spectrum``'s at a late time t, ``floor`` what directions across the manifold have left there:
    sigma(t) / sigma(0), 1 - t on the linear path. Values below it count as it, and data that fill the space get d.
    """
    lowest = torch.full_like(values[..., :1], floor)
    return torch.cat([values.clamp_min(floor), lowest], -1).log().diff(dim=-1).argmin(-1) + 1


@torch.no_grad()
def score_spectrum(field: Field, y: State, t: float, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Singular values, descending, (B, d), of ``count`` scores near each data point ``y``, at alpha y + sigma z.

    The scores are taken times -sigma(t), as E[x0 | x_t]; ``t`` is near 1, ``count`` 4 d by default. Divided by
    sqrt(count - 1), the values are near 1 across the data manifold and near 0 along it. After Stanczuk et al. 2024
    (arXiv 2212.12611); the scores are centred, since the slope of log p along the manifold is one more large value.
    """
    count = 4 * to_rows(y).shape[1] if count is None else count
    if count < 2:
        raise ValueError("the spectrum of scores needs at least two of them")
    scores = []
    for _ in range(count):
        x = field.path.interpolate(field.path.draw_source(y, generator), y, t)
        scores.append(to_rows(field.noise(x, t)))
    stack = torch.stack(scores, 1)
    return torch.linalg.svdvals(stack - stack.mean(1, keepdim=True)) / math.sqrt(count - 1)


def score_dimension(values: Tensor) -> Tensor:
    """d less the number of ``score_spectrum``'s values (..., d) before the largest gap in log, counting down from 1."""
    highest = torch.ones_like(values[..., :1])
    falls = torch.cat([highest, values.clamp(torch.finfo(values.dtype).tiny, 1.0)], -1).log().diff(dim=-1)
    return values.shape[-1] - falls.argmin(-1)
