"""Paths of first order, and of first order between the ends of phases (Wang et al. 2024, arXiv 2410.07303).

A step of order 1 (DDIM) keeps the noise that the field sees and reads the state off the path at another time,

    x_r = alpha_r X + sigma_r E,   X = E[x1 | x_t],  E = E[x0 | x_t],

and is exact from any time to any other where X and E stay the same along the trajectory. So a path need not be straight
for one step to do, and a network may predict what it always has: it is trained on pairs (E, X) that a teacher joins. By
phases, the pair is the one that the teacher's way through a phase implies, which a shorter way makes easier to learn.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.field import Field
from flowcore.guidance import Guidance
from flowcore.losses import Metric, matching_loss
from flowcore.paths import Affine, linear
from flowcore.solvers import exponential, solve
from flowcore.state import State, expand, first_leaf, tree_map


def edges(path: Affine, phases: int) -> Tensor:
    """The times at which ``phases`` phases of equal length begin and end, (phases + 1,): the grid of as many steps."""
    return torch.linspace(path.start, path.stop, phases + 1, dtype=torch.float64)


def implied_pair(path: Affine, early: State, late: State, s: Tensor, r: Tensor) -> Pairs:
    """(E, X) of the path through ``early`` at time s and ``late`` at time r, each (B,) or a scalar:

        E = (alpha_s x_r - alpha_r x_s) / W,   X = (sigma_r x_s - sigma_s x_r) / W

    with W = alpha_s sigma_r - sigma_s alpha_r. With k = sigma / alpha the first is (x_r / alpha_r - x_s / alpha_s) /
    (k_r - k_s), finite where alpha_s = 0 too. On the linear path from 0 to 1 the pair is (early, late) itself.
    """
    a, b, c, d = (one.double() for one in (path.alpha(s), path.sigma(s), path.alpha(r), path.sigma(r)))
    W = a * d - b * c

    def mix(left: Tensor, right: Tensor) -> State:
        return tree_map(lambda x, y: expand(left, x) * x + expand(right, y) * y, early, late)

    return Pairs(mix(-c / W, a / W), mix(d / W, -b / W))


def through_phases(
    teacher: Field,
    pairs: Pairs,
    number: Tensor,
    times: Tensor,
    steps: int,
    guidance: Sequence[Guidance] = (),
    generator: torch.Generator | None = None,
) -> State:
    """Where the teacher leads x_s, the data of ``pairs`` with their noise where phase ``number`` (B,) begins, by the
    phase's end, in ``steps`` steps of order 1. ``times`` are the phases' ``edges``; ``generator`` is for guidance that
    draws."""
    path = teacher.path
    ends = tree_map(torch.empty_like, pairs.x1)
    for phase in number.unique().tolist():
        rows = (number == phase).nonzero().flatten()

        def some(leaf: Tensor, rows: Tensor = rows) -> Tensor:
            return leaf[rows]

        told = teacher if teacher.condition is None else teacher.with_condition(tree_map(some, teacher.condition))
        begin = path.interpolate(tree_map(some, pairs.x0), tree_map(some, pairs.x1), times[phase])
        grid = torch.linspace(float(times[phase]), float(times[phase + 1]), steps + 1, dtype=torch.float64)
        end = solve(told, begin, grid, exponential(order=1), guidance, generator=generator)
        tree_map(lambda whole, part, rows=rows: whole.index_copy_(0, rows, part), ends, end)
    return ends


def phased_loss(
    student: Field,
    teacher: Field,
    pairs: Pairs,
    number: Tensor,
    u: Tensor,
    phases: int = 4,
    steps: int = 10,
    metric: Metric | None = None,
    weight: Tensor | None = None,
    guidance: Sequence[Guidance] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """metric(x_r of the student's step from x_t, x_r of the teacher) per sample, shape (B,).

    ``pairs`` are data and independent noise. Sample i is in phase ``number[i]`` from s to r: the teacher, under its
    ``guidance``, leads the noised sample x_s to x_r in ``steps`` steps; on the path of the pair that x_s and x_r imply
    (``implied_pair``) x_t is taken at t = s + u (r - s), ``u`` (B,) in (0, 1), and the student's step of order 1 leads
    from there to r. One phase of the linear path is reflow: the loss is (1 - t)^2 times that of the velocity.
    ``weight`` is as in ``matching_loss``. (Wang et al. 2024, arXiv 2410.07303.)
    """
    path, times = student.path, edges(student.path, phases).to(number.device)  # type: ignore[arg-type]
    with torch.no_grad():
        late = through_phases(teacher, pairs, number, times, steps, guidance, generator)
        s, r = times[number], times[number + 1]
        noise, data, *_ = implied_pair(path, path.interpolate(pairs.x0, pairs.x1, s), late, s, r)  # type: ignore[arg-type]
        t = s + u.to(s) * (r - s)
        x = path.interpolate(noise, data, t)

    def jump(x: State, _: Tensor, condition: Any) -> State:
        said = student.predict(x, t)
        return path.interpolate(
            path.convert(said, x, t, student.predicts, "noise"), path.convert(said, x, t, student.predicts, "x1"), r
        )

    # read as a prediction of the data at t = 0 of the linear path, where x_t is x0
    whole, zero = Field(jump, linear(), "x1"), torch.zeros(len(number), device=first_leaf(x).device)
    return matching_loss(whole, Pairs(x, late, pairs.weight), zero, metric, weight=weight)
