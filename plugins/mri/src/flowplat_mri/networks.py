"""The network of slices and blocks: MONAI's UNet, told a view of the same anatomy."""

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_mri import trust


class UNetConfig(BaseModel):
    """Options of the UNet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: list[Annotated[int, Field(ge=8)]] = Field(
        default_factory=lambda: [32, 32, 64],
        min_length=1,
        description="channels at each resolution, each half the last",
    )
    blocks: int = Field(1, ge=1, description="residual blocks at each resolution")
    attention: int = Field(0, ge=0, description="of the lowest resolutions, how many attend; the middle always does")
    patch: int = Field(2, ge=1, le=8, description="edge of the patches of pixels that are one place to the network")
    residual: bool = Field(
        True, description="what is returned is added to the view of the slice: for predicts=x1, where there is a view"
    )


class UNet(nn.Module):
    """(B, 1, ...) with a condition (B, C, ...) -> (B, 1, ...), in two or three dimensions of any size.

    Pixels are taken together in patches, which become channels, of ``monai.networks.nets.DiffusionModelUNet`` (after Ho
    et al. 2020, arXiv 2006.11239). ``known`` is what ``trust`` gathers while it trains.
    """

    def __init__(self, dimensions: int, told: int, view: int | None, config: UNetConfig) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        levels, cells = len(config.channels), config.patch**dimensions
        self.patch, self.dimensions = config.patch, dimensions
        self.view = view if config.residual else None
        self.multiple = config.patch * 2 ** (levels - 1)
        self.known: Tensor
        self.register_buffer("known", trust.empty())
        self.net = DiffusionModelUNet(
            spatial_dims=dimensions,
            in_channels=(1 + told) * cells,
            out_channels=cells,
            channels=tuple(config.channels),
            attention_levels=tuple(level >= levels - config.attention for level in range(levels)),
            num_res_blocks=config.blocks,
            num_head_channels=config.channels[-1],
            norm_num_groups=math.gcd(*config.channels, 8),
        )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        whole = x if condition is None else torch.cat([x, condition.to(x.dtype)], 1)
        size = x.shape[2:]
        short = [-n % self.multiple for n in size]
        if any(short):
            whole = nn.functional.pad(whole, [side for n in reversed(short) for side in (0, n)])
        out = self._apart(self.net(self._together(whole), 1000 * t.to(x.dtype)))
        out = out[(..., *(slice(0, n) for n in size))]
        if self.view is not None and condition is not None:
            out = out + condition[:, self.view : self.view + 1]
        return out

    def _together(self, x: Tensor) -> Tensor:
        """Patches of pixels as channels: (B, C, p h, ...) -> (B, C p^d, h, ...)."""
        p, d = self.patch, self.dimensions
        if p == 1:
            return x
        split = x.reshape(*x.shape[:2], *(side for n in x.shape[2:] for side in (n // p, p)))
        order = (0, 1, *range(3, 2 + 2 * d, 2), *range(2, 2 + 2 * d, 2))
        return split.permute(order).reshape(len(x), -1, *(n // p for n in x.shape[2:]))

    def _apart(self, x: Tensor) -> Tensor:
        """The way back from ``_together``, to one channel."""
        p, d = self.patch, self.dimensions
        if p == 1:
            return x
        split = x.reshape(len(x), 1, *(p,) * d, *x.shape[2:])
        order = (0, 1, *(place for k in range(d) for place in (2 + d + k, 2 + k)))
        return split.permute(order).reshape(len(x), 1, *(n * p for n in x.shape[2:]))


def unet(config: UNetConfig, spec: Spec) -> nn.Module:
    """The UNet for slices or blocks. Raises ``UsageError`` for other data."""
    if not isinstance(spec.state, Leaf) or len(spec.state.shape) not in (3, 4) or spec.state.shape[0] != 1:
        raise UsageError(f"this network takes slices (1, H, W) or blocks (1, D, H, W), not {spec.state}")
    told = spec.condition.shape[0] if isinstance(spec.condition, Leaf) else 0
    return UNet(len(spec.state.shape) - 1, told, getattr(spec, "view", None), config)
