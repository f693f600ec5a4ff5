"""The weight beside histogram matching: the least-squares one, falling where there is nothing to gain."""

import pytest
import torch

from flowplat_mri import trust

INSIDE = torch.ones(64, 1, 16, 16)


def images(own, matched, seed=0):
    """Truth, a prior and a match with independent errors of these standard deviations."""
    draws = torch.Generator().manual_seed(seed)
    truth, one, two = (torch.randn(64, 1, 16, 16, generator=draws) for _ in range(3))
    return truth + own * one, truth + matched * two, truth


def learnt(*pairs):
    known = trust.empty()
    for own, matched in pairs:
        prior, match, truth = images(own, matched)
        trust.learn(known, prior, match, truth, INSIDE)
    return known


def test_nothing_learnt_is_one_half():
    assert trust.weight(trust.empty(), 0.3) == 0.5


@pytest.mark.parametrize(("own", "matched"), [(0.1, 0.2), (0.2, 0.2), (0.3, 0.1)])
def test_independent_errors_are_weighed_by_their_variances(own, matched):
    size = (own**2 + matched**2) ** 0.5
    got = trust.weight(learnt((own, matched)), size)
    assert got == pytest.approx(matched**2 / (own**2 + matched**2), abs=0.02)


def test_the_weight_falls_where_the_source_is_matched_already():
    known = learnt((0.1, 0.05), (0.1, 0.3), (0.1, 0.9))
    weights = [trust.weight(known, size) for size in (0.11, 0.32, 0.9)]
    assert weights == sorted(weights)
    assert weights[0] < 0.3 < 0.85 < weights[1]


def test_what_lies_outside_of_the_brain_has_no_say():
    prior, match, truth = images(0.2, 0.2)
    inside = INSIDE.clone()
    inside[:, :, 8:] = 0
    one, other = trust.empty(), trust.empty()
    trust.learn(one, prior, match, truth, inside)
    prior[:, :, 8:] = 99
    trust.learn(other, prior, match, truth, inside)
    assert torch.equal(one, other)
