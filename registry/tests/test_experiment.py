"""experiment: a config made into data, network, loss and samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowplat
from flowcore.data import Batch, everything
from flowcore.errors import PluginError, UsageError
from flowcore.seeds import generator
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.export import export


class Constant(nn.Module):
    """The same velocity everywhere; remembers the conditions it was told."""

    def __init__(self, *velocity: float) -> None:
        super().__init__()
        self.velocity = nn.Parameter(torch.tensor(velocity))
        self.told: list[Any] = []

    def forward(self, x: Any, t: Tensor, condition: Any = None) -> Any:
        assert t.shape == (len(t),)
        self.told.append(condition)
        if isinstance(x, dict):
            return {key: self.velocity[i].expand_as(leaf) for i, (key, leaf) in enumerate(x.items())}
        return self.velocity.expand_as(x)


def experiment(*overrides: str) -> Experiment:
    return Experiment(resolve("ring", overrides))


def test_the_loss_is_the_squared_distance_of_the_networks_output_from_the_target(ring: Path) -> None:
    given = torch.randn(64, 2, generator=generator(1, "x0"))
    ones = torch.ones(2)
    for predicts in ("velocity", "x1", "noise"):
        one = experiment(f"predicts={predicts}")
        x1 = everything(one.data.train()).x1
        target = {"velocity": x1 - given, "x1": x1, "noise": given}[predicts]
        loss = one.loss(Constant(1.0, 1.0), Batch(x1, x0=given), generator(0, "loss"))
        torch.testing.assert_close(loss, (ones - target).square().mean(1))


def test_the_loss_of_a_dict_is_the_sum_over_its_leaves(ring: Path) -> None:
    one = experiment("data.split=true")
    x1 = everything(one.data.train()).x1
    x0 = {key: torch.zeros(64, 1) for key in x1}
    loss = one.loss(Constant(0.0, 0.0), Batch(x1, x0=x0), generator(0, "loss"))
    torch.testing.assert_close(loss, torch.ones(64))  # x^2 + y^2 on the unit circle


def test_the_loss_is_a_function_of_the_generator_alone(ring: Path) -> None:
    one = experiment()
    network, batch = one.network(), everything(one.data.train())
    first = one.loss(network, batch, generator(0, "loss"))
    torch.manual_seed(123)
    assert torch.equal(one.loss(network, batch, generator(0, "loss")), first)
    assert not torch.equal(one.loss(network, batch, generator(1, "loss")), first)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 430, 570), (1.0, 1000, 1000)])
def test_conditions_are_dropped_at_the_share_asked_for(share: float, low: int, high: int, ring: Path) -> None:
    one = experiment("data.conditional=true", "data.count=1000", f"train.drop_condition={share}")
    network, batch = Constant(0.0, 0.0), everything(one.data.train())
    one.loss(network, batch, generator(0, "loss"))
    (told,) = network.told
    null = told == 2
    assert low <= int(null.sum()) <= high
    assert torch.equal(told[~null], batch.condition[~null])


def test_the_first_weights_depend_on_the_seed_alone(ring: Path) -> None:
    first = experiment("seed=3").network().state_dict()
    torch.manual_seed(99)
    again, other = experiment("seed=3").network().state_dict(), experiment("seed=4").network().state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_network_that_is_no_module_names_the_plugin(ring: Path) -> None:
    with pytest.raises(PluginError, match=r"network ring/formula returned function, not a torch\.nn\.Module"):
        experiment("network=formula").network()


# samples


@pytest.mark.parametrize("split", [False, True], ids=["tensor", "dict"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_constant_velocity_carries_the_source_by_it(steps: int, split: bool, ring: Path) -> None:
    one = experiment(f"data.split={str(split).lower()}", "sample.batch_size=4")
    drawn = one.sample(Constant(3.0, -4.0), 10, steps, seed=5)
    if split:
        assert {key: tuple(leaf.shape) for key, leaf in drawn.x1.items()} == {"x": (10, 1), "y": (10, 1)}
        moved = torch.cat([drawn.x1[key] - drawn.x0[key] for key in ("x", "y")], 1)
    else:
        moved = drawn.x1 - drawn.x0
    torch.testing.assert_close(moved, torch.tensor([[3.0, -4.0]]).expand(10, 2))
    assert drawn.extra["calls"] == steps


def test_a_sample_is_the_same_however_many_are_asked_for(ring: Path) -> None:
    one = experiment("sample.batch_size=4", "data.conditional=true")
    network = one.network()
    few, many = one.sample(network, 5, 3, seed=0), one.sample(network, 11, 3, seed=0)
    assert torch.equal(few.x1, many.x1[:5])
    assert torch.equal(few.condition, many.condition[:5])
    assert len(torch.unique(many.x1, dim=0)) == 11


def test_samples_depend_on_the_seed_alone(ring: Path) -> None:
    one = experiment("sample.solver=euler_maruyama")  # which draws noise on its way
    network = one.network()
    first = one.sample(network, 5, 3, seed=0)
    torch.manual_seed(99)
    assert torch.equal(one.sample(network, 5, 3, seed=0).x1, first.x1)
    assert not torch.equal(one.sample(network, 5, 3, seed=1).x1, first.x1)


def test_the_source_is_standard_normal(ring: Path) -> None:
    x0 = experiment().sample(Constant(0.0, 0.0), 20000, 1, seed=0).x0
    assert x0.mean(0).abs().max() < 0.03
    torch.testing.assert_close(x0.T.cov(), torch.eye(2), atol=0.04, rtol=0)


def test_conditions_reach_the_network_in_order(ring: Path) -> None:
    one = experiment("data.conditional=true", "sample.batch_size=4")
    network = Constant(0.0, 0.0)
    drawn = one.sample(network, 6, 1, seed=0)
    assert drawn.condition.tolist() == [0, 1, 0, 1, 0, 1]
    assert [told.tolist()[:2] for told in network.told] == [[0, 1], [0, 1]]
    assert one.sample(network, 3, 1, seed=0, condition="upper").condition.tolist() == [1, 1, 1]
    config = experiment("data.conditional=true", "sample.condition=lower")
    assert config.sample(network, 3, 1, seed=0).condition.tolist() == [0, 0, 0]
    assert config.sample(network, 3, 1, seed=0, condition="upper").condition.tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match="lower, upper"):
        one.sample(network, 3, 1, seed=0, condition="left")


def test_guidance_sees_the_condition_and_its_null(ring: Path) -> None:
    one = experiment("data.conditional=true", "sample.guidance=[{name: classifier_free, scale: 2.0}]")
    network = Constant(0.0, 0.0)
    one.sample(network, 2, 1, seed=0)
    told = network.told[0]
    assert {0, 1, 2} == set(told.tolist())


def test_nothing_keeps_the_graph(ring: Path) -> None:
    drawn = experiment().sample(Constant(1.0, 1.0), 4, 2, seed=0)
    assert not drawn.x1.requires_grad


def test_a_smoke_run_takes_the_tiny_data(ring: Path) -> None:
    assert len(Experiment(resolve("ring", smoke=True)).data.train()) == 16


# objectives and samplers of a plugin


def test_an_objective_is_what_is_minimised(normal: Path) -> None:
    one = Experiment(resolve("normal", ["objective.weight=3"]))
    network = one.network()
    with torch.no_grad():
        network.mean += torch.tensor([1.0, -2.0])
        network.log_std += torch.tensor([0.5, 0.0])
    batch = everything(one.data.train())
    found = one.loss(network, batch, generator(0, "loss"))
    distribution = torch.distributions.Normal(network.mean, network.log_std.exp())
    torch.testing.assert_close(found, -3 * distribution.log_prob(batch.x1).sum(1))
    assert one.validate(network) == pytest.approx(found.mean().item(), rel=1e-6)  # all 64 points are held out too


def test_a_sampler_is_how_samples_are_drawn(normal: Path) -> None:
    one = Experiment(resolve("normal", ["sample.sampler={name: drawn, spread: 0}", "sample.batch_size=4"]))
    network = one.network()
    with torch.no_grad():
        network.mean += torch.tensor([1.0, -2.0])
    drawn = one.sample(network, 10, 7, seed=0)
    assert drawn is not None
    torch.testing.assert_close(drawn.x1, network.mean.expand(10, 2))
    assert (drawn.x0, drawn.extra["calls"]) == (None, 0)
    assert one.chunk(network, 0, 4, 7, seed=0).extra["steps"] == 7
    assert not one.follows_field
    spread = Experiment(resolve("normal", ["sample.batch_size=4"]))
    few, many = spread.sample(network, 5, 1, seed=0), spread.sample(network, 11, 1, seed=0)
    assert few is not None
    assert many is not None
    assert torch.equal(few.x1, many.x1[:5])
    assert len(torch.unique(many.x1, dim=0)) == 11


def test_parts_hold_what_is_used_and_no_more(normal: Path) -> None:
    one = Experiment(resolve("normal", ["objective=straight", "path=cosine", "seed=3"]))
    parts = one.parts
    assert (parts.path.name, parts.seed, parts.spec, parts.data) == ("cosine", 3, one.spec, one.data)
    assert (parts.coupling, parts.loss, parts.predicts, parts.solver) == (None, None, None, None)
    batch = one.source.batch(torch.arange(5), generator(0, "rows"))
    assert batch.x0 is None
    t = parts.times(5, generator(0, "loss"))
    torch.testing.assert_close(one.loss(one.network(), batch, generator(0, "loss")), parts.path.sigma(t))


def test_a_solver_that_remembers_is_new_for_every_chunk(ring: Path) -> None:
    one = experiment("sample.solver=exponential", "predicts=x1")
    first, second = one.steered(), one.steered()
    assert first.solver is not second.solver
    assert first.path is second.path is one.parts.path


def test_a_run_without_a_path_is_a_run(normal: Path, tmp_path: Path) -> None:
    """Its loss falls to that of the best normal distribution, and it is loaded, sampled, measured and exported."""
    run = ("train.steps=300", "train.lr=0.05", "train.schedule=cosine", "train.ema=0.9")
    done = flowplat.run("normal", *run, out=tmp_path / "run")
    assert done.figures["paths"] == {}
    assert [row["nfe"] for row in done.figures["by_steps"]] == [0, 0]
    assert (done.folder / "report.html").is_file()
    model = flowplat.load(done.folder)
    x1 = everything(model.data.train()).x1
    torch.testing.assert_close(model.network.mean.detach(), x1.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(model.network.log_std.exp().detach(), x1.std(0, correction=0), atol=0.02, rtol=0)
    sent = export(done.folder, tmp_path / "model")
    assert torch.equal(flowplat.load(sent).sample(5).x1, model.sample(5).x1)
    again = flowplat.run("normal", config=done.folder / "config.yaml", out=tmp_path / "again")
    assert torch.equal(flowplat.load(again.folder).sample(5).x1, model.sample(5).x1)


def test_a_run_without_a_path_goes_on_where_it_was(normal: Path, tmp_path: Path) -> None:
    whole = flowplat.run("normal", "train.schedule=constant", out=tmp_path / "whole")
    flowplat.run("normal", "train.schedule=constant", "train.steps=7", out=tmp_path / "parts")
    parts = flowplat.run("normal", "train.steps=12", out=tmp_path / "parts", resume="last")
    assert torch.equal(flowplat.load(whole.folder).network.mean, flowplat.load(parts.folder).network.mean)


def test_samples_in_16_bits_are_near_those_in_32_and_of_their_kind(ring: Path) -> None:
    exact, fast = experiment(), experiment("sample.precision=bf16-mixed")
    network = exact.network()
    one, other = (each.chunk(network, 0, 16, 3, 0) for each in (exact, fast))
    assert other.x1.dtype == torch.float32
    assert 0 < (one.x1 - other.x1).abs().max() < 0.02
    assert torch.equal(one.x0, other.x0)


def test_a_compiled_network_draws_the_samples_of_the_network_itself(ring: Path) -> None:
    plain, compiled = experiment(), experiment("engine.compile=true", "engine.accelerator=cpu")
    one, other = (each.chunk(each.network(), 0, 16, 3, 0) for each in (plain, compiled))
    torch.testing.assert_close(one.x1, other.x1, rtol=1e-4, atol=1e-5)
    network = compiled.network()
    compiled.chunk(network, 0, 4, 1, 0)
    assert set(network.state_dict()) == set(plain.network().state_dict())  # what is saved has the names it had


def test_a_run_gives_its_path_the_standard_deviation_of_the_data(ring: Path) -> None:
    one = experiment("predicts=edm", "sigma_data=2", "path=ve")
    assert one.parts.path.sigma_data == 2
    assert experiment("predicts=edm").parts.path.sigma_data == 0.5
    pairs, seen = one.source.batch(torch.arange(4), generator(0)), []

    def network(x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    one.loss(network, pairs, generator(1))
    assert seen[0].std() < 5  # of x_t / R, where x_t has up to 80
