"""Anatomy and scanners: what the method's table says of each, and what a scan leaves alone."""

import numpy as np
import pytest

from flowcore.errors import UsageError
from flowplat_mri import simulate

RELATIVE = {  # CSF, GM, WM over the brightest: shared table of the method, for the constants given there
    "target": (0.19, 0.70, 1), "S1": (0.15, 0.78, 1), "S2": (0.35, 0.80, 1), "S3": (0.21, 0.62, 1),
    "S4": (0.37, 0.90, 1), "S5": (0.60, 0.97, 1), "T2w": (1, 0.54, 0.36),
}  # fmt: skip


@pytest.fixture(scope="module")
def tissues():
    return simulate.subject(3, 6.0)


@pytest.mark.parametrize("name", RELATIVE)
def test_each_scanner_shows_tissues_as_the_table_says(name):
    values = simulate.signal(simulate.SCANNERS[name])
    np.testing.assert_allclose(values / values.max(), RELATIVE[name], atol=0.035)


def test_a_subject_is_of_a_brains_size_and_its_tissues_add_up(tissues):
    litres = tissues.mask.sum() * 6.0**3 / 1e6
    assert 1.4 < litres < 2.6
    np.testing.assert_allclose(tissues.fractions.sum(0)[tissues.mask], 1, atol=1e-5)
    assert not tissues.fractions[:, ~tissues.mask].any()
    assert simulate.subject(4, 6.0).mask.sum() != tissues.mask.sum()


def test_a_scan_is_drawn_by_its_seed_and_empty_outside_the_brain(tissues):
    one, again, other = (simulate.scan(tissues, "S3", seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not one[~tissues.mask].any()
    assert one.dtype == np.float32


def test_a_remapped_scan_is_a_map_of_the_targets(tissues):
    one, other = simulate.scan(tissues, "target", 1), simulate.scan(tissues, "gamma0.7", 1)
    np.testing.assert_allclose(other, one**0.7, rtol=1e-4)


def test_an_unknown_scanner_is_named():
    with pytest.raises(UsageError, match=r"no scanner 'S9'; there are target, S1"):
        simulate.scan(simulate.subject(0, 6.0), "S9", 0)


def test_a_field_has_variance_one_and_varies_as_slowly_as_asked():
    rng = np.random.default_rng(0)
    drawn = np.stack([simulate.field((12, 12, 12), 3.0, rng) for _ in range(300)])
    assert drawn.std() == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(drawn.std(0).mean(axis=(1, 2)), 1, atol=0.1)  # at the border as in the middle
    near = np.mean(drawn[:, 5, 5, 5] * drawn[:, 8, 5, 5])
    assert near == pytest.approx(np.exp(-(3**2) / (4 * 3**2)), abs=0.12)  # white noise under a Gaussian of sigma 3
