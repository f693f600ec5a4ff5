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
from flowplat_images.perceptual import apart, classifier, perceptual
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


def test_the_distance_is_that_of_normalised_features_layer_by_layer():
    body = classifier(DATA, 0, CPU).body
    one, other = X1, X1 + 0.5 * X0
    wanted = torch.zeros(32)
    for depth in (3, 5):  # after each ReLU
        a, b = (body[:depth](x) for x in (one, other))
        wanted += (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(apart(body, one, other), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(apart(body, one, one), torch.zeros(32))


def test_features_of_places_are_averaged_over_them():
    torch.manual_seed(0)
    body = features.Classifier((3, 32, 32), 10).body
    one, other = torch.randn(2, 4, 3, 32, 32, generator=generator(2))
    found = apart(body, one, other)
    assert found.shape == (4,)
    torch.testing.assert_close(found[1:2], apart(body, one[1:2], other[1:2]))
    assert (found > 0).all()
    assert (found < 4 * 4).all()  # four layers, and no two directions are farther apart than 2


@pytest.mark.parametrize("over_noise", [True, False])
@pytest.mark.parametrize("t", [1e-5, 0.3, 0.8, 1 - 1e-5])
def test_the_loss_is_t_times_that_of_the_velocity_and_the_distance_over_the_noise(t, over_noise):
    made = parts(draws=at(t))
    found = perceptual(made, over_noise=over_noise)(off, Batch(X1, x0=X0), generator(0))
    now = torch.full((32,), t)
    x = made.path.interpolate(X0, X1, now)
    field = made.field(off)
    huber = losses.pseudo_huber()(field.velocity(x, now), X1 - X0)
    distance = apart(classifier(DATA, 0, CPU).body, field.x1(x, now), X1)
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
        classifier.cache_clear()
        perceptual(parts())(lambda x, t, c: network(x), Batch(X1, x0=X0), generator(0))
    perceptual(parts())(lambda x, t, c: network(x), Batch(X1, x0=X0), generator(0)).mean().backward()
    assert network.weight.grad.abs().max() > 0
    judge = classifier(DATA, 0, CPU)
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    assert (
        judge.classify(everything(DATA.train()).x1) == everything(DATA.train()).extra["labels"]
    ).float().mean() > 0.9


def test_one_seed_gives_one_classifier_and_not_the_metrics(tmp_path):
    one = classifier(DATA, 0, CPU)
    classifier.cache_clear()
    assert torch.equal(classifier(DATA, 0, CPU)(X1), one(X1))
    assert not torch.allclose(classifier(DATA, 1, CPU)(X1), one(X1))
    metrics = reference(Measured(DATA, tmp_path, 0, CPU)).fitted.network
    assert not torch.allclose(metrics(X1), one(X1))


def test_as_reflow_without_the_distance():
    """t H alone is what matching minimises on the velocity, times t."""
    made = parts(draws=at(0.4))
    body = classifier(DATA, 0, CPU).body
    found = perceptual(made, over_noise=False)(off, Batch(X1, x0=X0), generator(0))
    now = torch.full((32,), 0.4)
    field = made.field(off)
    plain = losses.matching_loss(field, Pairs(X0, X1), now, made.loss, compares="velocity")
    seen = apart(body, field.x1(made.path.interpolate(X0, X1, now), now), X1)
    torch.testing.assert_close(found - seen, 0.4 * plain, rtol=1e-3, atol=1e-5)
