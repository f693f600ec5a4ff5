"""Objectives of a run that learns from a trained one: few steps, a smaller network, or both."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.likelihood import gaussian_source
from flowcore.objectives import matching
from flowcore.paths import Affine
from flowcore.phases import phased_loss
from flowcore.plugin.contracts import Objective, Parts, Trained
from flowcore.reflow import flow_guided_loss, k_step_loss, one_step_loss
from flowcore.state import tree_map


def one_step(parts: Parts) -> Objective:
    """metric(x0 + v(x0, 0), x1) on the pairs of a teacher: see ``flowcore.reflow.one_step_loss``."""

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        return one_step_loss(parts.field(network, batch.condition), _given(batch, "one_step"), parts.loss)

    return loss


def k_step(parts: Parts, steps: PositiveInt = 4) -> Objective:
    """The matching loss on the pairs of a teacher, at the times where ``steps`` Euler steps begin: see
    ``flowcore.reflow.k_step_loss``."""

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        field, pairs = parts.field(network, batch.condition), _given(batch, "k_step")
        return k_step_loss(field, pairs, steps, generator, parts.loss)

    return loss


def annealed(parts: Parts, steps: PositiveInt = 1000) -> Objective:
    """Reflow that begins as a first flow: the matching loss on pairs whose noise is at first another one,

        z_b = sqrt(1 - b^2) z + b z',   z' ~ N(0, I),   b = 1 - min(1, step / K),   K = ``steps``

    in the place of z. At b = 1 the teacher's samples are data like any other, at b = 0 this is ``matching`` on the
    pairs to the last bit; z_b is N(0, I) all the way. For students too small to begin with the teacher's weights.
    Validation is at b = 0. (Zhu et al. 2024, arXiv 2407.12718.)
    """
    if not gaussian_source(parts.path):
        raise UsageError("objective annealed mixes noise that is Gaussian, and this path's source is another")
    reflow = matching(parts)

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        pairs = _given(batch, "annealed")
        b = 0.0 if batch.step is None else 1 - min(1.0, batch.step / steps)
        if b > 0:
            fresh = parts.path.draw_source(batch.x1, generator)
            batch = replace(batch, x0=tree_map(lambda z, other: mixed(z, other, b), pairs.x0, fresh))
        return reflow(network, batch, generator)

    return loss


def mixed(z: Tensor, other: Tensor, b: float) -> Tensor:
    """sqrt(1 - b^2) z + b z': of two draws from N(0, I), one that has the correlation sqrt(1 - b^2) with the first."""
    return math.sqrt(1 - b * b) * z + b * other


def flow_guided(parts: Parts, first_step: Literal["student", "teacher"] = "student") -> Objective:
    """A teacher's pairs in one Euler step, and its last step from where ``first_step`` leads on fresh noise: see
    ``flowcore.reflow.flow_guided_loss``. The teacher is asked without guidance, as what it learnt may hold that
    already."""
    trained = _teacher(parts, "flow_guided")

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        student, pairs = parts.field(network, batch.condition), _given(batch, "flow_guided")
        teacher = trained.parts().field(trained.network, batch.condition)
        first = teacher if first_step == "teacher" else None
        return flow_guided_loss(student, teacher, pairs, generator, parts.loss, first)

    return loss


def phased(parts: Parts, phases: PositiveInt = 4, teacher_steps: PositiveInt = 10) -> Objective:
    """A teacher's way through each of ``phases`` phases of the path in one step, learnt on the data and without pairs:
    see ``flowcore.phases.phased_loss``. Times are drawn within the phases, which share a batch evenly. The teacher goes
    ``teacher_steps`` steps through a phase under the guidance of its own run. Sample the student in as many steps as
    there are phases, by solver ``exponential`` of order 1."""
    if not isinstance(parts.path, Affine):
        raise UsageError("objective phased goes along one affine path, and this is another kind")
    teacher = _teacher(parts, "phased")

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.index is not None:
            raise UsageError("objective phased takes samples that are rows of a tensor, and these are ragged")
        count, device = len(batch), generator.device
        x0 = parts.path.draw_source(batch.x1, generator) if batch.x0 is None else batch.x0
        first = torch.randint(phases, (), generator=generator, device=device)
        number = (torch.arange(count, device=device) + first) % phases
        u, its = parts.times(count, generator), teacher.parts()
        field = its.field(teacher.network, batch.condition)
        return phased_loss(
            parts.field(network, batch.condition), field, Pairs(x0, batch.x1, batch.weight), number, u, phases,
            teacher_steps, parts.loss, parts.times.weights(u), its.guidance, generator,
        )  # fmt: skip

    return loss


def _teacher(parts: Parts, name: str) -> Trained:
    """The teacher of a run. Raises ``UsageError`` where there is none, or one that goes by another path: a step of it
    would lead elsewhere."""
    if parts.teacher is None:
        raise UsageError(f"objective {name} asks the teacher for steps; set teacher.model or teacher.preset")
    path = parts.teacher.parts().path
    if path is None:
        raise UsageError(f"objective {name} takes steps of a flow, and the teacher's samples come in another way")
    if _marks(path) != _marks(parts.path):
        raise UsageError(f"objective {name} takes steps of the teacher, which goes by another path; give both one path")
    return parts.teacher


def _marks(path: Any) -> Any:
    """What tells paths apart: their ends, and their coefficients at a few times."""
    parts = getattr(path, "paths", None)
    if parts is not None:
        return {key: _marks(part) for key, part in parts.items()}
    times = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    return path.name, path.start, path.stop, [one(times).tolist() for one in (path.alpha, path.sigma)]


def _given(batch: Batch, name: str) -> Pairs:
    if batch.x0 is None:
        raise UsageError(f"objective {name} learns the pairs of a teacher; set teacher.model and teacher.pairs.count")
    return Pairs(batch.x0, batch.x1, batch.weight)
