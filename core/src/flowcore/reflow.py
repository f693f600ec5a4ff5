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
from flowcore.state import State, add, first_leaf


def one_step_loss(student: Field, pairs: Pairs, metric: Metric | None = None) -> Tensor:
    """metric(x0 + v(x0, 0), x1) per sample, shape (B,): one Euler step of the student against the teacher's sample.

    The minimiser under the squared error is E[x1 | x0], which is x1 itself where the pairs are a map. On a path that
    does not run from 0 to 1 the step is from its start to its stop. Weights and dicts as in ``matching_loss``.
    """
    path = student.path

    def jump(x0: State, t: Tensor, condition: Any) -> State:
        start = path.initial(x0)
        return add(start, student(start, path.start), path.stop - path.start)

    # read as a prediction of the data at t = 0 of the linear path, where x_t is x0
    whole = Field(jump, linear(), "x1", index=student.index, samples=student.samples)
    t = torch.zeros(_count(student, pairs), device=first_leaf(pairs.x1).device)
    return matching_loss(whole, pairs, t, metric, whole.index)


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
