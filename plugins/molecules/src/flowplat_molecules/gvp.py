"""Geometric vector perceptrons: scalars and vectors that turn with the molecule (Jing et al. 2021, arXiv 2009.01411),
with cross products as in FlowMol, whose networks know left from right.

Rows of scalars are (n, s), rows of vectors (n, 3, v): the channels come last, so that a matrix mixes them.

    Vh = [W_h V, a x b with [a, b] = W_c V],   s' = SiLU(W [s, |Vh|] + b),   V' = sigmoid(W_g s' + b_g) * (W_u Vh)
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowplat_molecules.graphs import Graph

EPS = 1e-8


def length(v: Tensor, dim: int = 1) -> Tensor:
    """|v| along ``dim``, from the squared sum clamped at 1e-8: its slope is finite at 0."""
    return v.square().sum(dim).clamp(min=EPS).sqrt()


class GVP(nn.Module):
    """(s, V) of (si, vi) channels to (so, vo). ``cross`` pairs of vectors are multiplied; ``gated`` puts the sigmoid on
    the gate, which is the identity in the last one of a head of positions.

    Called with ``parts=(s, V, rows)``, channels that come from other rows (an edge's source) are looked up after the
    matrix has been applied to them: the same function, a product for each atom instead of one for each edge. These are
    the first channels of both.
    """

    def __init__(self, si: int, vi: int, so: int, vo: int, cross: int, gated: bool = True) -> None:
        super().__init__()
        hidden = max(vi, vo)
        self.cross, self.hidden, self.gated = cross, hidden, gated
        self.mix = nn.Linear(vi, hidden + 2 * cross, bias=False)  # W_h and W_c
        self.turn = nn.Linear(hidden + cross, vo, bias=False)  # W_u
        self.scalars = nn.Linear(si + hidden + cross, so)
        self.gate = nn.Linear(so, vo)

    def forward(
        self, s: Tensor, v: Tensor, parts: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if parts is None:
            mixed, told = self.mix(v), None
        else:
            far, away, rows = parts
            n, k = far.shape[1], away.shape[2]
            mixed = F.linear(v, self.mix.weight[:, k:]) + F.linear(away, self.mix.weight[:, :k]).index_select(0, rows)
            told = F.linear(far, self.scalars.weight[:, :n]).index_select(0, rows)
        if self.cross:
            a, b = mixed[..., self.hidden : -self.cross], mixed[..., -self.cross :]
            mixed = torch.cat([mixed[..., : self.hidden], torch.linalg.cross(a, b, dim=1)], -1)
        near = torch.cat([s, length(mixed).to(s.dtype)], 1)
        if told is None:
            s = F.silu(self.scalars(near))
        else:
            s = F.silu(told + F.linear(near, self.scalars.weight[:, n:], self.scalars.bias))
        gate = self.gate(s)
        return s, (gate.sigmoid() if self.gated else gate)[:, None] * self.turn(mixed)


class Norm(nn.Module):
    """LayerNorm of the scalars; vectors over the root of their mean squared length."""

    def __init__(self, scalars: int) -> None:
        super().__init__()
        self.scalars = nn.LayerNorm(scalars)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scale = (v.square().sum(1).mean(-1) + 1e-5).sqrt() + 1e-5
        return self.scalars(s), v / scale[:, None, None]


class Edges(NamedTuple):
    """The directed edges of a graph, molecule by molecule, by receiver: ``to`` and ``source`` (E,) atoms, ``pair`` (E,)
    the unordered pair of each, ``degree`` (N,) how many an atom receives; ``forth`` and ``back`` (P,) are the edges
    j -> i and i -> j of each pair."""

    to: Tensor
    source: Tensor
    pair: Tensor
    degree: Tensor
    forth: Tensor
    back: Tensor


def edges_of(graph: Graph) -> Edges:
    """All edges of each molecule, without waiting for a GPU."""
    pairs = graph.sizes * (graph.sizes - 1) // 2
    pair, atom = pairs.cumsum(0) - pairs, graph.sizes.cumsum(0) - graph.sizes  # where each molecule begins
    molecule = graph.pair[:, None].expand(-1, 2).reshape(-1)
    n = graph.sizes[molecule]
    k = torch.arange(len(molecule), device=molecule.device) - 2 * pair[molecule]
    to, source = k // (n - 1), k % (n - 1)
    source = source + (source >= to)  # there is no edge from an atom to itself
    low, high = torch.minimum(to, source), torch.maximum(to, source)
    number = pair[molecule] + low * (2 * n - low - 1) // 2 + high - low - 1
    start, n = 2 * pair[graph.pair], graph.sizes[graph.pair]
    i, j = (end - atom[graph.pair] for end in (graph.i, graph.j))
    return Edges(
        atom[molecule] + to,
        atom[molecule] + source,
        number,
        graph.sizes[graph.atom] - 1,
        start + i * (n - 1) + j - 1,
        start + j * (n - 1) + i,
    )


def received(messages: Tensor, edges: Edges) -> Tensor:
    """The sum over what each atom receives, (E, ...) -> (N, ...), in single precision or better."""
    wide = messages.float() if messages.dtype in (torch.bfloat16, torch.float16) else messages
    if wide.is_cuda or torch.compiler.is_compiling():
        return wide.new_zeros(len(edges.degree), *wide.shape[1:]).index_add(0, edges.to, wide)
    if len(wide) == 0:
        return wide.new_zeros(len(edges.degree), *wide.shape[1:])
    # many times quicker on a processor, where index_add goes row by row
    return torch.segment_reduce(wide, "sum", lengths=edges.degree, axis=0, unsafe=True)


def distances(x: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """|r| and r / |r| of r = x_source - x_to, (E,) and (E, 3)."""
    r = x.index_select(0, edges.source) - x.index_select(0, edges.to)
    d = length(r) + EPS
    return d, r / d[:, None]


class Radial(nn.Module):
    """exp(-((d - c_k) n / D)^2) with n centres from 0 to D = ``cutoff``."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.width = cutoff / count
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(0, cutoff, count), persistent=False)

    def forward(self, d: Tensor) -> Tensor:
        return torch.exp(-((d[:, None] - self.centres) / self.width).square())


class Convolution(nn.Module):
    """Messages of GVPs from source to receiver, their sum over ``normaliser``, and an update of each atom by GVPs."""

    def __init__(
        self, scalars: int, vectors: int, edges: int, radial: int, cross: int, messages: int, updates: int,
        normaliser: float,
    ) -> None:  # fmt: skip
        super().__init__()
        first = GVP(scalars + radial + edges, vectors + 1, scalars, vectors, cross)
        more = (GVP(scalars, vectors, scalars, vectors, cross) for _ in range(messages - 1))
        self.messages = nn.ModuleList([first, *more])
        self.updates = nn.ModuleList(GVP(scalars, vectors, scalars, vectors, cross) for _ in range(updates))
        self.first, self.last = Norm(scalars), Norm(scalars)
        self.normaliser = normaliser

    def forward(
        self, s: Tensor, v: Tensor, e: Tensor, rbf: Tensor, unit: Tensor, edges: Edges
    ) -> tuple[Tensor, Tensor]:
        first, *more = self.messages
        ms, mv = first(torch.cat([rbf.to(e.dtype), e], 1), unit[..., None].to(e.dtype), (s, v, edges.source))
        for gvp in more:
            ms, mv = gvp(ms, mv)
        arrived = received(torch.cat([ms, mv.flatten(1)], 1), edges) / self.normaliser
        gained = arrived[:, ms.shape[1] :].unflatten(1, v.shape[1:])
        s, v = self.first(s + arrived[:, : ms.shape[1]], v + gained)
        us, uv = s, v
        for gvp in self.updates:
            us, uv = gvp(us, uv)
        return self.last(s + us, v + uv)


class Positions(nn.Module):
    """The step of each atom: three GVPs, the last to one vector, its gate without a sigmoid."""

    def __init__(self, scalars: int, vectors: int, cross: int) -> None:
        super().__init__()
        inner = (GVP(scalars, vectors, scalars, vectors, cross) for _ in range(2))
        self.gvps = nn.ModuleList([*inner, GVP(scalars, vectors, scalars, 1, cross, gated=False)])

    def forward(self, s: Tensor, v: Tensor) -> Tensor:
        for gvp in self.gvps:
            s, v = gvp(s, v)
        return v.squeeze(-1)


class EdgeUpdate(nn.Module):
    """e <- LayerNorm(e + MLP([s_to, s_source, e, rbf])); the products with s are made for atoms and then looked up."""

    def __init__(self, scalars: int, edges: int, radial: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * scalars + edges + radial, edges), nn.Linear(edges, edges)
        self.norm = nn.LayerNorm(edges)
        self.width = scalars

    def forward(self, s: Tensor, e: Tensor, rbf: Tensor, edges: Edges) -> Tensor:
        ends = self.first.weight[:, : 2 * self.width].unflatten(1, (2, self.width)).transpose(0, 1).flatten(0, 1)
        to, source = F.linear(s, ends).chunk(2, 1)
        near = F.linear(torch.cat([e, rbf.to(e.dtype)], 1), self.first.weight[:, 2 * self.width :], self.first.bias)
        ends_of = to.index_select(0, edges.to) + source.index_select(0, edges.source)
        return self.norm(e + F.silu(self.second(F.silu(ends_of + near))))
