"""What is minimised: how far the network's molecule is from the one that x_t was made of."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flowcore import masked, paths
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.mixed import Mixed, Part, Simplex
from flowcore.objectives import told
from flowcore.plugin.contracts import Leaf, Objective, Parts
from flowplat_molecules.graphs import LEAVES, centred

Categories = Annotated[
    Literal["masked", "simplex"],
    Field(description="atoms and bonds appear one by one, or run through the simplex; as in the network"),
]
Weight = Annotated[float, Field(ge=0, description="weight of this part")]


def path_of(state: Any, categories: str) -> Mixed:
    """The path of molecules: positions on straight lines, atoms, charges and bonds masked or through the simplex; all
    at the pace t. Raises ``UsageError`` for a state of other leaves."""
    if not isinstance(state, Mapping) or set(state) != set(LEAVES):
        raise UsageError(f"objective and sampler molecules are for data of {', '.join(LEAVES)}")
    parts: dict[str, Part] = {"positions": paths.linear()}
    for name in LEAVES[1:]:
        classes = cast(Leaf, state[name]).classes or 0
        parts[name] = masked.linear(classes) if categories == "masked" else Simplex(classes)
    return Mixed(parts)


def objective(
    parts: Parts,
    categories: Categories = "masked",
    positions: Weight = 3.0,
    atoms: Weight = 0.4,
    charges: Weight = 1.0,
    bonds: Weight = 2.0,
) -> Objective:
    """3 |x1 - x1_hat|^2 / 3 + 0.4 CE(atoms) + CE(charges) + 2 CE(bonds), as PropMolFlow weighs them (arXiv 2505.21469).

    The first is a mean over atoms, each cross-entropy one over what is masked in x_t (over all on the simplex), a bond
    once for each pair: a large molecule weighs more than a small one. The mean of the losses that are returned, one a
    molecule, is that sum; a kind of which nothing is masked costs 0.
    """
    path = path_of(parts.spec.state, categories)
    weights = {"atoms": atoms, "charges": charges, "bonds": bonds}

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        index, count = batch.index, len(batch)
        x0 = path.draw_source(batch.x1, generator) | (batch.x0 or {})
        t = parts.times(count, generator)
        x0["positions"] = centred(x0["positions"], index["positions"], count)
        x = path.sample(x0, batch.x1, t, generator, index)
        condition = told(parts, network, batch, generator).condition
        out = network(x, t.float(), condition, index)
        errors = (out["positions"].float() - batch.x1["positions"]).square().mean(1)
        total = positions * _shared(errors, None, index["positions"], count)
        for name, weight in weights.items():
            nats = F.cross_entropy(out[name].float(), batch.x1[name], reduction="none")
            hidden = None if categories == "simplex" else x[name] != batch.x1[name]
            total = total + weight * _shared(nats, hidden, index[name], count)
        return total

    return loss


def _shared(rows: Tensor, which: Tensor | None, index: Tensor, count: int) -> Tensor:
    """The mean of rows (those in ``which``) dealt out to their samples: (B,), of which it is the mean."""
    if which is not None:
        rows = torch.where(which, rows, 0)
    number = len(rows) if which is None else which.sum().clamp(min=1)
    return rows.new_zeros(count).index_add(0, index, rows) * (
        count / max(number, 1) if which is None else count / number
    )
