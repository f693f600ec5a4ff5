"""The coupling flow: exactly invertible, with the log-determinant that autograd finds."""

import math

import pytest
import torch

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowplat_mri import coupling
from flowplat_mri.coupling import Glow, GlowConfig

SPEC = Spec(Leaf((1, 8, 12)))


@pytest.fixture(scope="module")
def flow():
    """Weights away from their start, where couplings are the identity; actnorm set by a first batch."""
    torch.manual_seed(0)
    made = Glow(GlowConfig(levels=2, steps=3, hidden=16))
    for one in made.parameters():
        one.data += 0.04 * torch.randn_like(one)
    made.train().encode(torch.randn(8, 1, 8, 12))
    return made.eval()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_there_and_back_again(flow, dtype, most):
    x = 2 * torch.randn(5, 1, 8, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0] = 0  # an empty slice
    flow = flow.to(dtype)
    z, _ = flow.encode(x)
    assert (z - x).abs().mean() > 0.05
    assert (flow.decode(z) - x).abs().max() < most
    assert (flow.encode(flow.decode(x))[0] - x).abs().max() < 10 * most
    flow.float()


def test_the_log_determinant_is_autograds(flow):
    flow = flow.double()
    x = torch.randn(16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v.view(1, 1, 4, 4))[0].flatten(), x)
    with torch.no_grad():
        z, change = flow.encode(x.view(1, 1, 4, 4))
    assert float(change) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)
    normal = -0.5 * float(z.square().sum()) - 8 * math.log(2 * math.pi)
    assert float(flow(x.view(1, 1, 4, 4)).detach()) == pytest.approx(normal + float(change), abs=1e-6)
    flow.float()


def test_actnorm_begins_at_mean_zero_and_deviation_one():
    made = Glow(GlowConfig(levels=1, steps=1))
    x = 5 + 3 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    z = made.train().encode(x)[0]
    assert float(z.mean()) == pytest.approx(0, abs=0.1)
    assert float(z.std()) == pytest.approx(1, abs=0.1)


def test_its_likelihood_learns_and_its_sampler_draws(flow):
    parts = Parts(SPEC, None, torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    batch = Batch(0.1 * torch.randn(16, 1, 8, 12, generator=draws))
    loss = coupling.likelihood(parts)
    network = coupling.glow(GlowConfig(levels=1, steps=2, hidden=8), SPEC).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        value = loss(network, batch, draws).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value))
    assert losses[-1] < losses[1] - 0.02
    drawn = coupling.inverse(parts)(network.eval(), None, 3, 1, torch.Generator().manual_seed(1))
    assert drawn.x1.shape == (3, 1, 8, 12)
    assert torch.allclose(network(drawn.x1, torch.ones(3)), 0.7 * drawn.x0, atol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="cannot be halved 3 times"):
        coupling.glow(GlowConfig(levels=3), SPEC)
    with pytest.raises(UsageError, match="takes slices"):
        coupling.glow(GlowConfig(), Spec(Leaf((2, 8, 8))))
    parts = Parts(SPEC, None, torch.device("cpu"))
    with pytest.raises(UsageError, match="network=glow"):
        coupling.likelihood(parts)(torch.nn.Identity(), Batch(torch.zeros(1, 1, 8, 12)), torch.Generator())
