"""The objective: its mean at t = 0 is the regression of the truth, and it gathers what that is worth."""

import pytest
import torch

from flowcore import losses, paths, times
from flowcore.couplings import independent
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Parts
from flowplat_mri import trust
from flowplat_mri.coupling import Glow, GlowConfig
from flowplat_mri.data import MRISpec
from flowplat_mri.objective import harmonizing

SPEC = MRISpec(Leaf((1, 8, 8)), Leaf((5, 8, 8)), null=0.0, view=0)


def parts(predicts="x1"):
    return Parts(
        SPEC, None, torch.device("cpu"), path=paths.linear(), coupling=independent(), times=times.uniform(),
        loss=losses.l2(), predicts=predicts,
    )  # fmt: skip


class Half(torch.nn.Module):
    """Always half of the view."""

    def __init__(self):
        super().__init__()
        self.register_buffer("known", trust.empty())
        self.asked = []

    def forward(self, x, t, condition):
        self.asked.append((x, t))
        return 0.5 * condition[:, :1]


def batch():
    draws = torch.Generator().manual_seed(0)
    truth = torch.randn(8, 1, 8, 8, generator=draws)
    condition = torch.ones(8, 5, 8, 8)
    condition[:, :1] = 2 * truth + 0.1 * torch.randn(8, 1, 8, 8, generator=draws)
    return Batch(truth, condition)


def test_a_share_of_the_batch_begins_at_noise_and_the_loss_is_the_squared_error():
    network, given = Half(), batch()
    loss = harmonizing(parts(), anchor=0.5)(network, given, torch.Generator().manual_seed(1))
    t = network.asked[0][1]
    assert (t[:4] == 0).all()
    assert (t[4:] > 0).all()
    wanted = (0.5 * given.condition[:, :1] - given.x1).square().flatten(1).mean(1)
    assert torch.allclose(loss, wanted, atol=1e-5)


def test_it_gathers_that_the_prior_is_right():
    network = Half().train()
    harmonizing(parts(), anchor=0.5)(network, batch(), torch.Generator().manual_seed(1))
    assert trust.weight(network.known, 1.0) > 0.95  # half of the view is the truth, the view itself far off
    assert trust.weight(trust.empty(), 1.0) == 0.5


def test_validation_leaves_what_was_gathered_alone():
    network = Half().eval()
    harmonizing(parts(), anchor=0.5)(network, batch(), torch.Generator().manual_seed(1))
    assert not network.known.any()


def test_another_prediction_is_refused():
    with pytest.raises(UsageError, match="set predicts=x1"):
        harmonizing(parts("velocity"))
    flow = Glow(GlowConfig(levels=1, steps=1))
    with pytest.raises(UsageError, match="set objective=likelihood"):
        harmonizing(parts())(flow, batch(), torch.Generator())
