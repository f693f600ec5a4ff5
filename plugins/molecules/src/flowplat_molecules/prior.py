"""Where positions come from: noise without a centre of mass, and its alignment with the molecule it is to become.

The atoms of x0 are reordered by the assignment of least total distance to those of x1, and x0 is then turned onto x1
by the rotation of least squared distance (Kabsch 1976): shorter and straighter ways for the same marginals, as N(0, I)
knows no order and no direction (PropMolFlow, arXiv 2505.21469).
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowcore.couplings import Coupling, Pairs
from flowcore.paths import gaussian
from flowcore.state import State
from flowplat_molecules.graphs import centred


def aligned() -> Coupling:
    """The coupling of a batch of molecules: noise for their positions, centred, reordered and turned, one by one. A
    plain (n, 3) is one molecule."""

    def couple(x0: State, x1: State, condition: State | None, generator: torch.Generator, index: Any = None) -> Pairs:
        places = x1 if isinstance(x1, Tensor) else x1["positions"]
        sizes = torch.tensor([len(places)]) if index is None else torch.bincount(index["positions"])
        moved = align(gaussian(places, generator), places, sizes)
        return Pairs(moved if isinstance(x1, Tensor) else {"positions": moved}, x1)

    couple.ragged = True  # type: ignore[attr-defined]
    return couple


@torch.no_grad()
def align(x0: Tensor, x1: Tensor, sizes: Tensor) -> Tensor:
    """x0 (sum N, 3) without its centre, with its rows reordered and turned onto x1 within each molecule.

    Sizes are on the CPU, where the assignment is made; x1 is centred.
    """
    atom = torch.arange(len(sizes)).repeat_interleave(sizes)
    x0 = centred(x0, atom, len(sizes))
    widest = int(sizes.max())
    first = sizes.cumsum(0) - sizes
    place = torch.arange(len(atom)) - first[atom]
    dense = x0.new_zeros(2, len(sizes), widest, 3, dtype=torch.float64)
    dense[0, atom, place], dense[1, atom, place] = x0.double(), x1.double()
    cost = torch.cdist(dense[1], dense[0]).numpy()
    order = [
        torch.from_numpy(linear_sum_assignment(cost[number, :n, :n])[1]) for number, n in enumerate(sizes.tolist())
    ]
    dense[0, atom, place] = x0[torch.cat(order) + first[atom]].double()
    return (dense[0] @ rotation(dense[0], dense[1]))[atom, place].to(x0.dtype)


def rotation(x0: Tensor, x1: Tensor) -> Tensor:
    """The proper rotation R, (B, 3, 3) of determinant 1, of least |x0 R - x1|^2 for centred points (B, n, 3).

    From the singular value decomposition U S V^T of x0^T x1, R = U diag(1, 1, det(U V^T)) V^T: without the determinant
    it may be a reflection, which turns a molecule into its mirror image.
    """
    U, _, Vt = torch.linalg.svd(x0.transpose(1, 2) @ x1)
    sign = torch.linalg.det(U @ Vt).sign()
    U = torch.cat([U[:, :, :2], U[:, :, 2:] * sign[:, None, None]], 2)
    return U @ Vt
