"""Molecules laid end to end and taken apart again."""

import torch

from flowcore.data import batches
from flowplat_molecules.graphs import Molecules, centred, graph, joined, matrix, of_index, split

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


def test_pairs_are_the_upper_triangle_row_by_row():
    laid, start = graph(SIZES), 0
    expected = []
    for n in SIZES.tolist():
        expected += [(start + i, start + j) for i in range(n) for j in range(i + 1, n)]
        start += n
    assert list(zip(laid.i.tolist(), laid.j.tolist(), strict=True)) == expected


def test_large_molecules_keep_their_pairs():
    laid = graph(torch.tensor([700]))
    i, j = torch.triu_indices(700, 700, 1)
    assert torch.equal(torch.stack([laid.i, laid.j]), torch.stack([i, j]))


def test_the_index_alone_tells_the_graph():
    laid = graph(SIZES)
    told = of_index(laid.index, len(SIZES))
    assert all(torch.equal(mine, getattr(told, name)) for name, mine in vars(laid).items())


def test_joined_and_split_undo_each_other():
    some = molecules()
    batch = joined(some)
    assert len(batch) == len(SIZES)
    for mine, again in zip(some, split(batch), strict=True):
        assert all(torch.equal(mine[name], again[name]) for name in mine)


def test_a_source_picks_molecules_whole():
    some = molecules()
    batch = joined(some)
    source = Molecules(batch.x1, SIZES, torch.arange(6.0)[:, None], {"number": torch.arange(6)})
    rows = torch.tensor([4, 0, 0, 3])
    picked = source.batch(rows, torch.Generator())
    assert picked.condition[:, 0].tolist() == picked.extra["number"].tolist() == [4, 0, 0, 3]
    for row, again in zip(rows.tolist(), split(picked), strict=True):
        assert all(torch.equal(some[row][name], again[name]) for name in again)


def test_batches_keep_to_a_number_of_edges():
    batch = joined(molecules())
    source = Molecules(batch.x1, SIZES, budget=830)
    found = list(batches(source, 4, 0, 12, seed=0))
    edges = [2 * len(one.x1["bonds"]) for one in found]
    assert max(edges) <= 830
    assert min(map(len, found)) < 4
    assert sum(len(one) for one in batches(Molecules(batch.x1, SIZES), 4, 0, 12, seed=0)) == 48


def test_the_centre_of_each_molecule_is_removed():
    batch = joined(molecules())
    moved = centred(batch.x1["positions"] + 3, batch.index["positions"], len(batch))
    means = torch.stack([one.mean(0) for one in moved.split(SIZES.tolist())])
    assert means.abs().max() < 1e-6


def test_a_matrix_of_bonds_is_symmetric():
    full = matrix(torch.tensor([1, 2, 3]), 3)
    assert full.tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
