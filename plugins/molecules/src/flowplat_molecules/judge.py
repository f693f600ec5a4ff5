"""The judge: a network that tells a molecule's properties, trained on molecules that the generator never saw.

The regressor of PropMolFlow (arXiv 2505.21469): GVPs without cross products, as a property knows no left and right, on
atoms and bond orders, three convolutions that also move the positions, and the mean over atoms.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flowcore import files
from flowcore.data import Batch, Source, rows_of_step
from flowcore.errors import InputError
from flowcore.seeds import derive, generator
from flowplat_molecules.graphs import of_index
from flowplat_molecules.gvp import Convolution, EdgeUpdate, Positions, Radial, distances, edges_of
from flowplat_molecules.networks import enter
from flowplat_molecules.spec import MoleculeSpec

BATCH = 64
FULL = {"scalars": 256, "vectors": 16, "edges": 64, "radial": 16, "cutoff": 20.0, "normaliser": 100.0}
SMALL = {"scalars": 64, "vectors": 8, "edges": 32, "radial": 16, "cutoff": 10.0, "normaliser": 10.0}


class Judge(nn.Module):
    """Molecules to properties: ``predict(batch)`` in their own units; the outputs themselves are standardised."""

    def __init__(self, spec: MoleculeSpec, sizes: dict[str, Any]) -> None:
        super().__init__()
        state = cast(dict[str, Any], spec.state)
        self.sizes, self.properties = sizes, spec.properties
        self.classes = {name: state[name].classes for name in ("atoms", "bonds")}
        S, V, E, R = sizes["scalars"], sizes["vectors"], sizes["edges"], sizes["radial"]
        self.vectors = V
        self.atoms, self.pairs = enter(self.classes["atoms"], S), enter(self.classes["bonds"], E)
        self.radial = Radial(R, sizes["cutoff"])
        self.blocks = nn.ModuleList(Convolution(S, V, E, R, 0, 1, 1, sizes["normaliser"]) for _ in range(3))
        self.positions = nn.ModuleList(Positions(S, V, 0) for _ in range(2))
        self.edges = nn.ModuleList(EdgeUpdate(S, E, R) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(S, S), nn.SiLU(), nn.Linear(S, len(spec.properties)))
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor([[one.mean, one.std or 1.0] for one in spec.properties]).T)

    def forward(self, batch: Batch) -> Tensor:
        """Standardised properties (B, K)."""
        graph = of_index(batch.index, len(batch))
        edges, x = edges_of(graph), batch.x1["positions"]
        s = self.atoms(F.one_hot(batch.x1["atoms"], self.classes["atoms"]).to(x.dtype))
        e = self.pairs(F.one_hot(batch.x1["bonds"], self.classes["bonds"]).to(x.dtype))[edges.pair]
        v = s.new_zeros(len(s), 3, self.vectors)
        d, unit = distances(x, edges)
        for number, block in enumerate(self.blocks):
            s, v = block(s, v, e, self.radial(d), unit, edges)
            if number:
                x = x + self.positions[number - 1](s, v).to(x.dtype)
                d, unit = distances(x, edges)
                e = self.edges[number - 1](s, e, self.radial(d), edges)
        total = s.new_zeros(len(batch), s.shape[1]).index_add(0, graph.atom, s)
        out: Tensor = self.head(total / graph.sizes.clamp(min=1)[:, None])
        return out

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """The properties (B, K) of molecules, in the units of the data."""
        self.eval()
        device = self.scale.device
        return (self(batch.to(device)) * self.scale[1] + self.scale[0]).cpu()

    def save(self, folder: Path) -> None:
        """Weights and sizes as ``judge.safetensors`` and ``judge.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        with files.refusals(f"{folder} cannot be written"):
            save_file(
                {name: value.cpu().contiguous() for name, value in self.state_dict().items()},
                folder / "judge.safetensors",
            )
            told = {"sizes": self.sizes, "properties": [one.name for one in self.properties]}
            files.write(folder / "judge.json", json.dumps(told, indent=1))


def load(folder: Path, spec: MoleculeSpec, device: torch.device | str = "cpu") -> Judge:
    """The judge that ``save`` wrote. Raises ``InputError`` where it is none of these properties."""
    try:
        told = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        if told["properties"] != [one.name for one in spec.properties]:
            raise InputError(f"the judge in {folder} is of {', '.join(told['properties'])}: train another")
        judge = Judge(spec, told["sizes"])
        judge.load_state_dict(load_file(folder / "judge.safetensors"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} holds no judge that can be read: {' '.join(str(error).split())[:200]}") from error
    return judge.to(device).eval()


def fit(
    source: Source,
    spec: MoleculeSpec,
    seed: int = 0,
    device: torch.device | str = "cpu",
    steps: int = 1500,
    sizes: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Judge:
    """A judge trained on ``source`` by squared errors of standardised properties, unknown ones (NaN) left out.

    AdamW at 1e-3, weight decay 1e-4, ``steps`` batches of 64 molecules, the rate falling to 0 by a cosine (the paper
    halves it when the validation error stands still, for up to 1000 epochs). ``sizes`` is ``SMALL`` or ``FULL``.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "judge"))
        judge = Judge(spec, sizes or SMALL).to(device)
    if not spec.properties:
        raise InputError("these molecules have no properties to judge: name some in data.properties")
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=1e-4)
    judge.train()
    for step in range(steps):
        rows = rows_of_step(len(source), BATCH, step, seed)
        batch = source.batch(rows, generator(seed, "judge", step)).to(device)
        wanted = (cast(Tensor, batch.condition) - judge.scale[0]) / judge.scale[1]
        known = ~wanted.isnan()
        errors = torch.where(known, judge(batch) - wanted.nan_to_num(), 0).square()
        optimizer.zero_grad()
        (errors.sum() / known.sum().clamp(min=1)).backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        progress(step + 1)
    return judge.eval()
