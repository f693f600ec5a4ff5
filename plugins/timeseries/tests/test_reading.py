import gzip
import json

import numpy as np
import pandas as pd
import pytest

from flowcore.errors import InputError
from flowplat_timeseries.reading import Columns, brought, of_frame, usable


def same(a, b):
    assert [(one.name, str(one.start), one.start.freqstr) for one in a] == [
        (one.name, str(one.start), one.start.freqstr) for one in b
    ]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-12)


def test_long_wide_lines_and_arrow_files_bring_the_same_series(write, tmp_path, waves, long_table):
    series = waves(3, 40)
    long = write("long.csv", long_table(series))
    wide = (
        pd.DataFrame({one.name: one.values for one in series}, index=series[0].times).rename_axis("date").reset_index()
    )
    wide.to_csv(tmp_path / "wide.csv", index=False)
    pd.read_csv(long).to_parquet(tmp_path / "long.parquet")
    pd.read_csv(long).to_feather(tmp_path / "long.feather")
    lines = [json.dumps({"item_id": s.name, "start": "2024-01-01 00:00", "target": s.values.tolist()}) for s in series]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    rows = pd.DataFrame([json.loads(line) for line in lines])
    rows.to_parquet(tmp_path / "rows.parquet")
    for name in ("long.csv", "wide.csv", "long.parquet", "long.feather"):
        same(brought([tmp_path / name], None), series)
    for name in ("a.jsonl.gz", "rows.parquet"):
        same(brought([tmp_path / name], "h"), series)
    same(brought([wide.set_index("date")], "h"), series)
    same(brought([[{"item_id": s.name, "start": s.start, "target": s.values} for s in series]], None), series)


def test_rows_that_are_not_there_are_missing_values(write, waves, long_table):
    series = waves(2, 30)
    found = brought([write("gaps.csv", long_table(series, drop={5, 6, 40}))], "h")
    assert np.flatnonzero(np.isnan(found[0].values)).tolist() == [5, 6]
    assert np.flatnonzero(np.isnan(found[1].values)).tolist() == [10]


def test_columns_by_names_of_a_users_own(write):
    path = write("own.csv", "when,shop,sold\n2024-01-01,a,1\n2024-01-02,a,\n2024-01-03,a,inf\n2024-01-04,a,4\n")
    (one,) = brought([path], "D", Columns("when", "shop", "sold"))
    np.testing.assert_array_equal(one.values, [1, np.nan, np.nan, 4])
    assert one.name == "a"


HEAD = "item_id,timestamp,target\n"


@pytest.mark.parametrize(
    ("name", "content", "freq", "said"),
    [
        ("a.csv", HEAD + "x,2024-01-01,1\nx,2024-01-01,2\n", "D", "series x has the timestamp 2024-01-01 .* twice"),
        ("a.csv", HEAD + "x,2024-01-01 00:00,1\nx,2024-01-01 00:30,2\n", "h", "within one step of freq=h"),
        ("a.csv", HEAD + "x,2024-01-01,1\nx,2024-01-01,2\n", None, "has the timestamp 2024-01-01 .* twice"),
        ("a.csv", HEAD + "x,soon,1\n", "D", "'timestamp' holds what is no time"),
        ("a.csv", HEAD + "x,,1\n", "D", "row 1 has no timestamp"),
        ("a.csv", HEAD + ",2024-01-01,1\n", "D", "row 1 has no item_id"),
        ("a.csv", HEAD + "x,2024-01-01,many\n", "D", "'many' is no number"),
        ("a.csv", HEAD, "D", "has no rows"),
        ("a.csv", "", "D", "cannot be read as a table"),
        ("a.csv", "a,b\n1,2\n", "D", "no column of the time"),
        ("a.csv", HEAD + "x,2024-01-01,1\n", None, "its frequency cannot be told"),
        ("a.jsonl", '{"start": "2024-01-01", "target": [1, 2]}\n{"start"', "D", "line 2 is no JSON"),
        ("a.jsonl", '{"start": "2024-01-01", "target": [1, 2]}\n', None, "set freq"),
        ("a.jsonl", '{"start": "2024-01-01"}\n', "D", "series 0: it is no entry"),
        ("a.jsonl", '{"start": "yore", "target": [1]}\n', "D", "'yore' is no time"),
        ("a.parquet", "no parquet", "D", "cannot be read"),
        ("a.txt", "", "D", "is none of .csv"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_that_names_the_file(write, name, content, freq, said):
    path = write(name, content)
    with pytest.raises(InputError, match=said) as told:
        brought([path], freq)
    assert "\n" not in str(told.value)
    assert path in str(told.value)


def test_nothing_brought_and_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no series"):
        brought([], "h")
    with pytest.raises(InputError, match="is not there"):
        brought([tmp_path / "no.csv"], "h")
    with pytest.raises(InputError, match="holds none of"):
        brought([tmp_path], "h")


def test_series_that_are_all_missing_are_left_out_by_name():
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=4), "a": [1, 2, 3, 4], "b": [np.nan] * 4})
    kept, skipped = usable(of_frame(frame, "D", "the frame"))
    assert [one.name for one in kept] == ["a"]
    assert skipped == {"b": "all of it is missing"}
    with pytest.raises(InputError, match="series b is left out, since all of it is missing"):
        usable(of_frame(frame.drop(columns="a"), "D", "the frame"))
