"""Metrics against what they are by hand."""

import numpy as np
import pytest

from flowplat_mri import metrics

RNG = np.random.default_rng(0)
TRUTH = RNG.random((14, 15, 16)).astype(np.float32)
MASK = np.zeros(TRUTH.shape, bool)
MASK[3:-3, 3:-3, 3:-3] = True


def test_psnr_of_a_constant_error_has_a_closed_form_and_no_background():
    x = TRUTH + np.float32(0.1)
    x[~MASK] = 100
    assert metrics.psnr(x, TRUTH, MASK) == pytest.approx(20, abs=1e-4)


def test_ssim_and_gradients_of_the_truth_are_one_and_of_noise_are_not():
    assert metrics.ssim(TRUTH, TRUTH, MASK) == pytest.approx(1)
    assert metrics.gradient_correlation(2 * TRUTH + 1, TRUTH, MASK) == pytest.approx(1, abs=1e-5)
    other = RNG.random(TRUTH.shape)
    assert metrics.ssim(other, TRUTH, MASK) < 0.3
    assert abs(metrics.gradient_correlation(other, TRUTH, MASK)) < 0.3


def test_dice_and_volumes_by_hand():
    labels = np.zeros((4, 4, 4), int)
    labels[:2], labels[2], labels[3] = 1, 2, 3
    truth = np.choose(labels, [0, 0.2, 0.7, 1.0]).astype(np.float32)
    middles = metrics.medians(truth, labels)
    np.testing.assert_allclose(middles, [0.2, 0.7, 1.0], rtol=1e-6)
    moved = truth.copy()
    moved[3, :2] = 0.75  # half of the white matter looks grey
    own = metrics.segmented(moved, labels > 0, middles)
    assert metrics.dice(own, labels, 2) == pytest.approx(2 * 16 / (24 + 16))
    assert metrics.dice(own, labels, 3) == pytest.approx(2 * 8 / (8 + 16))
    assert metrics.dice(own, labels, 9) == 1.0


def test_everything_together_names_what_the_tissues_allow():
    labels = np.where(MASK, RNG.integers(1, 4, TRUTH.shape), 0)
    found = metrics.compared(TRUTH, TRUTH, MASK, labels)
    assert found["gm_volume_change"] == 0
    assert set(metrics.compared(TRUTH, TRUTH, MASK)) == {"psnr", "ssim", "gradient_correlation"}
