"""How likely a model finds tokens: bounds with their standard errors, and the exact chain rule in an order."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowcore.masked import any_order_bound, bound, chain_rule
from flowcore.plugin.contracts import Trained
from flowcore.seeds import generator
from flowcore.tokens import masked_path

Bound = Literal["any_order", "lambda", "forward", "backward"]
CHUNK = 64  # rows evaluated at once


class Told(NamedTuple):
    """Nats of each row of tokens (n,), and the variance that their estimate has."""

    nats: Tensor
    variance: Tensor


@torch.no_grad()
def nats(
    trained: Trained, x: Tensor, free: Tensor | None, how: Bound, draws: int, seed: int, chunk: int = CHUNK
) -> Told:
    """-log p of the tokens ``x`` (n, L) that are ``free``, or a bound on it.

    ``any_order`` and ``lambda`` are estimates of upper bounds, from ``draws`` that are spread evenly over how much is
    masked; their variance is that of independent draws, which is more than they have. ``forward`` and ``backward`` are
    exact, in one evaluation a token.
    """
    path, network, device = masked_path(trained.data.spec().state), trained.network, trained.device
    generous = generator(seed, "nats", device=device)
    rows, spread = [], []
    per = max(1, chunk // draws)
    for start in range(0, len(x), chunk if how in ("forward", "backward") else per):
        stop = start + (chunk if how in ("forward", "backward") else per)
        mine, known = x[start:stop].to(device), None if free is None else free[start:stop].to(device)
        if how in ("forward", "backward"):
            order = torch.arange(x.shape[1], device=device) * (1 if how == "forward" else -1)
            rows.append(chain_rule(network, path, mine, order, free=known))
            spread.append(torch.zeros_like(rows[-1]))
            continue
        u = torch.rand(len(mine), draws, generator=generous, dtype=torch.float64, device=device)
        share = ((torch.arange(draws, device=device) + u) / draws).flatten()
        many, where = mine.repeat_interleave(draws, 0), None if known is None else known.repeat_interleave(draws, 0)
        value = any_order_bound if how == "any_order" else bound
        drawn = value(network, path, many, share, generous, free=where).double().view(len(mine), draws)
        rows.append(drawn.mean(1))
        spread.append(drawn.var(1) / draws if draws > 1 else torch.full_like(rows[-1], torch.nan))
    return Told(torch.cat(rows).cpu(), torch.cat(spread).cpu())
