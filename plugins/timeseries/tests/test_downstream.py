import numpy as np
import pytest
import torch

pytest.importorskip("gluonts.torch")

from flowcore.data import Batch
from flowcore.plugin.contracts import Measured
from flowcore.seeds import generator
from flowplat_timeseries.asking import told
from flowplat_timeseries.downstream import downstream_score, taught
from flowplat_timeseries.synthesis import linear_predictive_score


@pytest.mark.parametrize("kind", ["feed_forward", "deepar", "tft"])
def test_every_forecaster_learns_in_silence_and_leaves_the_global_generators_alone(small, kind, capfd, caplog):
    data = small.data
    windows = data.train().batch(torch.arange(64) % 8, generator(0)).x1[:, 0]
    known = told(data, [one.values[:-12] for one in data.tests])
    torch.manual_seed(5)
    np.random.seed(5)
    made = [taught(kind, windows, 24, known, "h", 1, 2, 7, 0) for _ in range(2)]
    assert made[0].shape == (8, 7, 12)
    assert np.isfinite(made[0]).all()
    assert np.array_equal(*made)
    assert "".join(capfd.readouterr()) == caplog.text == ""
    drawn = torch.rand(()).item(), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    assert drawn == (torch.rand(()).item(), np.random.rand())


def test_real_windows_teach_more_than_noise(small, tmp_path):
    """Samples that are noise, and the floor, which is taught on real windows."""
    measured = Measured(small.data, tmp_path, 0, small.device, small)
    noise = Batch(torch.randn(128, 1, 36, generator=generator(1)) + 1)
    (figure,) = downstream_score(noise, measured, "feed_forward", epochs=3, batches=40).values()
    assert figure.floor < 0.75 * figure.value
    assert set(figure.baselines) == {"seasonal_naive"}


def test_the_samples_of_a_conditional_model_are_no_training_data(small_conditional, tmp_path):
    measured = Measured(small_conditional.data, tmp_path, 0, small_conditional.device, small_conditional)
    samples = Batch(torch.zeros(4, 1, 36))
    assert downstream_score(samples, measured) == linear_predictive_score(samples, measured) == {}
