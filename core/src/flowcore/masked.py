"""Flow matching on tokens: the masked path, its likelihood bounds and its samplers.

    x_t^i = x1^i with probability kappa(t), else MASK;    u^i = kappa' / (1 - kappa) (p(x1^i | x_t) - delta_{x_t^i})

The network gives p(x1^i | x_t) for the masked tokens, and only there it is read: a token once revealed stays, and MASK
is never predicted. Tokens are integers of shape (B, L) or (B, ...), logits have one more dimension V behind. A network
is called as ``network(x, t, condition) -> logits`` with t of shape (B,); the exact p(x1^i | x_t) does not depend on t
(Ou et al. 2024, arXiv 2406.03736), so a network may ignore it.
Sources: Gat et al. 2024 (arXiv 2407.15595), Campbell et al. 2024 (arXiv 2402.04997), Sahoo et al. 2024 (2406.07524).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcore.paths import Scalar
from flowcore.state import State, expand, leaves, tree_map

Network = Callable[[Tensor, Tensor, Any], Tensor]
Warp = Callable[[Tensor], Tensor]
"""``warp(logits) -> logits`` of the tokens about to be drawn, shape (n, V): a temperature, a nucleus, a ban."""


class Posterior:
    """p(x1^i | x) of tokens x, as a guidance sees it: a network, the token that is the mask, and the condition.

    ``null`` is the value of the condition that tells nothing, one for all samples; None if there is none.
    """

    def __init__(self, network: Network, mask: int, condition: State | None = None, null: State | None = None) -> None:
        self.network, self.mask, self.condition, self.null = network, mask, condition, null

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Of tokens (B, ...) at times (B,): (B, ..., V), that of MASK -inf where the network has one."""
        return without_mask(self.network(x, t, self.condition), self.mask)

    def with_condition(self, condition: State | None) -> "Posterior":
        """The same, told something else."""
        return Posterior(self.network, self.mask, condition, self.null)

    def null_condition(self, count: int) -> State:
        """The null condition, ``count`` rows of it."""
        return tree_map(lambda n: n.expand(count, *n.shape), self.null)


@dataclass(frozen=True)
class Masked:
    """Each token is x1's with probability kappa(t), else ``mask``; kappa rises from kappa(0) = 0 to kappa(1) = 1.

    ``mask`` is the token that stands for "not yet known": the first one past the vocabulary, or any of it that the data
    never hold. ``inverse`` gives t for a value of kappa.
    """

    name: str
    mask: int
    kappa: Scalar
    dkappa: Scalar
    inverse: Scalar

    def sample(
        self, x1: Tensor, t: float | Tensor, generator: torch.Generator, free: Tensor | None = None, index: Any = None
    ) -> Tensor:
        """x_t given x1, with t a scalar or (B,), or one per sample of a ragged ``index``.

        Where ``free`` (bool, like x1) is False a token is never masked: padding, or a prompt.
        """
        kappa = self.kappa(expand(torch.as_tensor(t, dtype=torch.float64), x1, index))
        hidden = _uniform(x1, generator) >= kappa
        return torch.where(hidden if free is None else hidden & free, self.mask, x1)

    def rate(self, t: Tensor, remask: float = 0.0) -> Tensor:
        """(kappa' + eta kappa) / (1 - kappa): how fast a masked token is revealed, of t's shape.

        With eta = ``remask`` = 0 it is also the weight of the masked tokens' cross-entropy in the bound. It is 0 where
        kappa = 1: no token is masked there, and none has to be weighed with infinity.
        """
        kappa = self.kappa(t)
        return torch.where(kappa < 1, (self.dkappa(t) + remask * kappa) / (1 - kappa), 0)


def linear(mask: int) -> Masked:
    """kappa = t: tokens appear at a constant pace; the log-linear noise of masked diffusion."""
    return Masked("linear", mask, lambda t: t, torch.ones_like, lambda k: k)


def polynomial(mask: int, power: float = 2.0) -> Masked:
    """kappa = t^power: with power > 1 few tokens at first, when little is known, and many at the end."""
    return Masked(
        f"polynomial {power:g}",
        mask,
        lambda t: t**power,
        lambda t: power * t ** (power - 1),
        lambda k: k ** (1 / power),
    )


def cosine(mask: int) -> Masked:
    """kappa = 1 - cos(pi t / 2): few tokens at first, as in MaskGIT (Chang et al. 2022, arXiv 2202.04200).

    Some codes give the name to the schedule that hurries at first instead, kappa = sin(pi t / 2).
    """
    half = math.pi / 2
    return Masked(
        "cosine",
        mask,
        lambda t: 2 * torch.sin(half / 2 * t) ** 2,
        lambda t: half * torch.sin(half * t),
        lambda k: 2 * torch.asin((k / 2).sqrt()) / half,
    )


def geometric(mask: int, low: float = 1e-4, high: float = 20.0) -> Masked:
    """kappa = (exp(-low^t high^(1 - t)) - exp(-high)) / (exp(-low) - exp(-high)): noise that grows geometrically.

    The schedule of SEDD (Lou et al. 2024, arXiv 2310.16834), stretched so that it begins and ends exactly.
    """
    if not 0 < low < high:
        raise ValueError(f"low and high have to be 0 < low < high, not {low:g} and {high:g}")
    first, span, ratio = math.exp(-high), math.exp(-low) - math.exp(-high), math.log(high / low)

    def noise(t: Tensor) -> Tensor:
        return high * torch.exp(-ratio * t)

    return Masked(
        "geometric",
        mask,
        lambda t: ((torch.exp(-noise(t)) - first) / span).clamp(0, 1),
        lambda t: ratio * noise(t) * torch.exp(-noise(t)) / span,
        lambda k: (torch.log(high / -torch.log(first + span * k)) / ratio).clamp(0, 1),
    )


def concrete_score(path: Masked, logits: Tensor, t: float | Tensor) -> Tensor:
    """p_t(x with token i set to j) / p_t(x) = kappa / (1 - kappa) * p(x1^i = j | x), like the logits (B, ..., V).

    What score-entropy models learn, of masked tokens i alone: all that depends on time is a factor (Ou et al. 2024,
    arXiv 2406.03736). It is infinite at t = 1.
    """
    kappa = path.kappa(expand(torch.as_tensor(t, dtype=torch.float64), logits))
    return kappa / (1 - kappa) * without_mask(logits, path.mask).double().softmax(-1)


def bound(
    network: Network,
    path: Masked,
    x1: Tensor,
    t: float | Tensor,
    generator: torch.Generator,
    condition: State | None = None,
    free: Tensor | None = None,
) -> Tensor:
    """kappa' / (1 - kappa) * sum over masked i of -log p(x1^i | x_t), in nats, shape (B,).

    With t ~ U(0, 1), its mean over t and x_t is an upper bound on -log p(x1) of what ``first_hitting()`` draws, and the
    same one for every kappa if the network ignores t. A draw from another density of t is divided by that density. The
    value at t = 1 is 0, not NaN. The denoising score entropy of the scores that ``concrete_score`` makes of the logits
    is this number, draw by draw: r sum_j c_j - r log(r c) + r (log r - 1) = -r log c for probabilities c.
    Only tokens that are ``free`` are masked and paid for: a sample without any has bound 0. Raises ``ValueError`` when
    x1 already holds MASK (on a GPU the bound is NaN instead) or the logits do not match the tokens.
    """
    time = _per_sample(t, x1)
    x = path.sample(x1, time, generator, free)
    nats = _nats(network, path, x, x1, time, condition, free)
    return path.rate(time).to(nats.dtype) * nats


def any_order_bound(
    network: Network,
    path: Masked,
    x1: Tensor,
    share: float | Tensor,
    generator: torch.Generator,
    condition: State | None = None,
    free: Tensor | None = None,
) -> Tensor:
    """(L / n) * sum over n masked i of -log p(x1^i | x), n = floor(share L) + 1 tokens masked at random; nats, (B,).

    With share ~ U(0, 1), scalar or (B,), this has the mean of ``bound`` if the network ignores t, and for every network
    it bounds -log p(x1) of what ``ordered()`` draws: its mean is that of the chain rule's sum over all orders (Uria et
    al. 2014, arXiv 1310.1757; Hoogeboom et al. 2022, arXiv 2110.02037). The weight is at most L, so the draws vary less
    than those of ``bound``. L counts the ``free`` tokens of each sample; errors as there.
    """
    candidates = torch.ones_like(x1, dtype=torch.bool) if free is None else free
    length = candidates.flatten(1).sum(1)
    count = torch.minimum((_per_sample(share, x1) * length).long(), length - 1) + 1  # 0 where length is 0
    hidden = _ranks(_uniform(x1, generator), candidates) < expand(count, x1)
    x = torch.where(hidden, path.mask, x1)
    time = path.inverse(1 - count / length.clamp(min=1))
    nats = _nats(network, path, x, x1, time, condition, free)
    return (length / count.clamp(min=1)).to(nats.dtype) * nats


def score_cross_entropy(
    network: Network,
    path: Masked,
    x1: Tensor,
    t: float | Tensor,
    generator: torch.Generator,
    condition: State | None = None,
    free: Tensor | None = None,
) -> Tensor:
    """-kappa' / (1 - kappa) * sum over masked i of log(kappa / (1 - kappa) p(x1^i | x_t)), in nats, shape (B,).

    ``bound`` and a part that no network changes: the same gradient. Over t in (0, 1) that part is 0 on average, over
    t in (a, b) it is the number of free tokens times H(kappa(b)) - H(kappa(a)), H(k) = -k log k - (1 - k) log(1 - k).
    It may be negative, and is 0 at both ends. (The t-DCE loss of Ou et al. 2024, arXiv 2406.03736.)
    """
    time = _per_sample(t, x1)
    x = path.sample(x1, time, generator, free)
    nats = _nats(network, path, x, x1, time, condition, free)
    kappa, count = path.kappa(time), (x != x1).flatten(1).sum(1)
    known = (kappa > 0) & (kappa < 1)
    odds = torch.where(known, torch.log(kappa / (1 - kappa)), 0)
    return torch.where(known, path.rate(time), 0).to(nats.dtype) * (nats - (odds * count).to(nats.dtype))


@torch.no_grad()
def chain_rule(
    network: Network,
    path: Masked,
    x1: Tensor,
    order: Tensor,
    condition: State | None = None,
    free: Tensor | None = None,
) -> Tensor:
    """sum_k -log p(x1^{o(k)} | x1^{o(<k)}, what is not free), in nats, shape (B,): one evaluation for each k.

    No bound but the exact -log p(x1) of what ``ordered(order)`` draws. ``order`` is as there. Over orders o, the mean
    is what both bounds estimate, and -log mean_o exp(-nats) bounds the law of random order more tightly.
    """
    candidates = torch.ones_like(x1, dtype=torch.bool) if free is None else free
    ranks = _ranks(order.to(x1.device, torch.float64).expand(x1.shape), candidates)
    length = candidates.flatten(1).sum(1)
    total = torch.zeros(len(x1), dtype=torch.float64, device=x1.device)
    for k in range(int(length.max())):
        ahead, now = candidates & (ranks >= k), candidates & (ranks == k)
        rows = now.flatten(1).any(1).nonzero().squeeze(1)
        x, mine = torch.where(ahead, path.mask, x1)[rows], now[rows]
        told = None if condition is None else tree_map(lambda c, rows=rows: c[rows], condition)
        here = mine.flatten().nonzero().squeeze(1)
        logits = _logits(network, path, x, path.inverse(k / length[rows].double()), told, here)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total[rows] += F.cross_entropy(logits, x1[rows][mine], reduction="none").double()
    return total


class Generated(NamedTuple):
    """What ``generate`` drew.

    ``x``: the tokens, without MASK. ``calls`` (B,): network evaluations spent on each sample (NFE). ``times``, like x:
    the t at which the network was asked for each token; 0 for the given ones.
    """

    x: Tensor
    calls: Tensor
    times: Tensor


Plan = Callable[[Masked, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""``plan(path, missing, generator) -> (rounds, times)``, both shaped like the bool ``missing``: the round in which each
missing token is drawn, and the time that the network is told; one time for all tokens of a sample and round."""


def tweedie(steps: int = 64) -> Plan:
    """A masked token is revealed from t to r with probability (kappa(r) - kappa(t)) / (1 - kappa(t)): tau-leaping.

    When tokens appear is exact for any number of equal steps; that those of one step are drawn independently errs as
    1 / steps. Also known as the analytic or ancestral sampler. A sample costs sum_k 1 - (1 - r_k)^L evaluations on
    average, with r_k = kappa(t_k) - kappa(t_{k-1}).
    """
    return _stepwise(steps, lambda path, grid: path.kappa(grid[1:-1]))


def euler(steps: int = 64) -> Plan:
    """A masked token is revealed from t to t + h with probability min(1, h kappa'(t) / (1 - kappa(t))), and at last.

    The Euler step of the rate u; the same as ``tweedie`` on the linear path.
    """

    def revealed(path: Masked, grid: Tensor) -> Tensor:
        chance = (path.rate(grid[:-1]) / steps).clamp(max=1)
        return 1 - (1 - chance[:-1]).cumprod(0)

    return _stepwise(steps, revealed)


def _stepwise(steps: int, revealed: Callable[[Masked, Tensor], Tensor]) -> Plan:
    """Tokens appear in equal steps; ``revealed(path, grid)`` is the chance to be there after each step but the last."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")

    def plan(path: Masked, missing: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=missing.device)
        rounds = torch.bucketize(_uniform(missing, generator), revealed(path, grid), right=True)
        return rounds, grid[rounds]

    return plan


def first_hitting() -> Plan:
    """One token a round at its own time, kappa^{-1}(U(0, 1)): the continuous process without error, L evaluations.

    The limit of ``tweedie`` for ever more steps (Zheng et al. 2024, arXiv 2409.02908).
    """

    def plan(path: Masked, missing: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        u = _uniform(missing, generator)
        return _ranks(u, missing), path.inverse(u)

    return plan


def in_blocks(plan: Plan, size: int) -> Plan:
    """``plan`` for ``size`` neighbouring tokens after the other, left to right: semi-autoregressive.

    The network is told the t at which kappa is the share of missing tokens that earlier rounds have drawn.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")

    def planned(path: Masked, missing: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        flat = missing.flatten(1)
        number = torch.arange(flat.shape[1], device=missing.device) // size
        rounds, start = torch.zeros_like(flat, dtype=torch.long), 0
        for block in range(int(number[-1]) + 1):
            here = flat & (number == block)
            mine = plan(path, here.view_as(missing), generator)[0].flatten(1)
            rounds = torch.where(here, mine + start, rounds)
            start = max(start, int(rounds.max()) + 1)
        keys = rounds.double().masked_fill(~flat, math.inf).sort(1).values
        drawn = torch.searchsorted(keys, rounds.double())
        share = drawn / flat.sum(1, keepdim=True).clamp(min=1)
        return rounds.view_as(missing), path.inverse(share.double().clamp(max=1)).view_as(missing)

    return planned


def ordered(order: Tensor | None = None, size: int = 1) -> Plan:
    """``size`` tokens a round by ascending ``order``, (L,) or like the tokens; every sample in its own random order if
    None. Equal entries go left to right: ``torch.arange(L)`` is left to right, its negative right to left.

    With size 1 every order draws from the model's chain rule in that order, without error. The network is told the t at
    which kappa is the share of missing tokens drawn so far.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")

    def plan(path: Masked, missing: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if order is not None and order.shape not in (missing.shape, missing.shape[1:]):
            raise ValueError(f"the order has shape {tuple(order.shape)}, the tokens have {tuple(missing.shape)}")
        keys = _uniform(missing, generator) if order is None else order.to(missing.device, torch.float64)
        rounds = _ranks(keys.expand(missing.shape), missing) // size
        total = expand(missing.flatten(1).sum(1).clamp(min=1), missing)
        return rounds, path.inverse((rounds * size / total).double().clamp(max=1))

    return plan


@torch.no_grad()
def generate(
    network: Network,
    path: Masked,
    x: Tensor,
    plan: Plan,
    generator: torch.Generator,
    condition: State | None = None,
    warp: Warp | None = None,
    free: Tensor | None = None,
) -> Generated:
    """Draw every token of ``x`` that is MASK, x^i ~ p(x1^i | x), round by round; the other tokens are given and stay.

    Where ``free`` (bool, like x) is False a MASK stays too: what nobody knows and nobody asks for.

    The network sees only the samples that get a token in this round, for it is told nothing new about the others: that
    is all that caching its output could save, it changes no draw, and holds for networks that use t as well. When each
    token is drawn and by which uniform number is settled before the first evaluation. ``condition`` has one row a
    sample. Raises ``ValueError`` when the logits do not match the tokens, ``FloatingPointError`` when they are NaN or
    leave no token to draw.
    """
    missing = x == path.mask if free is None else (x == path.mask) & free
    rounds, times = plan(path, missing, generator)
    u = _uniform(x, generator)
    x = x.clone(memory_format=torch.contiguous_format)
    flat, length = x.view(-1), x[:1].numel()
    place = missing.flatten().nonzero().squeeze(1)
    key, order = rounds.flatten()[place].sort(stable=True)
    place = place[order]
    when, which = times.flatten()[place], u.flatten()[place]
    sizes = key.unique_consecutive(return_counts=True)[1].tolist()
    parts = [part.unique(return_inverse=True) for part in (place.cpu() // length).split(sizes)]
    if not parts:
        return Generated(x, torch.zeros(len(x), dtype=torch.long, device=x.device), times.where(missing, 0))
    every = torch.cat([rows for rows, _ in parts])
    calls = torch.bincount(every, minlength=len(x)).to(x.device)
    every, local = every.to(x.device), torch.cat([inside for _, inside in parts]).to(x.device)
    local = local * length + place % length
    counts = [len(rows) for rows, _ in parts]
    for rows, mine, here, t, chance in zip(
        every.split(counts), local.split(sizes), place.split(sizes), when.split(sizes), which.split(sizes), strict=True
    ):
        time = t.new_zeros(len(rows)).scatter_(0, mine // length, t)
        told = None if condition is None else tree_map(lambda c, rows=rows: c[rows], condition)
        logits = _logits(network, path, *any_number(x[rows], time, told), mine)
        flat[here] = categorical(logits if warp is None else warp(logits), chance)
    return Generated(x, calls, times.where(missing, 0))


def euler_step(
    path: Masked,
    x: Tensor,
    logits: Tensor,
    t: float | Tensor,
    r: float | Tensor,
    generator: torch.Generator,
    remask: float = 0.0,
    free: Tensor | None = None,
    index: Any = None,
) -> Tensor:
    """One step of the jump process from t to r, for states in which tokens move together with other things.

    With h = r - t, a masked token is revealed with probability h (kappa' + eta kappa) / (1 - kappa), a revealed one is
    masked again with probability h eta, eta = ``remask``. Both rates together keep the marginals of the path, and let
    the model take back what it drew (Campbell et al. 2024, arXiv 2402.04997). The step to r = 1 reveals all and masks
    none. Tokens that are not ``free`` are not masked again. ``t`` and ``r`` are scalars or (B,), of a ragged ``index``
    too. A GPU is not waited for: a token whose logits are NaN stays masked, also at the end.
    """
    time, until = (
        expand(s.double(), x, index) if isinstance(s, Tensor) else torch.tensor(s, dtype=torch.float64) for s in (t, r)
    )  # a number stays on the processor, where a GPU need not be waited for
    h = until - time
    end = until >= 1
    reveal = torch.where(end, 1, h * path.rate(time, remask))
    hide = torch.where(end, 0, h * remask)
    when, what = _uniform(x, generator), _uniform(x, generator)
    missing = x == path.mask
    known = ~missing if free is None else ~missing & free
    after = torch.where(known & (when < hide), path.mask, x)
    drawn, sound = _inverse(without_mask(logits, path.mask), what)
    return torch.where(missing & (when < reveal) & sound, drawn, after)


def categorical(logits: Tensor, u: Tensor) -> Tensor:
    """The token at which the cumulative softmax(logits) reaches 1 - u: a draw from it for u ~ U[0, 1).

    Logits (..., V), u (...) in float64. All in float64: in single precision, the Gumbel noise of the usual argmax never
    exceeds 16.7, so unlikely tokens are never drawn and texts look better than the model is (Zheng et al. 2024,
    arXiv 2409.02908). A token of probability 0 is not drawn for any u. Raises ``FloatingPointError`` on NaN logits, or
    where every token has logit -inf.
    """
    drawn, sound = _inverse(logits, u)
    if not bool(sound.all()):
        raise FloatingPointError("the network's logits are NaN or leave no token to draw")
    return drawn


def _inverse(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The token drawn by each u, and whether its logits let one be drawn."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    return torch.searchsorted(cumulative, (1 - u[..., None]) * total).squeeze(-1), total.squeeze(-1).isfinite()


def _nats(
    network: Network, path: Masked, x: Tensor, x1: Tensor, t: Tensor, condition: State | None, free: Tensor | None
) -> Tensor:
    """The cross-entropy of the masked tokens, summed over each sample: (B,), in single precision or better."""
    forbidden = x1 == path.mask
    if free is not None:
        forbidden = forbidden & free
    if x1.device.type == "cpu" and bool(forbidden.any()):
        raise ValueError(f"x1 holds the mask token {path.mask}: data may not, except where they are not free")
    hidden = (x != x1).flatten(1)
    place = hidden.flatten().nonzero().squeeze(1)
    logits = _logits(network, path, x, t, condition, place)
    wide, target = torch.promote_types(logits.dtype, torch.float32), x1.flatten()[place]
    nats = F.cross_entropy(logits.to(wide), target, reduction="none")
    nats = nats.new_zeros(len(x)).index_add(0, place // hidden.shape[1], nats)
    if x1.device.type == "cpu":
        return nats
    return nats.masked_fill(forbidden.flatten(1).any(1), math.nan)  # to ask a GPU is to wait for it


def _logits(network: Network, path: Masked, x: Tensor, t: Tensor, condition: State | None, place: Tensor) -> Tensor:
    """What the network says of the tokens ``place``, numbers of a flattened x: (n, V), MASK excluded."""
    logits = network(x, t.to(torch.get_default_dtype()), condition)
    if logits.shape[:-1] != x.shape:
        raise ValueError(f"the network returned {tuple(logits.shape)} for tokens of {tuple(x.shape)}, not one V more")
    picked = logits.flatten(0, -2).index_select(0, place)  # logits[mask] is slow to differentiate
    return without_mask(picked, path.mask)


def any_number(x: Tensor, t: Tensor, condition: State | None) -> tuple[Tensor, Tensor, State | None]:
    """What a network is called with, marked for torch.compile, where that is in use: one program for all counts of rows
    instead of one each."""
    t = t.to(torch.get_default_dtype())
    if dynamo := sys.modules.get("torch._dynamo"):
        for leaf in (x, t, *(() if condition is None else leaves(condition))):
            dynamo.maybe_mark_dynamic(leaf, 0)
    return x, t, condition


def without_mask(logits: Tensor, mask: int) -> Tensor:
    """Logits with that of MASK at -inf, where the network has one."""
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) == mask, -math.inf)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1) in float64, shaped like ``like``."""
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)


def _per_sample(t: float | Tensor, x: Tensor) -> Tensor:
    """``t`` as float64 of shape (B,)."""
    return expand(torch.as_tensor(t, dtype=torch.float64), x).flatten().expand(len(x))


def _ranks(keys: Tensor, among: Tensor) -> Tensor:
    """The place of each key in ascending order among those of its sample; places of the others come behind."""
    order = keys.masked_fill(~among, math.inf).flatten(1).sort(dim=1, stable=True).indices
    return order.argsort(1).view_as(among)
