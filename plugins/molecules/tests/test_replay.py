"""What a batch is filled up with changes nothing of it; the graphs themselves where there is a GPU."""

import copy

import numpy as np
import pytest
import torch

from flowplat_molecules.graphs import LEAVES, joined
from flowplat_molecules.networks import GVPOptions, gvp
from flowplat_molecules.replay import Flat, Graphs, Size, filled
from flowplat_molecules.spec import Property, spec_of

MU = Property("mu", "D", "GFN2-xTB", 2.0, 1.0, 0.0, 6.0)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    spec = spec_of(5, 6, 5, (MU,), np.array([5, 9]), np.zeros((2, 1)))
    return gvp(GVPOptions(scalars=48, vectors=6, edges=24, blocks=3), spec).to(dtype).eval()


def batch(sizes=(4, 7, 5), dtype=torch.float64, device="cpu"):
    draw = torch.Generator().manual_seed(0)
    made = joined(
        [
            {
                "positions": 2 * torch.randn(n, 3, generator=draw, dtype=dtype),
                "atoms": torch.randint(6, (n,), generator=draw),
                "charges": torch.randint(7, (n,), generator=draw),
                "bonds": torch.randint(6, (n * (n - 1) // 2,), generator=draw),
            }
            for n in sizes
        ],
        torch.tensor([0.5, float("nan"), 2.0], dtype=dtype)[:, None],
    ).to(torch.device(device))
    return made.x1, torch.full((len(sizes),), 0.3, dtype=dtype, device=device), made.condition, made.index


@pytest.mark.parametrize("size", [Size(2, 9, 20), Size(512, 4600, 19000), Size(3, 200, 9000), Size(1, 2, 1)])
def test_room_is_filled_to_the_last_atom_and_pair(size):
    room = size.with_room()
    sizes = size.filling(room)
    if size.pairs * 2 < room.pairs:
        assert sizes is None
        return
    assert size.atoms + sum(sizes) == room.atoms
    assert size.pairs + sum(n * (n - 1) // 2 for n in sizes) == room.pairs
    assert size.molecules + len(sizes) <= room.molecules


def test_batches_like_the_first_have_room():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(5, 30, (200, 256), generator=generator)
    batches = [Size(256, int(n.sum()), int((n * (n - 1) // 2).sum())) for n in sizes]
    room = batches[0].with_room()
    assert sum(one.filling(room) is not None for one in batches) > 190


def test_what_does_not_fit_is_not_filled():
    size = Size(3, 60, 600)
    assert size.filling(Size(100, 59, 600)) is None
    assert size.filling(Size(100, 100, 599)) is None
    assert size.filling(Size(100, 200, 1201)) is None  # more than half would be filling


def test_molecules_that_are_there_do_not_see_those_that_are_not():
    net = network()
    x, t, told, index = batch()
    size = Size(3, 16, len(x["bonds"]))
    room = Size(40, 40, size.pairs + 13)
    given = filled(x, t, told, index, size.filling(room), room)
    plain = net(x, t, told, index)
    answer = dict(zip(LEAVES, Flat(net, net.plain)(*given), strict=True))
    weights = list(net.parameters())
    wanted = torch.autograd.grad(sum(leaf.square().sum() for leaf in plain.values()), weights)
    cut = {name: leaf[: len(plain[name])] for name, leaf in answer.items()}
    found = torch.autograd.grad(sum(leaf.square().sum() for leaf in cut.values()), weights)
    for name in LEAVES:
        torch.testing.assert_close(cut[name], plain[name], rtol=1e-9, atol=1e-9)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_copy_of_a_network_has_no_graphs_yet():
    net = network()
    net.graphs = Graphs()
    net.graphs.kept[True].append("a graph")
    assert copy.deepcopy(net).graphs.kept == {True: [], False: []}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("grad", [True, False])
def test_where_nothing_can_be_recorded_the_network_answers_and_says_so_once(grad, caplog):
    net, given = network(), batch((14, 17, 15))
    graphs = Graphs()
    with torch.set_grad_enabled(grad):
        answers = [graphs(net, net.plain, *given) for _ in range(2)]
        wanted = net(*given)
    assert all(torch.equal(one[name], wanted[name]) for one in answers for name in LEAVES)
    assert [one.message.partition("(")[0] for one in caplog.records] == ["engine.compile: no graph can be recorded "]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("grad", [True, False])
def test_a_replayed_step_is_the_plain_one(grad):
    net = network(dtype=torch.float32).cuda()
    plain = copy.deepcopy(net)
    net.compile()
    weights, others = list(net.parameters()), list(plain.parameters())
    with torch.set_grad_enabled(grad):
        for sizes in ((14, 17, 15), (15, 15, 16), (13, 17, 16)):  # recorded, and replayed twice
            given = batch(sizes, torch.float32, "cuda")
            here, there = net(*given), plain(*given)
            for name in LEAVES:
                torch.testing.assert_close(here[name], there[name], rtol=1e-3, atol=1e-3)
            if grad:
                found = torch.autograd.grad(sum(leaf.square().sum() for leaf in here.values()), weights)
                wanted = torch.autograd.grad(sum(leaf.square().sum() for leaf in there.values()), others)
                for one, other in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    assert len(net.graphs.kept[grad]) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gradients_add_up_over_parts_of_a_batch():
    net = network(dtype=torch.float32).cuda()
    plain = copy.deepcopy(net)
    net.compile()
    for sizes in ((14, 17, 15), (15, 15, 16)):
        given = batch(sizes, torch.float32, "cuda")
        for one in (net, plain):
            sum(leaf.square().sum() for leaf in one(*given).values()).backward()
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("grad", [True, False])
def test_one_recording_serves_the_batches_it_has_room_for(monkeypatch, grad):
    recorded = []

    def stand_in(net, plain, given):  # what a GPU would record, on the processor
        recorded.append(given)
        return Flat(net, plain)

    monkeypatch.setattr("flowplat_molecules.replay._recorded", stand_in)
    net, graphs = network(), Graphs()
    with torch.set_grad_enabled(grad):
        for sizes in ((14, 17, 15), (15, 15, 16), (13, 17, 16)):
            x, t, told, index = batch(sizes)
            here, there = graphs(net, net.plain, x, t, told, index), net.plain(x, t, told, index)
            for name in LEAVES:
                torch.testing.assert_close(here[name], there[name], rtol=1e-9, atol=1e-9)
    assert len(recorded) == 1
