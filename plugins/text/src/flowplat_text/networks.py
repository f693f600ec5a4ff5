"""The network of a run, and its sizes."""

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_text.modeling_radd import Radd

SIZES = {
    "nano": (128, 4, 4),
    "tiny": (256, 6, 8),
    "base": (512, 8, 8),
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
}


class RaddOptions(BaseModel):
    """A size, or its numbers one by one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["nano", "tiny", "base", "small", "medium"] = Field(
        "nano", description="width, depth and heads: 128/4/4, 256/6/8, 512/8/8, 768/12/12, 1024/24/16"
    )
    width: int | None = Field(None, ge=8, description="features of a token; null as the size says")
    depth: int | None = Field(None, ge=1, description="blocks; null as the size says")
    heads: int | None = Field(None, ge=1, description="attention heads; null as the size says")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features left out in training")

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Width, depth, heads."""
        given = (self.width, self.depth, self.heads)
        return cast(
            tuple[int, int, int], tuple(own or usual for own, usual in zip(given, SIZES[self.size], strict=True))
        )

    @model_validator(mode="after")
    def _agree(self) -> "RaddOptions":
        width, _, heads = self.numbers
        if width % (2 * heads):
            raise ValueError(f"width={width} has to be an even multiple of heads={heads}")
        return self


class Timeless(Radd):
    """``Radd`` called as a network of the platform: t and the condition tell it nothing."""

    def forward(self, x: Tensor, t: Tensor | None = None, condition: Any = None) -> Tensor:
        """Logits (B, L, V) of tokens (B, L)."""
        return super().forward(x)


def radd(config: RaddOptions, spec: Spec) -> Timeless:
    """The time-free transformer of RADD for the tokens of a data set (arXiv 2406.03736)."""
    state = spec.state
    if not isinstance(state, Leaf) or state.kind != "token" or state.classes is None or len(state.shape) != 1:
        raise UsageError(f"network radd is for rows of tokens, not for {state}")
    size = state.classes + (state.mask is None)  # a mask past the others is one more
    return Timeless(size, *config.numbers, config.dropout)
