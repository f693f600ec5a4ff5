"""A small trained model that several tests ask."""

from pathlib import Path

import pytest
import torch

from flowcore.plugin.contracts import Parts
from flowplat_text.data import BuiltinConfig, Excerpt
from flowplat_text.networks import RaddOptions, radd

TEXT = "the cat sat on the mat; the dog sat on the log. " * 300


class Model:
    """What a task sees of a model; see ``flowcore.plugin.contracts.Trained``."""

    def __init__(self, data, network):
        self.data, self.network, self.device, self.seed = data, network, torch.device("cpu"), 0

    def parts(self):
        return Parts(self.data.spec(), self.data, self.device)


@pytest.fixture(scope="session")
def small():
    """A model that has learned one sentence by heart, in a second or two."""
    from flowcore.tokens import objective

    torch.manual_seed(0)
    data = Excerpt(BuiltinConfig(length=32), [TEXT])
    network = radd(RaddOptions(width=32, depth=2, heads=2), data.spec())
    loss = objective(Model(data, network).parts())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    draws, source, steps = torch.Generator().manual_seed(0), data.train(), 500
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min((step + 1) / 20, 1, 2 * (steps - step) / steps)
        batch = source.batch(torch.randint(len(source), (32,), generator=draws), draws)
        optimizer.zero_grad()
        loss(network, batch, draws).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return Model(data, network.eval())


@pytest.fixture
def write(tmp_path: Path):
    """``write("a.txt", "text or bytes")`` is the path of a new file."""

    def made(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return made
