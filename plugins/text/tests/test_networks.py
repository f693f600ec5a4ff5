import inspect

import pytest
import torch

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_text.modeling_radd import Radd, angles, rotated
from flowplat_text.networks import RaddOptions, Timeless, radd

SPEC = Spec(Leaf((16,), "int64", "token", 20, 7))


@pytest.fixture
def network() -> Timeless:
    torch.manual_seed(0)
    made = radd(RaddOptions(width=32, depth=2, heads=2), SPEC)
    torch.nn.init.normal_(made.head.weight)
    return made.eval()


@pytest.mark.parametrize(
    ("size", "parameters"), [("nano", 0.79e6), ("tiny", 4.7e6), ("base", 25.2e6), ("small", 85.0e6), ("medium", 302e6)]
)
def test_sizes_are_those_of_the_paper_and_smaller_ones(size, parameters) -> None:
    with torch.device("meta"):
        made = Radd(1, *RaddOptions(size=size).numbers)
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(parameters, rel=0.01)


def test_at_first_every_token_is_as_likely_as_any_other() -> None:
    logits = radd(RaddOptions(), SPEC)(torch.randint(20, (3, 16)))
    assert logits.shape == (3, 16, 20)
    assert bool((logits == 0).all())
    assert radd(RaddOptions(), Spec(Leaf((16,), "int64", "token", 20)))(torch.full((3, 16), 20)).shape == (3, 16, 21)


def test_it_is_told_no_time(network) -> None:
    x = torch.randint(20, (3, 16))
    assert torch.equal(network(x, torch.zeros(3)), network(x, torch.ones(3), "anything"))
    assert not {"t", "time", "sigma"} & set(inspect.signature(Radd.forward).parameters)


def test_every_token_sees_every_other_and_a_causal_one_the_earlier(network) -> None:
    x = torch.randint(20, (1, 16))

    def changed(place: int) -> set[int]:
        other = x.clone()
        other[0, place] = (x[0, place] + 1) % 20
        moved = (network(x) - network(other)).abs().amax(2)[0] > 1e-6
        return set(moved.nonzero().flatten().tolist())

    assert changed(9) == set(range(16))
    for block in network.blocks:
        block.causal = True
    assert changed(9) == set(range(9, 16))


def test_positions_count_by_their_distance() -> None:
    """q_i . k_j of turned vectors depends on i - j alone, and a turn keeps their length."""
    cos, sin = angles(12, 8, 10000.0, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    turned = [rotated(v.expand(12, 8), cos.double(), sin.double()).double() for v in (q, k)]
    products = turned[0] @ turned[1].T
    for shift in range(-11, 12):
        line = products.diagonal(shift)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned[0].norm(dim=1), q.norm().expand(12), rtol=1e-6, atol=0)


def test_it_computes_in_half_precision_where_asked(network) -> None:
    x = torch.randint(20, (2, 16))
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x).float(), exact, rtol=0.1, atol=0.3)
    torch.testing.assert_close(network.bfloat16()(x).float(), exact, rtol=0.1, atol=0.3)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="even multiple of heads=3"):
        RaddOptions(heads=3)
    with pytest.raises(UsageError, match="network radd is for rows of tokens"):
        radd(RaddOptions(), Spec(Leaf((3, 8, 8))))
