"""teacher: the weights a run begins with, and the pairs it learns, from a run or an exported model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import flowplat
from flowcore.data import Batch, everything
from flowcore.errors import InputError, UsageError
from flowcore.pairs import PairStore
from flowcore.paths import linear
from flowcore.seeds import generator
from flowcore.solvers import edm_grid, solve
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.export import export
from flowplat.model import load
from flowplat.runner import execute

PAIRS = ("teacher.pairs.count=40", "teacher.pairs.steps=3", "teacher.pairs.batch_size=8")
SHORT = ("engine.threads=1", "train.steps=2", "eval.metrics=[]")


def run(folder: Path, *overrides: str, model: str | Path = "run") -> Path:
    return flowplat.run("ring", f"teacher.model={model}", *SHORT, *overrides, out=folder).folder


def stores(teacher: Path) -> list[Path]:
    return sorted(path.parent for path in teacher.glob("pairs/*/meta.json"))


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("start", "file"), [("averaged", "ema"), ("raw", "model")])
def test_a_run_begins_with_the_teachers_weights(
    start: str, file: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flowplat.runner as runner

    begun = []
    real = runner.begin
    monkeypatch.setattr(runner, "begin", lambda network, *rest: begun.append(weights(network)) or real(network, *rest))
    run(tmp_path / "student", f"teacher.start={start}", model=trained)
    checkpoint = sorted((trained / "checkpoints").glob("step-*"))[-1]
    assert equal(begun[0], load_file(checkpoint / f"{file}.safetensors"))
    run(tmp_path / "afresh", model=trained)
    assert not equal(begun[1], begun[0])


def test_weights_that_do_not_fit_are_told_before_a_folder_is_made(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^teacher\.start: the weights of .* do not fit the network"):
        run(tmp_path / "student", "teacher.start=averaged", "network.width=7", model=trained)
    assert not (tmp_path / "student").exists()


def test_an_exported_teacher_has_averaged_weights_only(trained: Path, tmp_path: Path) -> None:
    model = export(trained, tmp_path / "model")
    assert run(tmp_path / "student", "teacher.start=averaged", model=model)
    with pytest.raises(UsageError, match="no raw weights; take averaged ones"):
        run(tmp_path / "other", "teacher.start=raw", model=model)


def test_a_teacher_that_is_not_there(ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run is called 'nobody'"):
        run(tmp_path / "student", model="nobody")
    with pytest.raises(UsageError, match="name the teacher by its model or by its preset"):
        resolve("ring", ["teacher.start=raw"])


def test_the_pairs_are_what_the_teachers_flow_joins(trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "student", *PAIRS, "teacher.pairs.dtype=float32", "teacher.pairs.solver=midpoint", model=trained)
    (folder,) = stores(trained)
    batch = PairStore(folder).batch(torch.arange(40), generator(0))
    teacher = load(trained)
    field = teacher.parts().field(teacher.network)
    with torch.no_grad():
        wanted = solve(field, batch.x0, 3, "midpoint")
    assert torch.allclose(batch.x1, wanted, atol=1e-5)


def test_students_of_the_same_pairs_share_them(trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", *PAIRS, model=trained)
    (folder,) = stores(trained)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    run(tmp_path / "two", *PAIRS, "train.lr=1e-4", "seed=3", "teacher.pairs.held_out=8", model=trained)
    assert stores(trained) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == before
    run(tmp_path / "three", *PAIRS, "teacher.pairs.seed=1", model=trained)
    assert len(stores(trained)) == 2


def test_the_pairs_of_an_exported_model_are_elsewhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = export(trained, tmp_path / "model")
    before = sorted(model.rglob("*"))
    run(tmp_path / "student", *PAIRS, model=model)
    assert sorted(model.rglob("*")) == before
    assert len(list(Path("runs/pairs").glob("*/meta.json"))) == 1


def test_pairs_that_were_half_made_are_finished(trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", *PAIRS, model=trained)
    (folder,) = stores(trained)
    shards = sorted(folder.glob("*.safetensors"))
    before = [shard.read_bytes() for shard in shards]
    assert len(shards) > 1
    shards[-1].unlink()
    run(tmp_path / "two", *PAIRS, model=trained)
    assert [shard.read_bytes() for shard in shards] == before


def test_what_is_held_out_is_not_trained_on(trained: Path) -> None:
    held = [f"teacher.model={trained}", *PAIRS, "teacher.pairs.held_out=15"]
    experiment = Experiment(resolve("ring", held))
    assert (len(experiment.source), len(experiment.held_out)) == (25, 15)
    store = PairStore(stores(trained)[0])
    rows, draws = torch.arange(15), generator(0)
    assert torch.equal(experiment.held_out.batch(rows, draws).x1, store.batch(rows + 25, draws).x1)
    with pytest.raises(UsageError, match="leaves none of count=40 to train on"):
        resolve("ring", [*held, "teacher.pairs.held_out=40"])


def test_pairs_come_in_the_guises_of_the_data(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(data: Any, batch: Batch, draws: torch.Generator) -> Batch:
        sign = 2.0 * torch.randint(2, (len(batch), 1), generator=draws) - 1
        return replace(batch, x1=sign * batch.x1, x0=sign * batch.x0)

    wanted = [f"teacher.model={trained}", *PAIRS, "teacher.pairs.held_out=15"]
    experiment = Experiment(resolve("ring", wanted))
    plain = Experiment(resolve("ring", [*wanted, "teacher.pairs.augment=false"]))
    monkeypatch.setattr(type(experiment.data), "augment", turned, raising=False)
    rows = torch.arange(15)
    drawn, pairs = (one.source.batch(rows, generator(0)) for one in (experiment, plain))
    assert torch.equal(drawn.x1, turned(None, pairs, generator(0)).x1)
    assert torch.equal(drawn.x0 / pairs.x0, drawn.x1 / pairs.x1)
    assert not torch.equal(drawn.x1, pairs.x1)
    assert torch.equal(experiment.held_out.batch(rows, generator(0)).x1, plain.held_out.batch(rows, generator(0)).x1)
    assert len(stores(trained)) == 1


INVERTED = (*PAIRS, "teacher.pairs.inverted=12", "teacher.pairs.held_out=15", "teacher.pairs.dtype=float32")


def test_inverted_pairs_are_training_samples_and_the_noise_that_leads_to_them(trained: Path) -> None:
    experiment = Experiment(resolve("ring", [f"teacher.model={trained}", *INVERTED, "teacher.pairs.steps=50"]))
    assert (len(experiment.source), len(experiment.held_out)) == (25 + 12, 15)
    pairs = experiment.source.batch(torch.arange(25, 37), generator(0))
    data = everything(experiment.data.train()).x1
    assert (pairs.x1[:, None] == data).all(2).any(1).all()
    assert len(pairs.x1.unique(dim=0)) == 12
    teacher = load(trained)
    with torch.no_grad():
        there = solve(teacher.parts().field(teacher.network), pairs.x0, 50, "heun")
    assert torch.allclose(there, pairs.x1, atol=1e-3)


def test_generated_and_inverted_pairs_come_in_the_order_that_is_asked_for(trained: Path) -> None:
    source = Experiment(resolve("ring", [f"teacher.model={trained}", *INVERTED])).source
    whole = source.batch(torch.arange(37), generator(0))
    for rows in (torch.tensor([36, 0, 25, 24, 3, 30]), torch.tensor([2, 1]), torch.tensor([36, 26])):
        batch = source.batch(rows, generator(0))
        assert torch.equal(batch.x0, whole.x0[rows])
        assert torch.equal(batch.x1, whole.x1[rows])


def test_inverted_pairs_are_kept_shared_and_finished(trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", *INVERTED, model=trained)
    (inverted,) = (one for one in stores(trained) if "inverted" in PairStore(one).meta["record"])
    shards = sorted(inverted.glob("*.safetensors"))
    before = [shard.read_bytes() for shard in shards]
    shards[-1].unlink()
    run(tmp_path / "two", *INVERTED, "teacher.pairs.count=24", model=trained)  # of another count of the others
    assert [shard.read_bytes() for shard in shards] == before
    assert len(stores(trained)) == 3
    run(tmp_path / "all", *PAIRS, "teacher.pairs.inverted=100000", model=trained)
    counts = [PairStore(one).meta["record"].get("inverted") for one in stores(trained)]
    assert len(Experiment(resolve("ring")).data.train()) in counts


def test_the_teachers_steps_may_end_at_edms_noise_levels(trained: Path, tmp_path: Path) -> None:
    run(tmp_path / "student", *PAIRS, "teacher.pairs.rho=7", "teacher.pairs.inverted=4", model=trained)
    for folder in stores(trained):
        assert PairStore(folder).meta["times"] == edm_grid(3, path=linear()).tolist()


def test_noise_levels_that_the_teachers_path_has_not_are_told(ring: Path, tmp_path: Path) -> None:
    flowplat.run("ring", "path=vp", "sample.solver=heun", *SHORT, out=tmp_path / "vp")
    with pytest.raises(UsageError, match=r"^teacher\.pairs\.rho: sigma_min=0.002 .*; leave it out"):
        run(tmp_path / "student", *PAIRS, "teacher.pairs.rho=7", model=tmp_path / "vp")


def test_validation_on_pairs_needs_some_held_out(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"set teacher\.pairs\.held_out"):
        run(tmp_path / "student", *PAIRS, "train.validate_every=1", model=trained)
    held = ("train.validate_every=1", "teacher.pairs.held_out=8")
    rows = (run(tmp_path / "other", *PAIRS, *held, model=trained) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["val_loss"] > 0 for row in rows] == [True, True]


def test_pairs_are_not_coupled_again(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coupled already"):
        run(tmp_path / "student", *PAIRS, "coupling=exact", model=trained)


@pytest.mark.parametrize(
    "objective", ["one_step", "{name: k_step, steps: 2}", "flow_guided", "{name: flow_guided, first_step: teacher}"]
)
def test_distillation(objective: str, trained: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "student", *PAIRS, f"objective={objective}", model=trained)
    config = resolve("ring", file=folder / "config.yaml")
    assert config.coupling is None
    assert config.times is None
    with pytest.raises(UsageError, match="learns the pairs of a teacher"):
        run(tmp_path / "other", f"objective={objective}", model=trained)


@pytest.mark.parametrize("objective", ["annealed, steps: 3", "flow_guided", "phased, phases: 2, teacher_steps: 2"])
def test_a_student_that_goes_on_is_the_one_that_did_not_stop(objective: str, trained: Path, tmp_path: Path) -> None:
    more = (*PAIRS, f"objective={{name: {objective}}}", "train.schedule=constant")
    straight = run(tmp_path / "straight", *more, "train.steps=4", model=trained)
    folder = run(tmp_path / "student", *more, model=trained)
    execute(resolve("ring", ["train.steps=4", *SHORT[2:]], file=folder / "config.yaml"), folder, resume=True)
    ends = [load_file(one / "checkpoints" / "step-00000004" / "model.safetensors") for one in (straight, folder)]
    assert equal(*ends)


def test_the_noise_of_a_student_is_annealed_over_the_steps(trained: Path, tmp_path: Path) -> None:
    """At step 0 none of the pairs' noise is left, and after the last step all of it."""
    losses = []
    for name, objective in (("short", "{name: annealed, steps: 1}"), ("long", "annealed"), ("none", "matching")):
        still = (f"objective={objective}", "train.log_every=1", "train.lr=1e-12")
        rows = (run(tmp_path / name, *PAIRS, *still, model=trained) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    short, long, none = losses
    assert short[0] == long[0] != pytest.approx(none[0], rel=1e-4)
    assert short[1] == pytest.approx(none[1], rel=1e-6)
    assert long[1] != pytest.approx(none[1], rel=1e-4)


@pytest.mark.parametrize("objective", ["flow_guided", "phased"])
def test_a_run_is_rehearsed_before_its_teacher_is_trained(objective: str, ring: Path) -> None:
    """With one that has not learnt yet; what does not fit is told all the same."""
    named = ["teacher.preset=ring", *PAIRS, f"objective={objective}"]
    experiment = Experiment(resolve("ring", named))
    experiment.rehearse(experiment.network())
    other = Experiment(resolve("ring", [*named, "path=cosine"]))
    with pytest.raises(UsageError, match="goes by another path"):
        other.rehearse(other.network())


@pytest.mark.parametrize(
    "option", ["annealed, steps: 0", "k_step, steps: 0", "phased, phases: 0", "flow_guided, first_step: nobody"]
)
def test_options_that_cannot_be_are_told_before_a_teacher_is_looked_for(option: str, ring: Path) -> None:
    with pytest.raises(UsageError, match=rf"objective\.{option.split(', ')[1].split(':')[0]}"):
        resolve("ring", [f"objective={{name: {option}}}", "teacher.preset=ring", "teacher.pairs.count=4"])


def test_a_student_stands_alone(trained: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "student", *PAIRS, "teacher.start=averaged", model=trained)
    shutil.rmtree(trained)
    samples = load(folder).sample(4, seed=0).x1
    model = export(folder, tmp_path / "model")
    assert torch.equal(load(model).sample(4, seed=0).x1, samples)


def test_the_teacher_of_a_run_that_goes_on_is_the_one_it_was_begun_with(trained: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "student", *PAIRS, model=trained)
    longer = resolve("ring", ["train.steps=4", *SHORT[2:]], file=folder / "config.yaml")
    assert json.loads((folder / "provenance.json").read_text())["teacher"]["fingerprint"]
    execute(longer, folder, resume=True)
    other = flowplat.run("ring", "engine.threads=1", "seed=5", out=tmp_path / "other").folder
    changed = resolve("ring", [f"teacher.model={other}"], file=folder / "config.yaml")
    with pytest.raises(UsageError, match=r"the teacher is not what the run in .* was begun with"):
        execute(changed, folder, resume=True)
