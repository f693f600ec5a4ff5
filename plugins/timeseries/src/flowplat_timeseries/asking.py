"""What a model says of series: the windows it is told, and its samples in their units."""

import sys
from collections.abc import Sequence
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Trained
from flowcore.seeds import generator
from flowplat_timeseries import forecasting, guidance
from flowplat_timeseries.data import SeriesSet
from flowplat_timeseries.windows import Pattern, Scaled, ends, hidden

ROWS = 1024  # windows times samples that are asked for at once


class Asked(BaseModel):
    """How a model is asked: see ``flowplat_timeseries.forecasting.forecast``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = 100
    steps: int = 32
    likelihood: guidance.Likelihood = "quantile"
    scale: float = 4.0
    weight: guidance.Weight = "tsflow"
    prior_steps: int = 0


Samples = Annotated[int, Field(ge=1, description="draws for each series")]
Steps = Annotated[int, Field(ge=1, description="steps from noise to a series")]
Likelihood = Annotated[
    guidance.Likelihood,
    Field(description="what misses of the known values cost: each draw by its quantile; or squared"),
]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False, description="strength of guidance by what is known")]
Weight = Annotated[guidance.Weight, Field(description="how guidance is weighed over time")]
PriorSteps = Annotated[
    int, Field(ge=0, description="steps that move the noise towards what is known before it flows; TSFlow takes 4")
]
Seed = Annotated[int, Field(ge=0, description="the source of every draw")]


def told(data: SeriesSet, values: Sequence[np.ndarray], ahead: bool = True) -> Scaled:
    """The last windows of some series as a model takes them: with ``ahead`` the context before a horizon of which
    nothing is known; without, a whole window, gaps and all."""
    config = data.config
    return ends(values, config.context, config.horizon, data.lags, config.scaling, ahead)


def draw(trained: Trained, windows: Scaled, asked: Asked, draws: torch.Generator) -> Tensor:
    """Samples (B, S, L) of whole windows in the units of their series, in float64, row j of S near quantile j."""
    x = forecasting.forecast(
        trained.parts(), trained.network, windows.x.to(trained.device), windows.mask.to(trained.device),
        asked.samples, asked.steps, likelihood=asked.likelihood, scale=asked.scale, weight=asked.weight,
        prior_steps=asked.prior_steps,
        generator=draws,
    )  # fmt: skip
    return windows.back(x.cpu())


def windowed(
    trained: Trained, values: Sequence[np.ndarray], asked: Asked, seed: int, ahead: bool = True, name: str = "forecast"
) -> np.ndarray:
    """``draw`` for the last window of each series, chunk by chunk with a bar: (n, S, L) in their units."""
    data = cast(SeriesSet, trained.data)
    trained.network.eval()
    many = max(1, max(ROWS, forecasting.ROWS.get(trained.device.type, 0)) // asked.samples)
    parts = []
    for start in tqdm(range(0, len(values), many), name, disable=not sys.stderr.isatty(), delay=2, leave=False):
        windows = told(data, values[start : start + many], ahead)
        draws = generator(seed, "draw", start, device=trained.device)
        parts.append(draw(trained, windows, asked, draws).numpy())
    return np.concatenate(parts)


def of_everything(data: SeriesSet, what: str) -> None:
    """Raises ``UsageError`` for a model that forecasts and nothing else."""
    if data.config.conditional is not None:
        raise UsageError(
            f"{what} needs a model of whole windows, and this one is conditional: train with data.conditional=null"
        )


def permuted(samples: np.ndarray, seed: int) -> np.ndarray:
    """Samples (n, S, L) with the rows of each series in an order of their own: quantile guidance has them sorted."""
    rng = np.random.default_rng(seed)
    return np.stack([one[rng.permutation(len(one))] for one in samples])


def gapped(values: np.ndarray, context: int, pattern: Pattern, draws: torch.Generator) -> np.ndarray:
    """A history with half of its last ``context`` steps hidden; see ``windows.hidden``."""
    gone, out = hidden(context, pattern, draws), values.copy()
    end = out[-context:]
    if len(end):
        end[gone[-len(end) :]] = np.nan
    return out
