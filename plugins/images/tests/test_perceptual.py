import math
from functools import partial

import pytest
import torch

from flowcore import losses, paths, times
from flowcore.couplings import Pairs
from flowcore.data import Batch, everything
from flowcore.plugin.contracts import Measured, Parts
from flowcore.seeds import generator
from flowplat_images import features
from flowplat_images.data import Digits, DigitsConfig
from flowplat_images.perceptual import Judge, judge, perceptual
from flowplat_images.reference import reference

DATA = Digits(DigitsConfig()).tiny()
X1 = everything(DATA.train()).x1[:32]
X0 = torch.randn(X1.shape, generator=generator(1))
CPU = torch.device("cpu")


def parts(predicts="edm", draws=None):
    return Parts(
        DATA.spec(), DATA, CPU, path=paths.linear(), times=draws or times.u_shaped(), loss=losses.pseudo_huber(),
        predicts=predicts,
    )  # fmt: skip


def at(t):
    """Times that are always t."""
    return times.Times(partial(torch.full_like, fill_value=t), torch.ones_like)


def off(x, t, condition):
    """A network that is wrong everywhere, and wants gradients."""
    return 0.3 * x.sin() + 0.1


def test_the_distance_is_that_of_features_layer_by_layer():
    looks, training = judge(DATA, 0, CPU), everything(DATA.train()).x1
    body = looks.network.body
    one, other = X1, X1 + 0.5 * X0
    wanted = torch.zeros(32)
    for depth in (3, 5):  # after each ReLU
        wanted += (body[:depth](one) - body[:depth](other)).square().sum(1) / body[:depth](training).square().sum(
            1
        ).mean()
    torch.testing.assert_close(looks.apart(one, other), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(looks.apart(one, one), torch.zeros(32))
    unlike = looks.apart(training, training[torch.randperm(len(training), generator=generator(4))])
    assert 0.5 < unlike.mean() < 4  # two layers, each at most 2 where features are of either image alone


def test_features_of_places_are_averaged_over_them():
    torch.manual_seed(0)
    looks = Judge(features.Classifier((3, 32, 32), 10), (1.0, 2.0, 1.0, 4.0))
    one, other = torch.randn(2, 4, 3, 32, 32, generator=generator(2))
    found = looks.apart(one, other)
    assert found.shape == (4,)
    torch.testing.assert_close(found[1:2], looks.apart(one[1:2], other[1:2]))
    layer = looks.network.body[:2]  # after the first ReLU: 32 channels at 16 x 16 places
    rest = Judge(looks.network, (math.inf, 2.0, 1.0, 4.0)).apart(one, other)
    wanted = (layer(one) - layer(other)).square().mean((1, 2, 3))
    torch.testing.assert_close(found - rest, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("over_noise", [True, False])
@pytest.mark.parametrize("t", [1e-5, 0.3, 0.8, 1 - 1e-5])
def test_the_loss_is_t_times_that_of_the_velocity_and_the_distance_over_the_noise(t, over_noise):
    made = parts(draws=at(t))
    found = perceptual(made, over_noise=over_noise)(off, Batch(X1, x0=X0), generator(0))
    now = torch.full((32,), t)
    x = made.path.interpolate(X0, X1, now)
    field = made.field(off)
    huber = losses.pseudo_huber()(field.velocity(x, now), X1 - X0)
    distance = judge(DATA, 0, CPU).apart(field.x1(x, now), X1)
    wanted = t * huber + (distance / max(1 - t, 0.01) if over_noise else distance)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_perfect_network_has_no_loss_and_the_pairs_weights_count():
    made = parts("velocity")

    def perfect(x, t, condition):
        return X1 - X0

    loss = perceptual(made)
    assert loss(perfect, Batch(X1, x0=X0), generator(0)).abs().max() < 1e-5
    weight = torch.rand(32, generator=generator(3))
    plain, weighed = (loss(off, Batch(X1, x0=X0, weight=w), generator(0)) for w in (None, weight))
    torch.testing.assert_close(weighed, plain * weight / weight.mean())


def test_gradients_reach_the_network_and_not_the_classifier():
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():  # the classifier is trained all the same
        judge.cache_clear()
        perceptual(parts())(lambda x, t, c: network(x), Batch(X1, x0=X0), generator(0))
    perceptual(parts())(lambda x, t, c: network(x), Batch(X1, x0=X0), generator(0)).mean().backward()
    assert network.weight.grad.abs().max() > 0
    network, training = judge(DATA, 0, CPU).network, everything(DATA.train())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert (network.classify(training.x1) == training.extra["labels"]).float().mean() > 0.9


def test_one_seed_gives_one_classifier_and_not_the_metrics(tmp_path):
    one = judge(DATA, 0, CPU).network
    judge.cache_clear()
    assert torch.equal(judge(DATA, 0, CPU).network(X1), one(X1))
    assert not torch.allclose(judge(DATA, 1, CPU).network(X1), one(X1))
    metrics = reference(Measured(DATA, tmp_path, 0, CPU)).fitted.network
    assert not torch.allclose(metrics(X1), one(X1))


def test_as_reflow_without_the_distance():
    """t H alone is what matching minimises on the velocity, times t."""
    made = parts(draws=at(0.4))
    found = perceptual(made, over_noise=False)(off, Batch(X1, x0=X0), generator(0))
    now = torch.full((32,), 0.4)
    field = made.field(off)
    plain = losses.matching_loss(field, Pairs(X0, X1), now, made.loss, compares="velocity")
    seen = judge(DATA, 0, CPU).apart(field.x1(made.path.interpolate(X0, X1, now), now), X1)
    torch.testing.assert_close(found - seen, 0.4 * plain, rtol=1e-3, atol=1e-5)
