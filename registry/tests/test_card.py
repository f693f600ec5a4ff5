"""card: the README.md of a model, as the hub reads it and as people do."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import UsageError
from flowplat.card import cell, licence
from flowplat.export import export
from flowplat.plain_yaml import parse


def front(page: str) -> dict[str, Any]:
    """The metadata between the two lines of dashes."""
    assert page.startswith("---\n")
    found = parse(page.split("---\n")[1], "card")
    assert isinstance(found, dict)
    return found


@pytest.fixture
def page(trained: Path, tmp_path: Path) -> str:
    return (export(trained, tmp_path / "round things", license="Apache-2.0") / "README.md").read_text(encoding="utf-8")


def test_the_metadata(page: str, trained: Path) -> None:
    found = front(page)
    assert list(found) == ["license", "library_name", "tags", "model-index"]
    assert (found["license"], found["library_name"]) == ("apache-2.0", "flowplat")
    assert {"flow-matching", "ring", "linear"} <= set(found["tags"])
    (index,) = found["model-index"]
    (result,) = index["results"]
    assert (index["name"], result["dataset"]["name"]) == ("round things", "ring/ring")
    figures = json.loads((trained / "eval" / "metrics.json").read_text())
    by_steps = {column["steps"]: column["figures"]["radius"] for column in figures["by_steps"]}
    shown = {m["args"]["steps"]: (m["value"], m["args"]["floor"]) for m in result["metrics"] if m["type"] == "radius"}
    assert shown == {steps: (figure["value"], figure["floor"]) for steps, figure in by_steps.items()}
    assert {m["type"] for m in result["metrics"]} == {"radius", "straightness", "transport_cost"}


def test_the_hubs_own_reader_reads_it(page: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(page).data
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "flowplat", "round things")
    assert {result.metric_type for result in data.eval_results} == {"radius", "straightness", "transport_cost"}
    assert all(isinstance(result.metric_value, float) for result in data.eval_results)


def test_the_text(page: str, trained: Path) -> None:
    record = json.loads((trained / "provenance.json").read_text())
    for told in (
        "# round things\n",
        "![samples](sheet.png)",
        "platform sample . -n 64 --steps 2 -o samples",
        'flowplat.load(".")',
        f"`flowplat {record['versions']['flowplat']}` and `flowplat-ring 1.0`",
        "| figure | 1 | 2 | floor | baselines |",
        "noise 0.5",
        "| steps | 12 of 12, batches of 8 |",
        f"fingerprint `{record['data']['fingerprint']}`",
        f"| started | {record['started']} |",
        "apache-2.0",
    ):
        assert told in page
    assert "smoke run" not in page
    assert "\n\n\n" not in page


def test_a_model_without_a_licence_says_so(trained: Path, tmp_path: Path) -> None:
    page = (export(trained, tmp_path / "model") / "README.md").read_text()
    assert front(page)["license"] == "unknown"
    assert "None was stated when this model was exported." in page


def test_a_figure_that_is_no_number_is_a_dash_and_no_metric(trained: Path, tmp_path: Path) -> None:
    path = trained / "eval" / "metrics.json"
    figures = json.loads(path.read_text())
    figures["by_steps"][0]["figures"]["radius"]["value"] = None
    path.write_text(json.dumps(figures))
    page = (export(trained, tmp_path / "model") / "README.md").read_text()
    metrics = front(page)["model-index"][0]["results"][0]["metrics"]
    assert [m["args"]["steps"] for m in metrics if m["type"] == "radius"] == [2]
    assert "| radius ↓ | - |" in page


def test_names_do_not_turn_into_markup(trained: Path, tmp_path: Path) -> None:
    path = trained / "eval" / "metrics.json"
    path.write_text(path.read_text().replace('"radius"', '"<script>|[x](http://x)"'))
    page = (export(trained, tmp_path / 'a "name": #1 {{ 7 * 7 }} <b>') / "README.md").read_text()
    assert front(page)["model-index"][0]["name"] == 'a "name": #1 {{ 7 * 7 }} <b>'
    body = page.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "<b>" not in body
    assert "49" not in body.splitlines()[1]
    assert r"\<script\>\|\[x\](http://x)" in body
    assert cell("a|b\nc") == r"a\|b c"


def test_licences() -> None:
    assert [licence(given) for given in (None, "MIT", "cc-by-4.0")] == ["unknown", "mit", "cc-by-4.0"]
    for wrong in ("", "two words", "a\nb: c", "-x"):
        with pytest.raises(UsageError, match="no licence identifier"):
            licence(wrong)
