"""Series as a user brings them: tables long and wide, JSON lines, Arrow files, pandas frames, GluonTS data sets."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowcore.errors import InputError, MissingPackageError
from flowplat_timeseries import calendar

TIMES = ("timestamp", "date", "datetime", "time", "ds")
ITEMS = ("item_id", "id", "unique_id", "series")
TARGETS = ("target", "value", "y")
SUFFIXES = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".arrow", ".feather")


@dataclass(frozen=True)
class Series:
    """One series: what it is called, the period it begins in, and its values in float64, NaN where one is missing."""

    name: str
    start: pd.Period
    values: np.ndarray

    def until(self, stop: int) -> "Series":
        """Its first ``stop`` steps."""
        return replace(self, values=self.values[:stop])

    @property
    def known(self) -> int:
        """How many values are not missing."""
        return int(np.isfinite(self.values).sum())

    @property
    def times(self) -> pd.DatetimeIndex:
        """The beginning of each step."""
        return calendar.stamps(self.start, len(self.values))


@dataclass(frozen=True)
class Columns:
    """The names a user gives the columns of a table; empty ones are looked for among the usual."""

    time: str = ""
    item: str = ""
    target: str = ""


def brought(inputs: Sequence[Any], freq: str | None, columns: Columns = Columns()) -> list[Series]:
    """All series of paths, frames, GluonTS data sets and ``Series``, in the order they come in.

    ``freq`` None has the frequency of each file found out. Raises ``InputError`` naming what is wrong, and where.
    """
    found: list[Series] = []
    for one in inputs:
        if isinstance(one, str | PathLike):
            found += of_path(Path(one), freq, columns)
        elif isinstance(one, pd.DataFrame | pd.Series):
            frame = one.to_frame("target") if isinstance(one, pd.Series) else one
            found += of_frame(frame, freq, "the frame", columns)
        elif isinstance(one, Series):
            found.append(one)
        elif isinstance(one, Iterable):
            found += of_entries(one, freq, "the data set")
        else:
            raise InputError(f"{type(one).__name__} is no series; give a path, a pandas frame or a GluonTS data set")
    if not found:
        raise InputError("there are no series: name a file with some")
    if len(names := {one.start.freqstr for one in found}) > 1:
        raise InputError(f"the series are of several frequencies, {', '.join(sorted(names))}; bring one at a time")
    return found


def of_path(path: Path, freq: str | None, columns: Columns = Columns()) -> list[Series]:
    """The series in a file, or in all files of a folder. Raises ``InputError``."""
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.name.lower().endswith(SUFFIXES) and one.name[0] not in "._")
        if not files:
            raise InputError(f"{path} holds none of {', '.join(SUFFIXES)}")
        return [series for file in files for series in of_path(file, freq, columns)]
    if not path.exists():
        raise InputError(f"{path} is not there")
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise InputError(f"{path} is none of {', '.join(SUFFIXES)}")
    if name.removesuffix(".gz").endswith((".jsonl", ".json")):
        return of_entries(_lines(path), freq, str(path))
    try:
        frame = _table(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, OSError) as error:  # pandas' own among
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a table: {reason}") from error
    if "start" in frame and "target" in frame:  # GluonTS's: a series a row
        return of_entries(frame.to_dict("records"), freq, str(path))
    return of_frame(frame, freq, str(path), columns)


def _table(path: Path) -> pd.DataFrame:
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return pd.read_csv(path)
    try:
        import pyarrow as pa
        from pyarrow import feather, ipc, parquet
    except ImportError as error:
        raise MissingPackageError(f"{path} needs pyarrow: pip install 'flowplat-timeseries[parquet]'") from error
    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path).to_pandas()
        if path.suffix.lower() == ".feather":
            return feather.read_feather(path)
        with pa.memory_map(str(path)) as file:
            try:
                return ipc.open_file(file).read_pandas()
            except pa.ArrowInvalid:
                file.seek(0)
                return ipc.open_stream(file).read_pandas()
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _lines(path: Path) -> Iterable[Mapping[str, Any]]:
    import gzip

    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path} line {number} is no JSON: {error}") from error
                if not isinstance(entry, dict):
                    raise InputError(f"{path} line {number} is no object with `start` and `target`")
                yield entry
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error


def of_entries(entries: Iterable[Any], freq: str | None, where: str) -> list[Series]:
    """GluonTS's entries: ``start``, ``target``, perhaps ``item_id``; null or NaN is missing. Raises ``InputError``."""
    found = []
    for number, entry in enumerate(entries):
        try:
            start, target, item = entry["start"], entry["target"], entry.get("item_id")
            name = str(number) if item is None else str(item)
            values = np.array([np.nan if v is None or v == "NaN" else v for v in target], np.float64)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where}, series {number}: it is no entry with `start` and numbers in `target`"
            ) from error
        if isinstance(start, pd.Period):
            own = calendar.frequency(start.freqstr)
            if freq is not None and own != freq:
                raise InputError(f"{where}, series {name}: it is of frequency {own}, and {freq} was asked for")
            found.append(Series(name, start, finite(values)))
            continue
        if freq is None:
            raise InputError(f"{where} says no frequency of its series; set freq, as in freq=h")
        try:
            found.append(Series(name, calendar.period(start, freq), finite(values)))
        except ValueError as error:
            raise InputError(f"{where}, series {name}: {start!r} is no time to start at") from error
    return found


def finite(values: np.ndarray) -> np.ndarray:
    """The values, NaN where they are infinite."""
    return np.where(np.isfinite(values), values, np.nan)


def of_frame(frame: pd.DataFrame, freq: str | None, where: str, columns: Columns = Columns()) -> list[Series]:
    """The series of a table: long, with a column of items, times and values; or wide, with a column of times, or an
    index of them, and one for each series. Rows that are not there are missing values. Raises ``InputError``."""
    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex) and not columns.time:
        index = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
        frame = frame.assign(timestamp=index).reset_index(drop=True)
    time = _column(frame, columns.time, TIMES, where, "time", True)
    target = _column(frame, columns.target, TARGETS, where, "target", bool(columns.item))
    item = _column(frame, columns.item, ITEMS, where, "item", False) if target else None
    if len(frame) == 0:
        raise InputError(f"{where} has no rows")
    try:
        times = pd.to_datetime(frame[time], utc=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: column {time!r} holds what is no time: {str(error).splitlines()[0]}") from error
    if times.isna().any():
        raise InputError(f"{where}: row {int(np.flatnonzero(times.isna())[0]) + 1} has no {time}")
    if getattr(times.dt, "tz", None) is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    stem = Path(where).name.split(".")[0] if "/" in where or "." in where else "series"
    if target is None:
        others = [name for name in frame.columns if name != time]
        if not others:
            raise InputError(f"{where} has no values beside {time!r}")
        parts = [(str(name), times, frame[name]) for name in others]
    elif item is None:
        parts = [(stem, times, frame[target])]
    else:
        if frame[item].isna().any():
            raise InputError(f"{where}: row {int(np.flatnonzero(frame[item].isna())[0]) + 1} has no {item}")
        groups = frame.groupby(item, sort=False).indices
        parts = [(str(name), times.iloc[rows], frame[target].iloc[rows]) for name, rows in groups.items()]
    return [_series(name, when, column, freq, where) for name, when, column in parts]


def _column(frame: pd.DataFrame, wanted: str, usual: Sequence[str], where: str, what: str, needed: bool) -> str | None:
    if wanted:
        if wanted in frame.columns:
            return wanted
        raise InputError(f"{where} has no column {wanted!r}; it has {', '.join(map(str, frame.columns))}")
    lower = {str(name).lower(): name for name in frame.columns}
    for name in usual:
        if name in lower:
            return str(lower[name])
    if needed:
        raise InputError(
            f"{where} has no column of the {what} ({', '.join(usual)}); it has {', '.join(map(str, frame.columns))}:"
            f" set {what}=NAME"
        )
    return None


def _series(name: str, times: pd.Series, column: pd.Series, freq: str | None, where: str) -> Series:
    told = f"{where}, series {name}"
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    if (bad := np.flatnonzero(np.isnan(values) & column.notna().to_numpy())).size:
        raise InputError(f"{told}: {column.iloc[int(bad[0])]!r} is no number")
    index = pd.DatetimeIndex(times)
    calendar.refuse_doubles(index, told)
    own = freq if freq is not None else calendar.inferred(times)
    if own is None:
        raise InputError(f"{told}: its frequency cannot be told from its timestamps; set freq, as in freq=h")
    steps = calendar.places(index, own, told)
    filled = np.full(int(steps.max()) + 1, np.nan)
    filled[steps] = values
    return Series(name, calendar.period(index[int(steps.argmin())], own), finite(filled))


def usable(series: Sequence[Series], least: int = 1) -> tuple[list[Series], dict[str, str]]:
    """The series with ``least`` known values or more, and why the others are left out, by name.

    Raises ``InputError`` where none is left.
    """
    kept, skipped = [], {}
    for one in series:
        if one.known >= least:
            kept.append(one)
        else:
            skipped[one.name] = "all of it is missing" if one.known == 0 else f"it has {one.known} values"
    if not kept:
        name, why = next(iter(skipped.items()))
        raise InputError(f"there is no series to work on: series {name} is left out, since {why}")
    return kept, skipped


def as_freq(text: str | None) -> str | None:
    """A frequency of an option, under its one name."""
    return None if text is None else calendar.frequency(text)
