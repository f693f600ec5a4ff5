"""What a run reports: figures by scanner beside floor and baselines, and the page."""

import pytest
import torch

from flowcore.data import Batch
from flowcore.plugin.contracts import Measured
from flowplat_mri.scoring import harmonization
from flowplat_mri.simulate import UNSEEN
from flowplat_mri.volumes import Volumes, VolumesConfig

NONE = Batch(torch.zeros(1, 1, 8, 8))


def test_every_unseen_scanner_is_measured_and_shown(model, tmp_path, capsys):
    found = harmonization(NONE, Measured(model.data, tmp_path, 0, torch.device("cpu"), model), subjects=1)
    assert {f"psnr_{name}" for name in (*UNSEEN, "rescan")} <= set(found)
    floor = found["psnr_rescan"].baselines["unchanged"]
    for name in UNSEEN:
        one = found[f"psnr_{name}"]
        assert one.floor == floor
        assert one.baselines["unchanged"] < floor
        assert one.unit == "dB"
    assert found["psnr_S3"].baselines["histogram matching"] > found["psnr_S3"].baselines["unchanged"] + 1
    assert 0 < found["dice_gm"].value < 1
    page = (tmp_path / "quality.html").read_text()
    assert page.count("<img") == 6
    assert "http" not in page
    assert len(page) < 6e6
    assert "quality.html" in capsys.readouterr().err


def test_of_a_users_volumes_held_out_ones_in_another_guise_are_measured(model, tmp_path):
    data = Volumes(VolumesConfig(**Volumes.example(tmp_path / "in")))
    found = harmonization(NONE, Measured(data, tmp_path, 0, torch.device("cpu"), type(model)(data, model.network)))
    assert set(found) == {"psnr_restyled", "ssim", "gradient_correlation"}
    assert found["psnr_restyled"].floor is None


def test_nothing_is_measured_of_samples_that_are_files(model, tmp_path):
    assert harmonization(NONE, Measured(model.data, tmp_path, 0, torch.device("cpu"))) == {}


@pytest.mark.slow
def test_the_default_run_beats_histogram_matching_on_all_five_scanners(tmp_path):
    import flowplat

    figures = flowplat.run("mri", "train.steps=400", out=tmp_path / "run").figures["by_steps"][0]["figures"]
    gains = {n: figures[f"psnr_{n}"]["value"] - figures[f"psnr_{n}"]["baselines"]["histogram matching"] for n in UNSEEN}
    assert min(gains.values()) > -0.1
    assert sum(gain > 0.5 for gain in gains.values()) >= 3
    rescan = figures["psnr_rescan"]
    assert rescan["value"] > rescan["baselines"]["histogram matching"] - 0.5
    for name in ("gradient_correlation", "dice_gm", "dice_wm", "ssim"):
        assert figures[name]["value"] > figures[name]["baselines"]["histogram matching"] - 0.02
