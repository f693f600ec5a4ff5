"""The same from Python."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import flowplat
from flowcore.errors import InputError, PluginError, UsageError


@pytest.fixture(autouse=True)
def threads() -> Any:
    """Runs here set the number of threads; no other test should notice."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of weights and samples."""
    files = [*folder.glob("checkpoints/*/*.safetensors"), *folder.glob("samples/**/*.npz")]
    assert len(files) == 7
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_is_the_run_of_the_command(smoke: Any, tmp_path: Path) -> None:
    finished = flowplat.run("images", "engine.threads=1", "eval.metrics=[]", smoke=True, out=str(tmp_path / "run"))
    assert finished.folder == tmp_path / "run"
    assert [column["steps"] for column in finished.figures["by_steps"]] == [1, 4]
    assert hashes(finished.folder) == hashes(smoke.folder)


def test_another_seed_gives_another_run(smoke: Any, tmp_path: Path) -> None:
    config = smoke.folder / "config.yaml"
    finished = flowplat.run("images", "seed=1", "eval.metrics=[]", config=config, out=tmp_path / "other")
    one, other = hashes(smoke.folder), hashes(finished.folder)
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


def test_a_loaded_model_samples(smoke: Any) -> None:
    model = flowplat.load(smoke.folder)
    samples = model.sample(64, seed=0)
    assert samples.x1.shape == (64, 1, 8, 8)
    assert samples.x1.isfinite().all()
    assert torch.equal(model.sample(8, seed=0).x1, samples.x1[:8])
    assert not torch.equal(model.sample(8, seed=1).x1, samples.x1[:8])


def test_errors_are_the_documented_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"train\.lrr"):
        flowplat.run("images", "train.lrr=1")
    with pytest.raises(PluginError, match="images"):
        flowplat.run("image")
    with pytest.raises(InputError, match="no run folder"):
        flowplat.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_package_has_these_names_and_no_other() -> None:
    assert set(flowplat.__all__) == {"__version__", "load", "plugins", "run"}
    with pytest.raises(AttributeError, match="'train'"):
        _ = flowplat.train  # type: ignore[attr-defined]
