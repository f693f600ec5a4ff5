"""Histogram matching and z-scores: what they undo, and what they leave."""

import numpy as np
import pytest

from flowplat_mri import histogram
from flowplat_mri.scaling import Scale
from flowplat_mri.target import of_volumes


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(0)
    x = rng.gamma(4, 0.1, (20, 20, 20)).astype(np.float32)
    mask = np.zeros(x.shape, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    x = np.where(mask, x / np.percentile(x[mask], 99.5), 0).astype(np.float32)
    return x, mask, of_volumes([x], [mask], [Scale(0, 1)], (2.0, 2.0, 2.0))


@pytest.mark.parametrize("remap", [lambda x: x**0.7, lambda x: np.expm1(x) / 2, lambda x: np.log1p(3 * x)])
def test_matching_undoes_a_monotone_map(volume, remap):
    x, mask, target = volume
    got = histogram.matched(np.where(mask, remap(x), 0).astype(np.float32), mask, target)
    inner = mask & (x < np.percentile(x[mask], 99))
    assert np.abs(got - x)[inner].max() < 0.02
    assert not got[~mask].any()


def test_moments_are_those_of_the_voxels(volume):
    x, mask, target = volume
    mean, sd = histogram.moments(target)
    assert mean == pytest.approx(x[mask].mean(), abs=2e-3)
    assert sd == pytest.approx(x[mask].std(), abs=5e-3)


def test_a_z_score_has_the_targets_moments_and_undoes_scale_and_offset(volume):
    x, mask, target = volume
    got = histogram.standardized(np.where(mask, 3 * x + 0.4, 0).astype(np.float32), mask, target)
    np.testing.assert_allclose(got[mask], x[mask], atol=0.02)


def test_a_volume_of_few_values_keeps_their_order(volume):
    _, mask, target = volume
    steps = np.where(mask, np.arange(20)[:, None, None] // 5, 0).astype(np.float32)
    got = histogram.matched(steps, mask, target)
    levels = [got[mask & (steps == k)].mean() for k in range(4)]
    assert np.isfinite(got).all()
    assert levels == sorted(levels)
