"""Couplings against their peers: `python core/benchmarks/couplings.py [--quick]`.

Processor time of one call, one thread, cost matrix included, N(0, I) against eight clusters; a ratio above 1 says that
the peer takes that many times as long. The exact rows are the mean of three draws of the data, since the pivots of a
simplex and the length of augmenting paths are a matter of luck. The Sinkhorn peer stops at the same guarantee: POT
measures the marginal error in the 2-norm, which bounds our sum by sqrt(n).
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import scipy
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowcore.couplings import entropic, exact
from flowcore.seeds import generator


def samples(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x0 ~ N(0, I) and x1 from eight clusters of spread 1/2, (n, d) each, as far apart in many dimensions as in two."""
    draw = generator(seed, "benchmark", n, d)
    centres = 7 / math.sqrt(d) * torch.randn(8, d, generator=draw)
    x1 = centres[torch.randint(8, (n,), generator=draw)] + 0.5 * torch.randn(n, d, generator=draw)
    return torch.randn(n, d, generator=draw), x1


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """The least processor time of ``repeats`` calls."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        spent.append(1e3 * (time.process_time() - start))
    return min(spent)


def exact_row(n: int, d: int, draws: int) -> str:
    """Ours, POT's and SciPy's exact assignment of the same batches."""
    masses, couple, spent = np.ones(n), exact(), [0.0, 0.0, 0.0]
    for seed in range(draws):
        x0, x1 = samples(n, d, seed)

        def cost(x0: Tensor = x0, x1: Tensor = x1) -> Any:
            return ot.dist(x1.double().numpy(), x0.double().numpy())

        works: tuple[Callable[[], Any], ...] = (
            lambda x0=x0, x1=x1: couple(x0, x1, None, torch.Generator()),
            lambda cost=cost: ot.emd(masses, masses, cost(), numItermax=10**9),
            lambda cost=cost: linear_sum_assignment(cost()),
        )
        for i, work in enumerate(works):
            spent[i] += milliseconds(work, 5 if n < 1024 else 2) / draws
    ours, pot, sci = spent
    return f"{n:6d} {d:5d} {ours:10.1f} {pot / ours:12.2f} {sci / ours:12.2f}"


def entropic_row(n: int, d: int, reg: float) -> str:
    """Our Sinkhorn with its draw, and POT's in the log domain."""
    x0, x1 = samples(n, d)
    couple = entropic(reg)

    def theirs() -> Any:
        cost = ot.dist(x1.double().numpy(), x0.double().numpy())
        return ot.bregman.sinkhorn_log([], [], cost, reg, numItermax=10_000, stopThr=1e-3 / math.sqrt(n))

    repeats = 5 if n < 512 else 2
    ours = milliseconds(lambda: couple(x0, x1, None, torch.Generator().manual_seed(0)), repeats)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pot = milliseconds(theirs, repeats)
    note = "  (peer did not converge)" if caught else ""
    return f"{n:6d} {d:5d} {reg:6.2f} {ours:10.1f} {pot / ours:12.2f}{note}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small batches only: seconds instead of minutes")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    exact()(*samples(8, 2), None, torch.Generator())  # imports paid before the clock runs
    exact()(*samples(8, 64), None, torch.Generator())
    print(f"torch {torch.__version__}, POT {ot.__version__}, SciPy {scipy.__version__}\n\nexact")
    print(f"{'n':>6} {'d':>5} {'ours [ms]':>10} {'POT / ours':>12} {'SciPy / ours':>12}")
    for n in (128, 256) if quick else (256, 512, 1024, 2048):
        for d in (2, 64, 784) if quick else (2, 16, 64, 784):
            print(exact_row(n, d, 1 if quick else 3), flush=True)
    print("\nentropic")
    print(f"{'n':>6} {'d':>5} {'reg':>6} {'ours [ms]':>10} {'POT / ours':>12}")
    for n in (128,) if quick else (128, 512):
        for d, reg in ((2, 2.0), (2, 0.5), (2, 0.05), (64, 2.0), (64, 0.5)):
            if n < 512 or reg >= 0.5:
                print(entropic_row(n, d, reg), flush=True)


if __name__ == "__main__":
    main()
