"""A plugin for tests from outside: 64 points, a small network, and an observer that does what PROBE_... tells it to.

PROBE_SIGNAL=TERM@17   this signal to the own process after step 17
PROBE_HASHES=DIR       at its end each process writes the sha256 of the weights it holds to DIR/<rank>
"""

import atexit
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.data import Batch, Rows
from flowcore.plugin import hookimpl
from flowcore.plugin.contracts import Figure, Leaf, Spec

STEP = [0]
BUILT: list[nn.Module] = []


class PointsConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = Field(None, description="a file whose text decides what the points are")


class Points:
    """64 points in the plane."""

    def __init__(self, config: PointsConfig) -> None:
        self.text = config.path.read_text() if config.path else "0"

    def spec(self) -> Spec:
        return Spec(Leaf((2,)))

    def train(self) -> Rows:
        return Rows(torch.randn(64, 2, generator=torch.Generator().manual_seed(int(self.text))), transform=shaken)

    def val(self) -> Rows:
        return self.train()

    def tiny(self) -> "Points":
        return self

    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def condition(self, count: int, wanted: str | None) -> None:
        return None

    def write(self, samples: Batch, folder: Path) -> None:
        (folder / "points.csv").write_text("".join(f"{x!r},{y!r}\n" for x, y in samples.x1.tolist()))

    def show(self, samples: Batch) -> bytes:
        return b""


class DenseConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(16, ge=1, description="hidden units")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the hidden units")
    nan_at: int | None = Field(None, description="step from which the output is NaN")
    sleep: float = Field(0.0, description="seconds a step takes longer")


class Dense(nn.Module):
    """Two layers over the point and the time."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(3, config.width), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.width, 2)
        )

    def forward(self, x: Tensor, t: Tensor, condition: None = None) -> Tensor:
        if self.training and self.config.sleep:
            time.sleep(self.config.sleep)
        out = self.layers(torch.cat([x, t[:, None]], 1))
        return out * torch.nan if STEP[0] == self.config.nan_at else out


def shaken(batch: Batch, draws: torch.Generator) -> Batch:
    return Batch(batch.x1 + 0.01 * torch.randn(batch.x1.shape, generator=draws))


def dense(config: DenseConfig, spec: Spec) -> nn.Module:
    network = Dense(config)
    if not BUILT and "PROBE_HASHES" in os.environ:
        atexit.register(tell, network, Path(os.environ["PROBE_HASHES"]))
    BUILT.append(network)  # the first is the one that trains
    return network


def tell(network: nn.Module, folder: Path) -> None:
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    weights = b"".join(getattr(p, "to_local", lambda p=p: p)().detach().numpy().tobytes() for p in network.parameters())
    (folder / rank).write_text(hashlib.sha256(weights).hexdigest())


def spread(samples: Batch, measured: Any) -> dict[str, Figure]:
    """The standard deviation of the points."""
    return {"spread": Figure(samples.x1.std().item(), floor=0.0, baselines={})}


@hookimpl
def after_step(run: Any, step: int, row: Any) -> None:
    STEP[0] = step
    name, _, place = os.environ.get("PROBE_SIGNAL", "").partition("@")
    if place and int(place) == step:
        os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


@hookimpl
def register_data(register: Any) -> None:
    register("points", f"{__name__}:Points", config=f"{__name__}:PointsConfig", summary="points")


@hookimpl
def register_networks(register: Any) -> None:
    register("dense", f"{__name__}:dense", config=f"{__name__}:DenseConfig", summary="two layers")


@hookimpl
def register_metrics(register: Any) -> None:
    register("spread", f"{__name__}:spread", summary="standard deviation")


@hookimpl
def register_presets(register: Any) -> None:
    register("probe", f"{__package__}:probe.yaml", summary="a second", default=True)
