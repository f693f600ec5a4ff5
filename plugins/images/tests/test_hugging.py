import sys

import pytest
import torch

from flowcore.data import everything
from flowcore.errors import InputError, MissingPackageError, UsageError
from flowcore.field import Field
from flowcore.guidance import classifier_free
from flowcore.paths import linear
from flowcore.plugin.contracts import Leaf, Spec
from flowcore.seeds import generator
from flowplat_images.data import Digits, DigitsConfig
from flowplat_images.hugging import TextUNetConfig, UNet2DConfig, text_unet, unet2d

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

SMALL = {"channels": [8, 16], "text_width": 8, "text_layers": 1, "text_heads": 2}


@pytest.fixture(scope="module")
def digits():
    return Digits(DigitsConfig(captions="labels"))


def built(digits, **options):
    torch.manual_seed(0)
    return text_unet(TextUNetConfig(**SMALL | options), digits.spec())


def plain(shape, classes=None, **options):
    torch.manual_seed(0)
    spec = Spec(Leaf(shape), None if classes is None else Leaf((), "int64", "class", classes), classes)
    return unet2d(UNet2DConfig(**{"channels": [8, 16]} | options), spec)


def state(count=4, shape=(1, 8, 8)):
    draws = generator(1)
    return torch.randn(count, *shape, generator=draws), torch.rand(count, generator=draws)


def test_the_sizes_are_those_of_the_papers():
    with torch.device("meta"):
        papers = {
            35.7: plain((3, 32, 32), channels=[128, 256, 256, 256], layers=2, norm_groups=32),
            0.65: plain((1, 8, 8), channels=[32, 64]),
        }
        captions = TextUNetConfig(channels=[32, 64])
        told = Spec(Leaf((1, 8, 8)), Leaf((6,), "int64", "token", 300), null=(0,) * 6)
        papers[1.12] = text_unet(captions, told)
    for millions, network in papers.items():
        assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
def test_the_unet_follows_time_and_class(shape, classes):
    network, (x, t) = plain(shape, classes).eval(), state(4, shape)
    told = None if classes is None else torch.tensor([0, 1, 2, 3])
    out = network(x, t, told)
    assert out.shape == x.shape
    later = network(x, t + 0.01, told)  # nearer than a step of a thousand would tell apart by whole numbers
    assert not torch.allclose(out, later, atol=1e-6)
    assert not torch.allclose(network(x, t + 0.0004, told), out, atol=0)
    if told is not None:
        assert not torch.allclose(out, network(x, t, told.flip(0)), atol=1e-4)


def test_guidance_on_the_text_network_is_the_algebra_it_says(digits):
    network, (x, t) = built(digits).eval(), state()
    condition = digits.condition(4, "a thick seven | a one")
    null = torch.tensor(digits.spec().null)
    field = Field(network, linear(), condition=condition, null=null)
    now = t[0]
    with torch.no_grad():
        told, untold = network(x, now.expand(4), condition), network(x, now.expand(4), null.expand(4, -1))
        assert torch.equal(classifier_free(1.0).velocity(field, x, now, 0.1), told)
        assert torch.equal(classifier_free(0.0).velocity(field, x, now, 0.1), untold)
        guided = classifier_free(2.0).velocity(field, x, now, 0.1)
        assert torch.allclose(guided, 2 * told - untold, atol=1e-5)
        assert torch.equal(network(x, now.expand(4), None), untold)
    assert not torch.allclose(told, untold, atol=1e-4)
    assert not torch.allclose(told[0], network(x[:1], now.expand(1), condition[1:2])[0], atol=1e-4)


def test_every_word_of_a_caption_tells(digits):
    network, (x, t) = built(digits).eval(), state(1)
    said = [
        "a thick slanted seven",
        "a thin slanted seven",
        "a thick upright seven",
        "a thick slanted eight",
        "a seven",
    ]
    with torch.no_grad():
        outs = [network(x, t, digits.condition(1, text)) for text in said]
    assert all(not torch.allclose(a, b, atol=1e-6) for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_encoder_does_not_learn_and_the_rest_does(digits, frozen):
    network, (x, t) = built(digits, frozen=frozen).train(), state()
    assert network.encoder.training is not frozen
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        network(x, t, digits.condition(4, None)).square().mean().backward()
        optimizer.step()
    moved = {name for name, weight in network.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("unet.") for name in moved)
    assert any(name.startswith("encoder.") for name in moved) is not frozen
    built(digits, frozen=not frozen).load_state_dict(network.state_dict())  # a student of a teacher


def test_a_text_encoder_of_the_users_is_read(digits, tmp_path):
    tokens = digits.spec().condition
    sizes = transformers.CLIPTextConfig(
        vocab_size=tokens.classes, max_position_embeddings=6, hidden_size=8, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=2,
    )  # fmt: skip
    first = transformers.CLIPTextModel(sizes)
    first.save_pretrained(str(tmp_path / "text"))
    again = text_unet(TextUNetConfig(channels=[8, 16], text_encoder=tmp_path / "text", frozen=True), digits.spec())
    kept = again.encoder.state_dict()
    assert all(
        torch.equal(kept[name.removeprefix("text_model.")], weight) for name, weight in first.state_dict().items()
    )
    assert {"embeddings.token_embedding.weight", "final_layer_norm.bias"} < kept.keys()  # whatever the version
    longer = Digits(DigitsConfig(captions={"source": "labels", "length": 9}))
    with pytest.raises(UsageError, match=r"text reads 6 tokens; set data.captions.length=6"):
        text_unet(TextUNetConfig(channels=[8, 16], text_encoder=tmp_path / "text"), longer.spec())
    with pytest.raises(InputError, match=r"gone is not there"):
        built(digits, text_encoder=tmp_path / "gone")
    (tmp_path / "text" / "model.safetensors").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"holds no CLIPTextModel that can be read") as refused:
        built(digits, text_encoder=tmp_path / "text")
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_is_told_in_one_line(digits):
    with pytest.raises(UsageError, match=r"network=text_unet reads captions; set data.captions"):
        text_unet(TextUNetConfig(**SMALL), Digits(DigitsConfig(conditional=True)).spec())
    with pytest.raises(UsageError, match=r"network=unet2d is told classes only; network=text_unet reads captions"):
        unet2d(UNet2DConfig(), digits.spec())
    with pytest.raises(UsageError, match=r"8x8 is not divisible by 16; give fewer channels"):
        plain((1, 8, 8), channels=[8] * 5)
    with pytest.raises(UsageError, match=r"network.channels: 12 is no multiple of network.norm_groups=8"):
        plain((1, 8, 8), channels=[12])
    with pytest.raises(UsageError, match=r"network.text_width=9 is no multiple of text_heads=2"):
        built(digits, text_width=9)
    with pytest.raises(UsageError, match=r"takes images"):
        unet2d(UNet2DConfig(), Spec(Leaf((2,))))


def test_without_the_package_a_line_says_what_brings_it(digits, monkeypatch):
    spec = digits.spec()
    for package in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    for network in (lambda: plain((1, 8, 8)), lambda: text_unet(TextUNetConfig(**SMALL), spec)):
        with pytest.raises(
            MissingPackageError, match=r"`\w+` is not installed; `pip install 'flowplat-images\[diffusers\]'"
        ):
            network()


def test_it_learns_what_words_mean(digits):
    """Sixty steps tell "seven" from "one" by the mean picture at t = 0, where the field is E[x1 | caption] - x0."""
    torch.manual_seed(0)
    network = built(digits)
    data = everything(digits.train())
    rows = ((data.extra["labels"] == 1) | (data.extra["labels"] == 7)).nonzero().flatten()
    optimizer, draws = torch.optim.Adam(network.parameters(), lr=5e-3), generator(0)
    for _ in range(60):
        mine = rows[torch.randint(len(rows), (32,), generator=draws)]
        x0 = torch.randn(32, 1, 8, 8, generator=draws)
        loss = (network(x0, torch.zeros(32), data.condition[mine]) - (data.x1[mine] - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x0 = torch.randn(16, 1, 8, 8, generator=draws)
    with torch.no_grad():
        seen = {digit: (x0 + network.eval()(x0, torch.zeros(16), digits.condition(16, f"a {word}"))).mean(0)
                for digit, word in ((1, "one"), (7, "seven"))}  # fmt: skip
    means = {digit: data.x1[data.extra["labels"] == digit].mean(0) for digit in (1, 7)}
    for digit, other in ((1, 7), (7, 1)):
        assert (seen[digit] - means[digit]).norm() < (seen[digit] - means[other]).norm()
