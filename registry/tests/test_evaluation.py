"""evaluation: figures at each number of steps, and the geometry of the paths."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowcore.diagnostics import transport
from flowplat.config import resolve
from flowplat.evaluation import draw, evaluate
from flowplat.experiment import Experiment


class Linear(nn.Module):
    """v(x) = a x + b."""

    def __init__(self, a: float, *b: float) -> None:
        super().__init__()
        self.a, self.b = a, nn.Parameter(torch.tensor(b))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.a * x + self.b


def measure(network: nn.Module, folder: Path, *overrides: str) -> dict:
    experiment = Experiment(resolve("ring", overrides))
    drawn = draw(experiment, network)
    assert drawn is not None
    return evaluate(experiment, network, drawn, folder)


def test_straight_paths_have_straightness_0_and_the_cost_of_their_length(ring: Path, tmp_path: Path) -> None:
    paths = measure(Linear(0.0, 3.0, -4.0), tmp_path)["paths"]
    assert paths["straightness"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert paths["straightness"]["floor"] == 0.0
    assert paths["transport_cost"]["value"] == pytest.approx((9 + 16) / 2, rel=1e-5)  # by dimension


def test_paths_start_where_the_sampler_starts(ring: Path, tmp_path: Path) -> None:
    overrides = ["path=ve", "eval.metrics=[]", "predicts=velocity"]
    experiment = Experiment(resolve("ring", overrides))
    network = Linear(-0.5, 0.0, 0.0)
    x0 = experiment.parts.path.initial(experiment.sample(network, 8, 1, experiment.config.seed).x0)
    found = measure(network, tmp_path, *overrides)["paths"]["transport_cost"]["value"]
    assert found == pytest.approx(transport(experiment.parts.field(network), x0, 100).cost / 2, rel=1e-6)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_nfe_counts_the_evaluations_of_the_network(solver: str, calls: int, ring: Path, tmp_path: Path) -> None:
    found = measure(Linear(0.0, 0.0, 0.0), tmp_path, f"sample.solver={solver}", "eval.steps=[3, 1, 3]")
    assert [(column["steps"], column["nfe"]) for column in found["by_steps"]] == [(1, calls), (3, 3 * calls)]


def test_a_metric_gets_its_options_and_its_figure_is_kept_whole(ring: Path, tmp_path: Path) -> None:
    found = measure(Linear(0.0, 0.0, 0.0), tmp_path, "eval.metrics=[{name: radius, wanted: 3}]", "eval.count=500")
    figure = found["by_steps"][0]["figures"]["radius"]
    assert figure["value"] == pytest.approx(3 - (torch.pi / 2) ** 0.5, abs=0.1)  # E|x| of two normals
    assert figure | {"value": 0} == {
        "value": 0, "better": "lower", "floor": 0.0, "baselines": {"noise": 0.5}, "unit": "m",
        "note": "distance from the circle",
    }  # fmt: skip
    assert found["count"] == 500
    assert json.loads(json.dumps(found)) == found


def test_the_folder_a_metric_may_keep_things_in_is_there(ring: Path, tmp_path: Path) -> None:
    measure(Linear(0.0, 0.0, 0.0), tmp_path, "eval.metrics=[keeps]", "eval.count=5")
    assert (tmp_path / "kept").read_text() == "5"


def test_no_metrics_are_no_fault(ring: Path, tmp_path: Path) -> None:
    found = measure(Linear(0.0, 0.0, 0.0), tmp_path, "eval.metrics=[]")
    assert [column["figures"] for column in found["by_steps"]] == [{}, {}]


def test_two_evaluations_give_the_same_figures(ring: Path, tmp_path: Path) -> None:
    network = Linear(-1.0, 0.5, 0.5)
    assert measure(network, tmp_path / "one") == measure(network, tmp_path / "two")
