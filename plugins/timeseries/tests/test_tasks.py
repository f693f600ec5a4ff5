import json

import numpy as np
import pandas as pd
import pytest

from flowcore.errors import InputError, UsageError
from flowplat_timeseries import further, tasks

ASK = {"samples": 16, "steps": 8}


def test_a_file_in_and_a_table_of_bands_out(small, write, waves, long_table, tmp_path):
    path = write("series.csv", long_table(waves(3, 100)))
    found = tasks.forecast(small, [path], tmp_path / "out.csv", **ASK)
    table = pd.read_csv(tmp_path / "out.csv", parse_dates=["timestamp"])
    assert found["series"] == 3
    assert list(table) == ["item_id", "timestamp", "mean", *(f"q0.{k}" for k in range(1, 10))]
    first = table[table["item_id"] == "wave-0"]
    assert first["timestamp"].tolist() == list(pd.date_range("2024-01-05 04:00", periods=12, freq="h"))
    assert (np.diff(table[[f"q0.{k}" for k in range(1, 10)]].to_numpy(), axis=1) >= 0).all()
    pd.testing.assert_frame_equal(table, tasks.forecast(small, [path], None, **ASK), rtol=1e-5)
    other = tasks.forecast(small, [path], None, seed=1, **ASK)
    assert not np.allclose(table["mean"], other["mean"])


def test_forecasts_are_in_the_units_of_their_series(small, waves):
    once = tasks.forecast(small, [pd.Series(waves(1)[0].values, index=waves(1)[0].times)], None, **ASK)
    scaled = tasks.forecast(small, [pd.Series(1e6 * waves(1)[0].values, index=waves(1)[0].times)], None, **ASK)
    np.testing.assert_allclose(scaled["mean"], 1e6 * once["mean"], rtol=1e-4)


def test_a_folder_holds_figures_and_a_picture_beside_baselines(small, tmp_path):
    out = tmp_path / "out"
    tasks.forecast(small, [], out, **ASK)
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["figures"]["crps"] < figures["baselines"]["seasonal_naive"]["crps"]
    assert (out / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    with np.load(out / "samples.npz", allow_pickle=False) as held:
        assert held["samples"].shape == (8, 16, 12)
        assert held["item_id"].tolist() == [f"wave-{i}" for i in range(8)]
        assert (np.diff(held["samples"].mean(2)) < 0).any()  # not in order of their quantiles


def test_gaps_are_filled_and_what_is_known_stays(small, write, waves, long_table, tmp_path):
    gone = {5, 50, 51, 52, 53, 54, 55, 99}
    path = write("gaps.csv", long_table(waves(1, 130), drop=gone))
    table = tasks.impute(small, [path], None, samples=32, steps=16)
    whole = waves(1, 130)[0].values
    assert set(np.flatnonzero(~table["observed"])) == gone
    known = table["observed"].to_numpy()
    np.testing.assert_allclose(table["value"][known], whole[known])
    filled = table["value"].to_numpy()[~known]
    assert np.isfinite(filled).all()
    assert np.abs(filled - whole[~known]).mean() < 0.5 * np.abs(whole.mean() - whole[~known]).mean()
    assert (table["q0.1"] <= table["value"]).all()
    assert (table["value"] <= table["q0.9"]).all()
    found = tasks.impute(small, [path], tmp_path / "out", **ASK)
    assert found["filled"] == 8
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"imputed.csv", "samples.npz", "imputed.png"}
    none = tasks.impute(small, [write("whole.csv", long_table(waves(1, 50)))], tmp_path / "none", **ASK)
    assert none["filled"] == 0


def test_short_constant_and_missing_series_have_a_documented_answer(small, tmp_path):
    index = pd.date_range("2024-01-01", periods=60, freq="h")
    frame = pd.DataFrame({"constant": 5.0, "zero": 0.0, "missing": np.nan}, index=index)
    frame["short"] = [np.nan] * 57 + [4.0, 5.0, 6.0]
    out = tmp_path / "out.csv"
    found = tasks.forecast(small, [frame], out, **ASK)
    assert found["skipped"] == {"missing": "all of it is missing"}
    table = pd.read_csv(out)
    assert set(table["item_id"]) == {"constant", "zero", "short"}
    assert np.isfinite(table["mean"]).all()
    assert 2.5 < table[table["item_id"] == "constant"]["mean"].mean() < 7.5
    one = tasks.forecast(small, [frame[["short"]].dropna()], None, **ASK)
    assert np.isfinite(one["mean"]).all()


def test_bad_input_is_one_line(small, write, waves, long_table, tmp_path):
    daily = write("daily.csv", "timestamp,target\n" + "".join(f"2024-01-{d:02d},1\n" for d in range(1, 20)))
    with pytest.raises(InputError, match=r"24 steps of freq=h apart.*looks like D"):
        tasks.forecast(small, [daily], None)
    with pytest.raises(UsageError, match="'fortnight' is no frequency"):
        tasks.forecast(small, [daily], None, freq="fortnight")
    with pytest.raises(InputError, match="no series is longer than the horizon"):
        tasks.forecast(small, [write("tiny.csv", long_table(waves(1, 12)))], None, compare=True)
    with pytest.raises(UsageError, match=r"is none of .csv, .parquet"):
        tasks.forecast(small, [daily], tmp_path / "out.xlsx")


def test_refining_makes_a_forecast_likelier_and_no_worse(small, tmp_path):
    linear = further.refine(small, [], tmp_path / "linear", base="linear", samples=8)
    assert (
        linear["figures"]["crps"]
        < 1.05 * linear["baselines"]["base"]["crps"]
        < linear["baselines"]["last_value"]["crps"]
    )
    found = further.refine(small, [], tmp_path / "out", base="last_value", samples=8)
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["figures"]["crps"] < figures["baselines"]["base"]["crps"]
    assert found["series"] == 8
    tasks.forecast(small, [], tmp_path / "own", **ASK)
    again = further.refine(small, [], tmp_path / "again", base=str(tmp_path / "own" / "forecasts.csv"), samples=8)
    own = json.loads((tmp_path / "own" / "metrics.json").read_text())["figures"]
    assert again["baselines"]["base"]["crps"] == pytest.approx(own["crps"], rel=0.1)  # the table is what it was
    with pytest.raises(UsageError, match="neither seasonal_naive"):
        further.refine(small, [], None, base="nobody")
    (tmp_path / "other.csv").write_text("item_id,timestamp,q0.5\nx,2024-01-01,1\n")
    with pytest.raises(InputError, match="has no forecast of series wave-0 for the 12 steps"):
        further.refine(small, [], None, base=str(tmp_path / "other.csv"))


def test_a_strange_window_is_found(small, waves, tmp_path):
    one = waves(1, 200)[0]
    one.values[110:130] = np.where(np.arange(20) % 2, 30.0, 1.0)
    frame = pd.DataFrame({"target": one.values}, index=one.times).rename_axis("timestamp").reset_index()
    table = further.detect(small, [frame], None)
    worst = table.loc[table["energy"].idxmax()]
    assert worst["begin"] <= one.times[130]
    assert worst["end"] >= one.times[110]
    assert bool(worst["unusual"])
    away = (table["end"] < one.times[110]) | (table["begin"] > one.times[130])
    assert table["energy"][away].max() < 0.7 * worst["energy"]
    found = further.detect(small, [frame], tmp_path / "out")
    assert found["windows"] == len(table)
    assert (tmp_path / "out" / "detected.png").exists()
