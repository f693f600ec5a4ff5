"""The settings of a training run, under ``train`` in a config."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainSettings(BaseModel):
    """Optimisation by AdamW with a warm-up, gradient clipping and an exponential moving average of the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(5000, ge=1, description="optimiser steps")
    batch_size: int = Field(256, ge=1, description="samples a step")
    lr: float = Field(1e-3, gt=0, description="learning rate after the warm-up")
    schedule: Literal["constant", "cosine"] = Field("constant", description="learning rate after the warm-up")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from zero")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are the ones sampled")
    drop_condition: float = Field(0.0, ge=0, le=1, description="share of conditions replaced by the null condition")
    log_every: int = Field(50, ge=1, description="steps between rows of metrics.jsonl")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints; the last step is always kept")
