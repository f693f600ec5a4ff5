"""Distances between two sets of samples: how far what was generated is from what was asked for.

    W_p^p = min over couplings of E |x - y|^p,     MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),
    energy distance = 2 E |x - y| - E |x - x'| - E |y - y'|

All take states of n and m samples (n and m may differ), flattened to vectors and compared in float64 on their own
device. No figure is zero between two finite sets drawn from the same law: set beside it the distance of two such sets.
"""

import math
from collections.abc import Callable, Sequence

import ot
import torch
from torch import Tensor

from flowcore.state import State, leaves

BLOCK = 1024  # rows of a pairwise matrix held at once: memory grows with n, not n^2
PIVOTS = 10_000_000  # of the network simplex; POT's own 100 000 stop a fifth above the optimum at 5 000 rows


def _vectors(x: State, y: State) -> tuple[Tensor, Tensor]:
    """Both sets as float64 matrices (n, d) and (m, d)."""
    if not all(len(leaf) for state in (x, y) for leaf in leaves(state)):
        raise ValueError("a distance needs at least one sample on each side")
    a, b = (torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves(s)], 1).detach().double() for s in (x, y))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"samples of {a.shape[1]} and {b.shape[1]} numbers cannot be compared")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("a distance needs finite samples; some are infinite or not a number")
    return a, b


def _lengths(x: Tensor, y: Tensor) -> Tensor:
    # |x - y| by subtraction: expanding the square loses half the digits of the distance of near samples
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _sum(kernel: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Sum of kernel(|x_i - y_j|) over all pairs."""
    return sum(kernel(_lengths(rows, y)).sum().item() for rows in x.split(BLOCK))


def wasserstein(x: State, y: State, order: float = 2.0) -> float:
    """W_p = (min over couplings of E |x - y|^p)^(1/p) between the empirical laws, p = ``order`` >= 1; exact, by POT.

    The unit is that of the samples. Takes n m numbers of memory and more than n^2 time: a second for 2 000 samples,
    half a minute for 5 000. Between two independent sets of n samples of one law it is of order n^(-1/d), not 0.
    Raises ``ValueError`` on sets of different dimension, empty or not finite.
    """
    if order < 1:
        raise ValueError(f"W_p is a distance for p >= 1, not {order}")
    a, b = _vectors(x, y)
    cost = _lengths(a, b).pow(order).cpu().numpy()
    value, log = ot.emd2([], [], cost, numItermax=PIVOTS, log=True)
    if log["warning"] is not None:
        raise ValueError(f"optimal transport of {len(a)} to {len(b)} samples did not converge; use fewer of them")
    return max(float(value), 0.0) ** (1 / order)


def median_bandwidth(x: State, y: State) -> float:
    """The median distance between distinct samples of both sets together, by up to 1 000 of each, evenly spaced."""
    a, b = _vectors(x, y)
    both = torch.cat([rows[:: math.ceil(len(rows) / 1000)] for rows in (a, b)])
    return torch.pdist(both).median().item()


def squared_mmd(x: State, y: State, bandwidths: Sequence[float] | None = None, unbiased: bool = True) -> float:
    """MMD^2 under the Gaussian kernel exp(-|x - y|^2 / 2 b^2), averaged over the bandwidths b; at most 2.

    ``bandwidths`` defaults to the median distance. ``unbiased`` leaves the pairs (i, i) out, so that the mean over sets
    of one law is 0 and single figures may be negative; otherwise the figure is >= 0 and 0 for equal sets. Gretton et
    al. 2012 (JMLR 13, 723). Raises ``ValueError`` on a bandwidth that is not positive, as of samples that are all
    equal, and on an unbiased figure of one sample.
    """
    a, b = _vectors(x, y)
    scales = [median_bandwidth(x, y)] if bandwidths is None else list(bandwidths)
    if not scales or min(scales) <= 0:
        raise ValueError(f"the kernel's bandwidths must be positive, not {scales}; pass bandwidths=[...]")
    n, m = len(a), len(b)
    if unbiased and min(n, m) < 2:
        raise ValueError("an unbiased MMD needs two samples on each side; pass unbiased=False")

    def kernel(lengths: Tensor) -> Tensor:
        squared = lengths.square()
        return torch.stack([torch.exp(-squared / (2 * scale * scale)) for scale in scales]).mean(0)

    within, other = _sum(kernel, a, a), _sum(kernel, b, b)
    if unbiased:
        within, other = (within - n) * n / (n - 1), (other - m) * m / (m - 1)
    return within / n**2 + other / m**2 - 2 * _sum(kernel, a, b) / (n * m)


def energy_distance(x: State, y: State) -> float:
    """2 E |x - y| - E |x - x'| - E |y - y'| >= 0, between the empirical laws: 0 only for equal sets, no bandwidth.

    In one dimension it is 2 int (F - G)^2. Its unit is that of the samples (its root is what SciPy calls by this name).
    Szekely and Rizzo 2013 (J. Stat. Plan. Inference 143, 1249).
    """
    a, b = _vectors(x, y)
    n, m = len(a), len(b)
    across, within, other = (_sum(lambda lengths: lengths, *pair) for pair in ((a, b), (a, a), (b, b)))
    value = 2 * across / (n * m) - within / n**2 - other / m**2
    return max(value, 0.0)
