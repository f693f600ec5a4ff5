"""The networks: a residual MLP for tiny images, and a small UNet."""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec

OUTPUTS = "images returned, one behind the other in the channels; 2 for objective=interpolant"


class MLPConfig(BaseModel):
    """Options of the residual MLP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(384, ge=8, description="hidden units")
    blocks: int = Field(3, ge=1, description="residual blocks of two layers")
    outputs: Literal[1, 2] = Field(1, description=OUTPUTS)


class UNetConfig(BaseModel):
    """Options of the UNet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [32, 64], min_length=1, description="channels at each resolution, each half the last"
    )
    blocks: int = Field(1, ge=1, description="residual blocks at each resolution")
    attention: bool = Field(True, description="self-attention at the lowest resolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside residual blocks")
    outputs: Literal[1, 2] = Field(1, description=OUTPUTS)


class Embedding(nn.Module):
    """Time and class as one vector: e = MLP(sin/cos(1000 t w_k)) + table[class]; (B,), (B,) -> (B, width)."""

    def __init__(self, width: int, condition: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        half = width // 2
        self.frequencies: Tensor
        self.register_buffer(
            "frequencies", 1000 * torch.exp(-math.log(10000) * torch.arange(half) / half), persistent=False
        )
        self.odd = width % 2
        self.classes: nn.Embedding | None = None
        if condition is not None:
            if not isinstance(condition, Leaf) or condition.kind != "class" or condition.classes is None:
                raise UsageError("this network is conditioned on classes only")
            self.classes = nn.Embedding(condition.classes + 1, width)  # the last is the null class

    def forward(self, t: Tensor, condition: Tensor | None) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        embedding = self.layers(F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, self.odd)))
        if self.classes is not None:
            embedding = embedding + self.classes(condition)
        return embedding


class MLPBlock(nn.Module):
    """x + W2 silu(W1 norm(x) + W3 e), W2 zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.shift, self.last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.last(F.silu(self.first(self.norm(x)) + self.shift(embedding)))


class MLP(nn.Module):
    """(B, C, H, W) -> (B, outputs C, H, W), every pixel seen by every unit."""

    def __init__(self, shape: tuple[int, ...], width: int, blocks: int, condition: Any, outputs: int = 1) -> None:
        super().__init__()
        self.embedding = Embedding(width, condition)
        self.enter = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs * math.prod(shape)))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = F.silu(self.embedding(t, condition))
        hidden = self.enter(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.leave(hidden).view(len(x), -1, *x.shape[2:])


def mlp(config: MLPConfig, spec: Spec) -> nn.Module:
    """The residual MLP. Raises ``UsageError`` for images larger than 12x12, where it wastes its weights."""
    shape = _image(spec)
    if max(shape[1:]) > 12:
        raise UsageError(f"network=mlp is for images up to 12x12, these are {shape[1]}x{shape[2]}; use network=unet")
    return MLP(shape, config.width, config.blocks, spec.condition, config.outputs)


class Block(nn.Module):
    """A residual block: norm, silu, conv, scale and shift by the embedding, norm, silu, conv (zero at first)."""

    def __init__(self, inward: int, outward: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inward), nn.Conv2d(inward, outward, 3, padding=1)
        self.film = nn.Linear(width, 2 * outward)
        self.norm2, self.dropout, self.conv2 = (
            _norm(outward),
            nn.Dropout(dropout),
            nn.Conv2d(outward, outward, 3, padding=1),
        )
        self.skip = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(hidden)))


class Attention(nn.Module):
    """Single-head self-attention over pixels, added to its input; the last projection is zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            _norm(channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, 1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x))


class UNet(nn.Module):
    """Residual blocks at each resolution down and up again, joined by skips (Ronneberger et al. 2015, arXiv 1505.04597)
    with time and class in every block (Ho et al. 2020, arXiv 2006.11239)."""

    def __init__(self, shape: tuple[int, ...], config: UNetConfig, condition: Any) -> None:
        super().__init__()
        first, width = config.channels[0], 4 * config.channels[0]
        self.embedding = Embedding(width, condition)
        self.enter = nn.Conv2d(shape[0], first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, channels = [first], first
        for level, size in enumerate(config.channels):
            for _ in range(config.blocks):
                self.down.append(Block(channels, size, width, config.dropout))
                channels = size
                skips.append(channels)
            if level + 1 < len(config.channels):
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
        self.middle = nn.ModuleList([Block(channels, channels, width, config.dropout)])
        if config.attention:
            self.middle.append(Attention(channels))
        self.middle.append(Block(channels, channels, width, config.dropout))
        for level, size in reversed(list(enumerate(config.channels))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(channels + skips.pop(), size, width, config.dropout))
                channels = size
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)))
        last = nn.Conv2d(channels, config.outputs * shape[0], 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.leave = nn.Sequential(_norm(channels), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = F.silu(self.embedding(t, condition))
        hidden = self.enter(x)
        skips = [hidden]
        for layer in self.down:
            hidden = layer(hidden, embedding) if isinstance(layer, Block) else layer(hidden)
            skips.append(hidden)
        for layer in self.middle:
            hidden = layer(hidden, embedding)
        for layer in self.up:
            hidden = (
                layer(torch.cat([hidden, skips.pop()], 1), embedding) if isinstance(layer, Block) else layer(hidden)
            )
        return self.leave(hidden)


def unet(config: UNetConfig, spec: Spec) -> nn.Module:
    """The UNet. Raises ``UsageError`` when the image cannot be halved as often as there are resolutions below it."""
    shape = _image(spec)
    factor = 2 ** (len(config.channels) - 1)
    if shape[1] % factor or shape[2] % factor:
        raise UsageError(
            f"network.channels={config.channels} halves the image {len(config.channels) - 1} times, "
            f"but {shape[1]}x{shape[2]} is not divisible by {factor}; give fewer channels or another data.size"
        )
    return UNet(shape, config, spec.condition)


def _image(spec: Spec) -> tuple[int, ...]:
    if not isinstance(spec.state, Leaf) or len(spec.state.shape) != 3:
        raise UsageError(f"this network takes images (channels, height, width), not {spec.state}")
    return spec.state.shape


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)
