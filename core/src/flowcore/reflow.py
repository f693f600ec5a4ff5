"""Few-step students: what is minimised when a field learns a teacher's pairs (``pairs``) in one step or in k.

    x0 -> x0 + v(x0, 0) -> x1

A field trained on a teacher's pairs has straighter paths and the teacher's marginals, so it needs fewer steps, and its
own pairs are straighter still: reflow is ``matching_loss`` on a ``PairStore`` (Liu et al. 2022, arXiv 2209.03003).
"""

from typing import Any

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.field import Field
from flowcore.losses import Metric, Perceptual, matching_loss
from flowcore.paths import linear
from flowcore.state import State, add, branch, expand, first_leaf


def one_step_loss(student: Field, pairs: Pairs, metric: Metric | None = None) -> Tensor:
    """metric(x0 + v(x0, 0), x1) per sample, shape (B,): one Euler step of the student against the teacher's sample.

    The minimiser under the squared error is E[x1 | x0], which is x1 itself where the pairs are a map. On a path that
    does not run from 0 to 1 the step is from its start to its stop. Weights and dicts as in ``matching_loss``.
    """
    path = student.path

    def jump(x0: State, t: Tensor, condition: Any, index: Any = None) -> State:
        start = path.initial(x0)
        return add(start, student(start, path.start), path.stop - path.start)

    # read as a prediction of the data at t = 0 of the linear path, where x_t is x0
    whole = Field(jump, linear(), "x1", index=student.index, samples=student.samples)
    t = torch.zeros(_count(student, pairs), device=first_leaf(pairs.x1).device)
    return matching_loss(whole, pairs, t, metric, whole.index)


def flow_guided_loss(
    student: Field,
    teacher: Field,
    pairs: Pairs,
    generator: torch.Generator,
    metric: Metric | None = None,
    first: Field | None = None,
) -> Tensor:
    """One step of the student against the teacher's pairs, and against two steps on fresh noise, (B,), weighed alike:

        D(z1, z0 + v(z0, 0)) + D(x1, z + v(z, 0)),   x1 = x_t + (1 - t) v_teacher(x_t, t),   x_t = z + t v_first(z, 0)

    with t ~ U(0.2, 0.8); no gradient goes through x1. The second term needs no pairs, so it is the same for few of
    them. ``first`` takes the first of the two steps: the student where None, as published, or the teacher. Where the
    teacher's path is straight, x1 is its own one step. Steps are Euler steps between the path's start and stop. (Zhu et
    al. 2024, arXiv 2407.12718.)
    """
    z = student.path.draw_source(pairs.x1, generator)
    t = 0.2 + 0.6 * torch.rand(_count(student, pairs), generator=generator, device=generator.device)
    target = two_steps(first or student, teacher, z, t)
    return one_step_loss(student, pairs, metric) + one_step_loss(student, Pairs(z, target), metric)


@torch.no_grad()
def two_steps(first: Field, second: Field, x0: State, t: Tensor) -> State:
    """Two Euler steps over the path of ``second``: by ``first`` to the share ``t`` of the way, (B,), and on to its stop
    by ``second``."""
    path = second.path
    x, length = path.initial(x0), path.stop - path.start
    half = _advanced(x, first(x, path.start), length * t, second.index)
    return _advanced(half, second(half, path.start + length * t), length * (1 - t), second.index)


def _advanced(x: State, v: State, h: Tensor, index: Any) -> State:
    """x + h v, with a step for each sample."""
    if isinstance(x, Tensor):
        return x + expand(h, x, index) * v
    return {key: _advanced(x[key], v[key], h, branch(index, key)) for key in x}


def k_step_loss(
    student: Field,
    pairs: Pairs,
    steps: int,
    generator: torch.Generator,
    metric: Metric | None = None,
    perceptual: Perceptual | None = None,
) -> Tensor:
    """The matching loss at t uniform on {0, 1/k, ..., (k-1)/k}, per sample, shape (B,).

    These are the times at which the student's k Euler steps begin; nothing is spent on others. k = 1 is the one-step
    loss in terms of velocities. The times are spread over the path's [start, stop]. ``metric`` and ``perceptual`` as in
    ``matching_loss``. (Liu et al. 2022, arXiv 2209.03003, section 3.)
    """
    path, count = student.path, _count(student, pairs)
    number = torch.randint(steps, (count,), generator=generator, device=generator.device)
    t = path.start + (path.stop - path.start) * number.double() / steps
    return matching_loss(student, pairs, t, metric, student.index, perceptual=perceptual)


def _count(student: Field, pairs: Pairs) -> int:
    return len(first_leaf(pairs.x1)) if student.samples is None else student.samples
