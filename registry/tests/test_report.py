"""report: one page that stands alone and shows each figure beside its floor."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore import files
from flowplat import runs
from flowplat.config import resolve, to_yaml
from flowplat.report import number, table, write_report
from flowplat.rundir import RunDir, write_json

FIGURES: dict[str, Any] = {
    "count": 16,
    "seed": 0,
    "by_steps": [
        {"steps": 1, "nfe": 2, "figures": {"crps": {"value": 0.5, "floor": 0.123456, "baselines": {"<climate>": 0.75},
                                                    "better": "lower", "unit": "m/s", "note": "n"}}},
        {"steps": 4, "nfe": 8, "figures": {"crps": {"value": 0.25, "floor": 0.123456, "baselines": {"<climate>": 0.75},
                                                    "better": "lower", "unit": "m/s", "note": "n"},
                                           "bias": {"value": -1e-7, "floor": None, "baselines": {}, "better": "neither",
                                                    "unit": "", "note": ""}}},
    ],
    "paths": {"straightness": {"value": 0.0, "floor": 0.0, "note": "", "baselines": {}, "better": "lower", "unit": ""}},
}  # fmt: skip
RECORD = {
    "status": "done",
    "parameters": 1234,
    "argv": ["platform", "run", "<script>alert(1)</script>"],
    "started": "2026-01-01T00:00:00+00:00",
    "data": {"name": "ring/ring", "fingerprint": "0123456789abcdef" * 4},
    "versions": {"torch": "2.6"},
    "sources": {"flowplat": {"commit": None, "changed": True}},
    "hardware": {"gpu": None, "device": "cpu", "machine": "Linux"},
}


def page(
    folder: Path, figures: Any = FIGURES, *overrides: str, record: Any = RECORD, picture: bytes = b"\x89PNG picture"
) -> str:
    """The report of a run whose folder holds this."""
    run = RunDir(folder)
    run.append_metrics({"step": 1, "loss": 1.0})
    run.config.write_text(to_yaml(resolve("ring", overrides)), encoding="utf-8")
    write_json(run.provenance, record)
    if figures is not None:
        write_json(run.figures, figures)
    if picture:
        files.write(run.samples / "sheet.png", picture)
    assert write_report(runs.read(folder)) == run.report
    return run.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1.0, "1"), (0.123456, "0.1235"), (12345.6, "1.235e+04"), (-1e-7, "-1e-07"), (3, "3")],
)
def test_a_number_has_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_table_has_a_row_a_figure_with_its_value_at_each_number_of_steps() -> None:
    crps, bias = table(FIGURES)
    assert (crps["name"], crps["values"], crps["floor"], crps["baselines"]) == (
        "crps", {1: 0.5, 4: 0.25}, 0.123456, {"<climate>": 0.75}
    )  # fmt: skip
    assert (bias["name"], bias["values"], bias["floor"]) == ("bias", {4: -1e-7}, None)


def test_the_page_stands_alone(ring: Path, tmp_path: Path) -> None:
    text = page(tmp_path)
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", text)
    assert len(sources) == 3
    assert all(source.startswith("data:image/") for source in sources)
    for word in ("http:", "https:", "//", "@import", "url(", "<script", "<link"):
        assert word not in re.sub(r"base64,[\w+/=]+", "", text)


def test_the_pictures_are_pictures(ring: Path, tmp_path: Path) -> None:
    found = re.findall(r"data:image/([\w+]+);base64,([\w+/=]+)", page(tmp_path))
    assert [kind for kind, _ in found] == ["png", "svg+xml", "svg+xml"]
    assert base64.b64decode(found[0][1]) == b"\x89PNG picture"
    for _, text in found[1:]:
        drawing = base64.b64decode(text).decode()
        assert ET.fromstring(drawing).tag.endswith("svg")
        assert 'href="http' not in drawing


def test_each_figure_stands_beside_its_floor_and_baselines(ring: Path, tmp_path: Path) -> None:
    text = re.sub(r">\s+<", "><", page(tmp_path))
    assert "<td>0.5</td><td>0.25</td><td>0.1235</td><td>&lt;climate&gt; 0.75</td>" in text
    assert "<td>-</td><td>-1e-07</td><td>-</td><td></td>" in text
    assert "crps (m/s) ↓" in text
    assert "1234 parameters" in text


def test_names_and_arguments_are_escaped(ring: Path, tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_smoke_run_says_so(ring: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert "smoke run" not in page(tmp_path / "one")
    assert "smoke run" in page(tmp_path / "two", FIGURES, "smoke=true")


def test_a_run_without_metrics_has_a_page_too(ring: Path, tmp_path: Path) -> None:
    columns = [{"steps": 1, "nfe": 1, "figures": {}}]
    assert "straightness" in page(tmp_path, FIGURES | {"by_steps": columns})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("floor", [0.0, -1.0, 1e-9])
def test_a_floor_is_drawn_wherever_it_lies(floor: float, ring: Path, tmp_path: Path) -> None:
    figure = FIGURES["paths"]["straightness"] | {"value": 0.5, "floor": floor, "baselines": {"noise": 2.0}}
    columns = [{"steps": n, "nfe": n, "figures": {"crps": figure}} for n in (1, 4)]
    pictures = re.findall(r"svg\+xml;base64,([\w+/=]+)", page(tmp_path, FIGURES | {"by_steps": columns}))
    drawing = base64.b64decode(pictures[0]).decode()
    assert ET.fromstring(drawing).tag.endswith("svg")


def test_figures_that_are_not_finite_do_not_stop_the_page(ring: Path, tmp_path: Path) -> None:
    figure = FIGURES["paths"]["straightness"] | {"value": float("nan"), "baselines": {"noise": float("inf")}}
    columns = [{"steps": 1, "nfe": 1, "figures": {"crps": figure}}]
    assert "crps" in page(tmp_path, FIGURES | {"by_steps": columns})


def test_the_config_on_the_page_is_the_config(ring: Path, tmp_path: Path) -> None:
    text = page(tmp_path, FIGURES, "train.lr=0.0123", "sample.condition=upper")
    assert "lr: 0.0123" in text
    assert "condition: upper" in text


def test_a_report_made_again_is_the_report(trained: Path, platform: Callable[..., tuple[int, str, str]]) -> None:
    before = (trained / "report.html").read_bytes()
    (trained / "report.html").unlink()
    assert platform("report", str(trained)) == (0, f"{trained / 'report.html'}\n", "")
    assert (trained / "report.html").read_bytes() == before
    code, out, _ = platform("report", str(trained), "--json")
    assert (code, json.loads(out)) == (0, {"report": str(trained / "report.html")})


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_has_not_finished_has_a_page_that_says_so(
    status: str, make: Callable[..., Path], platform: Callable[..., tuple[int, str, str]]
) -> None:
    folder = make("20260101T000000Z-aaaaaa", status=status)
    (folder / "eval" / "metrics.json").unlink()
    assert platform("report", "2026") == (0, f"{folder / 'report.html'}\n", "")
    text = (folder / "report.html").read_text()
    said = "killed" if status == "running" else status
    assert f"Not finished: {said} at step 40 of 40." in text
    assert "There are none: samples/sheet.png is missing." in text
    assert "There are none: eval/metrics.json is missing." in text
    assert len(re.findall("<img", text)) == 1  # the losses
    assert "of an earlier end" not in text


def test_figures_of_an_earlier_end_are_told_apart(ring: Path, tmp_path: Path) -> None:
    assert "of an earlier end" in page(tmp_path, record=RECORD | {"status": "failed"})


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "metrics.jsonl", "eval/metrics.json"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[1, 2]", b'{"step": "x", "loss": "y"}'])
def test_what_is_damaged_is_missing_on_the_page(
    name: str, content: bytes | None, trained: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    (trained / name).unlink() if content is None else (trained / name).write_bytes(content)
    (trained / "report.html").unlink()
    code, out, err = platform("report", str(trained))
    assert (code, out) == (0, f"{trained / 'report.html'}\n")
    text = (trained / "report.html").read_text()
    assert "</html>" in text
    if name in ("config.yaml", "provenance.json"):
        assert name in err
        assert name in text
    if name == "eval/metrics.json":
        assert f"eval/metrics.json is {'missing' if content is None else 'damaged'}" in text


@pytest.mark.parametrize(
    "figures",
    [{"by_steps": 5}, {"by_steps": [{"steps": 1}], "paths": {}, "count": 1},
     {"by_steps": [{"steps": 1, "nfe": 1, "figures": {"a": {"value": "x"}}}], "paths": {}, "count": 1},
     {"by_steps": [], "paths": {"a": {"value": 1}}, "count": 1}, FIGURES | {"count": None, "paths": None}],
)  # fmt: skip
def test_figures_of_another_shape_are_damaged(figures: Any, ring: Path, tmp_path: Path) -> None:
    assert "eval/metrics.json is damaged" in page(tmp_path, figures)


@pytest.mark.parametrize(
    "change",
    [{"hardware": 5}, {"data": {"fingerprint": 5}}, {"versions": None, "sources": {"a": 5}}, {"argv": 5},
     {"started": 5, "parameters": "many"}],
)  # fmt: skip
def test_a_record_of_another_shape_has_a_page_too(change: dict[str, Any], ring: Path, tmp_path: Path) -> None:
    assert "</html>" in page(tmp_path, record=RECORD | change)


def test_what_is_no_run_has_no_report(
    tmp_path: Path, platform: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "last", "."):
        code, out, err = platform("report", name)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_code_4(
    trained: Path, platform: Callable[..., tuple[int, str, str]]
) -> None:
    (trained / "report.html").unlink()
    (trained / "report.html").mkdir()
    code, out, err = platform("report", str(trained))
    assert (code, out) == (4, "")
    assert f"{trained / 'report.html'} cannot be written" in err
    assert not [path for path in trained.iterdir() if path.suffix == ".tmp"]
