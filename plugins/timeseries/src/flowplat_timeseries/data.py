"""What every data set of series shares, and two of them: built-in series and a user's files."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from flowcore import files
from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowplat_timeseries import builtin, calendar, conditional, drawing, reading
from flowplat_timeseries.priors import Kernel
from flowplat_timeseries.reading import Columns, Series
from flowplat_timeseries.spec import SeriesSpec, spec_of
from flowplat_timeseries.windows import Lags, Scaling, Windows, lags_of, level_of

TINY, SHOWN = 8, 12


def _absolute(value: list[str] | str) -> list[str]:
    """Paths that mean the same from every working directory, so that a run's config.yaml does too."""
    given = [value] if isinstance(value, str) else value
    return [str(Path(one).expanduser().absolute()) for one in given]


def _freq(text: str | None) -> str | None:
    try:
        return None if text is None else calendar.frequency(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


Freq = Annotated[str | None, AfterValidator(_freq)]


class SeriesConfig(BaseModel):
    """What every data set of series can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int = Field(96, ge=1, description="steps of a window that a forecast is told")
    horizon: int = Field(24, ge=1, description="steps of a window that are forecast")
    lags: Lags = Field(
        "none", description="earlier values beside each: none, tsdiff, gluonts, or steps back such as [24, 168]"
    )
    scaling: Scaling = Field(
        "mean",
        description="what a window is divided by: the mean size of its context; or standard, its mean and spread",
    )
    season: int | None = Field(None, ge=1, description="steps in a season; null for what is usual at the frequency")
    conditional: Kernel | None = Field(
        None, description="null for one model of everything; or the process that a model of forecasts alone starts from"
    )
    rolling: int = Field(1, ge=1, description="windows at the end of each series that are held out, one horizon apart")


class BuiltinConfig(SeriesConfig):
    """Series that need no download."""

    series: Literal["hourly", "co2", "elnino", "sunspots"] = Field(
        "hourly", description="64 drawn ones, hourly, of four kinds; or a real one: weekly, monthly, yearly"
    )


class FilesConfig(SeriesConfig):
    """A user's files."""

    path: Annotated[list[str] | str, AfterValidator(_absolute)] = Field(
        description="files or folders of .csv, .parquet, .jsonl, .arrow: long, wide, or as GluonTS writes them"
    )
    freq: Freq = Field(None, description="h, D, B, W, M, 15min ...; null finds it out from the timestamps")
    time: str = Field("", description="the column of the times; empty for timestamp, date, ds ...")
    item: str = Field("", description="the column that says whose row it is; empty for item_id, unique_id ...")
    target: str = Field("", description="the column of the values; empty for target, value, y")


class SeriesSet:
    """What the data sets share; each says only where its series are. Satisfies ``flowcore.plugin.contracts.Portable``.

    The last ``rolling`` horizons of each series are held out. Series that are all missing, or too short to leave a
    known value to train on, are left out: ``skipped`` says which.
    """

    def __init__(self, config: Any, facts: Any = None) -> None:
        self.config = config
        self._facts = facts

    @abstractmethod
    def read(self) -> list[Series]:
        """Every series."""

    @cached_property
    def _usable(self) -> tuple[list[Series], dict[str, str]]:
        kept, skipped = reading.usable(self.read())
        back = self.config.horizon * self.config.rolling
        long = [one for one in kept if one.until(max(0, len(one.values) - back)).known]
        skipped |= {one.name: f"nothing is known of it before its last {back} steps" for one in kept if one not in long}
        if not long:
            raise InputError(
                f"no series is long enough: data.horizon={self.config.horizon} and data.rolling={self.config.rolling}"
                f" hold {back} steps out, and the longest series has {max(len(one.values) for one in kept)} values"
            )
        return long, skipped

    @property
    def series(self) -> list[Series]:
        """The series that are used, whole."""
        return self._usable[0]

    @property
    def skipped(self) -> dict[str, str]:
        """The series that are left out, and why."""
        return self._usable[1]

    @cached_property
    def trained_on(self) -> list[Series]:
        """The series without what is held out."""
        back = self.config.horizon * self.config.rolling
        return [one.until(len(one.values) - back) for one in self.series]

    @cached_property
    def tests(self) -> list[Series]:
        """Series whose last ``horizon`` steps are to be forecast from those before: one for each held-out window."""
        horizon, rolling = self.config.horizon, self.config.rolling
        backs = [horizon * window for window in reversed(range(rolling))]
        return [one.until(len(one.values) - back) for back in backs for one in self.series]

    @property
    def freq(self) -> str:
        """The frequency of all series."""
        return str(self._facts["freq"]) if self._facts else self._own_freq()

    def _own_freq(self) -> str:
        return str(self.series[0].start.freqstr)

    @property
    def season(self) -> int:
        """Steps in a season."""
        if self._facts:
            return int(self._facts["season"])
        return self.config.season or calendar.season_of(self.freq)

    @cached_property
    def lags(self) -> list[int]:
        """How many steps back each further channel is."""
        return list(self._facts["lags"]) if self._facts else lags_of(self.freq, self.config.lags)

    def facts(self) -> dict[str, Any]:
        """See ``Portable.facts``."""
        return {"freq": self.freq, "season": self.season, "lags": self.lags}

    def spec(self) -> SeriesSpec:
        """See ``Data.spec``."""
        config = self.config
        return spec_of(config.context, config.horizon, tuple(self.lags), self.season, self.freq, config.conditional)

    def _law(self) -> conditional.Law | None:
        return None if self.config.conditional is None else conditional.law_of(self.spec())

    def train(self) -> Windows:
        """See ``Data.train``; where a window begins is drawn."""
        config, values = self.config, [one.values for one in self.trained_on]
        return Windows(values, config.context, config.horizon, self.lags, scaling=config.scaling, law=self._law())

    def val(self) -> Windows:
        """See ``Data.val``: the last window before each held-out end, that end its horizon."""
        config, horizon = self.config, self.config.horizon
        levels = [level_of(one.values[:-horizon]) for one in self.tests]
        values = [one.values for one in self.tests]
        return Windows(values, config.context, horizon, self.lags, True, levels, config.scaling, self._law())

    def tiny(self) -> "SeriesSet":
        """The first few series, the end of each."""
        config = self.config
        enough = 4 * (config.context + config.horizon) + max(self.lags, default=0) + config.horizon * config.rolling
        few = []
        for one in _spread(self.series, TINY):
            skip = max(0, len(one.values) - enough)
            few.append(Series(one.name, calendar.later(one.start, skip), one.values[skip:]))
        try:
            _ = (given := Given(config, few)).series
        except InputError:  # of gaps as long as that
            given = Given(config, self.series)
        return given

    def fingerprint(self) -> str:
        """sha256 of names, beginnings and values, and of what is held out."""
        digest = hashlib.sha256(f"{self.config.horizon} {self.config.rolling}".encode())
        for one in (*self.trained_on, *self.tests):
            digest.update(f"{one.name} {one.start} {one.start.freqstr}\n".encode())
            digest.update(np.ascontiguousarray(one.values, "<f8").tobytes())
        return digest.hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor | None:
        """What a conditional model is told of held-out windows, in turn; else None: what is known of a series is said
        to the tasks."""
        if wanted is not None:
            raise UsageError(
                "this model takes no condition in words; `platform apply timeseries forecast` goes on from a series"
            )
        if self.config.conditional is None:
            return None
        source = self.val()
        told: Tensor = source.batch(torch.arange(count) % len(source), torch.Generator()).condition
        return told

    @property
    def draw_source(self) -> Callable[[int, torch.Generator], Tensor]:
        """Refuses to draw for a conditional model, whose source follows from what it is told; else there is none."""
        if self.config.conditional is None:
            raise AttributeError("noise is the source")

        def refuse(count: int, generator: torch.Generator) -> Tensor:
            raise UsageError("a conditional model starts from what it is told: set sample.sampler=conditional")

        return refuse

    def write(self, samples: Batch, folder: Path) -> None:
        """``samples.npz`` with ``x`` (n, 1 + K, L), and ``samples.csv``: sample, step, value of the series itself; all
        in units of the mean size of a context."""
        import io

        x = samples.x1.cpu().numpy().astype(np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=x)
        files.write(folder / "samples.npz", buffer.getvalue())
        lines = ["sample,step,value\n"]
        lines += [f"{i},{j},{value:.7g}\n" for i, row in enumerate(x[:, 0].tolist()) for j, value in enumerate(row)]
        files.write(folder / "samples.csv", "".join(lines))

    def read_back(self, folder: Path) -> Batch:
        """See ``Checkable.read_back``: ``x`` of samples.npz."""
        with np.load(folder / "samples.npz", allow_pickle=False) as held:
            return Batch(torch.from_numpy(held["x"].astype(np.float32)))

    def show(self, samples: Batch) -> bytes:
        """A dozen windows."""
        return drawing.windows(samples.x1[:SHOWN, 0].cpu().numpy(), self.config.context)


def _spread(series: Sequence[Series], count: int) -> list[Series]:
    """Some of the series, from the first to the last."""
    chosen = np.unique(np.linspace(0, len(series) - 1, min(count, len(series))).round().astype(int))
    return [series[int(number)] for number in chosen]


class Given(SeriesSet):
    """Series that are in memory already."""

    def __init__(self, config: Any, series: Sequence[Series], tests: Sequence[Series] | None = None) -> None:
        super().__init__(config)
        self._given = list(series)
        if tests is not None:
            self.trained_on, self.tests = list(series), list(tests)

    def read(self) -> list[Series]:
        """What was given."""
        return self._given


class Builtin(SeriesSet):
    """See ``builtin``."""

    config: BuiltinConfig

    def read(self) -> list[Series]:
        """The series that were chosen."""
        return builtin.SERIES[self.config.series]()

    def _own_freq(self) -> str:
        return builtin.FREQUENCIES[self.config.series]


class Files(SeriesSet):
    """Tables and lines of a user's; see ``reading``."""

    config: FilesConfig

    @staticmethod
    def example(folder: Path) -> Mapping[str, Any]:
        """See ``Checkable.example``: four built-in series as one long table, gaps left out."""
        rows = ["item_id,timestamp,target\n"]
        for one in builtin.hourly()[7::16]:
            known = np.isfinite(one.values)
            rows += [
                f"{one.name},{time},{value:.6g}\n"
                for time, value in zip(one.times[known], one.values[known], strict=True)
            ]
        (folder / "series.csv").write_text("".join(rows), encoding="utf-8")
        return {"path": str(folder / "series.csv"), "context": 48, "horizon": 12}

    def read(self) -> list[Series]:
        """Every series of the files."""
        config = self.config
        return reading.brought(config.path, config.freq, Columns(config.time, config.item, config.target))
