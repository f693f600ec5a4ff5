import warnings

import pandas as pd
import pytest

from flowcore.errors import InputError, UsageError
from flowplat_timeseries.calendar import frequency, inferred, offset_name, places, season_of, stamps


@pytest.mark.parametrize(
    ("written", "one"),
    [("H", "h"), ("1H", "h"), ("h", "h"), ("T", "min"), ("15T", "15min"), ("ME", "M"), ("MS", "M"), ("W", "W-SUN"),
     ("W-SAT", "W-SAT"), ("D", "D"), ("B", "B"), ("Q", "Q"), ("A", "Y"), ("YE", "Y")],
)  # fmt: skip
def test_a_frequency_has_one_name(written, one):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frequency(written) == one


@pytest.mark.parametrize("wrong", ["", "hourly", "0x", "5 apples", "h!"])
def test_what_is_no_frequency_is_said_so(wrong):
    with pytest.raises(UsageError, match="is no frequency"):
        frequency(wrong)


def test_seasons_are_those_of_gluonts():
    from gluonts.time_feature import get_seasonality

    for freq in ("h", "2h", "D", "B", "min", "15min", "M", "Q", "Y", "W-SUN"):
        assert season_of(freq) == get_seasonality(offset_name(freq)), freq


def test_the_frequency_of_timestamps_is_found_with_rows_missing():
    hours = pd.date_range("2024-01-01", periods=50, freq="h")
    assert inferred(hours) == "h"
    assert inferred(hours.delete([3, 4, 20])) == "h"
    assert inferred(pd.date_range("2024-01-31", periods=5, freq="ME")) == "M"
    assert inferred(pd.date_range("2024-01-01", periods=20, freq="B")) == "B"
    assert inferred(hours[:2]) is None


def test_steps_are_counted_over_gaps():
    times = pd.DatetimeIndex(["2024-01-01 03:00", "2024-01-01 00:00", "2024-01-01 01:00"])
    assert places(times, "h", "x").tolist() == [3, 0, 1]
    months = pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-04-30"])
    assert places(months, "M", "x").tolist() == [0, 1, 3]
    quarters = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 00:15", "2024-01-01 01:00"])
    assert places(quarters, "15min", "x").tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("times", "freq", "said"),
    [
        (["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 01:00"], "h", "2024-01-01 01:00:00 twice"),
        (pd.date_range("2024-01-01", periods=9, freq="30min"), "h", "within one step of freq=h.*looks like 30min"),
        (pd.date_range("2024-01-01", periods=9, freq="D"), "h", "24 steps of freq=h apart.*looks like D"),
        (["2024-01-01 00:00", "2024-01-01 00:15", "2024-01-01 00:20"], "15min", "00:20:00 is not on a grid"),
    ],
)
def test_wrong_frequencies_and_double_timestamps_are_one_line(times, freq, said):
    with pytest.raises(InputError, match=said) as told:
        places(pd.DatetimeIndex(times), freq, "a.csv, series x")
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("a.csv, series x")


def test_timestamps_are_the_beginnings_of_steps():
    assert stamps(pd.Period("2024-01", freq="M"), 3).tolist() == list(
        pd.to_datetime(["2024-01-01", "2024-02-01", "2024-03-01"])
    )
