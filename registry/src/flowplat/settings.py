"""The settings of a run: what a config file may hold besides the options of the components it names."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowcore.prediction import Prediction
from flowcore.training.settings import EngineSettings, TrainSettings
from flowplat.chosen import Chosen


class Settings(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class SampleSettings(Settings):
    """How samples are drawn."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # sample.condition=3 names a class

    count: int = Field(100, ge=1, description="samples to draw")
    steps: int = Field(100, ge=1, description="solver steps")
    sampler: Chosen = Field(description="how a sample is drawn; flow integrates the field")
    solver: Chosen | None = Field(None, description="the solver")
    guidance: list[Chosen] = Field(default_factory=list, description="guidance, innermost first")
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="of the network while it is sampled")
    condition: str | None = Field(None, description="what to condition on, in the domain's words; null for a mix")
    batch_size: int = Field(
        256, ge=1, description="samples drawn at once; part of the seed, so it is the same on every machine"
    )


class EvalSettings(Settings):
    """What is measured after training."""

    count: int = Field(1000, ge=2, description="samples drawn for the metrics")
    steps: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [1, 4, 100], min_length=1, description="numbers of solver steps to compare"
    )
    metrics: list[Chosen] = Field(default_factory=list, description="the plugin's metrics")
    paths: int = Field(512, ge=2, description="paths followed for transport cost, straightness and first-order defect")


class PairSettings(Settings):
    """Pairs of noise and what the teacher's flow makes of it, which are trained on in place of the data."""

    count: int = Field(ge=1, description="pairs")
    steps: int = Field(50, ge=1, description="solver steps of the teacher")
    solver: Chosen = Field(description="the teacher's solver")
    rho: float | None = Field(
        None, gt=0, description="steps between EDM's noise levels, as rho of the sampler flow; null for equal steps"
    )
    guidance: list[Chosen] = Field(default_factory=list, description="the teacher's guidance")
    dtype: Literal["float16", "float32", "uint8"] = Field(
        "float16", description="how samples are kept; uint8 is for images in [-1, 1]"
    )
    seed: int = Field(0, ge=0, description="the source of their noise")
    batch_size: int = Field(512, ge=1, description="pairs made at once")
    held_out: int = Field(0, ge=0, description="pairs of these kept back for validation")
    inverted: int = Field(
        0, ge=0, description="pairs more, of so many training samples (or all) and their noise by the flow backwards"
    )
    augment: bool = Field(
        True, description="draw them in the guises that the data is drawn in, such as mirrored, noise and sample alike"
    )

    @model_validator(mode="after")
    def _agree(self) -> "PairSettings":
        if self.held_out >= self.count:
            raise ValueError(f"held_out={self.held_out} leaves none of count={self.count} to train on")
        return self


class TeacherSettings(Settings):
    """The trained model that the run learns from."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    model: str | None = Field(None, description="a run (folder, id, or last) or an exported model")
    preset: str | None = Field(
        None, description="the teacher by its preset: the run there is of it, or else one that is trained first"
    )
    config: dict[str, Any] = Field(default_factory=dict, description="settings laid over that preset")
    start: Literal["averaged", "raw"] | None = Field(
        None, description="begin with the teacher's weights, averaged or as they were trained; null to begin afresh"
    )
    pairs: PairSettings | None = Field(None, description="train on the teacher's pairs; null for the data itself")

    @model_validator(mode="after")
    def _agree(self) -> "TeacherSettings":
        if self.model is None and self.preset is None:
            raise ValueError("name the teacher by its model or by its preset")
        return self


class RunConfig(Settings):
    """One complete run."""

    plugin: str = Field(description="the plugin")
    preset: str | None = Field(None, description="the preset the config started from")
    seed: int = Field(0, ge=0, description="the source of every random draw")
    smoke: bool = Field(False, description="use the data set's tiny version")
    data: Chosen = Field(description="the data set")
    network: Chosen = Field(description="the network")
    objective: Chosen = Field(description="what is minimised; matching regresses a field on a path")
    path: Chosen | None = Field(None, description="the probability path")
    coupling: Chosen | None = Field(None, description="how source and data are paired")
    times: Chosen | None = Field(None, description="the distribution of training times")
    loss: Chosen | None = Field(None, description="the loss metric")
    predicts: Prediction | None = Field(None, description="what the network's output means")
    sigma_data: float | None = Field(None, gt=0, description="the data's standard deviation, for predicts=edm: 0.5")
    teacher: TeacherSettings | None = Field(None, description="the trained model that the run learns from")
    train: TrainSettings = Field(default_factory=TrainSettings)
    sample: SampleSettings
    eval: EvalSettings
    engine: EngineSettings = Field(default_factory=EngineSettings)
    observers: list[str] = Field(
        default_factory=list, description="plugins that watch the run, such as a logger; tensorboard is built in"
    )


CHOICES = {
    "data": "data",
    "network": "network",
    "objective": "objective",
    "path": "path",
    "coupling": "coupling",
    "times": "times",
    "loss": "loss",
    "sample.sampler": "sampler",
    "sample.solver": "solver",
    "sample.guidance": "guidance",
    "eval.metrics": "metric",
    "teacher.pairs.solver": "solver",
    "teacher.pairs.guidance": "guidance",
}
"""Where a config names components, and of which kind."""

LISTS = {"sample.guidance", "eval.metrics", "teacher.pairs.guidance"}
"""Those of ``CHOICES`` that are lists."""

USED = {
    "path": "path",
    "coupling": "coupling",
    "times": "times",
    "loss": "loss",
    "predicts": "predicts",
    "sample.solver": "solver",
    "sample.guidance": "guidance",
}
"""Settings that are there where the objective or the sampler is registered to use them, under the name given here."""

FREE = (
    "preset", "teacher.model", "engine", "sample", "eval", "observers", "train.log_every", "train.checkpoint_every",
    "train.keep", "train.keep_best", "train.validate_every", "train.validate_samples", "train.patience",
)  # fmt: skip
"""Keys that may change when a run goes on; all others decide what is trained."""

OBSERVERS = {"tensorboard": "flowplat.tensorboard"}
"""Observers that no plugin has to bring, and their modules."""

DEFAULTS = {
    "objective": "matching",
    "path": "linear",
    "coupling": "independent",
    "times": "uniform",
    "loss": "l2",
    "predicts": "velocity",
    "sample": {"sampler": "flow", "solver": "euler", "guidance": []},
    "eval": {},
}
"""The components a config need not name."""

SMOKE = {
    "smoke": True,
    "train": {"steps": 30, "batch_size": 32, "log_every": 5, "checkpoint_every": 15, "warmup": 0},
    "sample": {"count": 16, "steps": 4},
    "eval": {"count": 64, "steps": [1, 4], "paths": 16},
}
"""What ``--smoke`` sets: every part of a run, at a size that ends in seconds."""

SMOKE_PAIRS = {"count": 64, "steps": 4, "batch_size": 32, "held_out": 16}
"""What ``--smoke`` sets where a run learns pairs."""
