import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flowcore.couplings import Pairs
from flowcore.data import Rows
from flowcore.errors import UsageError
from flowcore.field import Field
from flowcore.guidance import classifier_free
from flowcore.losses import matching_loss
from flowcore.paths import linear
from flowcore.plugin.contracts import Leaf, Spec
from flowcore.seeds import generator
from flowcore.training.loop import begin, fit
from flowcore.training.settings import TrainSettings
from flowplat_images.networks import Embedding, MLPConfig, UNetConfig, mlp, unet


def spec(shape, classes=None):
    return Spec(Leaf(shape), None if classes is None else Leaf((), "int64", "class", classes), classes)


def awake(network, seed=0):
    """The network with no weight at zero, as after some training."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    return network.eval()


def state(batch, shape, seed=1, dtype=torch.float32):
    draws = generator(seed)
    return torch.randn(batch, *shape, generator=draws, dtype=dtype), torch.rand(batch, generator=draws, dtype=dtype)


CASES = {
    "mlp": (lambda spec, **more: mlp(MLPConfig(width=16, blocks=2, **more), spec), (1, 8, 8)),
    "mlp, oblong, colour": (lambda spec, **more: mlp(MLPConfig(width=17, blocks=1, **more), spec), (3, 5, 12)),
    "unet": (lambda spec, **more: unet(UNetConfig(channels=[8, 16], **more), spec), (3, 8, 8)),
    "unet, oblong, three levels": (
        lambda spec, **more: unet(UNetConfig(channels=[4, 6, 9], blocks=2, **more), spec),
        (1, 8, 12),
    ),
    "unet, one level, odd": (
        lambda spec, **more: unet(UNetConfig(channels=[5], attention=False, **more), spec),
        (1, 7, 7),
    ),
}
every_network = pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)


@every_network
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_output_is_shaped_like_the_state(build, shape, batch):
    network = awake(build(spec(shape)))
    assert network(*state(batch, shape)).shape == (batch, *shape)


@every_network
def test_samples_of_a_batch_do_not_touch_each_other(build, shape):
    network = awake(build(spec(shape))).double()
    x, t = state(4, shape, dtype=torch.float64)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    assert torch.allclose(network(x, t), alone, atol=1e-5)


@every_network
def test_every_weight_gets_a_finite_gradient(build, shape):
    network = awake(build(spec(shape, 3)))
    x, t = state(4, shape)
    network(x, t, torch.tensor([0, 1, 2, 3])).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@every_network
def test_the_output_follows_time_and_class(build, shape):
    network = awake(build(spec(shape, 3)))
    x, _ = state(1, shape)
    x = x.expand(4, *shape)
    later = network(x, torch.tensor([0.0, 0.3, 0.301, 1.0]), torch.zeros(4, dtype=torch.int64))
    assert all((later[i] - later[j]).abs().max() > 1e-5 for i in range(4) for j in range(i))
    classes = network(x, torch.full((4,), 0.5), torch.arange(4))
    assert all((classes[i] - classes[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))


def test_the_embedding_holds_one_class_more_for_null():
    assert Embedding(8, Leaf((), "int64", "class", 10)).classes.weight.shape == (11, 8)
    assert Embedding(8, None).classes is None


@pytest.mark.parametrize("width", [8, 9, 15])
def test_any_width_embeds_time_by_sines_and_cosines_of_a_geometric_row_of_frequencies(width):
    embedding = Embedding(width, None)
    embedding.layers = nn.Identity()
    t = torch.tensor([0.0, 0.2, 1.0])
    half = width // 2
    angles = t[:, None].double() * 1000 * 10000 ** (-torch.arange(half).double() / half)
    expected = torch.cat([angles.sin(), angles.cos(), torch.zeros(3, width % 2)], 1)
    assert torch.allclose(embedding(t, None).double(), expected, atol=2e-4)


def test_a_new_unet_returns_zero_and_a_new_mlp_block_is_the_identity():
    x, t = state(2, (3, 8, 8))
    assert torch.equal(unet(UNetConfig(channels=[8, 8]), spec((3, 8, 8)))(x, t), torch.zeros_like(x))
    network = mlp(MLPConfig(width=8, blocks=1), spec((1, 4, 4)))
    hidden = torch.randn(2, 8, generator=generator(0))
    network.blocks[0].last.bias.data.zero_()
    assert torch.equal(network.blocks[0](hidden, torch.ones(2, 8)), hidden)


def test_null_and_scale_one_are_the_plain_conditional_field():
    network = awake(mlp(MLPConfig(width=16, blocks=1), spec((1, 4, 4), 3)))
    x, _ = state(5, (1, 4, 4))
    labels = torch.tensor([0, 1, 2, 0, 1])
    field = Field(network, linear(), condition=labels, null=3)
    t = torch.tensor(0.4)
    plain, null = network(x, t.expand(5), labels), network(x, t.expand(5), torch.full((5,), 3))
    for scale in (0.0, 1.0, 2.5):
        guided = classifier_free(scale).velocity(field, x, t, 0.1)
        assert torch.allclose(guided, null + scale * (plain - null), atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [((7, 8), [4, 4]), ((8, 6), [4, 4, 4]), ((28, 28), [4, 4, 4, 4])])
def test_a_unet_refuses_a_size_it_cannot_halve(size, channels):
    factor = 2 ** (len(channels) - 1)
    with pytest.raises(UsageError, match=rf"{size[0]}x{size[1]} is not divisible by {factor}"):
        unet(UNetConfig(channels=channels), spec((1, *size)))


def test_an_mlp_refuses_large_images_and_names_the_unet():
    assert mlp(MLPConfig(width=8), spec((1, 12, 12)))
    with pytest.raises(UsageError, match="network=unet"):
        mlp(MLPConfig(), spec((1, 13, 8)))


@pytest.mark.parametrize("build", [lambda s: mlp(MLPConfig(), s), lambda s: unet(UNetConfig(), s)])
def test_networks_refuse_what_is_no_image_and_no_class(build):
    with pytest.raises(UsageError, match="takes images"):
        build(Spec({"x": Leaf((1, 8, 8))}))
    with pytest.raises(UsageError, match="takes images"):
        build(Spec(Leaf((64,))))
    with pytest.raises(UsageError, match="conditioned on classes only"):
        build(Spec(Leaf((1, 8, 8)), Leaf((3,))))


@pytest.mark.parametrize("wrong", [{"channels": []}, {"channels": [0]}, {"channels": [8, -8]}, {"dropout": 1.0}])
def test_the_unet_config_refuses_what_cannot_be_built(wrong):
    with pytest.raises(ValidationError):
        UNetConfig(**wrong)


def test_dropout_acts_in_training_alone():
    network = awake(unet(UNetConfig(channels=[8], dropout=0.5), spec((1, 8, 8))))
    x, t = state(2, (1, 8, 8))
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda s: mlp(MLPConfig(width=64, blocks=1), s), (1, 4, 4)),
        (lambda s: unet(UNetConfig(channels=[8, 16]), s), (1, 4, 4)),
    ],
    ids=["mlp", "unet"],
)
def test_training_on_one_image_of_each_class_learns_where_each_lies(build, shape):
    """v(x, t, c) = (m_c - x) / (1 - t) for one image m_c a class: the x1 prediction is that image wherever x is."""
    images = torch.sign(torch.randn(2, *shape, generator=generator(3)))
    torch.manual_seed(0)
    settings = TrainSettings(steps=160, batch_size=32, lr=5e-3, log_every=80, ema=0.9)

    def loss(network, batch, draws):
        field = Field(network, linear(), condition=batch.condition)
        x0 = torch.randn(batch.x1.shape, generator=draws)
        return matching_loss(field, Pairs(x0, batch.x1), torch.rand(len(batch), generator=draws))

    trained = fit(begin(build(spec(shape, 2)), settings), loss, Rows(images, torch.tensor([0, 1])), settings, 0,
                  lambda row: None, lambda state: None).ema.module.eval()  # fmt: skip
    x, _ = state(64, shape, seed=4)
    labels = torch.arange(64) % 2
    with torch.no_grad():
        guess = Field(trained, linear(), condition=labels).x1(x, 0.3)
    missed = (guess - images[labels]).square().mean().item()
    assert missed < 0.1 * (images[labels.flip(0)] - images[labels]).square().mean().item()


@every_network
def test_two_outputs_are_one_behind_the_other_in_the_channels(build, shape):
    """The second has weights of its own: what is trained on the first alone leaves it as it was."""
    network = awake(build(spec(shape), outputs=2))
    x, t = state(4, shape)
    out = network(x, t)
    assert out.shape == (4, 2 * shape[0], *shape[1:])
    last = list(network.leave.parameters())[-1]
    (gradient,) = torch.autograd.grad(out[:, : shape[0]].sum(), last)
    own, other = gradient.flatten().chunk(2)
    assert (own != 0).all()
    assert (other == 0).all()
