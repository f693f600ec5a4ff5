"""Couplings: which source sample is paired with which data sample.

    couple(x0, x1, condition, generator) -> Pairs(x0, x1, weight, index)

The data keep their order, the source is permuted or drawn again, so labels and masks stay aligned with x1; ``index``
says which rows of the arguments the pairs are, for anything else that must follow. The optimal ones minimise

    sum_ij P_ij (|x0_i - x1_j|^2 + w |c_i - c_j|^2)

where the condition c_i belongs to x0_i as the batch came. Without the second term the source is skewed given the
condition, which a sampler, that draws x0 whatever the condition, cannot follow: so w is ``condition_weight``, infinite
for classes (Cheng and Schwing 2025, arXiv 2503.10636).
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowcore.data import Batch, Source
from flowcore.state import State, first_leaf, leaves, tree_map

SMALL = 256  # rows up to which SciPy solves any assignment first; see ``exact``
ROUNDS = 10  # of Sinkhorn, from one in the log domain to the next


class Pairs(NamedTuple):
    """n coupled samples; ``weight`` (n,) or None for equal weights; ``index`` = (rows of x0, rows of x1) or None."""

    x0: State
    x1: State
    weight: Tensor | None = None
    index: tuple[Tensor, Tensor] | None = None  # type: ignore[assignment]  # tuple.index is no loss here


Coupling = Callable[[State, State, State | None, torch.Generator], Pairs]


def independent() -> Coupling:
    """(x0, x1) ~ p0 x p1: the pairs as they come. Also right for pairs that are given, as in reflow."""

    def couple(x0: State, x1: State, condition: State | None, generator: torch.Generator) -> Pairs:
        return Pairs(x0, x1)

    return couple


def exact(condition_weight: float | None = None) -> Coupling:
    """min over permutations s of sum_j |x0_s(j) - x1_j|^2: minibatch optimal transport. Nothing is drawn.

    Every row of x0 is used once. ``condition_weight`` w adds w |c_s(j) - c_j|^2, with mismatches counted where the
    condition is of integers; w = inf solves within each class. The cost of a solution grows as n^2 to n^3, so couple a
    large batch in a loader worker (``Coupled``) or once for several steps (``split``).

    Twenty rounds of Sinkhorn give potentials f and g; whatever they are, C_ij - f_i - g_j has the best assignment of C.
    Where half of the columns are some row's cheapest in it, as in most data of 4 and more dimensions, few rows have to
    move, and SciPy's shortest augmenting paths solve it up to five times as fast as POT's network simplex. Otherwise
    (clusters in 2 or 3 dimensions, data near a surface) the paths grow long, and from 257 rows on the solver is POT's,
    up to three times as fast (n 256 to 2048, one thread; `core/benchmarks/couplings.py`).

    Warns once when a condition comes and ``condition_weight`` is None. Raises ``ValueError`` when x0 and x1 differ in
    rows or are not finite. Pooladian et al. 2023 (arXiv 2304.14772), Tong et al. 2023 (arXiv 2302.00482).
    """
    guard = _guard("exact", condition_weight)

    def couple(x0: State, x1: State, condition: State | None, generator: torch.Generator) -> Pairs:
        guard(condition)
        if condition is None or condition_weight != math.inf:
            return _paired(x0, x1, _assign(_cost(x0, x1, condition, condition_weight)))
        partner = torch.empty(_count(x0, x1), dtype=torch.long)
        for rows in _groups(_classes(condition)):
            partner[rows] = rows[_assign(_cost(_take(x0, rows), _take(x1, rows), None, None))]
        return _paired(x0, x1, partner)

    return couple


def entropic(
    reg: float = 2.0, condition_weight: float | None = None, tolerance: float = 1e-3, max_rounds: int = 10_000
) -> Coupling:
    """min_P <P, C> + reg KL(P | a b), C_ij = |x0_i - x1_j|^2; the partner of x1_j is drawn from P_ij / sum_i P_ij.

    With reg = 2 sigma^2 and a bridge of noise sigma this is the Schroedinger bridge (Tong et al. 2023,
    arXiv 2307.03672); reg -> 0 is ``exact``, reg -> inf ``independent`` (with replacement). ``reg`` is in the squared
    units of the state. ``condition_weight`` is as in ``exact``.

    Warns once when a condition comes and ``condition_weight`` is None. Raises ``ValueError`` naming reg when
    ``sinkhorn`` does not converge: never a plan that is not one. Cuturi 2013 (arXiv 1306.0895).
    """
    return _regularised("entropic", reg, math.inf, condition_weight, tolerance, max_rounds)


def unbalanced(
    reg: float = 2.0,
    reg_m: float = 100.0,
    condition_weight: float | None = None,
    tolerance: float = 1e-3,
    max_rounds: int = 10_000,
) -> Coupling:
    """min_P <P, C> + reg KL(P | a b) + reg_m (KL(P 1 | a) + KL(P^T 1 | b)): samples far from all others count less.

    The partner of x1_j is drawn as in ``entropic``, and the mass the plan leaves to x1_j, over the mean, is its weight.
    Moving further than about sqrt(reg_m) costs more than giving the mass up; reg_m -> inf is ``entropic``. What is
    generated is the reweighted data, on purpose. Options, warnings and errors are those of ``entropic``.
    Chizat et al. 2016 (arXiv 1607.05816), Eyring et al. 2024 (arXiv 2311.15100).
    """
    return _regularised("unbalanced", reg, reg_m, condition_weight, tolerance, max_rounds)


def gibbs(eps: float | None = None, ess: float = 0.8) -> Coupling:
    """The pairs as they come, with weight proportional to exp(-|x0 - x1| / eps): W-CFM, no transport problem to solve.

    |.| is the plain norm and the weights have mean 1. For symmetric supports the weighted pairs follow the entropic
    plan of the cost |x0 - x1|; in general both marginals are tilted (see ``tilt``), so a small eps changes what is
    generated. ``eps = None`` takes for each batch the eps at which its effective sample size is ``ess``: of the two
    rules in use, this one rather than the elbow of the tilt's variance, as the elbow was far too small on images of
    digits and needs the whole data set first. ``automatic_eps`` of a large sample is the same rule, once for a run.

    Warns once when the effective sample size falls below 0.2. Calvo-Ordonez et al. 2025 (arXiv 2507.22270).
    """
    if eps is not None:
        _positive(eps=eps)
    _fraction(ess)

    @cache
    def warn() -> None:
        warnings.warn(
            f"gibbs coupling: eps={eps} leaves an effective sample size below 0.2; raise eps, or leave it to ess",
            stacklevel=3,
        )

    def couple(x0: State, x1: State, condition: State | None, generator: torch.Generator) -> Pairs:
        lengths = _lengths(x0, x1)
        weight = _gibbs(lengths, _eps_of(lengths, ess) if eps is None else eps)
        if eps is not None and effective_sample_size(weight) < 0.2:
            warn()
        return Pairs(x0, x1, weight)

    return couple


def effective_sample_size(weight: Tensor) -> float:
    """(sum w)^2 / (n sum w^2) in (0, 1]: the share of the samples that equal weights would need for the same noise."""
    w = weight.double()
    return (w.sum().square() / (len(w) * w.square().sum())).item()


def automatic_eps(x0: State, x1: State, ess: float = 0.8) -> float:
    """The eps at which the weights exp(-|x0 - x1| / eps) of these pairs have effective sample size ``ess``.

    In the units of the state. The size rises with eps from 1 / n to 1, so there is one solution; infinite where all
    pairs are equally far apart, as then every eps gives equal weights. Raises ``ValueError`` unless 0 < ess < 1.
    """
    _fraction(ess)
    return _eps_of(_lengths(x0, x1), ess)


def tilt(x0: State, x1: State, eps: float) -> Tensor:
    """tau_j = mean_i exp(-|x0_i - x1_j| / eps), over its mean: how often ``gibbs`` shows x1_j, (n,); 1 is untilted.

    Its variance is the criterion of Calvo-Ordonez et al. 2025 (arXiv 2507.22270); its mean over the samples of a class
    says how much of that class will be generated.
    """
    return _relative((-squared_distance(x1, x0).sqrt() / eps).logsumexp(1))


def split(pairs: Pairs, steps: int) -> list[Pairs]:
    """One coupled super-batch as the batches of ``steps`` steps, in order, for the gain of a larger coupling.

    The ``index`` of each part counts rows of the super-batch: conditions follow by ``condition[part.index[1]]``. Raises
    ``ValueError`` unless ``steps`` divides the number of pairs.
    """
    n = _count(pairs.x0, pairs.x1)
    if steps < 1 or n % steps:
        raise ValueError(f"{n} pairs cannot be split into {steps} equal batches")
    i, j = pairs.index or (torch.arange(n), torch.arange(n))
    return [
        Pairs(
            _take(pairs.x0, rows),
            _take(pairs.x1, rows),
            None if pairs.weight is None else _take(pairs.weight, rows),
            (_take(i, rows), _take(j, rows)),
        )
        for rows in torch.arange(n).chunk(steps)
    ]


class Coupled:
    """A source whose batches come with x0 drawn and paired: in a loader worker, the coupling hides behind the step.

    ``draw_source(like, generator)`` is ``path.draw_source``, or None in a run without a path. All draws come from the
    batch's own generator, so a batch is the same whichever worker makes it. A coupling with the attribute ``ragged`` is
    given the index of a ragged batch as a fifth argument, pairs within its samples, and draws x0 itself where it is
    given None. ``batch`` raises ``ValueError`` for what pairs must not touch, ragged samples under any other coupling
    and an x0 that is given, and for a coupling that reorders the data.
    """

    def __init__(
        self, source: Source, draw_source: Callable[[State, torch.Generator], State] | None, coupling: Coupling
    ) -> None:
        self.source = source
        self.draw_source = draw_source
        self.coupling = coupling

    def __len__(self) -> int:
        return len(self.source)

    @property
    def costs(self) -> Any:
        """See ``flowcore.data.Weighed``."""
        return getattr(self.source, "costs", None)

    @property
    def budget(self) -> int | None:
        """See ``flowcore.data.Weighed``."""
        return getattr(self.source, "budget", None)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        batch = self.source.batch(rows, generator)
        if batch.x0 is not None:
            raise ValueError("the source gives its own x0: pairs that are given are not coupled again")
        ragged = getattr(self.coupling, "ragged", False)
        if batch.index is not None and not ragged:
            raise ValueError("a ragged batch cannot be coupled sample by sample; use the independent coupling")
        if self.draw_source is None and not ragged:
            raise ValueError("this objective has no path to draw a source from; use the independent coupling")
        x0 = None if self.draw_source is None else self.draw_source(batch.x1, generator)
        told = (x0, batch.x1, batch.condition, generator)
        pairs = self.coupling(*told, batch.index) if ragged else self.coupling(*told)  # type: ignore[call-arg]
        if pairs.index is not None and not torch.equal(pairs.index[1].cpu(), torch.arange(len(batch))):
            raise ValueError("a coupling in the loader must keep the order of x1: the batch's labels would not follow")
        return replace(batch, x0=pairs.x0, weight=pairs.weight)


@torch.no_grad()
def squared_distance(a: State, b: State) -> Tensor:
    """C_ij = |a_i - b_j|^2 summed over the leaves of two states, (n, m) in float64; integers count as mismatches.

    In float64 whatever the states are: autocast and TF32 leave it alone, and an offset of the data costs few digits.
    """
    parts = []
    for one, other in zip(leaves(a), leaves(b), strict=True):
        categorical = not (one.is_floating_point() or one.is_complex())
        x, y = _flat(one), _flat(other)
        if categorical:
            parts.append(torch.cdist(x, y, p=0))
        else:
            norms = x.square().sum(1, keepdim=True) + y.square().sum(1)
            parts.append(norms.addmm_(x, y.T, alpha=-2).clamp_(min=0))
    return reduce(torch.add, parts)


@torch.no_grad()
def sinkhorn(
    cost: Tensor, reg: float, reg_m: float = math.inf, tolerance: float = 1e-3, max_rounds: int = 10_000
) -> Tensor:
    """log P for  min_P <P, C> + reg KL(P | 1/n^2) + reg_m (KL(P 1 | 1/n) + KL(P^T 1 | 1/n)),  C of shape (n, n).

    In units of reg, with M = C / reg + log n, the plan is P_ij = exp(f_i + g_j - M_ij) / n and a round is

        g_j = -r log sum_i exp(f_i - M_ij),   f_i = -r log sum_j exp(g_j - M_ij),   r = reg_m / (reg_m + reg).

    Rows end exact; the rounds stop when the columns miss their mass by less than ``tolerance`` of the whole, in sum.
    ``reg_m = inf`` fixes both marginals. Raises ``ValueError`` naming reg when ``max_rounds`` are not enough.
    """
    _positive(reg=reg, reg_m=reg_m)
    M, q, error = cost.double() / reg + math.log(len(cost)), reg / reg_m, math.inf
    for _, (f, g, P, scale) in zip(range(0, max_rounds, ROUNDS), _rounds(M, q), strict=False):
        wanted = (-q * g - scale).exp()
        error = ((P.sum(0) - wanted).abs().sum() / P.sum()).item()
        if error < tolerance:
            return f[:, None] + g - M - math.log(len(M))
    raise ValueError(
        f"Sinkhorn at reg={reg:g} still misses its marginals by {error:.2g} after {max_rounds} rounds, "
        f"not {tolerance:g}: raise reg, max_rounds or tolerance, or take the exact coupling"
    )


def _rounds(M: Tensor, q: float = 0.0) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """f and g after 1, 11, 21 ... rounds of Sinkhorn, with P = exp(f_i + g_j - M_ij - scale); q is reg / reg_m.

    One round in ten is in the log domain, so nothing under- or overflows. The other nine are products with the plan it
    found, 3 to 10 times faster, and are dropped if they overflow (Schmitzer 2019, arXiv 1610.06519). With q > 0 the
    shift f + s, g - s would settle last by far and is set outright (Sejourne et al., AISTATS 2022).
    """
    r, f = 1 / (1 + q), M.new_zeros(len(M))
    while True:
        g = -r * (f[:, None] - M).logsumexp(0)
        f = -r * (g - M).logsumexp(1)
        logits = f[:, None] + g - M
        scale = logits.max()  # an unbalanced plan may hold next to no mass
        P = (logits - scale).exp()
        yield f, g, P, scale
        if q > 0:
            s = ((-q * f).logsumexp(0) - (-q * g).logsumexp(0)) / (2 * q)
            f, g = f + s, g - s
        h, u = f, torch.ones_like(f)
        for _ in range(ROUNDS - 1):
            k = r * (g - (u @ P).log() - scale)
            h = r * (f - (P @ (k - g).exp()).log() - scale)
            u = (h - f).exp()
        f = torch.where(h.isfinite().all(), h, f)


def _regularised(
    name: str, reg: float, reg_m: float, condition_weight: float | None, tolerance: float, max_rounds: int
) -> Coupling:
    _positive(reg=reg, reg_m=reg_m, tolerance=tolerance, max_rounds=max_rounds)
    guard = _guard(name, condition_weight)

    def couple(x0: State, x1: State, condition: State | None, generator: torch.Generator) -> Pairs:
        guard(condition)
        cost = _cost(x0, x1, condition, condition_weight)
        log_plan = sinkhorn(cost, reg, reg_m, tolerance, max_rounds)
        partner = torch.multinomial(log_plan.softmax(1), 1, generator=generator).squeeze(1)
        pairs = _paired(x0, x1, partner)
        return pairs if reg_m == math.inf else pairs._replace(weight=_relative(log_plan.logsumexp(1)))

    return couple


def _cost(x0: State, x1: State, condition: State | None, weight: float | None) -> Tensor:
    """C_ji, rows x1 and columns x0."""
    _count(x0, x1)
    cost = squared_distance(x1, x0)
    if condition is not None and weight == math.inf:
        classes = _classes(condition).to(cost.device)
        cost = cost.masked_fill(classes[:, None] != classes, math.inf)
    elif condition is not None and weight is not None:
        cost = cost + weight * squared_distance(condition, condition)
    if not cost.diagonal().isfinite().all():  # a NaN or inf in a sample reaches its own pair
        raise ValueError("the coupling's cost is not finite: look at x0, x1 and the condition for NaN or inf")
    return cost


def _assign(cost: Tensor) -> Tensor:
    """The column of each row in the cheapest one-to-one assignment, of which ``exact`` tells how; ``cost`` is spent."""
    f, g, unit = _potentials(cost)
    known = bool((f.isfinite() & g.isfinite()).all())
    if known:  # in units of reg, as POT's tolerance is a number, 2e-15
        cost.sub_(f[:, None].double()).sub_(g.double()).div_(unit.double())
    reduced = cost.cpu().numpy()
    if known and len(reduced) > SMALL and 2 * len(set(reduced.argmin(1).tolist())) < len(reduced):
        import ot

        # Whole masses keep the simplex's flows whole, and POT's own limit of 1e5 pivots is too low for a large batch.
        masses = torch.ones(len(reduced), dtype=torch.float64).numpy()
        return torch.from_numpy(ot.emd(masses, masses, reduced, numItermax=10**9).argmax(1))
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(reduced)[1])


@torch.no_grad()
def _potentials(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f, g after twenty rounds of Sinkhorn, and reg: a tenth of the spread of C that is in neither rows nor columns.

    In float32, as they need not be exact, and with products alone: a kernel whose rows and columns each hold a 1 and
    nothing larger seldom overflows. They are not finite where it does, or where the spread is 0.
    """
    M = cost.float()
    g = M.mean(0)
    M -= g
    f = M.mean(1)
    M -= f[:, None]
    reg = 0.1 * torch.linalg.vector_norm(M) / len(M)
    M /= -reg
    h = M.amax(1)
    M -= h[:, None]
    k = M.amax(0)
    M -= k
    P, v = M.exp_(), torch.ones_like(k)
    for _ in range(2 * ROUNDS):
        u = 1 / (P @ v)
        v = 1 / (u @ P)
    return f + reg * (u.log() - h), g + reg * (v.log() - k), reg


def _classes(condition: State) -> Tensor:
    """Equal numbers for equal conditions, (n,)."""
    return torch.cat([_flat(leaf) for leaf in leaves(condition)], 1).unique(dim=0, return_inverse=True)[1]


def _groups(classes: Tensor) -> list[Tensor]:
    """The rows of each class."""
    return list(classes.cpu().argsort(stable=True).split(classes.bincount().tolist()))


def _guard(name: str, condition_weight: float | None) -> Callable[[Any], None]:
    """A function to show every batch's condition to: it warns once where that is left out of the cost."""
    if condition_weight is not None and not condition_weight >= 0:
        raise ValueError(f"condition_weight is {condition_weight}; it must be at least 0")

    @cache
    def warn() -> None:
        warnings.warn(
            f"the {name} coupling ignores the condition, which skews the source given the condition: set "
            "condition_weight (inf for classes, a number for a continuous condition; 0 is as now, without a warning)",
            stacklevel=4,
        )

    def guard(condition: Any) -> None:
        if condition is not None and condition_weight is None:
            warn()

    return guard


def _paired(x0: State, x1: State, partner: Tensor) -> Pairs:
    device = first_leaf(x1).device
    return Pairs(_take(x0, partner), x1, None, (partner.to(device), torch.arange(len(partner), device=device)))


def _take(state: State, rows: Tensor) -> State:
    return tree_map(lambda leaf: leaf[rows.to(leaf.device)], state)


def _count(x0: State, x1: State) -> int:
    counts = {len(leaf) for state in (x0, x1) for leaf in leaves(state)}
    if len(counts) > 1:
        raise ValueError(
            f"x0 and x1 have leaves of {' and '.join(map(str, sorted(counts)))} rows: a coupling pairs equal numbers, "
            "and ragged samples take the independent one"
        )
    return counts.pop()


def _flat(leaf: Tensor) -> Tensor:
    """(n, d) in float64."""
    real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
    return real.reshape(len(leaf), -1).double()


@torch.no_grad()
def _lengths(x0: State, x1: State) -> Tensor:
    """|x0 - x1| of each pair, (n,) in float64."""
    _count(x0, x1)
    squared = torch.stack([(_flat(a) - _flat(b)).square().sum(1) for a, b in zip(leaves(x0), leaves(x1), strict=True)])
    return squared.sum(0).sqrt()


def _gibbs(lengths: Tensor, eps: float) -> Tensor:
    return _relative(-lengths / eps)


def _relative(log_weight: Tensor) -> Tensor:
    """Weights of mean 1; an offset of their logarithms makes no difference."""
    weight = (log_weight - log_weight.max()).exp()
    return weight / weight.mean()


def _eps_of(lengths: Tensor, ess: float) -> float:
    lengths = lengths.cpu()  # one transfer, not one at every halving
    spread = lengths.std(correction=0).item()
    if spread == 0:
        return math.inf
    low, high = spread * 1e-4, spread * 1e4
    for _ in range(40):
        middle = math.sqrt(low * high)
        enough = effective_sample_size(_gibbs(lengths, middle)) >= ess
        low, high = (low, middle) if enough else (middle, high)
    return high


def _positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


def _fraction(ess: float) -> None:
    if not 0 < ess < 1:
        raise ValueError(f"ess is {ess}; it must lie between 0 and 1")
