"""What a network is told: the anatomy, and little of the scanner."""

import numpy as np
import pytest

from flowplat_mri import data, histogram, views


@pytest.fixture(scope="module")
def scan():
    return data.simulated([5], "target", 6.0)[0]


def test_the_way_to_mean_zero_and_back(scan, model):
    target = model.data.target
    z = views.standard(scan.x, scan.mask, target)
    assert abs(z[scan.mask].mean()) < 0.3
    assert z[scan.mask].std() == pytest.approx(1, abs=0.2)
    np.testing.assert_allclose(views.unstandard(z, scan.mask, target), scan.x, atol=1e-5)


def test_a_guise_is_drawn_by_its_seed_and_another_picture_of_the_same_brain(scan):
    one, again, other = (views.restyled(scan.x, scan.mask, (6.0,) * 3, np.random.default_rng(k)) for k in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not one[~scan.mask].any()
    for guise in (one, other):
        ranks = np.corrcoef(guise[scan.mask].argsort().argsort(), scan.x[scan.mask].argsort().argsort())[0, 1]
        assert 0.5 < ranks < 0.999


def test_the_view_of_a_remapped_volume_is_that_of_the_volume(scan, model):
    x, mask, target = scan.x, scan.mask, model.data.target
    own = views.of_source(x, mask, target, "contrast")
    remapped = views.of_source(
        np.where(mask, np.clip(x, 0, None) ** 0.7, 0).astype(np.float32), mask, target, "contrast"
    )
    inner = mask & (x > np.percentile(x[mask], 2)) & (x < np.percentile(x[mask], 98))
    assert np.abs(own - remapped)[inner].max() < 0.1
    assert np.abs(views.unstandard(own, mask, target) - histogram.matched(x, mask, target)).max() < 1e-5


def test_edges_are_a_share_of_the_brain_in_any_contrast(scan):
    found = views.edges(scan.x, scan.mask)
    assert set(np.unique(found)) == {0, 1}
    assert found[scan.mask].mean() == pytest.approx(views.EDGES, abs=0.005)
    for other in (3 * scan.x + 1, 1 - scan.x):
        again = views.edges(np.where(scan.mask, other, 0).astype(np.float32), scan.mask)
        assert (found != again).sum() < 0.02 * found.sum()


def test_a_view_of_nothing_is_nothing(scan, model):
    assert not views.of_target(scan.x, scan.mask, model.data.target, "none", np.random.default_rng(0)).any()
