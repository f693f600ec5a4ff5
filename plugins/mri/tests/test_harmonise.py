"""Harmonizing a volume: what is mixed, what is drawn, what stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowcore.errors import UsageError
from flowplat_mri import data, histogram
from flowplat_mri.coupling import GlowConfig, glow
from flowplat_mri.data import Simulated, SimulatedConfig
from flowplat_mri.harmonise import calls, harmonize
from flowplat_mri.networks import UNetConfig, unet


@pytest.fixture(scope="module")
def scan():
    return data.simulated([900], "S3", 6.0)[0]


def other(model, network=None, **options):
    """The model with another data set and, if not given, an untrained network for that."""
    about = Simulated(SimulatedConfig(resolution=6.0, subjects=2, held=1, guises=1, **options))
    about.scans, about.target = model.data.scans, model.data.target
    made = unet(UNetConfig(channels=[8, 8]), about.spec()) if network is None else network(about.spec())
    return type(model)(about, made.eval())


def test_an_untrained_prior_is_histogram_matching_whatever_the_weight(model, scan):
    made = harmonize(other(model), scan.x, scan.mask, samples=0)
    np.testing.assert_allclose(made.volume, histogram.matched(scan.x, scan.mask, model.data.target), atol=1e-5)
    assert made.weight == 0.5


def test_it_mixes_prior_and_match_by_the_weight(model, scan):
    made = harmonize(model, scan.x, scan.mask, samples=0, weight=0.3)
    assert np.abs(made.prior - made.histogram_matched).max() > 0.01
    np.testing.assert_allclose(made.volume, 0.3 * made.prior + 0.7 * made.histogram_matched, atol=1e-6)
    assert made.std is None
    for one in (made.volume, made.prior, made.histogram_matched):
        assert one.shape == scan.x.shape
        assert not one[~scan.mask].any()


def test_the_mean_and_spread_are_those_of_the_draws(model, scan):
    alone = harmonize(model, scan.x, scan.mask, samples=1, steps=2, weight=1.0)
    made = harmonize(model, scan.x, scan.mask, samples=2, steps=2, weight=1.0)
    assert alone.std is None
    second = 2 * made.prior - alone.prior
    inner = made.std > 0
    assert inner.sum() > 0.5 * scan.mask.sum()
    np.testing.assert_allclose(made.std[inner], (np.abs(alone.prior - second) / np.sqrt(2))[inner], atol=1e-4)


def test_the_same_seed_is_the_same_bytes_wherever_the_brain_lies_in_the_volume(model, scan):
    one = harmonize(model, scan.x, scan.mask, samples=1, steps=2, seed=3)
    again = harmonize(model, scan.x, scan.mask, samples=1, steps=2, seed=3)
    assert one.volume.tobytes() == again.volume.tobytes()
    assert one.volume.tobytes() != harmonize(model, scan.x, scan.mask, samples=1, steps=2, seed=4).volume.tobytes()
    x, mask = (np.pad(part, ((2, 1), (0, 3), (1, 2))) for part in (scan.x, scan.mask))
    moved = harmonize(model, x, mask, samples=1, steps=2, seed=3)
    np.testing.assert_allclose(moved.volume[2:-1, :-3, 1:-2], one.volume, atol=1e-5)


def test_ticks_are_the_calls_that_were_announced(model, scan):
    done = []
    harmonize(model, scan.x, scan.mask, samples=2, steps=3, tick=done.append)
    assert sum(done) == calls(model, scan.mask, "auto", 2, 3, None)


def test_planes_are_averaged_in_2_5d(model, scan):
    three = other(model, planes="all")
    for one in three.network.parameters():
        one.data += 0.03 * torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    made = harmonize(three, scan.x, scan.mask, samples=0)
    alone = [harmonize(three, scan.x, scan.mask, samples=0, mode="2d", axis=k).prior for k in range(3)]
    np.testing.assert_allclose(made.prior, np.mean(alone, 0), atol=1e-5)
    assert np.abs(alone[0] - alone[2]).max() > 0.01


def test_blocks_cover_the_volume(model, scan):
    made = harmonize(other(model, block=16), scan.x, scan.mask, samples=1, steps=2)
    np.testing.assert_allclose(made.prior, made.histogram_matched, atol=1e-4)


def test_rounds_of_a_coupling_flow_and_of_a_velocity_stay_within_the_brain(model, scan):
    flow = other(model, lambda spec: glow(GlowConfig(levels=3, steps=1, hidden=8), spec), view="none")
    velocity = other(model, view="none")
    with pytest.raises(UsageError, match="predicts=velocity alone, not x1"):
        harmonize(velocity, scan.x, scan.mask)
    velocity.parts = lambda parts=velocity.parts: replace(parts(), predicts="velocity")
    for one in (flow, velocity):
        done = []
        made = harmonize(one, scan.x, scan.mask, steps=2, tick=done.append)
        assert sum(done) == calls(one, scan.mask, "auto", 0, 2, None)
        assert made.weight == 1
        assert np.isfinite(made.volume).all()
        assert not made.volume[~scan.mask].any()
        assert made.latent_norm > 0
        assert np.corrcoef(made.volume[scan.mask], scan.x[scan.mask])[0, 1] > 0.5


@pytest.mark.parametrize(
    ("options", "asked", "line"),
    [
        ({}, {"mode": "3d"}, "trained with data.block"),
        ({}, {"mode": "2.5d"}, "data.planes=all"),
        ({}, {"axis": 0}, "trained on axial slices"),
        ({"block": 16}, {"mode": "2d"}, "trained on blocks"),
    ],
)
def test_a_mode_that_was_not_trained_is_refused(model, scan, options, asked, line):
    with pytest.raises(UsageError, match=line):
        harmonize(other(model, **options), scan.x, scan.mask, samples=0, **asked)
