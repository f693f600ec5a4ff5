"""The network of PropMolFlow (arXiv 2505.21469, on FlowMol's): GVPs on the fully connected graph of each molecule."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Spec
from flowcore.state import State
from flowplat_molecules.graphs import of_index
from flowplat_molecules.gvp import Convolution, EdgeUpdate, Positions, Radial, distances, edges_of
from flowplat_molecules.replay import Graphs
from flowplat_molecules.spec import MoleculeSpec, Property

Embedding = Literal["concatenate", "sum", "multiply", "concatenate_sum", "concatenate_multiply"]
CLASSES = ("atoms", "charges", "bonds")


class GVPOptions(BaseModel):
    """Sizes of the network, and how it is told of properties; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scalars: int = Field(256, ge=4, description="scalar features of an atom")
    vectors: int = Field(16, ge=1, description="vector features of an atom")
    edges: int = Field(128, ge=4, description="features of an edge")
    cross: int = Field(4, ge=0, description="cross products in each GVP; 0 makes the network blind to mirror images")
    radial: int = Field(32, ge=1, description="Gaussians of the distance")
    cutoff: float = Field(14.0, gt=0, description="where the last of them is, in Angstrom")
    blocks: int = Field(8, ge=2, description="blocks; all but the first move atoms and edges")
    normaliser: float = Field(100.0, gt=0, description="what sums of messages are divided by")
    embedding: Embedding = Field("sum", description="how the properties enter the atoms' features")
    gaussians: int = Field(
        0, ge=0, description="centres that a property is expanded in, 5 in the paper; 0 standardises it instead"
    )
    categories: Literal["masked", "simplex"] = Field(
        "masked", description="what atoms and bonds are on the way; as in the objective and the sampler"
    )


def enter(inward: int, width: int) -> nn.Sequential:
    """Linear, SiLU, Linear, SiLU, LayerNorm."""
    return nn.Sequential(nn.Linear(inward, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.LayerNorm(width))


class Expansion(nn.Module):
    """g_k = exp(-(y - o_k)^2 / (2 w^2)) of y (B,), with ``count`` centres from ``low`` to ``high``, w apart: (B, K)."""

    def __init__(self, low: float, high: float, count: int) -> None:
        super().__init__()
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(low, high, count))
        self.width = max((high - low) / max(1, count - 1), 1e-12)

    def forward(self, y: Tensor) -> Tensor:
        return torch.exp(-(y[:, None] - self.centres).square() / (2 * self.width**2))


class Told(nn.Module):
    """One property as a vector: (B,) in its own units, NaN where nothing is said, which has a vector of its own."""

    def __init__(self, known: Property, width: int, gaussians: int) -> None:
        super().__init__()
        self.layers: nn.Module
        if gaussians:
            self.expand = Expansion(known.low, known.high, gaussians)
            self.layers = nn.Sequential(nn.Linear(gaussians, width), nn.SiLU(), nn.Linear(width, width))
        else:
            self.layers = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.gaussians = gaussians
        self.null = nn.Parameter(torch.randn(width) / width**0.5)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor([known.mean, known.std or 1.0]))

    def forward(self, y: Tensor) -> Tensor:
        unknown = y.isnan()
        y = y.nan_to_num()
        first = self.expand(y) if self.gaussians else ((y - self.scale[0]) / self.scale[1])[:, None]
        return torch.where(unknown[:, None], self.null, self.layers(first))


class Conditioned(nn.Module):
    """s' of the atoms' features s (N, S) and the properties' vector p (B, S), in one of five ways, with C an MLP:

    concatenate C(s, p); sum s + p; multiply s (sigmoid(p) + 1/2); concatenate_sum s + C(s, p);
    concatenate_multiply s (sigmoid(C(s, p)) + 1/2). The paper's own code leaves C out of the last one, which makes it
    ``multiply``; here it is what its name says. Several properties are told side by side and mixed by one matrix.
    """

    def __init__(self, properties: Sequence[Property], width: int, embedding: Embedding, gaussians: int) -> None:
        super().__init__()
        self.told = nn.ModuleList(Told(one, width, gaussians) for one in properties)
        self.mix = nn.Linear(len(properties) * width, width) if len(properties) > 1 else nn.Identity()
        self.embedding = embedding
        self.both: nn.Module | None = None
        if embedding.startswith("concatenate"):
            self.both = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, s: Tensor, condition: Tensor, atom: Tensor) -> Tensor:
        p = self.mix(torch.cat([told(condition[:, k]) for k, told in enumerate(self.told)], 1))[atom].to(s.dtype)
        if self.both is not None:
            p = self.both(torch.cat([s, p], 1))
        match self.embedding:
            case "concatenate":
                return p
            case "sum" | "concatenate_sum":
                return s + p
        return s * (p.sigmoid() + 0.5)


class Molecular(nn.Module):
    """x_t, t and properties to x1: positions in Angstrom, and logits of atoms, charges and bonds.

    Turns with the molecule, moves with it, is the same in any order of the atoms. ``forward(x, t, condition, index)``
    takes the state of a ragged batch, t (B,), properties (B, K) or None, and the index of each leaf.
    """

    def __init__(self, config: GVPOptions, spec: MoleculeSpec) -> None:
        super().__init__()
        state = cast(dict[str, Any], spec.state)
        self.categories = config.categories
        self.classes = {name: state[name].classes for name in CLASSES}
        seen = {name: count + (config.categories == "masked") for name, count in self.classes.items()}
        S, V, E = config.scalars, config.vectors, config.edges
        self.vectors = V
        self.seen = seen
        self.graphs: Graphs | None = None
        self.atoms = enter(seen["atoms"] + 1 + seen["charges"], S)
        self.pairs = enter(seen["bonds"], E)
        self.radial = Radial(config.radial, config.cutoff)
        self.conditioned = (
            Conditioned(spec.properties, S, config.embedding, config.gaussians) if spec.properties else None
        )
        self.blocks = nn.ModuleList(
            Convolution(S, V, E, config.radial, config.cross, 3, 3, config.normaliser) for _ in range(config.blocks)
        )
        self.positions = nn.ModuleList(Positions(S, V, config.cross) for _ in range(config.blocks - 1))
        self.edges = nn.ModuleList(EdgeUpdate(S, E, config.radial) for _ in range(config.blocks - 1))
        self.nodes = nn.Sequential(
            nn.Linear(S, S), nn.SiLU(), nn.Linear(S, self.classes["atoms"] + self.classes["charges"])
        )
        self.bonds = nn.Sequential(nn.Linear(E, E), nn.SiLU(), nn.Linear(E, self.classes["bonds"]))

    def compile(self, *arguments: Any, **options: Any) -> None:
        """On a GPU its steps are replayed from then on, see ``flowplat_molecules.replay``. Elsewhere its blocks are
        compiled, once for any number of atoms, where the network as a whole would be compiled for every batch."""
        if torch.cuda.is_available():
            self.graphs = self.graphs or Graphs()
            return
        for part in (*self.blocks, *self.positions, *self.edges):
            if part._compiled_call_impl is None:
                part.compile(dynamic=True)

    def _seen(self, name: str, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        """What is shown of a leaf of tokens: one-hot vectors, or the point of a simplex as it is."""
        if leaf.is_floating_point() != (self.categories == "simplex"):
            raise UsageError(
                f"network.categories={self.categories}, and objective or sampler make {name} of another kind; set"
                " network.categories, objective.categories and sample.sampler.categories alike"
            )
        if leaf.is_floating_point():
            return leaf
        return (leaf[:, None] == torch.arange(self.seen[name], device=leaf.device)).to(dtype)

    def forward(self, x: State, t: Tensor, condition: Tensor | None = None, index: Any = None) -> State:
        place = x["positions"]
        if (
            self.graphs is not None
            and place.is_cuda
            and not (torch.is_autocast_enabled("cuda") or place.requires_grad or torch.distributed.is_initialized())
        ):
            return self.graphs(self, self.plain, x, t, condition, index)
        return self.plain(x, t, condition, index)

    def plain(self, x: State, t: Tensor, condition: Tensor | None, index: Any) -> State:
        """``forward`` without a graph."""
        graph = of_index(index, len(t))
        edges = edges_of(graph)
        place = x["positions"]
        shown = {name: self._seen(name, x[name], place.dtype) for name in CLASSES}
        s = self.atoms(torch.cat([shown["atoms"], t[graph.atom, None].to(place.dtype), shown["charges"]], 1))
        e = self.pairs(shown["bonds"]).index_select(0, edges.pair)
        if self.conditioned is not None:
            if condition is None:
                condition = t.new_full((len(t), len(self.conditioned.told)), torch.nan)
            s = self.conditioned(s, condition.to(place.dtype), graph.atom)
        v = s.new_zeros(len(s), 3, self.vectors)
        d, unit = distances(place, edges)
        rbf = self.radial(d)
        for number, block in enumerate(self.blocks):
            s, v = block(s, v, e, rbf, unit, edges)
            if number:
                place = place + self.positions[number - 1](s, v).to(place.dtype)
                d, unit = distances(place, edges)
                rbf = self.radial(d)
                e = self.edges[number - 1](s, e, rbf, edges)
        atoms, charges = self.nodes(s).split([self.classes["atoms"], self.classes["charges"]], 1)
        bonds = self.bonds(e.index_select(0, edges.forth) + e.index_select(0, edges.back))
        return {"positions": place, "atoms": atoms, "charges": charges, "bonds": bonds}


def gvp(config: GVPOptions, spec: Spec) -> nn.Module:
    """The network of a data set of molecules."""
    if not isinstance(spec, MoleculeSpec):
        raise UsageError("network gvp is for data sets of molecules")
    return Molecular(config, spec)
