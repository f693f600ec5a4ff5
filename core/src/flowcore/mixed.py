"""States of several kinds at once: some leaves run along an affine path, others are tokens; all share t.

Tokens are revealed one after the other (``masked.Masked``), or run along straight lines through the simplex of their
one-hot vectors (``Simplex``). The network is called with one state and answers with one: the data x1 for an affine leaf
(what it ``predicts``), logits of x1 for tokens, as many as there are classes, MASK not among them.

    d x = v(x, t) dt on an affine leaf;      jumps with the rates of p(x1^i | x_t) on a masked one

The "velocity" of tokens is log p(x1^i | x_t): so guidance, which adds up velocities with weights, multiplies powers of
probabilities, which are normalised where they are drawn from. Sources: Campbell et al. 2024 (arXiv 2402.04997), whose
steps these are; Stark et al. 2024 (arXiv 2402.05841) for the simplex.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcore.masked import Masked, euler_step
from flowcore.paths import Affine, Product
from flowcore.state import State, branch, expand


@dataclass(frozen=True)
class Simplex:
    """x_t = t onehot(x1) + (1 - t) x0 with x0 uniform on the simplex of ``classes`` corners, shape (..., classes).

    The velocity at x is (p - x) / (1 - t), p = p(x1 | x_t), and the token at the end the largest entry.
    """

    classes: int

    def draw_source(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """x0 for tokens shaped like ``like``, with one dimension more."""
        u = torch.rand((*like.shape, self.classes), generator=generator, device=like.device, dtype=torch.float64)
        lengths = -torch.log1p(-u)
        return (lengths / lengths.sum(-1, keepdim=True)).to(torch.get_default_dtype())

    def interpolate(self, x0: Tensor, x1: Tensor, t: float | Tensor, index: Any = None) -> Tensor:
        """x_t of tokens x1."""
        corners = F.one_hot(x1, self.classes).to(x0.dtype)
        return torch.lerp(x0, corners, expand(t, x0, index))

    def step(self, x: Tensor, logits: Tensor, t: float | Tensor, r: float | Tensor, index: Any = None) -> Tensor:
        """The Euler step of the velocity from t to r; at r = 1 it ends at p itself."""
        time, until = (expand(s, x, index) for s in (t, r))
        return torch.lerp(x, logits.softmax(-1).to(x.dtype), ((until - time) / (1 - time)).expand_as(x))


Part = Affine | Masked | Simplex


@dataclass(frozen=True)
class Mixed(Product):
    """A path for each key of a dict state, of any kind in ``Part``. As ``Field(network, mixed, "x1")`` it is what
    guidance sees; ``step`` is the sampler's."""

    paths: Mapping[str, Part]  # type: ignore[assignment]

    @property
    def start(self) -> float:
        """The latest start of the affine parts."""
        return max((part.start for part in self.paths.values() if isinstance(part, Affine)), default=0.0)

    @property
    def stop(self) -> float:
        """The earliest stop of the affine parts."""
        return min((part.stop for part in self.paths.values() if isinstance(part, Affine)), default=1.0)

    def draw_source(self, like: State, generator: torch.Generator) -> State:
        """x0, shaped like the data ``like``: noise, a point of the simplex, or MASK."""
        return {
            key: torch.full_like(like[key], part.mask)
            if isinstance(part, Masked)
            else part.draw_source(like[key], generator)
            for key, part in self.paths.items()
        }

    def initial(self, x0: State) -> State:
        """See ``Affine.initial``."""
        return {k: p.initial(x0[k]) if isinstance(p, Affine) else x0[k] for k, p in self.paths.items()}

    def sample(self, x0: State, x1: State, t: float | Tensor, generator: torch.Generator, index: Any = None) -> State:
        """x_t given the pair (x0, x1): what is masked is drawn. ``x0`` of masked leaves is not read."""
        return {
            key: part.sample(x1[key], t, generator, index=branch(index, key))
            if isinstance(part, Masked)
            else part.interpolate(x0[key], x1[key], t, branch(index, key))
            for key, part in self.paths.items()
        }

    def convert(self, value: State, x: State, t: float | Tensor, given: Any, wanted: Any, index: Any = None) -> State:
        """See ``Affine.convert``; of tokens log p(x1 | x_t), whatever is wanted."""
        return {
            key: part.convert(value[key], x[key], t, branch(given, key), branch(wanted, key), branch(index, key))
            if isinstance(part, Affine)
            else value[key].log_softmax(-1)
            for key, part in self.paths.items()
        }

    def step(
        self,
        x: State,
        velocity: State,
        t: float,
        r: float,
        generator: torch.Generator,
        index: Any = None,
        remask: float = 0.0,
        temperature: float = 1.0,
        free: Mapping[str, Tensor] | None = None,
    ) -> State:
        """x at r from x at t, given ``Field.velocity`` there: x + (r - t) v, and ``masked.euler_step`` of tokens.

        ``remask`` is its eta, ``temperature`` divides log p; tokens that are not ``free`` stay as they are.
        """
        out = {}
        for key, part in self.paths.items():
            told = branch(index, key)
            if isinstance(part, Affine):
                out[key] = torch.add(x[key], velocity[key], alpha=r - t)
            elif isinstance(part, Simplex):
                out[key] = part.step(x[key], velocity[key] / temperature, t, r, told)
            else:
                mine = None if free is None else free.get(key)
                logits = velocity[key].double() / temperature
                out[key] = euler_step(part, x[key], logits, t, r, generator, remask, mine, told)
        return out

    def tokens(self, x: State) -> State:
        """The state at the end with tokens in place of corners of a simplex."""
        return {k: x[k].argmax(-1) if isinstance(p, Simplex) else x[k] for k, p in self.paths.items()}
