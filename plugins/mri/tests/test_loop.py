"""BlindHarmony's objective: its gradients are autograd's, and its rounds go down it."""

from itertools import pairwise

import pytest
import torch

from flowplat_mri import loop
from flowplat_mri.loop import Settings

DRAWS = torch.Generator().manual_seed(0)
X = torch.rand(2, 1, 9, 7, generator=DRAWS, dtype=torch.float64)
Y = torch.rand(2, 1, 9, 7, generator=DRAWS, dtype=torch.float64)


def test_the_gradients_are_autograds():
    x, masks = X.clone().requires_grad_(), loop.flat(Y)
    cosine = torch.autograd.grad(-loop.cosine(x, Y).sum(), x)[0]
    assert (cosine - loop.fidelity_gradient(X, Y)).abs().max() < 1e-6
    flat = torch.autograd.grad(loop.flatness(x, masks).sum(), x)[0]
    assert float(flat.abs().max()) > 0
    assert (flat - loop.flatness_gradient(X, masks)).abs().max() < 1e-9


def test_sobel_is_minus_its_own_adjoint():
    for ours, theirs in zip(loop.sobel(X), loop.sobel(Y), strict=True):
        assert float((ours * Y).sum()) == pytest.approx(-float((X * theirs).sum()), abs=1e-9)


def test_the_cosine_knows_no_scale():
    assert torch.allclose(loop.cosine(3.7 * X, Y), loop.cosine(X, Y), atol=1e-6)


def test_flat_pixels_are_three_in_ten_and_none_of_them_is_dark():
    y = Y.clone()
    y[:, :, :3] = 0.01
    for mask in loop.flat(y):
        assert 0 < float(mask.mean()) <= 0.3
        assert not mask[:, :, :3].any()


def linear(x):
    return 2 * (x - 0.5)


def back(z):
    return z / 2 + 0.5


def test_a_round_of_nothing_returns_its_start():
    made, z = loop.harmonized(X, Y, linear, back, Settings(0, 0, 0, 1))
    assert torch.allclose(made, X, atol=1e-12)
    assert torch.allclose(z, linear(X))


def test_rounds_of_small_steps_go_down_the_objective():
    settings = Settings(1e-3, 1e-4, 1e-3, 1)
    x, masks, values = X, loop.flat(Y), []
    for _ in range(6):
        values.append(loop.objective(x, Y, masks, linear, settings))
        x, _ = loop.harmonized(x, Y, linear, back, settings)
    for before, after in pairwise(values):
        assert (after < before).all()


def test_an_inverse_that_fails_leaves_the_gradient_step():
    settings = Settings(1e-2, 0, 0.1, 1)
    made, _ = loop.harmonized(X, Y, linear, lambda z: z * torch.nan, settings)
    wanted = X - settings.fidelity * 63 * loop.fidelity_gradient(X, Y)
    assert torch.allclose(made, wanted.clamp(0, 1))
