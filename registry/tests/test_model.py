"""model: what a run folder gives back."""

from pathlib import Path

import pytest
import torch

from flowcore.errors import InputError, IntegrityError, UsageError
from flowplat.model import load
from flowplat.rundir import RunDir


@pytest.fixture
def run(trained: Path) -> RunDir:
    return RunDir(trained)


def test_a_loaded_model_draws_the_samples_of_its_run(run: RunDir, tmp_path: Path) -> None:
    model = load(run.folder)
    assert not model.network.training
    drawn = model.sample(8)
    model.data.write(drawn, tmp_path)
    assert (tmp_path / "points.csv").read_bytes() == (run.samples / "points.csv").read_bytes()


def test_steps_seed_and_count_are_the_runs_own_unless_given(run: RunDir) -> None:
    model = load(str(run.folder))
    assert model.sample(3).extra["calls"] == 2
    assert model.sample(3, steps=5).extra["calls"] == 5
    assert torch.equal(model.sample(3).x1, model.sample(5, steps=2, seed=0).x1[:3])
    assert not torch.equal(model.sample(3, seed=1).x1, model.sample(3).x1)


def test_overrides_change_how_it_samples(run: RunDir) -> None:
    assert load(run.folder, "sample.solver=heun").sample(3).extra["calls"] == 4
    with pytest.raises(UsageError, match=r"did you mean sample\.solver"):
        load(run.folder, "sample.solvr=heun")


def test_the_averaged_weights_are_the_ones_that_sample(run: RunDir) -> None:
    from safetensors.torch import load_file

    averaged = load_file(run.checkpoints / "step-00000012" / "ema.safetensors")
    state = load(run.folder).network.state_dict()
    assert state.keys() == averaged.keys()
    assert all(torch.equal(state[key], averaged[key]) for key in averaged)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="is no run folder"):
            load(folder)


@pytest.mark.parametrize("text", ["", "seed: 1\n", "- plugin\n", "plugin: [ring]\n", "plugin: ring\nseed: [\n"])
def test_a_run_whose_config_is_spoilt(text: str, run: RunDir) -> None:
    run.config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.yaml"):
        load(run.folder)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(run: RunDir) -> None:
    weights = run.checkpoints / "step-00000012" / "ema.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    from safetensors.torch import load_file

    before = load_file(run.checkpoints / "step-00000010" / "ema.safetensors")
    state = load(run.folder).network.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_a_run_without_a_whole_checkpoint_is_not_loaded(run: RunDir) -> None:
    for weights in run.checkpoints.rglob("ema.safetensors"):
        weights.unlink()
    with pytest.raises(IntegrityError, match=r"ema\.safetensors is damaged"):
        load(run.folder)


def test_weights_of_another_shape_are_told_in_a_line(run: RunDir) -> None:
    with pytest.raises(UsageError, match=r"network") as caught:
        load(run.folder, "network.width=8")
    assert "\n" not in str(caught.value)
