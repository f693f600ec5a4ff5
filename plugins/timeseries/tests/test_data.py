import numpy as np
import pandas as pd
import pytest
import torch

from flowcore.data import Batch
from flowcore.errors import InputError, UsageError
from flowcore.plugin.testing import data as checks
from flowplat_timeseries import builtin
from flowplat_timeseries.data import Builtin, BuiltinConfig, Files, FilesConfig, Given
from flowplat_timeseries.reading import Series


@pytest.mark.parametrize("check", [*checks.ALWAYS, checks.written_samples_read_back], ids=lambda check: check.__name__)
@pytest.mark.parametrize("lags", ["none", [24, 168]])
def test_the_built_in_series_keep_the_contract(check, lags):
    check(lambda: Builtin(BuiltinConfig(lags=lags)))


@pytest.mark.parametrize("check", checks.ALWAYS, ids=lambda check: check.__name__)
def test_files_keep_the_contract(check, tmp_path):
    options = Files.example(tmp_path)
    check(lambda: Files(FilesConfig(**options)))


def test_the_hourly_series_are_of_four_kinds_and_always_the_same():
    data = Builtin(BuiltinConfig())
    assert data.fingerprint() == Builtin(BuiltinConfig()).fingerprint()
    by_kind = {
        kind: [one.values for one in data.series if one.name.startswith(kind)]
        for kind in ("load", "growth", "counts", "parts")
    }
    assert {kind: len(values) for kind, values in by_kind.items()} == dict.fromkeys(by_kind, 16)
    counts = np.concatenate(by_kind["counts"])
    parts = np.concatenate(by_kind["parts"])
    for whole in (counts, parts):
        known = whole[np.isfinite(whole)]
        assert (known == known.round()).all()
        assert (known >= 0).all()
    assert np.nanmean(parts == 0) > 0.6
    daily = np.nanmean([np.corrcoef(v[24:], v[:-24])[0, 1] for v in by_kind["load"] if np.isfinite(v).all()])
    assert daily > 0.5
    gaps = [np.isnan(one.values).mean() for one in data.series]
    assert sum(gap > 0 for gap in gaps) == 8
    assert max(gaps) < 0.1


@pytest.mark.parametrize(
    ("name", "freq", "season", "count"),
    [("co2", "W-SAT", 1, 2284), ("elnino", "M", 12, 732), ("sunspots", "Y", 1, 309)],
)
def test_the_real_series_are_those_of_statsmodels(name, freq, season, count):
    pytest.importorskip("statsmodels")
    data = Builtin(BuiltinConfig(series=name))
    assert (data.freq, data.season, len(data.series[0].values)) == (freq, season, count)
    assert str(builtin.co2()[0].start.end_time.date()) == "1958-03-29"
    assert np.isnan(builtin.co2()[0].values).sum() == 59


def test_nothing_that_is_held_out_is_trained_on():
    series = [Series("x", pd.Period("2024-01-01 00:00", freq="h"), np.arange(100.0))]
    data = Given(BuiltinConfig(context=20, horizon=5, rolling=3), series)
    assert [len(one.values) for one in data.trained_on] == [85]
    assert [one.values[-5:].tolist() for one in data.tests] == [[*range(a, a + 5)] for a in (85, 90, 95)]
    draws = torch.Generator().manual_seed(0)
    seen = data.train().batch(torch.zeros(500, dtype=torch.int64), draws)
    assert int(seen.extra["start"].max()) == 85 - 25
    held = data.val().batch(torch.arange(3), draws)
    assert held.extra["start"].tolist() == [65, 70, 75]
    assert bool(held.mask.all())


def test_a_series_too_short_is_left_out_by_name_and_none_left_is_one_line():
    start = pd.Period("2024-01-01 00:00", freq="h")
    long, short, empty = (
        Series(name, start, values)
        for name, values in (("a", np.ones(50)), ("b", np.ones(5)), ("c", np.full(50, np.nan)))
    )
    data = Given(BuiltinConfig(context=20, horizon=5), [long, short, empty])
    assert [one.name for one in data.series] == ["a"]
    assert data.skipped == {"b": "nothing is known of it before its last 5 steps", "c": "all of it is missing"}
    with pytest.raises(InputError, match=r"no series is long enough.*hold 5 steps out.*has 5 values"):
        _ = Given(BuiltinConfig(context=20, horizon=5), [short]).series


def test_facts_are_all_that_an_exported_model_needs():
    data = Builtin(BuiltinConfig(lags=[24]))
    import json

    facts = json.loads(json.dumps(data.facts()))
    far = Files(FilesConfig(path="/nowhere.csv", lags="gluonts"), facts)
    assert far.spec() == data.spec()
    assert (far.freq, far.season, far.lags) == ("h", 24, [24])
    assert far.show(Batch(torch.zeros(2, 2, 120))).startswith(b"\x89PNG")


def test_a_wrong_frequency_of_a_config_is_refused():
    with pytest.raises(ValueError, match="is no frequency"):
        FilesConfig(path="a.csv", freq="hourly")
    for lags in ([0], [-3, 24], "weekly"):
        with pytest.raises(ValueError, match="lags"):
            BuiltinConfig(lags=lags)
    with pytest.raises(UsageError, match="takes no condition"):
        Builtin(BuiltinConfig()).condition(1, "winter")
