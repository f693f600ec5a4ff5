"""objectives: what the core minimises, against its losses called by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from flowcore import couplings, losses, paths, times
from flowcore.data import Batch
from flowcore.objectives import matching
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.seeds import generator


class Told(nn.Module):
    """v = w x + t + condition, which it keeps."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, condition=None):
        self.condition, self.t = condition, t
        return self.w * x + t[:, None] + (0 if condition is None else condition[:, None].float())


def parts(**more):
    spec = Spec(Leaf((3,)), Leaf((), "int64", "class", 4), null=4)
    return Parts(
        spec, None, torch.device("cpu"), path=paths.linear(), times=times.uniform(), loss=losses.l2(),
        predicts="velocity", **more,
    )  # fmt: skip


X1, LABELS = torch.randn(64, 3, generator=generator(1)), torch.arange(64) % 4


def test_matching_is_the_matching_loss_under_the_same_draws():
    made, network = parts(), Told()
    found = matching(made)(network, Batch(X1, LABELS), generator(0))
    draws = generator(0)
    x0 = made.path.draw_source(X1, draws)
    t = made.times(64, draws)
    wanted = losses.matching_loss(made.field(network, LABELS), couplings.Pairs(x0, X1), t.float(), made.loss)
    assert found.shape == (64,)
    assert torch.equal(found, wanted)


def test_matching_takes_the_pairs_it_is_given():
    x0, weight = torch.randn(64, 3, generator=generator(2)), torch.rand(64, generator=generator(3))
    made, network = parts(), Told()
    found = matching(made)(network, Batch(X1, x0=x0, weight=weight), generator(0))
    t = made.times(64, generator(0))
    wanted = losses.matching_loss(made.field(network), couplings.Pairs(x0, X1, weight), t.float(), made.loss)
    assert torch.equal(found, wanted)


def test_matching_compares_what_it_is_told_to():
    made, network = replace(parts(), predicts="edm"), Told()
    found = matching(made, compares="velocity")(network, Batch(X1, LABELS), generator(0))
    draws = generator(0)
    pairs = couplings.Pairs(made.path.draw_source(X1, draws), X1)
    t = made.times(64, draws)
    wanted = losses.matching_loss(made.field(network, LABELS), pairs, t.float(), made.loss, compares="velocity")
    assert torch.equal(found, wanted)
    assert not torch.equal(found, matching(made)(network, Batch(X1, LABELS), generator(0)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_matching_drops_its_share_of_conditions(share):
    labels, network = torch.arange(4000) % 4, Told()
    matching(parts(drop_condition=share))(network, Batch(torch.zeros(4000, 3), labels), generator(0))
    dropped = network.condition == 4
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.03)
    assert torch.equal(network.condition[~dropped], labels[~dropped])
