"""Windows of series: cut, lagged, masked, scaled. What a model is trained on, and what it is told when it forecasts.

A window is a tensor (1 + K, L), L = context + horizon: channel 0 is the series, channel k the series l_k steps before.
What is missing, or lies before the beginning or after the end, is 0 where its mask is 0. (Kollovieh et al. 2023,
arXiv 2307.11494.)
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowcore.data import Batch
from flowplat_timeseries import conditional
from flowplat_timeseries.calendar import offset_name

FLOOR = 0.1  # of a series' mean size, below which no context is scaled up
STILL = 0.01  # of a context's mean size: the least spread, so that a peg that ends is no catastrophe
CLIP = 10.0  # in units of a context's mean size: what is larger would be all that a network learns

Scaling = Literal["mean", "standard"]
Lags = Literal["none", "tsdiff", "gluonts"] | list[Annotated[int, Field(ge=1)]]


def lags_of(freq: str, wanted: Lags) -> list[int]:
    """The lags that ``wanted`` names at a frequency: none, those of TSDiff, or GluonTS's seasonal ones.

    TSDiff has 24 {1, 2, 3, 4, 5, 6, 7, 14, 21, 28} for hours and 30 {1 .. 12} for days; others take GluonTS's.
    """
    if not isinstance(wanted, str):
        return sorted(set(wanted))
    if wanted == "none":
        return []
    if wanted == "tsdiff":
        if freq == "h":
            return [24 * days for days in (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)]
        if freq in ("D", "B"):
            return [30 * months for months in range(1, 13)]
    from gluonts.time_feature import get_lags_for_frequency

    return [int(lag) for lag in get_lags_for_frequency(offset_name(freq), num_default_lags=0)]


class Scaled(NamedTuple):
    """Windows x (B, 1 + K, L) = (value - loc) / scale, loc and scale (B,), and the mask (B, 1 + K, L), 1.0 where there
    is a value."""

    x: Tensor
    mask: Tensor
    scale: Tensor
    loc: Tensor

    def back(self, x: Tensor) -> Tensor:
        """Scaled values (B, ...) in the units of their series, in float64."""
        shape = (-1, *(1,) * (x.ndim - 1))
        return x.double() * self.scale.double().reshape(shape) + self.loc.double().reshape(shape)

    def guess(self, ahead: np.ndarray) -> Tensor:
        """Forecasts (B, S, P) in the units of their series as the ends of scaled windows (B, S, L), zeros before."""
        out = torch.zeros(*ahead.shape[:2], self.x.shape[2])
        scaled = (torch.from_numpy(ahead) - self.loc[:, None, None]) / self.scale[:, None, None]
        out[:, :, -ahead.shape[2] :] = scaled.float()
        return out


def channels(long: Tensor, lags: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, M + L), M the largest lag, NaN where nothing is known: the channels (B, 1 + K, L) and their mask.

    Channel k at step i is the series at i - l_k, and is known exactly where that is.
    """
    reach = max(lags, default=0)
    length = long.shape[1] - reach
    x = torch.stack([long[:, reach - lag : reach - lag + length] for lag in (0, *lags)], 1)
    mask = torch.isfinite(x)
    return x.masked_fill(~mask, 0.0), mask.to(long.dtype)


def scaled(long: Tensor, context: int, lags: Sequence[int], level: Tensor, scaling: Scaling = "mean") -> Scaled:
    """The channels of ``long`` (B, M + L) in units of what is known of their contexts.

        mean       loc = 0, scale = max(mean |x_i| over known i < context, FLOOR level),   1 where both are 0
        standard   loc = mean x_i, scale = max(std x_i, STILL times the scale of "mean")

    ``level`` (B,) is the mean size of the whole series: a context of zeros, or nearly so, must not make a giant of what
    follows. A context of which nothing is known takes the level. Scaled values are cut at +-CLIP.
    """
    long = long.double()  # large levels with small moves lose nothing before they are divided
    x, mask = channels(long, lags)
    known = mask[:, 0, :context]
    count = known.sum(1)
    seen = x[:, 0, :context]
    size = seen.abs().sum(1) / count.clamp(min=1)
    level = level.to(size)
    scale = torch.where(count > 0, torch.maximum(size, FLOOR * level), level)
    scale = scale.masked_fill(scale <= 0, 1.0)
    loc = torch.zeros_like(scale)
    if scaling == "standard":
        loc = seen.sum(1) / count.clamp(min=1)
        spread = (((seen - loc[:, None]) * known).square().sum(1) / count.clamp(min=1)).sqrt()
        scale = torch.where(count > 0, torch.maximum(spread, STILL * scale), scale)
    x = ((x - loc[:, None, None]) / scale[:, None, None]).clamp(-CLIP, CLIP) * mask
    return Scaled(x.float(), mask.float(), scale, loc)


def cut(values: np.ndarray, stop: int, length: int) -> np.ndarray:
    """The ``length`` steps before ``stop``, NaN before the beginning of the series and after its end."""
    window = np.full(length, np.nan)
    start = stop - length
    low, high = max(start, 0), min(stop, len(values))
    if high > low:
        window[low - start : high - start] = values[low:high]
    return window


def level_of(values: np.ndarray) -> float:
    """The mean size of what is known of a series; 0 where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.abs(known).mean()) if len(known) else 0.0


class Windows:
    """A source of windows: row i is series i, and where its window begins is drawn. Satisfies ``flowcore.data.Source``.

    A window lies within its series, with the largest lag before it where the series is long enough for that; a series
    shorter than a window is one window, filled up before its beginning with what is missing. ``last`` takes the last
    window of every series instead of drawing. ``mask`` is that of ``channels``; ``extra`` has ``scale`` and ``loc``,
    the number of the series as ``item``, and ``start``, where in it the window begins, all (B,). With a ``law`` the
    windows are posed as a conditional model takes them: see ``conditional.posed``.
    """

    def __init__(
        self,
        values: Sequence[np.ndarray],
        context: int,
        horizon: int,
        lags: Sequence[int] = (),
        last: bool = False,
        levels: Sequence[float] | None = None,
        scaling: Scaling = "mean",
        law: conditional.Law | None = None,
    ) -> None:
        self.values, self.scaling, self.law = values, scaling, law
        self.context, self.horizon, self.lags, self.last = context, horizon, list(lags), last
        self.levels = [level_of(one) for one in values] if levels is None else list(levels)
        self.whole = all(len(one) >= context + horizon and np.isfinite(one).all() for one in values)

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def _held(self) -> "_Held":
        return _Held.of(self.values, self.levels)

    @property
    def nbytes(self) -> int:
        """See ``flowcore.data.Resident``."""
        return 8 * sum(len(one) for one in self.values)

    def to(self, device: torch.device) -> "Windows":
        """See ``flowcore.data.Resident``: windows are cut where the series are held."""
        moved = copy(self)
        moved.__dict__["_held"] = _Held(*(one.to(device) for one in self._held))
        return moved

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``Source.batch``."""
        held, length, reach = self._held, self.context + self.horizon, max(self.lags, default=0)
        place = torch.rand(len(rows), dtype=torch.float64, generator=generator, device=generator.device)
        rows, place = (one.to(held.flat.device, non_blocking=True) for one in (rows, place))
        n = held.lengths[rows]
        first = n.clamp(max=length).masked_fill(n >= length + reach + self.horizon, length + reach)
        stop = n if self.last else first + (place * (n - first + 1)).long()
        step = (stop - reach - length)[:, None] + torch.arange(reach + length, device=n.device)
        inside = (step >= 0) & (step < n[:, None])
        at = held.starts[rows][:, None] + step
        long = held.flat[at.clamp(0, len(held.flat) - 1)].masked_fill(~inside, torch.nan)
        made = scaled(long, self.context, self.lags, held.levels[rows], self.scaling)
        extra = {"scale": made.scale.float(), "loc": made.loc.float(), "item": rows.clone(), "start": stop - length}
        if self.law is None:
            return Batch(made.x, mask=made.mask, extra=extra)
        return replace(conditional.posed(made.x, made.mask, self.lags, self.law, generator, self.whole), extra=extra)


class _Held(NamedTuple):
    """Series end to end (sum n,), and of each where it starts, its length and its level."""

    flat: Tensor
    starts: Tensor
    lengths: Tensor
    levels: Tensor

    @classmethod
    def of(cls, values: Sequence[np.ndarray], levels: Sequence[float]) -> "_Held":
        lengths = torch.tensor([len(one) for one in values])
        flat = torch.from_numpy(np.concatenate(values).astype(np.float64))
        return cls(flat, lengths.cumsum(0) - lengths, lengths, torch.tensor(levels, dtype=torch.float64))


def observed(
    values: np.ndarray, context: int, horizon: int, lags: Sequence[int], ahead: bool = True
) -> tuple[np.ndarray, float]:
    """What is known at the end of a series, for ``scaled``: the last (M + context) steps and ``horizon`` steps of
    nothing; or, without ``ahead``, the last M + context + horizon steps as they are. With the level of the series."""
    reach = max(lags, default=0)
    stop = len(values) + (horizon if ahead else 0)
    return cut(values, stop, reach + context + horizon), level_of(values)


def ends(
    values: Sequence[np.ndarray], context: int, horizon: int, lags: Sequence[int], scaling: Scaling, ahead: bool = True
) -> Scaled:
    """The last windows of some series, ``scaled``; see ``observed``."""
    cuts = [observed(one, context, horizon, lags, ahead) for one in values]
    long = torch.from_numpy(np.stack([long for long, _ in cuts]))
    level = torch.tensor([level for _, level in cuts], dtype=torch.float64)
    return scaled(long, context, lags, level, scaling)


Pattern = Literal["none", "random", "start", "end"]
"""What of a context is hidden: nothing, half of it at random, its first half or its last half. In the words of the
paper: RM, BM-B and BM-E."""


def hidden(context: int, pattern: Pattern, generator: torch.Generator) -> np.ndarray:
    """The places of a context that are hidden, as a mask (context,): half of them, rounded down."""
    gone = np.zeros(context, bool)
    half = context // 2
    if pattern == "random":
        gone[torch.randperm(context, generator=generator)[:half].numpy()] = True
    elif pattern == "start":
        gone[:half] = True
    elif pattern == "end":
        gone[context - half :] = True
    return gone
