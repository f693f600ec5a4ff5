"""A run of tokens: what it minimises and how it draws, on the masked path of ``flowcore.masked``."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from flowcore import masked as paths
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.guidance import steered
from flowcore.masked import Generated, Masked, Network, Plan, Warp
from flowcore.objectives import told
from flowcore.plugin.contracts import Leaf, Objective, Parts, Sampler
from flowcore.state import State, expand, tree_map

Loss = Literal["any_order", "lambda", "t_dce", "t_dse"]
Schedule = Literal["linear", "cosine", "polynomial", "geometric"]
Method = Literal["tweedie", "euler", "first_hitting", "ordered", "confidence"]
Order = Literal["random", "forward", "backward"]

Chosen = Annotated[
    Method, Field(description="how it is settled when a token is drawn; ordered and first_hitting know no error")
]
Direction = Annotated[Order, Field(description="of method=ordered")]
Block = Annotated[
    int | None, Field(ge=1, description="finish so many tokens before the next, left to right; null for all at once")
]
Temperature = Annotated[float, Field(gt=0, description="divides the logits; below 1 likely tokens are likelier")]
TopP = Annotated[float, Field(gt=0, le=1, description="draw from the likeliest tokens that make up this probability")]
Kappa = Annotated[Schedule, Field(description="how the share of known tokens rises with t")]


def masked_path(state: Leaf | Mapping[str, Leaf], schedule: Schedule = "linear") -> Masked:
    """The masked path of a ``Spec.state``. Raises ``UsageError`` where that is no single leaf of tokens."""
    if not isinstance(state, Leaf) or state.kind != "token" or state.classes is None:
        raise UsageError("the masked path is for data of one leaf of kind token that says how many classes there are")
    path: Masked = getattr(paths, schedule)(state.classes if state.mask is None else state.mask)
    return path


def objective(
    parts: Parts,
    bound: Annotated[
        Loss, Field(description="the bound on -log p that is estimated; all have one mean but t_dce, by a constant")
    ] = "any_order",
    schedule: Kappa = "linear",
) -> Objective:
    """A bound on -log p(x1), in nats a token: one draw for each sample, of times that are spread evenly over a batch.

    ``any_order`` masks an exact number of tokens (RADD's AO), ``lambda`` each with the same chance, whatever the
    schedule; ``t_dse`` does so at times of the ``schedule``, and so does ``t_dce``, which differs by what no network
    changes. See ``any_order_bound``, ``bound`` and ``score_cross_entropy`` in ``flowcore.masked``.
    """
    path = masked_path(parts.spec.state, "linear" if bound == "lambda" else schedule)
    value = {"any_order": paths.any_order_bound, "t_dce": paths.score_cross_entropy}.get(bound, paths.bound)

    def loss(network: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        condition = told(parts, network, batch, generator).condition
        nats = value(network, path, batch.x1, strata(len(batch), generator), generator, condition)
        return nats / batch.x1[0].numel()

    return loss


def sampler(
    parts: Parts,
    method: Chosen = "tweedie",
    order: Direction = "random",
    block: Block = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    schedule: Kappa = "linear",
) -> Sampler:
    """All tokens drawn from MASK, in at most ``steps`` evaluations a sample; see ``unmask``. The batch's
    ``extra["calls"]`` is their mean, rounded; what guidance asks for besides is not counted."""
    path = masked_path(parts.spec.state, schedule)
    shape, null = cast(Leaf, parts.spec.state).shape, parts.spec.null
    if null is not None:
        null = tree_map(lambda n: torch.as_tensor(n, device=parts.device), null)

    def sample(network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator) -> Batch:
        network = steered(network, path.mask, parts.guidance, null)
        x = torch.full((count, *shape), path.mask, device=parts.device)
        drawn = unmask(
            network, path, x, steps, generator, condition, None, method, order, block, temperature, top_p
        )  # fmt: skip
        return Batch(drawn.x, condition, extra={"calls": max(1, round(drawn.calls.double().mean().item()))})

    return sample


def unmask(
    network: Network,
    path: Masked,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
    condition: State | None = None,
    free: Tensor | None = None,
    method: Method = "tweedie",
    order: Order = "random",
    block: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Generated:
    """``masked.generate`` as a config asks for it: every MASK of ``x`` (where it is ``free``) drawn.

    ``steps`` are those of ``tweedie`` and ``euler``; ``ordered`` and ``confidence`` draw as many tokens a round as lets
    them end in so many, one where there are as many steps as tokens; ``first_hitting`` draws one a round in any case.
    With a ``block`` all this is said of each block.
    """
    warp = None if temperature == 1 and top_p == 1 else warped(temperature, top_p)
    length = x[0].numel() if block is None else min(block, x[0].numel())
    if method == "confidence":
        return confident(network, path, x, steps, generator, condition, warp, free, block)
    plan: Plan
    if method == "ordered":
        places = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
        chosen = {"random": None, "forward": places, "backward": -places}[order]
        plan = paths.ordered(chosen, math.ceil(length / steps))
    else:
        plan = paths.first_hitting() if method == "first_hitting" else getattr(paths, method)(steps)
    plan = plan if block is None else paths.in_blocks(plan, block)
    return paths.generate(network, path, x, plan, generator, condition, warp, free)


@torch.no_grad()
def confident(
    network: Network,
    path: Masked,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
    condition: State | None = None,
    warp: Warp | None = None,
    free: Tensor | None = None,
    block: int | None = None,
) -> Generated:
    """In each round a token is drawn for every MASK, and of those drawn the likeliest are kept.

    Of n missing tokens ceil(n / rounds left) are kept, so ``steps`` rounds do. The order depends on the draws, which
    makes texts surer and less varied than the model is (Chang et al. 2022, arXiv 2202.04200); how likely a token is
    is asked of the network's own logits, before ``warp``. With ``block`` so many
    neighbouring tokens are finished before the next. What is returned and raised is as in ``masked.generate``.
    """
    missing = x == path.mask if free is None else (x == path.mask) & free
    flat, x, times = missing.flatten(1), x.clone(), torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    calls = torch.zeros(len(x), dtype=torch.long, device=x.device)
    total, size = flat.sum(1), flat.shape[1] if block is None else block
    for start in range(0, flat.shape[1], size):
        inside = torch.zeros_like(flat)
        inside[:, start : start + size] = flat[:, start : start + size]
        for left in range(steps, 0, -1):
            rows = inside.any(1).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            mine = inside[rows].view(len(rows), *x.shape[1:])
            share = 1 - flat[rows].sum(1) / total[rows]
            t = path.inverse(share.double())
            known = None if condition is None else tree_map(lambda c, rows=rows: c[rows], condition)
            logits = network(*paths.any_number(x[rows], t, known))[mine]
            logits = paths.without_mask(logits, path.mask)
            u = torch.rand(len(logits), generator=generator, dtype=torch.float64, device=x.device)
            token = paths.categorical(logits if warp is None else warp(logits), u)
            sure = torch.full(mine.shape, -math.inf, dtype=torch.float64, device=x.device)
            sure[mine] = logits.double().log_softmax(-1).gather(1, token[:, None]).squeeze(1)
            place = sure.flatten(1).sort(dim=1, descending=True, stable=True).indices.argsort(1)
            keep = (place < torch.ceil(inside[rows].sum(1, keepdim=True) / left)) & inside[rows]
            drawn = torch.full_like(x[rows], path.mask)
            drawn[mine] = token
            here = keep.view_as(mine)
            x[rows], times[rows] = (
                torch.where(here, drawn, x[rows]), torch.where(here, expand(t, times[rows]), times[rows])
            )  # fmt: skip
            calls[rows] += 1
            inside[rows] &= ~keep
            flat[rows] &= ~keep
    return Generated(x, calls, times)


def warped(temperature: float = 1.0, top_p: float = 1.0) -> Warp:
    """softmax(logits / temperature), cut to the fewest likeliest tokens whose probabilities reach ``top_p`` (Holtzman
    et al. 2020, arXiv 1904.09751). Both make samples other than the model's own, and likelier."""

    def warp(logits: Tensor) -> Tensor:
        logits = logits.double() / temperature
        if top_p == 1:
            return logits
        ranked, places = logits.sort(dim=-1, descending=True, stable=True)
        p = ranked.softmax(-1)
        ahead = p.cumsum(-1) - p  # of the likelier ones; the likeliest stays in any case
        kept = torch.zeros_like(ahead, dtype=torch.bool).scatter(-1, places, ahead < top_p)
        return logits.masked_fill(~kept, -math.inf)

    return warp


def strata(count: int, generator: torch.Generator) -> Tensor:
    """(i + u_i) / count, u_i ~ U[0, 1): times that are uniform together, one in each part of (0, 1)."""
    u = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
    return (torch.arange(count, device=u.device) + u) / count
