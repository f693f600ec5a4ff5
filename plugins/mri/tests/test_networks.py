"""The UNet: any size, two and three dimensions, and histogram matching as its start."""

import pytest
import torch

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf
from flowplat_mri.data import MRISpec
from flowplat_mri.networks import UNet, UNetConfig, unet


@pytest.mark.parametrize("size", [(16, 24), (13, 10), (9, 8, 11)])
def test_patches_come_apart_as_they_came_together(size):
    made = UNet(len(size), 1, None, UNetConfig(channels=[8], patch=2))
    even = tuple(n + n % 2 for n in size)
    x = torch.randn(2, 1, *even)
    assert torch.equal(made._apart(made._together(x)), x)
    assert made(torch.randn(2, 1, *size), torch.rand(2), torch.randn(2, 1, *size)).shape == (2, 1, *size)


def test_untrained_it_returns_the_view():
    torch.manual_seed(0)
    spec = MRISpec(Leaf((1, 16, 16)), Leaf((7, 16, 16)), view=1)
    network = unet(UNetConfig(channels=[8, 8]), spec)
    condition = torch.randn(3, 7, 16, 16)
    out = network(torch.randn(3, 1, 16, 16), torch.rand(3), condition)
    assert torch.allclose(out, condition[:, 1:2], atol=1e-6)
    plain = unet(UNetConfig(channels=[8, 8], residual=False), spec)
    assert plain(torch.randn(3, 1, 16, 16), torch.rand(3), condition).abs().max() < 1e-6


def test_it_is_no_network_for_tables():
    with pytest.raises(UsageError, match="takes slices"):
        unet(UNetConfig(), MRISpec(Leaf((5,))))
