"""The plugin that these tests install: points on a circle, as one tensor (B, 2) or as a dict of two (B, 1)."""

import builtins
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as Drawing
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.data import Batch, Rows
from flowcore.errors import InputError, UsageError
from flowcore.plugin import hookimpl
from flowcore.plugin.contracts import Figure, Leaf, Measured, Spec
from flowcore.plugin.hookspecs import Register
from flowcore.seeds import generator

HALVES = ("lower", "upper")


class RingConfig(BaseModel):
    """Points on the unit circle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(64, ge=0, description="points")
    split: bool = Field(False, description="a dict of x and y instead of one tensor")
    conditional: bool = Field(False, description="tell the network the half the point lies in")


class Ring:
    """``count`` points at unit distance from 0."""

    def __init__(self, config: RingConfig) -> None:
        self.config = config

    def spec(self) -> Spec:
        state = {"x": Leaf((1,)), "y": Leaf((1,))} if self.config.split else Leaf((2,))
        return Spec(state, Leaf((), "int64", "class", 2), null=2) if self.config.conditional else Spec(state)

    def train(self) -> Rows:
        if self.config.count == 0:
            raise InputError("the ring is empty")
        angle = 2 * torch.pi * torch.rand(self.config.count, generator=generator(0, "ring"))
        points = torch.stack([angle.cos(), angle.sin()], 1)
        upper = (points[:, 1] > 0).long()
        state = {"x": points[:, :1], "y": points[:, 1:]} if self.config.split else points
        return Rows(state, upper if self.config.conditional else None)

    def val(self) -> Rows:
        return self.train()

    def tiny(self) -> "Ring":
        return Ring(self.config.model_copy(update={"count": 16}))

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.config).encode()).hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor | None:
        if not self.config.conditional:
            return None
        if wanted not in (None, *HALVES):
            raise UsageError(f"no half is called {wanted!r}; there are {', '.join(HALVES)}")
        return torch.arange(count) % 2 if wanted is None else torch.full((count,), HALVES.index(wanted))

    def write(self, samples: Batch, folder: Path) -> None:
        (folder / "points.csv").write_text("".join(f"{x:.9g},{y:.9g}\n" for x, y in together(samples.x1).tolist()))

    def read_back(self, folder: Path) -> Batch:
        lines = (folder / "points.csv").read_text().splitlines()
        points = torch.tensor([[float(word) for word in line.split(",")] for line in lines])
        return Batch({"x": points[:, :1], "y": points[:, 1:]} if self.config.split else points)

    def show(self, samples: Batch) -> bytes:
        drawing, buffer = Drawing(figsize=(1, 1)), io.BytesIO()
        drawing.subplots().scatter(*together(samples.x1).T.numpy())
        drawing.savefig(buffer, format="png")
        return buffer.getvalue()


class PointsConfig(RingConfig):
    """Points of one's own."""

    path: Path = Field(description="a csv of x,y")


class Points(Ring):
    """The points that ``write`` wrote."""

    config: PointsConfig

    def train(self) -> Rows:
        try:
            rows = [[float(word) for word in line.split(",")] for line in self.config.path.read_text().splitlines()]
        except OSError as error:
            raise InputError(f"{self.config.path} cannot be read: {error}") from error
        return Rows(torch.tensor(rows))


class Scaled(Points):
    """Points whose scale is read from their file, or is among the facts: as far as sampling goes, no file is needed."""

    def __init__(self, config: PointsConfig, facts: Any = None) -> None:
        super().__init__(config)
        self.scale = float(self.train().all.x1.norm(dim=1).max() if facts is None else facts["scale"])

    def facts(self) -> Any:
        return {"scale": self.scale}

    def write(self, samples: Batch, folder: Path) -> None:
        super().write(Batch(self.scale * together(samples.x1)), folder)

    def read_back(self, folder: Path) -> Batch:
        return super().read_back(folder).map(lambda points: points / self.scale)


def together(state: Any) -> Tensor:
    """(B, 2), whichever way the state is held."""
    return torch.cat([state["x"], state["y"]], 1) if isinstance(state, Mapping) else state


class DenseConfig(BaseModel):
    """Options of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(16, ge=1, description="hidden units")


class Dense(nn.Module):
    """Two layers over the point, the time and the half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: Any, t: Tensor, condition: Tensor | None = None) -> Any:
        half = torch.full((len(t),), 2) if condition is None else condition
        out = self.layers(torch.cat([together(x), t[:, None], F.one_hot(half, 3)], 1))
        return {"x": out[:, :1], "y": out[:, 1:]} if isinstance(x, Mapping) else out


def dense(config: DenseConfig, spec: Spec) -> nn.Module:
    return Dense(config.width)


class AffineConfig(BaseModel):
    """Options of the affine map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias: bool = Field(True, description="add a constant")
    repeat: list[int] = Field(default_factory=lambda: [1, 1], min_length=1, description="how often")


class Affine(nn.Linear):
    """A x + b."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def affine(config: AffineConfig, spec: Spec) -> nn.Module:
    return Affine(2, 2, bias=config.bias)


def formula(config: DenseConfig, spec: Spec) -> Any:
    """What a plugin author may return by mistake: a function, where a module is wanted."""
    return lambda x, t, condition: x


def radius(samples: Batch, measured: Measured, wanted: float = 1.0) -> Mapping[str, Figure]:
    """Mean | |x| - wanted |."""
    away = (together(samples.x1).norm(dim=1) - wanted).abs().mean().item()
    return {"radius": Figure(away, floor=0.0, baselines={"noise": 0.5}, unit="m", note="distance from the circle")}


def keeps(samples: Batch, measured: Measured) -> Mapping[str, Figure]:
    """Keeps a file where metrics may."""
    (measured.folder / "kept").write_text(str(len(samples)))
    return {}


def fails(samples: Batch, measured: Measured, how: str = "RuntimeError") -> Mapping[str, Figure]:
    """Raises the built-in exception ``how``."""
    raise getattr(builtins, how)("on purpose")


@hookimpl
def register_data(register: Register) -> None:
    register("ring", f"{__name__}:Ring", config=f"{__name__}:RingConfig", summary="points on a circle")
    register("points", f"{__name__}:Points", config=f"{__name__}:PointsConfig", summary="points of a csv")
    register("scaled", f"{__name__}:Scaled", config=f"{__name__}:PointsConfig", summary="points of a csv, to scale")


@hookimpl
def register_networks(register: Register) -> None:
    register("dense", f"{__name__}:dense", config=f"{__name__}:DenseConfig", summary="two layers")
    register("affine", f"{__name__}:affine", config=f"{__name__}:AffineConfig", summary="one layer")
    register("formula", f"{__name__}:formula", config=f"{__name__}:DenseConfig", summary="no module")


@hookimpl
def register_metrics(register: Register) -> None:
    register("radius", f"{__name__}:radius", summary="distance from the circle")
    register("keeps", f"{__name__}:keeps", summary="keeps a file")
    register("fails", f"{__name__}:fails", summary="raises what it is told to")


@hookimpl
def register_presets(register: Register) -> None:
    register("halves", f"{__package__}:halves.yaml", summary="told which half")
    register("straight", f"{__package__}:straight.yaml", summary="taught by ring")
    register("ring", f"{__package__}:ring.yaml", summary="a short run", default=True)
