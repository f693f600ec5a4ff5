"""evaluation: figures at each number of steps, and the geometry of the paths."""

import json
from collections.abc import Callable
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


def test_the_first_order_defect_is_told_of_curved_paths(ring: Path, tmp_path: Path) -> None:
    """e(x, t) = 3 everywhere keeps what e(x, t) = x does not."""
    curved = ["path=vp", "predicts=noise", "sample.solver={name: exponential, order: 1}", "eval.metrics=[]"]
    figure = measure(Linear(0.0, 3.0, 3.0), tmp_path, *curved)["paths"]["first_order_defect"]
    assert (figure["value"], figure["floor"], figure["better"]) == (pytest.approx(0.0, abs=1e-12), 0.0, "lower")
    assert measure(Linear(1.0, 0.0, 0.0), tmp_path, *curved)["paths"]["first_order_defect"]["value"] > 0.01
    assert "first_order_defect" not in measure(Linear(0.0, 0.0, 0.0), tmp_path)["paths"]  # straightness says as much


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


# samples that are files


def spread(folder: Path, *points: tuple[float, float]) -> Path:
    """A folder of samples as ring writes them."""
    folder.mkdir()
    (folder / "points.csv").write_text("".join(f"{x},{y}\n" for x, y in points))
    return folder


def said_of(platform: Callable[..., tuple[int, str, str]], *words: str) -> str:
    """What a mistake is told in: one line, and below it a line for each fault of the config if that is one."""
    code, out, err = platform("eval", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 + err.startswith("platform: the config has 1 fault:")
    return err


def test_files_are_measured_as_samples_are(
    ring: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    folder = spread(tmp_path / "points", (3.0, 4.0), (0.0, 2.0), (1.0, 0.0))  # 4, 1 and 0 from the circle
    code, out, err = platform("eval", "ring", str(folder), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    (column,) = found.pop("by_steps")
    assert found == {"count": 3, "seed": 0, "paths": {}}
    assert (column["steps"], column["nfe"]) == (None, None)
    assert column["figures"]["radius"]["value"] == pytest.approx(5 / 3)
    rows = platform("eval", "ring", str(folder))[1].splitlines()
    assert [row.split() for row in rows] == [
        ["3", "samples", "value", "floor", "baselines"], ["radius", "1.667", "0", "noise", "0.5"]
    ]  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["points.csv"]


def test_files_are_measured_by_the_preset_the_file_and_the_settings_named(
    ring: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    folder, out, file = spread(tmp_path / "points", (0.0, 5.0)), tmp_path / "kept", tmp_path / "my.yaml"
    file.write_text("eval: {metrics: [{name: radius, wanted: 4}, keeps]}\n")
    words = ("eval", "ring", str(folder), "data.split=true", "-c", str(file), "-o", str(out), "--json")
    code, said, _ = platform(*words)
    assert code == 0
    assert json.loads(said)["by_steps"][0]["figures"]["radius"]["value"] == pytest.approx(1.0)
    assert json.loads((out / "metrics.json").read_text()) == json.loads(said)
    assert (out / "kept").read_text() == "1"
    assert "is not empty" in said_of(platform, *words[1:])
    straight = json.loads(platform("eval", "ring", str(folder), "--preset", "straight", "--json")[1])
    assert straight["by_steps"][0]["figures"] == {}  # that preset has no metrics, and its teacher is not asked for


def test_a_run_called_as_its_plugin_is_the_model_and_with_a_folder_the_plugin(
    trained: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spread(tmp_path / "points", (0.0, 5.0))
    assert "name their folder behind it" in said_of(platform, "ring")
    trained.rename("ring")
    assert json.loads(platform("eval", "ring", "--json")[1])["count"] == 16
    assert json.loads(platform("eval", "ring", "points", "--json")[1])["count"] == 1


def test_the_samples_of_a_run_are_measured_again(trained: Path, platform: Callable[..., tuple[int, str, str]]) -> None:
    config, samples = str(trained / "config.yaml"), str(trained / "samples")
    code, out, _ = platform("eval", "ring", samples, "-c", config, "engine.devices=4", "--json")
    assert (code, json.loads(out)["count"]) == (0, 8)


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "holds no samples"), ("1,2,3\n", "(1, 3) float32; the spec asks for (1, 2)"),
     ("1,x\n", "cannot be read as samples of data ring/ring: ValueError: could not convert"), ("1,nan\n", "not finite"),
     (None, "points.csv")],
)  # fmt: skip
def test_samples_that_do_not_fit_are_told_in_a_line(
    content: str | None, told: str, ring: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    folder = spread(tmp_path / "points")
    (folder / "points.csv").unlink() if content is None else (folder / "points.csv").write_text(content)
    said = said_of(platform, "ring", str(folder))
    assert str(folder) in said
    assert told in said


def test_data_that_reads_nothing_back_names_what_does(
    ring: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    code = (ring / "plugin.py").read_text(encoding="utf-8")  # the first of them is Ring's; Scaled has its own
    (ring / "plugin.py").write_text(code.replace("def read_back", "def read_other", 1), encoding="utf-8")
    said = said_of(platform, "ring", str(spread(tmp_path / "points")))
    assert "data ring/ring reads no samples from files" in said
    assert said.endswith("these do: scaled\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [(["last", "eval.steps"], "'eval.steps' is no folder of samples; a setting is written key=value"),
     (["ring", "one", "two"], "one folder is measured at a time, not one and two"),
     (["ring", "--preset", "ring"], "--preset goes with a folder of samples"),
     (["ring", "-c", "x.yaml"], "-c goes with a folder of samples"),
     (["ring", "one", "eval.mertics=[]"], "did you mean eval.metrics?"),
     (["ring", "one", "-o", "one"], "one is not empty")],
)  # fmt: skip
def test_a_line_that_cannot_be_understood_is_told_in_one(
    words: list[str], told: str, ring: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        spread(tmp_path / name)
    assert told in said_of(platform, *words)


def test_a_folder_behind_what_is_no_plugin(
    ring: Path, tmp_path: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = platform("eval", "rign", str(tmp_path))
    assert (code, out) == (3, "")
    assert "did you mean 'ring'?" in err
