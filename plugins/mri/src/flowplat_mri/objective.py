"""What is minimised: the matching loss, with some of each batch at the very beginning of the path."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.losses import matching_loss
from flowcore.objectives import posed
from flowcore.plugin.contracts import Objective, Parts
from flowplat_mri import trust

Anchor = Annotated[float, Field(ge=0, le=1, description="share of each batch that is trained at t = 0")]


def harmonizing(parts: Parts, anchor: Anchor = 0.25) -> Objective:
    """The matching loss (``flowcore.losses.matching_loss``), with ``anchor`` of each batch at t = 0.

    There x_t is noise that knows nothing, so that a network that predicts x1 learns E[x1 | condition]: the mean of all
    that the flow would draw, in one call, which errs least in mean square. What it is worth beside histogram matching
    is gathered on the way, in the network's ``known`` (``trust``). Raises ``UsageError`` where the network predicts
    another thing than x1, or is a coupling flow."""
    if parts.predicts != "x1":
        raise UsageError("objective=harmonizing trains the mean at t = 0: set predicts=x1, or objective=matching")
    view = getattr(parts.spec, "view", None)

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        if hasattr(network, "log_prob"):
            raise UsageError("a coupling flow matches no path: set objective=likelihood")
        field, pairs, t = posed(parts, network, batch, generator)
        first = int(anchor * len(batch))
        t[:first] = 0.0
        known = getattr(network, "known", None)

        def gather(x1: Tensor, truth: Tensor, times: Tensor) -> Tensor:
            if known is not None and view is not None and first and network.training:
                told = batch.condition[:first]
                matched, inside = told[:, view : view + 1], told[:, -4:-3]
                trust.learn(known, x1[:first].detach(), matched, truth[:first], inside)
            return torch.zeros_like(times)

        return matching_loss(
            field, pairs, t.float(), parts.loss, batch.index, parts.times.weights(t), gather, mask=batch.mask
        )

    return loss
