"""How a run draws samples where its plugin brings nothing else: its field, integrated from source to data."""

from typing import Any

import torch
from pydantic import PositiveFloat

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.paths import Affine
from flowcore.plugin.contracts import Leaf, Parts, Sampler
from flowcore.solvers import edm_grid, solve
from flowcore.state import State, tree_map


def flow(
    parts: Parts, rho: PositiveFloat | None = None, sigma_min: PositiveFloat = 0.002, sigma_max: PositiveFloat = 80.0
) -> Sampler:
    """x1 of dx = v(x, t) dt from x0, by the run's solver and guidance; see ``flowcore.solvers.solve``. x0 are
    the data's own source samples, or noise.

    The steps are equal in t, or with ``rho`` end at EDM's noise levels between ``sigma_max`` and ``sigma_min``, which
    any affine path has: see ``flowcore.solvers.edm_grid``.
    """
    path, solver = parts.path, parts.solver
    if rho is not None and not isinstance(path, Affine):
        raise UsageError("sample.sampler.rho is for a path with one noise level; leave it out")

    def sample(network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator) -> Batch:
        x0 = source(parts, count, generator)
        field = parts.field(network, condition)
        grid = steps if rho is None else edm_grid(steps, sigma_min, sigma_max, rho, path)
        x1 = solve(field, path.initial(x0), grid, solver, parts.guidance, generator=generator)
        return Batch(x1, condition, x0=x0, extra={"calls": field.calls})

    return sample


def source(parts: Parts, count: int, generator: torch.Generator) -> State:
    """``count`` samples of x0: the data's own where it has any (``contracts.Sourced``), else the path's."""
    own = getattr(parts.data, "draw_source", None)
    if own is None:
        return parts.path.draw_source(empty(parts.spec.state, count, parts.device), generator)
    return tree_map(lambda leaf: leaf.to(parts.device), own(count, generator))


def empty(leaf: Any, count: int, device: torch.device) -> State:
    """``count`` samples of what a ``Spec.state`` describes, with nothing in them."""
    if isinstance(leaf, Leaf):
        return torch.empty(count, *leaf.shape, dtype=getattr(torch, leaf.dtype), device=device)
    return {name: empty(child, count, device) for name, child in leaf.items()}
