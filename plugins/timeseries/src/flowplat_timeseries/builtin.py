"""Series that need no download: drawn ones of four kinds, and real ones that statsmodels carries.

``hourly`` is drawn here, from numpy's generator with a fixed seed, and measured nowhere. Its kinds are made like what
they are named after: ``load`` like the electricity of a district, ``growth`` like the traffic of a young service,
``counts`` like the trips a zone has an hour, ``parts`` like the demand for a spare part, which is zero most hours.

``co2``, ``elnino`` and ``sunspots`` are in the public domain and come in statsmodels: weekly CO2 at Mauna Loa 1958 to
2001 with its gaps (Keeling and Whorf, Scripps), monthly temperature of the sea at Nino 1+2 1950 to 2010 (NOAA), yearly
sunspots 1700 to 2008 (NOAA).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from flowcore.errors import MissingPackageError
from flowplat_timeseries import calendar
from flowplat_timeseries.reading import Series

DAY, WEEK = 24, 168
EACH, LENGTH, SEED = 16, 45 * DAY, 20231
BEGIN = "2024-01-01 00:00"


def hourly() -> list[Series]:
    """64 series of 1,080 hours, 16 of each kind; every 8th has gaps, 4 % of its hours in blocks."""
    series: list[Series] = []
    kinds: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "load": _load, "growth": _growth, "counts": _counts, "parts": _parts,
    }  # fmt: skip
    start = calendar.period(BEGIN, "h")
    for kind, (name, draw) in enumerate(kinds.items()):
        for number in range(EACH):
            rng = np.random.default_rng([SEED, kind, number])
            values = draw(rng)
            if number % 8 == 7:
                for begin in rng.integers(0, LENGTH - 12, 6):
                    values[begin : begin + int(rng.integers(2, 13))] = np.nan
            series.append(Series(f"{name}-{number:02d}", start, values))
    return series


def _profile(rng: np.random.Generator, sharp: float) -> np.ndarray:
    """A day's course times a week's, of mean one: two or three humps, weekends apart. (LENGTH,)"""
    hour = np.arange(LENGTH) % DAY
    day = np.zeros(LENGTH)
    for _ in range(int(rng.integers(2, 4))):
        centre, width, height = rng.uniform(5, 22), rng.uniform(1.5, 4), rng.uniform(0.4, 1)
        apart = np.minimum(np.abs(hour - centre), DAY - np.abs(hour - centre))
        day += height * np.exp(-0.5 * (apart / width) ** 2)
    day = 1 + sharp * (day / day.mean() - 1)
    weekend = (np.arange(LENGTH) // DAY) % 7 >= 5
    day = day * np.where(weekend, rng.uniform(0.55, 1.0), 1.0)
    return np.maximum(day / day.mean(), 0.01)


def _drift(rng: np.random.Generator, keep: float, size: float) -> np.ndarray:
    """An AR(1) process of standard deviation ``size``. (LENGTH,)"""
    noise, x = rng.standard_normal(LENGTH) * size * np.sqrt(1 - keep**2), np.empty(LENGTH)
    x[0] = rng.standard_normal() * size
    for step in range(1, LENGTH):
        x[step] = keep * x[step - 1] + noise[step]
    return x


def _load(rng: np.random.Generator) -> np.ndarray:
    level = 10 ** rng.uniform(1, 2.5)
    slow, fast = _drift(rng, 0.995, 0.10), _drift(rng, 0.6, 0.08)
    return np.asarray(level * _profile(rng, rng.uniform(0.25, 0.5)) * np.exp(slow + fast))


def _growth(rng: np.random.Generator) -> np.ndarray:
    level, growth = 10 ** rng.uniform(1, 2.5), rng.uniform(-0.4, 1.2)
    trend = 1 + growth * np.arange(LENGTH) / LENGTH
    return np.asarray(level * trend * _profile(rng, rng.uniform(0.4, 0.8)) * np.exp(_drift(rng, 0.8, 0.15)))


def _counts(rng: np.random.Generator) -> np.ndarray:
    rate = rng.uniform(3, 30) * _profile(rng, rng.uniform(0.5, 0.9)) * np.exp(_drift(rng, 0.9, 0.15))
    return rng.poisson(rate).astype(np.float64)


def _parts(rng: np.random.Generator) -> np.ndarray:
    often = np.clip(rng.uniform(0.08, 0.3) * _profile(rng, 0.9), 0, 1)
    sizes = 1 + rng.negative_binomial(2, rng.uniform(0.3, 0.6), LENGTH)
    return np.where(rng.random(LENGTH) < often, sizes, 0).astype(np.float64)


def _of_statsmodels(name: str) -> pd.DataFrame:
    try:
        from importlib.resources import files

        with (files("statsmodels.datasets") / name / f"{name}.csv").open(encoding="utf-8") as file:
            return pd.read_csv(file)
    except (ImportError, FileNotFoundError) as error:
        raise MissingPackageError(
            f"series={name} comes with statsmodels: pip install 'flowplat-timeseries[real]'"
        ) from error


def co2() -> list[Series]:
    """2,284 weeks of CO2 at Mauna Loa, in parts per million, 59 of them missing."""
    table = _of_statsmodels("co2")
    dates = pd.to_datetime(table["date"].astype(str), format="%Y%m%d")
    return [Series("co2", calendar.period(dates.iloc[0], "W-SAT"), table["co2"].to_numpy(np.float64))]


def elnino() -> list[Series]:
    """732 months of the temperature of the sea, in degrees Celsius."""
    table = _of_statsmodels("elnino")
    year = int(table["YEAR"].iloc[0])
    return [Series("elnino", calendar.period(f"{year}-01", "M"), table.iloc[:, 1:13].to_numpy(np.float64).ravel())]


def sunspots() -> list[Series]:
    """309 years of the mean number of sunspots."""
    table = _of_statsmodels("sunspots")
    values = table["SUNACTIVITY"].to_numpy(np.float64)
    return [Series("sunspots", calendar.period(f"{int(table['YEAR'].iloc[0])}-01-01", "Y"), values)]


SERIES = {"hourly": hourly, "co2": co2, "elnino": elnino, "sunspots": sunspots}
FREQUENCIES = {"hourly": "h", "co2": "W-SAT", "elnino": "M", "sunspots": "Y"}
