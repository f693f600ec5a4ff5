"""A small trained model that several tests ask, and series that are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flowcore import losses, paths, solvers, times
from flowcore.couplings import independent
from flowcore.objectives import matching
from flowcore.plugin.contracts import Parts
from flowplat_timeseries.data import BuiltinConfig, Given
from flowplat_timeseries.networks import S4DOptions, s4d
from flowplat_timeseries.reading import Series

SEASON = 12


def _waves(count=8, length=240, noise=0.15):
    """Hourly series with a period of 12 and levels from 10 to 80, with noise."""
    rng = np.random.default_rng(0)
    steps = np.arange(length)
    return [
        Series(
            f"wave-{i}",
            pd.Period("2024-01-01 00:00", freq="h"),
            10.0 * (i + 1) * (1 + 0.5 * np.sin(2 * np.pi * (steps + i) / SEASON) + noise * rng.standard_normal(length)),
        )
        for i in range(count)
    ]


class Model:
    """What a task sees of a model; see ``flowcore.plugin.contracts.Trained``."""

    def __init__(self, data, network):
        self.data, self.network, self.device, self.seed = data, network, torch.device("cpu"), 0

    def parts(self):
        return Parts(
            self.data.spec(), self.data, self.device, path=paths.linear(), coupling=independent(),
            times=times.uniform(), loss=losses.l2(), predicts="velocity", solver=solvers.euler(),
        )  # fmt: skip


def _learned(data, options, steps):
    torch.manual_seed(0)
    model = Model(data, s4d(options, data.spec()))
    loss, draws, source = matching(model.parts()), torch.Generator().manual_seed(0), data.train()
    optimizer = torch.optim.Adam(model.network.parameters(), lr=6e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 6e-3 * min((step + 1) / 20, 1, 2 * (steps - step) / steps)
        batch = source.batch(torch.randint(len(source), (16,), generator=draws), draws)
        optimizer.zero_grad()
        loss(model.network, batch, draws).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 0.5)
        optimizer.step()
    model.network.eval()
    return model


@pytest.fixture(scope="session")
def small():
    """A model of waves: windows of 24 + 12 steps, learned in some seconds."""
    data = Given(BuiltinConfig(context=24, horizon=12, season=SEASON), _waves())
    return _learned(data, S4DOptions(hidden=16, blocks=2, state=16), 400)


@pytest.fixture(scope="session")
def small_conditional():
    """A conditional model of the same."""
    data = Given(BuiltinConfig(context=24, horizon=12, season=SEASON, conditional="ou"), _waves())
    return _learned(data, S4DOptions(hidden=16, blocks=2, state=16, skip=False), 200)


@pytest.fixture
def write(tmp_path: Path):
    """``write("a.csv", "text")`` is the path of a new file."""

    def made(name: str, content: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return str(path)

    return made


def _long_table(series, drop=()):
    """Series as a long CSV, the rows numbered in ``drop`` left out."""
    rows = [f"{one.name},{time},{value}" for one in series for time, value in zip(one.times, one.values, strict=True)]
    return "item_id,timestamp,target\n" + "\n".join(row for i, row in enumerate(rows) if i not in drop) + "\n"


@pytest.fixture
def waves():
    """``waves(count, length)`` are such series, made anew."""
    return _waves


@pytest.fixture
def long_table():
    """``long_table(series, drop)`` is a CSV."""
    return _long_table


@pytest.fixture(scope="session")
def learned():
    """``learned(data, options, steps)`` is a model of some series."""
    return _learned
