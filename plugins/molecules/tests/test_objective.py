"""What is minimised is the sum that the paper writes, each part a mean over what it is about."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.seeds import generator
from flowplat_molecules.graphs import centred, graph
from flowplat_molecules.objective import objective, path_of
from flowplat_molecules.spec import Property, spec_of

MU = Property("mu", "D", "GFN2-xTB", 2.0, 1.0, 0.0, 4.0)
SIZES = torch.tensor([4, 9, 1, 6])
LAID = graph(SIZES)
CLASSES = {"atoms": 5, "charges": 6, "bonds": 5}


def parts(t=None, **more):
    spec = spec_of(5, 6, 5, (MU,), np.array([4]), np.zeros((1, 1)))
    return Parts(spec, None, torch.device("cpu"), times=lambda n, g: torch.full((n,), t or 0.5).double(), **more)


def batch():
    from flowcore.data import Batch

    draw = generator(0, "batch")
    rows, pairs = len(LAID.atom), len(LAID.pair)
    x1 = {
        "positions": centred(torch.randn(rows, 3, generator=draw), LAID.atom, 4),
        "atoms": torch.randint(5, (rows,), generator=draw),
        "charges": torch.randint(6, (rows,), generator=draw),
        "bonds": torch.randint(5, (pairs,), generator=draw),
    }
    return Batch(x1, torch.ones(4, 1), index=LAID.index, samples=4)


class Says:
    """Answers with fixed logits and positions off by one Angstrom in each direction, and keeps what it was shown."""

    def __init__(self, data):
        self.answer = {"positions": data.x1["positions"] + 1.0}
        for name, count in CLASSES.items():
            self.answer[name] = torch.randn(len(data.x1[name]), count, generator=generator(0, name))

    def __call__(self, x, t, condition, index):
        self.x, self.t, self.condition = x, t, condition
        return self.answer


@pytest.mark.parametrize("categories", ["masked", "simplex"])
def test_the_mean_is_the_sum_of_the_papers_terms(categories):
    data = batch()
    network = Says(data)
    found = objective(parts(), categories)(network, data, generator(0, "loss"))
    assert found.shape == (4,)
    wanted = 3.0 * 1.0
    for name, weight in (("atoms", 0.4), ("charges", 1.0), ("bonds", 2.0)):
        hidden = network.x[name] == CLASSES[name] if categories == "masked" else torch.ones(len(data.x1[name])).bool()
        wanted += weight * F.cross_entropy(network.answer[name][hidden], data.x1[name][hidden]).item()
    assert found.mean().item() == pytest.approx(wanted, rel=1e-5)


def test_nothing_masked_costs_nothing():
    data = batch()
    network = Says(data)
    found = objective(parts(t=1.0))(network, data, generator(0, "loss"))
    assert found.mean().item() == pytest.approx(3.0)
    assert all(torch.equal(network.x[name], data.x1[name]) for name in CLASSES)


def test_noise_that_is_given_is_the_one_used_and_has_no_centre():
    from dataclasses import replace

    data = batch()
    noise = torch.randn(len(LAID.atom), 3, generator=generator(1, "noise")) + 5
    network = Says(data)
    objective(parts(t=0.25))(network, replace(data, x0={"positions": noise}), generator(0, "loss"))
    wanted = 0.25 * data.x1["positions"] + 0.75 * centred(noise, LAID.atom, 4)
    assert torch.allclose(network.x["positions"], wanted, atol=1e-5)


def test_dropped_properties_are_nan():
    network, data = Says(batch()), batch()
    objective(parts(drop_condition=1.0))(network, data, generator(0, "loss"))
    assert network.condition.isnan().all()
    objective(parts())(network, data, generator(0, "loss"))
    assert torch.equal(network.condition, data.condition)


def test_marginals_are_what_it_has_to_beat():
    """Uniform logits cost log(classes) each, whatever is masked."""
    data = batch()
    network = Says(data)
    network.answer = {name: torch.zeros(len(data.x1[name]), count) for name, count in CLASSES.items()}
    network.answer["positions"] = data.x1["positions"]
    found = objective(parts())(network, data, generator(0, "loss")).mean().item()
    assert found == pytest.approx(0.4 * math.log(5) + math.log(6) + 2 * math.log(5), rel=1e-5)


def test_data_of_another_kind_are_refused():
    with pytest.raises(UsageError, match="positions, atoms, charges, bonds"):
        path_of(Spec(Leaf((2,))).state, "masked")
