import math
import re

import pytest
import torch

from flowcore.data import Batch, everything
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Measured
from flowplat_text.likelihood import nats
from flowplat_text.metrics import bits_per_byte, likeness

CPU = torch.device("cpu")


@pytest.fixture
def measured(small, tmp_path):
    return Measured(small.data, tmp_path, 0, CPU, small)


def uniform(small):
    """The same data under a network that knows nothing."""
    from types import SimpleNamespace

    return SimpleNamespace(**vars(small) | {"network": lambda x, t, c: torch.zeros(*x.shape, 258)})


@pytest.mark.parametrize("bound", ["any_order", "lambda", "forward", "backward"])
def test_a_model_that_knows_nothing_pays_for_every_token_alike(small, bound) -> None:
    x = everything(small.data.val(), 7).x1
    told = nats(uniform(small), x, None, bound, 64, 0)
    exact = 32 * math.log(257)
    if bound == "lambda":
        assert told.nats.mean().item() == pytest.approx(exact, abs=5 * (told.variance.mean() / 7).sqrt().item())
    else:
        assert told.nats.tolist() == pytest.approx([exact] * 7, rel=1e-6)
        assert bool((told.variance < 1e-6).all())


def test_both_bounds_are_one_and_bound_the_mixture_of_orders(small) -> None:
    """On one text of the data and one of rubbish."""
    x = everything(small.data.val(), 1).x1
    x = torch.cat([x, torch.randint(97, 120, x.shape, generator=torch.Generator().manual_seed(0))])
    some = nats(small, x, None, "any_order", 1500, 0)
    other = nats(small, x, None, "lambda", 1500, 1)
    error = (some.variance + other.variance).sqrt()
    assert bool(((some.nats - other.nats).abs() < 4 * error).all())
    orders = [nats(small, x, None, how, 1, 0).nats for how in ("forward", "backward")]
    assert some.nats[0] < some.nats[1]
    assert all(one[0] < one[1] for one in orders)


def test_the_standard_error_is_no_less_than_the_spread_of_estimates(small) -> None:
    x = everything(small.data.val(), 3).x1
    many = torch.stack([nats(small, x, None, "any_order", 16, seed).nats.sum() for seed in range(40)])
    error = nats(small, x, None, "any_order", 16, 0).variance.sum().sqrt()
    assert many.std() < 1.6 * error
    assert abs(many[0] - many.mean()) < 4 * error


def test_bits_per_byte_is_far_below_n_grams_for_a_text_known_by_heart(measured, small) -> None:
    drawn = Batch(everything(small.data.val(), 5).x1)
    found = bits_per_byte(drawn, measured)
    bits, perplexity = found["bits_per_byte"], found["perplexity"]
    assert 0 < bits.value < 1.5
    assert list(bits.baselines) == [*(f"witten_bell_{order}" for order in range(7)), "zlib"]
    assert bits.value < bits.baselines["witten_bell_1"]
    errors = [float(re.search(r"standard error ([\d.]+)", figure.note)[1]) for figure in (bits, perplexity)]
    assert errors[1] == pytest.approx(perplexity.value * errors[0] * math.log(2), rel=0.05)
    assert perplexity.value == pytest.approx(2**bits.value, rel=0.05)  # a token is a byte
    assert perplexity.value < perplexity.baselines["unigram"] < perplexity.baselines["uniform"] == 257
    exact = bits_per_byte(drawn, measured, bound="forward")["bits_per_byte"]
    assert "exact" in exact.note
    assert bits_per_byte(drawn, measured, blocks=2)["bits_per_byte"].note.startswith("any_order bound, 8 draws")
    with pytest.raises(UsageError, match=r"leave it out of eval.metrics for samples that are files"):
        bits_per_byte(drawn, Measured(small.data, measured.folder, 0, CPU))


def test_likeness_is_its_floor_for_real_text_and_tells_the_three_ways_to_miss_it(measured, small) -> None:
    source = small.data.val()
    real = everything(source)
    for figure in likeness(real, measured).values():
        assert figure.value == pytest.approx(figure.floor)
    draws = torch.Generator().manual_seed(0)
    noise = likeness(Batch(torch.randint(256, real.x1.shape, generator=draws)), measured)
    assert noise["ngram_bits"].value > 2 * noise["ngram_bits"].floor
    assert noise["token_entropy"].value > noise["token_entropy"].floor
    assert noise["repetition"].value == 0
    stuck = likeness(Batch(torch.full(real.x1.shape, 97)), measured)
    assert stuck["token_entropy"].value == 0
    assert stuck["repetition"].value == 1
    ended = likeness(Batch(torch.full(real.x1.shape, 257)), measured)
    assert ended["ngram_bits"].value == 0
