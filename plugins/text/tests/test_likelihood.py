"""A language of which the entropy is known: three states, each of which tells what comes next."""

import math

import pytest
import torch
from torch import Tensor

from flowcore.data import Batch
from flowcore.plugin.contracts import Leaf, Parts, Spec
from flowcore.tokens import objective
from flowplat_text.likelihood import nats
from flowplat_text.networks import RaddOptions, radd

NEXT = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.7, 0.0, 0.3]], dtype=torch.float64)
STILL = torch.linalg.matrix_power(NEXT, 200)[0]
LENGTH = 16
SPEC = Spec(Leaf((LENGTH,), "int64", "token", 3))


class Chain:
    """What ``nats`` asks of a model."""

    def __init__(self, network) -> None:
        self.data, self.network, self.device = self, network, torch.device("cpu")

    def spec(self) -> Spec:
        return SPEC


def entropy() -> float:
    """Of LENGTH states in a row, in nats: by the chain rule in any order what a perfect model pays for them."""
    rate = -(STILL[:, None] * torch.xlogy(NEXT, NEXT)).sum().item()
    return -(STILL * STILL.log()).sum().item() + (LENGTH - 1) * rate


def drawn(count: int, draws: torch.Generator) -> Tensor:
    x = [torch.multinomial(STILL.expand(count, 3), 1, generator=draws)]
    for _ in range(LENGTH - 1):
        x.append(torch.multinomial(NEXT[x[-1][:, 0]], 1, generator=draws))
    return torch.cat(x, 1)


def knows(x: Tensor, t=None, condition=None) -> Tensor:
    """log p(x^i | what is known), by the messages from both sides."""
    seen = torch.where((x == 3)[..., None], 1.0, torch.nn.functional.one_hot(x.clamp(max=2), 3)).double()
    ahead, behind = [STILL.expand(len(x), 3)], [torch.ones(len(x), 3, dtype=torch.float64)]
    for i in range(LENGTH - 1):
        ahead.append((ahead[-1] * seen[:, i]) @ NEXT)
        behind.insert(0, (behind[0] * seen[:, LENGTH - 1 - i]) @ NEXT.T)
    both = torch.stack(ahead, 1) * torch.stack(behind, 1)
    return (both / both.sum(2, keepdim=True)).log()


@pytest.mark.parametrize("bound", ["any_order", "lambda", "forward", "backward"])
def test_who_knows_the_language_pays_its_entropy(bound) -> None:
    x = drawn(2000, torch.Generator().manual_seed(0))
    found = nats(Chain(knows), x, None, bound, 4, 0)
    spread = math.sqrt(found.nats.var().item() / len(x))
    assert found.nats.mean().item() == pytest.approx(entropy(), abs=4 * spread)
    if bound in ("forward", "backward"):
        assert float(found.variance.max()) == 0
        by_hand = -STILL[x[:, 0]].log() - NEXT[x[:, :-1], x[:, 1:]].log().sum(1)
        torch.testing.assert_close(found.nats, by_hand, rtol=1e-10, atol=1e-10)


def test_a_network_learns_it_to_a_twentieth() -> None:
    """The bound of what it has learned is at most 5 % above the entropy, in some seconds."""
    torch.manual_seed(0)
    network, draws = radd(RaddOptions(width=32, depth=2, heads=2), SPEC), torch.Generator().manual_seed(0)
    loss = objective(Parts(SPEC, None, torch.device("cpu")))  # type: ignore[arg-type]
    optimizer, steps = torch.optim.AdamW(network.parameters(), lr=5e-3), 300
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min((step + 1) / 20, 1, 2 * (steps - step) / steps)
        optimizer.zero_grad()
        loss(network, Batch(drawn(64, draws)), draws).mean().backward()
        optimizer.step()
    x = drawn(1000, torch.Generator().manual_seed(1))
    paid = nats(Chain(network.eval()), x, None, "any_order", 16, 0).nats.mean().item()
    best = nats(Chain(knows), x, None, "forward", 1, 0).nats.mean().item()
    assert best - 0.2 < paid < 1.05 * best
