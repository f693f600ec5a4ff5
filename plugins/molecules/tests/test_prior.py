"""Noise is brought near its molecule by a reordering and a proper rotation, and nothing else."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from flowcore.couplings import Coupled, independent
from flowcore.paths import gaussian
from flowplat_molecules.graphs import Molecules, centred
from flowplat_molecules.prior import align, aligned, rotation

SIZES = torch.tensor([3, 1, 5, 2, 29, 2])


def molecules(sizes=SIZES, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "positions": torch.randn(n, 3, generator=draw),
            "atoms": torch.randint(5, (n,), generator=draw),
            "charges": torch.randint(6, (n,), generator=draw),
            "bonds": torch.randint(5, (n * (n - 1) // 2,), generator=draw),
        }
        for n in sizes.tolist()
    ]


ATOM = torch.arange(len(SIZES)).repeat_interleave(SIZES)


def positions(seed):
    draw = torch.Generator().manual_seed(seed)
    return centred(torch.randn(int(SIZES.sum()), 3, generator=draw, dtype=torch.float64), ATOM, len(SIZES))


def squared(a, b):
    return torch.zeros(len(SIZES), dtype=torch.float64).index_add(0, ATOM, (a - b).square().sum(1))


def test_alignment_never_raises_the_squared_distance_that_the_order_left():
    x0, x1 = positions(0), positions(1)
    assert (squared(align(x0, x1, SIZES), x1) <= squared(x0, x1) + 1e-9).all()


def test_a_planted_order_and_rotation_are_found():
    x1 = positions(2)
    draw = torch.Generator().manual_seed(3)
    small = torch.from_numpy(Rotation.from_rotvec([0.1, -0.05, 0.08]).as_matrix())  # the order is read off distances
    order = torch.cat(
        [
            start + torch.randperm(n, generator=draw)
            for start, n in zip((SIZES.cumsum(0) - SIZES).tolist(), SIZES.tolist(), strict=True)
        ]
    )
    assert (align((x1 @ small)[order], x1, SIZES) - x1).abs().max() < 1e-6


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_rotation_is_proper_and_as_scipys(mirrored):
    x0 = torch.randn(1, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = x0 - x0.mean(1, keepdim=True)
    R = torch.from_numpy(Rotation.random(rng=0).as_matrix())
    x1 = x0 @ R
    if mirrored:  # of which a reflection would be the best fit
        x1 = x1 * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    found = rotation(x0, x1)[0]
    assert torch.det(found) == pytest.approx(1)
    peer = Rotation.align_vectors(x1[0].numpy(), x0[0].numpy())[0].as_matrix()
    assert np.abs(found.T.numpy() - peer).max() < 1e-6
    if not mirrored:
        assert (x0[0] @ found - x1[0]).abs().max() < 1e-12


def test_one_atom_and_atoms_on_a_line_stay_finite():
    line = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]])
    assert align(torch.randn(4, 3), torch.cat([torch.zeros(1, 3), line]), torch.tensor([1, 3])).isfinite().all()


def test_a_ragged_batch_is_coupled_in_the_loader_within_its_molecules():
    some = molecules()
    x1 = {name: torch.cat([one[name] for one in some]) for name in some[0]}
    x1["positions"] = centred(x1["positions"], ATOM, len(SIZES))
    source = Coupled(Molecules(x1, SIZES), None, aligned())
    batch = source.batch(torch.tensor([4, 2]), torch.Generator().manual_seed(0))
    drawn = gaussian(batch.x1["positions"], torch.Generator().manual_seed(0))
    assert torch.equal(batch.x0["positions"], align(drawn, batch.x1["positions"], SIZES[[4, 2]]))
    with pytest.raises(ValueError, match="ragged"):
        Coupled(Molecules(x1, SIZES), None, independent()).batch(torch.tensor([0]), torch.Generator())
