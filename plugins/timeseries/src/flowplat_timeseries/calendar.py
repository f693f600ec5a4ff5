"""Frequencies by the names pandas has for periods: h, D, B, min, 15min, W-SUN, M, Q, Y."""

import re
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from flowcore.errors import InputError, UsageError

_OLD = {"H": "h", "T": "min", "S": "s", "L": "ms", "A": "Y", "ME": "M", "MS": "M", "QE": "Q", "QS": "Q", "YE": "Y"}
_OLD |= {"YS": "Y", "AS": "Y", "W": "W-SUN", "d": "D", "b": "B", "m": "min"}
_SEASONS = {"s": 3600, "min": 1440, "h": 24, "B": 5, "M": 12, "Q": 4}  # GluonTS's, of which every other has 1


def frequency(text: str) -> str:
    """A frequency as a user writes it (1H, T, ME, 15min) under its one name. Raises ``UsageError`` for none."""
    found = re.fullmatch(r"\s*(\d*)\s*([A-Za-z]+)(-[A-Z]+)?\s*", text)
    if found:
        count, name, anchor = found.groups()
        name = _OLD.get(name, name)
        if anchor and name.startswith("W"):
            name = "W"
        freq = f"{int(count) if count and int(count) > 1 else ''}{name}{anchor or ''}"
        try:
            _period(pd.Timestamp(2020, 1, 1), freq)
            return freq
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
    raise UsageError(f"{text!r} is no frequency; write one as pandas does: min, 15min, h, D, B, W, M, Q or Y")


def season_of(freq: str) -> int:
    """Steps in the season of a frequency: 24 of hours, 12 of months, 5 of business days; 1 where none is usual."""
    found = re.match(r"(\d*)([A-Za-z]+)", freq)
    count, name = int(found[1] or 1) if found else 1, found[2] if found else ""
    season, rest = divmod(_SEASONS.get(name, 1), count)
    return 1 if rest or not season else season


def offset_name(freq: str) -> str:
    """The name of a period's frequency where pandas means an offset: M is ME there."""
    return re.sub(r"^(\d*)([MQY])(?=-|$)", r"\1\2E", freq)


def inferred(times: Sequence[pd.Timestamp] | pd.Series) -> str | None:
    """The commonest step between timestamps, as a frequency; None where they are too few or fit none."""
    index = pd.DatetimeIndex(sorted(set(times)))
    if len(index) < 3:
        return None
    name = pd.infer_freq(index)
    if name is None:  # rows may be missing
        steps = pd.Series(index[1:] - index[:-1])
        common = steps.mode()[0]
        within = (index.astype("int64") - index[0].value) % common.value == 0
        if not bool(np.all(within)):
            return None
        name = pd.tseries.frequencies.to_offset(common).freqstr
    try:
        return frequency(name)
    except UsageError:
        return None


def _period(stamp: pd.Timestamp, freq: str) -> pd.Period:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of business days, for which pandas has no other name yet
        return pd.Period(stamp, freq=freq)


def period(stamp: object, freq: str) -> pd.Period:
    """The period that a timestamp lies in."""
    return _period(pd.Timestamp(stamp), freq)  # type: ignore[arg-type]


def later(start: pd.Period, steps: int) -> pd.Period:
    """The period ``steps`` after ``start``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return start + steps


def stamps(start: pd.Period, count: int) -> pd.DatetimeIndex:
    """The beginnings of ``count`` periods from ``start`` on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pd.period_range(start, periods=count, freq=start.freq).to_timestamp(how="start")


def places(times: pd.DatetimeIndex, freq: str, where: str) -> np.ndarray:
    """How many steps each timestamp is after the earliest, (n,) int64.

    Raises ``InputError`` beginning with ``where`` for timestamps that are there twice, or are not of this frequency:
    two within one period, off the grid, or all of them several periods apart.
    """
    refuse_doubles(times, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        periods = pd.PeriodIndex(times, freq=freq)
    number = periods.asi8
    steps = number - number.min()
    every = periods.freq.n
    if every > 1 and (steps % every).any():
        off = times[steps % every != 0][0]
        raise InputError(f"{where}: {off} is not on a grid of freq={freq}; set the frequency that the file has")
    steps = steps // every
    order = np.sort(steps)
    if (again := np.flatnonzero(np.diff(order) == 0)).size:
        stamp = times[np.argsort(steps, kind="stable")][int(again[0]) + 1]
        raise InputError(
            f"{where}: {stamp} is the second timestamp within one step of freq={freq}; set the frequency that the file"
            f" has{_hint(times)}"
        )
    apart = int(np.gcd.reduce(np.diff(order))) if len(order) > 2 else 1
    if apart > 1:
        raise InputError(
            f"{where}: its timestamps are {apart} steps of freq={freq} apart, every one; set the frequency that the"
            f" file has{_hint(times)}"
        )
    return np.asarray(steps, np.int64)


def refuse_doubles(times: pd.DatetimeIndex, where: str) -> None:
    """Raise ``InputError`` beginning with ``where`` for a timestamp that is there twice."""
    if (twice := times.duplicated()).any():
        raise InputError(f"{where} has the timestamp {times[twice][0]} twice; keep one of its rows")


def _hint(times: pd.DatetimeIndex) -> str:
    found = inferred(times)
    return "" if found is None else f", which looks like {found}"
