"""report: one page that stands alone and shows each figure beside its floor."""

import base64
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from flowplat.config import resolve
from flowplat.report import number, table, write_report
from flowplat.rundir import RunDir

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
    "argv": ["platform", "run", "<script>alert(1)</script>"],
    "started": "2026-01-01T00:00:00+00:00",
    "data": {"name": "ring/ring", "fingerprint": "0123456789abcdef" * 4},
    "versions": {"torch": "2.6"},
    "sources": {"flowplat": {"commit": None, "changed": True}},
    "hardware": {"gpu": None, "device": "cpu", "machine": "Linux"},
}


def page(folder: Path, figures: dict[str, Any] = FIGURES, *overrides: str) -> str:
    run = RunDir(folder)
    run.samples.mkdir()
    run.append_metrics({"step": 1, "loss": 1.0})
    write_report(run, resolve("ring", overrides), RECORD, figures, b"\x89PNG picture", 1234)
    assert (run.samples / "sheet.png").read_bytes() == b"\x89PNG picture"
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
