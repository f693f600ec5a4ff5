import math

import pytest
import torch

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowcore.seeds import generator
from flowplat_timeseries import networks
from flowplat_timeseries.networks import S4D, Backbone, ChannelNorm, S4DOptions, s4d


def layer(hidden=3, state=8, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return S4D(hidden, state).to(dtype)


def recurrence(one, u):
    """The layer by its definition, step by step and in double precision: forward in time, then backward."""
    u = u.double()
    a = -one.log_decay.double().exp() + 1j * one.frequency.double()
    z = one.log_step.double().exp()[:, None] * a
    gain, c = (z.exp() - 1) / a, torch.view_as_complex(one.c.double())
    total = one.d.double()[:, None, None] * u
    for way, flipped in enumerate((u, u.flip(-1))):
        x, outputs = torch.zeros(u.shape[0], u.shape[1], a.shape[1], dtype=torch.complex128), []
        for step in flipped.unbind(-1):
            x = z.exp()[:, None] * x + gain[:, None] * step[..., None]
            outputs.append(2 * (c[way][:, None] * x).sum(-1).real)
        y = torch.stack(outputs, -1)
        total = total + (y if way == 0 else y.flip(-1))
    return total


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 2, 17, 360, 400])
def test_the_convolution_is_the_recurrence(length, dtype, error):
    one, u = layer(state=32, dtype=dtype), torch.randn(3, 2, length, generator=generator(1), dtype=dtype)
    wanted = recurrence(one, u)
    with torch.no_grad():
        assert ((one(u).double() - wanted).abs().max() / wanted.abs().max()).item() < error


@pytest.mark.parametrize("step", [1e-3, 0.1])
def test_kernels_are_right_for_the_shortest_and_the_longest_step_of_the_full_state(step):
    one = layer(2, 128, torch.float32)
    with torch.no_grad():
        one.log_step.fill_(math.log(step))
        u = torch.zeros(2, 1, 400)
        u[..., 200] = 1.0
        wanted = recurrence(one, u)
        assert ((one(u) - wanted).abs().max() / wanted.abs().max()).item() < 1e-5


def test_equal_kernels_make_the_layer_blind_to_the_direction_of_time():
    one, u = layer(), torch.randn(3, 2, 50, generator=generator(2), dtype=torch.float64)
    with torch.no_grad():
        assert (one(u.flip(-1)) - one(u).flip(-1)).abs().max() > 1e-2
        one.c[1] = one.c[0]
        torch.testing.assert_close(one(u.flip(-1)), one(u).flip(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", [0, 1])
def test_one_direction_alone_hears_nothing_from_the_other_side(way):
    one, u = layer(), torch.randn(3, 2, 50, generator=generator(3), dtype=torch.float64)
    with torch.no_grad():
        one.c[1 - way] = 0
        changed = u.clone()
        changed[..., 30:] += 1
        moved = (one(changed) - one(u)).abs().amax((0, 1)) > 1e-12
    assert moved[30:].all()
    assert moved[:30].any() == (way == 1)


def test_gradients_of_the_convolution_are_those_of_numbers():
    one = layer(2, 4)
    u = torch.randn(2, 2, 7, dtype=torch.float64, requires_grad=True)
    k = one.circular(7).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, k: networks._Circulant.apply(u, k)[0], (u, k), check_forward_ad=True)
    assert torch.autograd.gradcheck(lambda c: one.circular(7), (one.c,))


def test_transforms_of_functions_go_through_the_network():
    """What the core's diagnostics ask of a network: forward differentiation, and many backward ones at once."""
    torch.manual_seed(0)
    network, x, t = (
        Backbone(2, S4DOptions(hidden=4, state=4, embedding=4)).double(),
        torch.randn(3, 2, 9),
        torch.rand(3),
    )
    x, t, e = x.double(), t.double(), torch.randn(3, 2, 9, dtype=torch.float64)

    def run(x):
        return network(x, t)

    _, forward = torch.func.jvp(run, (x,), (e,))
    _, pull = torch.func.vjp(run, x)
    rows = torch.func.vmap(pull)(torch.stack([e, 2 * e]))[0]
    torch.testing.assert_close((rows[0] * e).sum(), (forward * e).sum())
    torch.testing.assert_close(rows[1], 2 * rows[0])
    h = 1e-6
    torch.testing.assert_close(forward, (run(x + h * e) - run(x - h * e)) / (2 * h), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("features", [0, 3])
def test_rows_are_computed_by_themselves_however_many_are_taken_at_a_time(monkeypatch, features):
    torch.manual_seed(0)
    network, x, t = Backbone(2, S4DOptions(hidden=8, state=8), features), torch.randn(5, 2, 30), torch.rand(5)
    told = torch.randn(5, features, 30) if features else None
    whole = network(x, t, told)
    whole.square().sum().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    monkeypatch.setattr(networks, "CACHED", 2 * 30 * 8)
    parts = network(x, t, told)
    parts.square().sum().backward()
    torch.testing.assert_close(parts, whole)
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(network(x[2:3], t[2:3], None if told is None else told[2:3]), whole[2:3])
    if told is not None:
        assert (network(x, t, told.roll(1, 0)) - whole).abs().amax((1, 2)).min() > 1e-4  # each row hears its own


def test_every_weight_learns_and_the_network_is_told_the_time():
    torch.manual_seed(0)
    network, x = Backbone(1, S4DOptions(hidden=8, state=8)), torch.randn(4, 1, 30)
    early, late = network(x, torch.full((4,), 0.1)), network(x, torch.full((4,), 0.9))
    assert (early - late).abs().max() > 1e-3
    early.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_channel_norm_is_layer_norm_over_channels():
    x = torch.randn(6, 2, 5)
    wanted = torch.nn.functional.layer_norm(x.permute(1, 2, 0), (6,)).permute(2, 0, 1)
    torch.testing.assert_close(ChannelNorm(6)(x), wanted)


@pytest.mark.parametrize("leaf", [Leaf((3,)), Leaf((2, 8), "int64", "token", 5)])
def test_what_are_no_windows_is_refused(leaf):
    with pytest.raises(UsageError, match="s4d is for windows"):
        s4d(S4DOptions(), Spec(leaf))
