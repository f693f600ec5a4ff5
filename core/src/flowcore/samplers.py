"""How a run draws samples where its plugin brings nothing else: its field, integrated from source to data."""

from typing import Any

import torch

from flowcore.data import Batch
from flowcore.plugin.contracts import Leaf, Parts, Sampler
from flowcore.solvers import solve
from flowcore.state import State


def flow(parts: Parts) -> Sampler:
    """x1 of dx = v(x, t) dt from x0 ~ p0, by the run's solver and guidance; see ``flowcore.solvers.solve``."""
    path, solver = parts.path, parts.solver

    def sample(network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator) -> Batch:
        x0 = path.draw_source(empty(parts.spec.state, count, parts.device), generator)
        field = parts.field(network, condition)
        x1 = solve(field, path.initial(x0), steps, solver, parts.guidance, generator=generator)
        return Batch(x1, condition, x0=x0, extra={"calls": field.calls})

    return sample


def empty(leaf: Any, count: int, device: torch.device) -> State:
    """``count`` samples of what a ``Spec.state`` describes, with nothing in them."""
    if isinstance(leaf, Leaf):
        return torch.empty(count, *leaf.shape, dtype=getattr(torch, leaf.dtype), device=device)
    return {name: empty(child, count, device) for name, child in leaf.items()}
