"""What a run minimises where its plugin brings nothing else: the matching loss of a path."""

from typing import Any, Literal

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.data import Batch
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.plugin.contracts import Objective, Parts
from flowcore.state import tree_map


def matching(parts: Parts, compares: Literal["velocity", "x1", "noise"] | None = None) -> Objective:
    """E[w(t) metric(network(x_t, t, condition), target)]: see ``flowcore.losses.matching_loss``.

    The batch brings x0 where a coupling has paired it; independent noise is drawn here, on the device. A share
    ``drop_condition`` of the conditions is replaced by the null condition. Entries that the batch's mask leaves out are
    missed by nobody. ``compares`` is what ``metric`` is of, where
    that is not what the network predicts: 2-Rectified Flow++ compares the velocity of an edm network.
    """

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        field, pairs, t = posed(parts, network, batch, generator)
        weight = parts.times.weights(t)
        return matching_loss(
            field, pairs, t.float(), parts.loss, batch.index, weight, compares=compares, mask=batch.mask
        )

    return loss


def posed(parts: Parts, network: Any, batch: Batch, generator: torch.Generator) -> tuple[Field, Pairs, Tensor]:
    """What ``matching`` asks of a batch: the field, told its conditions, the pairs, and times (B,) in float64."""
    x0 = parts.path.draw_source(batch.x1, generator) if batch.x0 is None else batch.x0
    t = parts.times(len(batch), generator)
    return told(parts, network, batch, generator), Pairs(x0, batch.x1, batch.weight), t


def told(parts: Parts, network: Any, batch: Batch, generator: torch.Generator) -> Field:
    """The network as a field that is told the batch's conditions, a share ``drop_condition`` of them the null one."""
    field = parts.field(network, batch.condition)
    if parts.drop_condition == 0 or field.condition is None or field.null is None:
        return field
    dropped = torch.rand(len(batch), generator=generator, device=generator.device) < parts.drop_condition
    keep = tree_map(lambda c, n: torch.where(_wide(dropped, c), n, c), field.condition, field.null_condition())
    return field.with_condition(keep)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (like.ndim - 1)).to(like.device)
