"""The network turns, moves and is reordered with its molecule, and is told properties in five ways."""

import math

import numpy as np
import pytest
import torch

from flowcore.errors import UsageError
from flowplat_molecules.graphs import graph, joined, split
from flowplat_molecules.networks import Expansion, GVPOptions, gvp
from flowplat_molecules.spec import Property, spec_of

MU = Property("mu", "D", "GFN2-xTB", 2.7, 1.5, 0.0, 29.5)
GAP = Property("gap", "Ha", "GFN2-xTB", 0.25, 0.05, 0.02, 0.6)
LOGITS = ("atoms", "charges", "bonds")
SMALL = {"scalars": 48, "vectors": 6, "edges": 24, "blocks": 3}


def molecules(sizes, seed=0, masks=True, dtype=torch.float64):
    """Random molecules on their way, masks among their tokens."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "positions": 2 * torch.randn(n, 3, generator=draw, dtype=dtype),
            "atoms": torch.randint(5 + masks, (n,), generator=draw),
            "charges": torch.randint(6 + masks, (n,), generator=draw),
            "bonds": torch.randint(5 + masks, (n * (n - 1) // 2,), generator=draw),
        }
        for n in sizes
    ]


def network(properties=(MU,), seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    spec = spec_of(5, 6, 5, properties, np.array([5, 9]), np.zeros((2, len(properties))))
    return gvp(GVPOptions(**{**SMALL, **options}), spec).to(dtype).eval()


def answer(net, state, sizes, t=0.3, condition=None):
    sizes = torch.tensor(sizes)
    time = torch.full((len(sizes),), t, dtype=state["positions"].dtype)
    with torch.no_grad():
        return net(state, time, condition, graph(sizes).index)


def rotation(seed=0, dtype=torch.float64):
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= q.det()
    return q.to(dtype)


def apart(a, b, names=LOGITS):
    return max((a[name] - b[name]).abs().max().item() for name in names if a[name].numel())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("n", [5, 17, 29])
def test_the_network_turns_and_moves_with_the_molecule(n, dtype, limit):
    net = network(dtype=dtype)
    (one,) = molecules([n], seed=n, dtype=dtype)
    R, b = rotation(n, dtype), torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    here = answer(net, one, [n])
    turned = answer(net, {**one, "positions": one["positions"] @ R.T}, [n])
    assert (turned["positions"] - here["positions"] @ R.T).abs().max() < limit
    assert apart(here, turned) < limit
    moved = answer(net, {**one, "positions": one["positions"] + b}, [n])
    assert (moved["positions"] - here["positions"] - b).abs().max() < limit
    assert apart(here, moved) < limit


@pytest.mark.parametrize("cross", [4, 0])
def test_a_mirror_image_is_another_molecule_where_there_are_cross_products(cross):
    net = network(cross=cross, normaliser=1.0)
    with torch.no_grad():
        for weight in net.parameters():  # at their first size they hardly mix vectors and pseudovectors
            weight.mul_(2)
    (one,) = molecules([9])
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    here, there = answer(net, one, [9]), answer(net, {**one, "positions": one["positions"] * mirror}, [9])
    miss = max((there["positions"] - here["positions"] * mirror).abs().max().item(), apart(here, there))
    assert miss > 1e-3 if cross else miss < 1e-10


def test_atoms_in_another_order_have_their_answers_in_that_order():
    net, n = network(), 8
    (one,) = molecules([n])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    i, j = torch.triu_indices(n, n, 1)
    number = torch.zeros(n, n, dtype=torch.long)
    number[i, j] = number[j, i] = torch.arange(len(i))
    pairs = number[order][:, order][i, j]
    moved = {name: leaf[pairs if name == "bonds" else order] for name, leaf in one.items()}
    here, there = answer(net, one, [n]), answer(net, moved, [n])
    for name in here:
        assert (here[name][pairs if name == "bonds" else order] - there[name]).abs().max() < 1e-10


def test_a_batch_answers_as_each_molecule_alone():
    net, sizes = network(), [3, 1, 6, 2, 12]
    some = molecules(sizes)
    batch = joined(some, torch.tensor([[1.0], [2.0], [math.nan], [0.0], [3.0]]))
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    with torch.no_grad():
        together = net(batch.x1, t, batch.condition, batch.index)
    for number, answers in enumerate(split(type(batch)(together, index=batch.index, samples=5))):
        alone = answer(net, some[number], [sizes[number]], t[number].item(), batch.condition[number : number + 1])
        assert apart(answers, alone, tuple(answers)) < 1e-10


def test_the_numbers_of_weights_are_the_papers():
    net = network(scalars=256, vectors=16, edges=128, blocks=8)
    assert len(net.positions) == len(net.edges) == 7
    sizes = [sum(p.numel() for p in part.parameters()) for part in (net.blocks[0], net.positions[0], net.edges[0])]
    assert [round(size / 1000) for size in sizes] == [497, 223, 103]


def test_every_weight_learns():
    net = network(properties=(MU, GAP), embedding="concatenate_multiply").train()
    batch = joined(molecules([5, 7]), torch.tensor([[1.0, math.nan], [math.nan, 0.3]]))
    out = net(batch.x1, torch.tensor([0.2, 0.7], dtype=torch.float64), batch.condition, batch.index)
    sum((leaf * torch.randn_like(leaf)).sum() for leaf in out.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []


def test_a_property_is_expanded_in_gaussians_as_far_apart_as_they_are_wide():
    expand = Expansion(0.0, 8.0, 5)
    assert torch.allclose(expand(torch.tensor([4.0])), torch.exp(-torch.tensor([[2.0, 0.5, 0.0, 0.5, 2.0]])))
    y = torch.tensor([1.3])
    assert torch.allclose(expand(y)[0], torch.exp(-((1.3 - torch.tensor([0.0, 2, 4, 6, 8])) ** 2) / 8))


@pytest.mark.parametrize("gaussians", [0, 5])
def test_five_embeddings_differ_and_follow_the_property(gaussians):
    (one,) = molecules([6])
    answers = []
    for embedding in ("concatenate", "sum", "multiply", "concatenate_sum", "concatenate_multiply"):
        net = network(embedding=embedding, gaussians=gaussians)
        y = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
        out = net(one, torch.tensor([0.4], dtype=torch.float64), y, graph(torch.tensor([6])).index)
        (slope,) = torch.autograd.grad(out["atoms"].square().sum(), y)
        assert slope.abs() > 0
        answers.append(out["atoms"].detach())
        for y in (MU.mean - 3 * MU.std, MU.mean + 3 * MU.std, math.nan):
            far = answer(net, one, [6], condition=torch.tensor([[y]], dtype=torch.float64))
            assert all(bool(leaf.isfinite().all()) for leaf in far.values())
    for k, one_of in enumerate(answers):
        assert all((one_of - other).abs().max() > 1e-6 for other in answers[:k])


def test_concatenate_multiply_is_not_multiply():
    net = network(embedding="concatenate_multiply")
    part = net.conditioned
    s, atom = torch.randn(4, 48, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    y = torch.tensor([[2.0]], dtype=torch.float64)
    p = part.told[0](y[:, 0])[atom]
    wanted = s * (part.both(torch.cat([s, p], 1)).sigmoid() + 0.5)
    assert torch.allclose(part(s, y, atom), wanted)
    assert not torch.allclose(wanted, s * (p.sigmoid() + 0.5))


def test_a_property_not_told_is_the_null_one():
    net = network()
    (one,) = molecules([6])
    none, nan, two = (answer(net, one, [6], condition=c) for c in (None, torch.tensor([[math.nan]]), torch.ones(1, 1)))
    assert apart(none, nan) == 0
    assert apart(none, two) > 1e-6


def test_a_network_of_another_kind_of_categories_says_so():
    with pytest.raises(UsageError, match=r"network\.categories=simplex"):
        answer(network(categories="simplex"), molecules([4])[0], [4])
