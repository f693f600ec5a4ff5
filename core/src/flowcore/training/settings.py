"""The settings of a training run, under ``train`` in a config, and of where it computes, under ``engine``."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainSettings(Settings):
    """Optimisation by AdamW with a warm-up, gradient clipping and an exponential moving average of the weights."""

    steps: int = Field(5000, ge=0, description="optimiser steps; 0 keeps a network that was read from a folder")
    batch_size: int = Field(256, ge=1, description="samples a step, over all processes together")
    accumulate: int = Field(1, ge=1, description="parts a batch is cut into so that it fits the memory")
    lr: float = Field(1e-3, gt=0, description="learning rate after the warm-up")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="learning rate after the warm-up; cosine and linear fall to zero at the last step"
    )
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises from zero")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    clip: float | None = Field(1.0, gt=0, description="largest gradient; null for none")
    clip_by: Literal["norm", "value"] = Field("norm", description="clip the norm of all gradients, or each entry")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are the ones sampled")
    drop_condition: float = Field(0.0, ge=0, le=1, description="share of conditions replaced by the null condition")
    log_every: int = Field(50, ge=1, description="steps between rows of metrics.jsonl")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints; the last step is always kept")
    keep: int | None = Field(3, ge=2, description="newest checkpoints kept, null for all; two, so one may be damaged")
    keep_best: int = Field(1, ge=0, description="checkpoints of the lowest validation loss kept besides")
    validate_every: int | None = Field(None, ge=1, description="steps between validations; null for none")
    validate_samples: int = Field(4096, ge=1, description="held-out samples a validation takes at most")
    patience: int | None = Field(
        None, ge=1, description="validations without improvement that end training; the best is then the model"
    )

    @model_validator(mode="after")
    def _agree(self) -> "TrainSettings":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations: set validate_every too")
        return self


class EngineSettings(Settings):
    """Where a run computes. Under torchrun or srun the processes are those that were started."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto takes cuda where there is one")
    devices: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=0)]] | Literal["auto"] = Field(
        1, description="processes on this machine, one a device: a number, the numbers of the GPUs, or auto for all"
    )
    num_nodes: int = Field(1, ge=1, description="machines; each starts the same command")
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = Field(
        "auto", description="ddp copies the network to every process, fsdp shards it"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="of training")
    compile: bool = Field(False, description="compile the network by torch.compile, for training, sampling and pairs")
    resident: bool | None = Field(
        None, description="keep the training data on the device; null where it fits in a quarter of the free memory"
    )
    workers: int = Field(0, ge=0, description="processes that make batches ahead; they change no result")
    threads: int | None = Field(None, ge=1, description="CPU threads; null for torch's own choice")
    timeout: int = Field(1800, ge=1, description="seconds the processes of a run wait for each other")

    @model_validator(mode="after")
    def _agree(self) -> "EngineSettings":
        if self.devices == []:
            raise ValueError("devices names no device")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError("fsdp takes precision 32-true or bf16-mixed")
        return self
