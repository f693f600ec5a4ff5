import json

import numpy as np
import pytest
import torch

from flowcore.errors import InputError, UsageError
from flowcore.plugin.testing import data as checks
from flowplat_timeseries.repository import GluonTS, GluonTSConfig


@pytest.fixture
def made(tmp_path):
    """The options that read an example."""
    return dict(GluonTS.example(tmp_path)), tmp_path


@pytest.mark.parametrize("check", checks.ALWAYS, ids=lambda check: check.__name__)
def test_a_folder_keeps_the_contract(check, made):
    check(lambda: GluonTS(GluonTSConfig(**made[0])))


def test_a_folder_is_read_as_gluonts_reads_it(made):
    from gluonts.dataset.common import load_datasets

    options, folder = made
    own, theirs = GluonTS(GluonTSConfig(**options)), load_datasets(folder, folder / "train", folder / "test")
    for mine, others in ((own.trained_on, theirs.train), (own.tests, theirs.test)):
        for one, other in zip(mine, others, strict=True):
            np.testing.assert_allclose(one.values, other["target"], rtol=1e-6)
            assert (one.name, one.start) == (other["item_id"], other["start"])
    assert own.freq == "h"
    held = own.val().batch(torch.arange(4), torch.Generator())
    assert held.extra["start"].tolist() == [200 - 60] * 4
    assert (
        int(own.train().batch(torch.zeros(300, dtype=torch.int64), torch.Generator()).extra["start"].max()) == 188 - 60
    )


def test_what_does_not_fit_is_one_line(made):
    options, folder = made
    with pytest.raises(UsageError, match=r"12 steps ahead, and data.horizon=24; set data.horizon=12"):
        _ = GluonTS(GluonTSConfig(**{**options, "horizon": 24})).series
    (folder / "metadata.json").write_text(json.dumps({"prediction_length": 12}))
    with pytest.raises(InputError, match=r"set data\.freq"):
        _ = GluonTS(GluonTSConfig(**options)).series
    assert len(GluonTS(GluonTSConfig(**options, freq="H")).series) == 4
    with pytest.raises(ValueError, match="one of them"):
        GluonTSConfig(path="a", repository="b")


def test_a_name_asks_nothing_of_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no data set 'm5_hourly'; it has "):
        _ = GluonTS(GluonTSConfig(repository="m5_hourly")).series
    with pytest.raises(InputError, match=r"ercot is not there; set data\.download=true"):
        _ = GluonTS(GluonTSConfig(repository="ercot")).series
