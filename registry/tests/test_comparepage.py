"""comparepage: one page that stands alone, marks the best of what can be compared, and tells what cannot."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore.errors import FlowError
from flowplat import report, runs
from flowplat.comparepage import POINTS, thinned, write_page

Make = Callable[..., Path]
Said = tuple[int, str, str]
NOTE = "mean distance"


def figure(value: float | None, **more: Any) -> dict[str, Any]:
    plain = {"better": "lower", "floor": 0.125, "baselines": {"<noise>": 3.0}, "unit": "", "note": NOTE}
    return {"value": value, **plain, **more}


def figures(*values: float | None, count: int = 16, calls: int = 1, **more: Any) -> dict[str, Any]:
    """Figures of a run that measured ``radius`` at 1, 4, 16 ... steps."""
    columns = [
        {"steps": 4**i, "nfe": calls * 4**i, "figures": {"radius": figure(value, **more)}}
        for i, value in enumerate(values)
    ]
    paths = {"straightness": figure(0.5, baselines={}, floor=0.0)}
    return {"count": count, "seed": 0, "by_steps": columns, "paths": paths}


@pytest.fixture
def built(make: Make) -> Callable[..., runs.Run]:
    """``built("small", figures(...))`` is a run with these figures and a sheet of samples."""
    made = list[Path]()

    def build(preset: str = "small", found: Any = None, **more: Any) -> runs.Run:
        folder = make(f"2026010{len(made)}T000000Z-aaaaaa", preset=preset, **more)
        made.append(folder)
        (folder / "eval" / "metrics.json").write_text(json.dumps(figures(0.5) if found is None else found))
        (folder / "samples").mkdir()
        (folder / "samples" / "sheet.png").write_bytes(b"\x89PNG %d" % len(made))
        return runs.read(folder)

    return build


def page(*compared: runs.Run) -> str:
    """The page, without the spaces between its elements."""
    text = write_page(compared, Path("page.html")).read_text(encoding="utf-8")
    return re.sub(r">\s+<", "><", text)


def row(text: str, name: str, table: str = "radius") -> list[str]:
    """The cells of a run in a table, the best of them as *value*."""
    cells = re.search(rf"<h3>{table}.*?</span>{re.escape(name)}</td>(.*?)</tr>", text, re.DOTALL)
    assert cells is not None
    marked = re.sub(r'<strong class="best">(.*?)</strong>', r"*\1*", cells[1])
    return [" ".join(re.sub("<.*?>", " ", cell).split()) for cell in re.findall(r"<td>(.*?)</td>", marked)]


def test_the_best_at_each_number_of_steps_is_marked(built: Callable[..., runs.Run]) -> None:
    text = page(built("a", figures(0.5, 0.25)), built("b", figures(0.75, 0.2, 0.1)), built("c", figures(0.5, None)))
    floor = ["0.125", "&lt;noise&gt; 3"]
    assert row(text, "1 a") == ["*0.5*", "0.25", "-", *floor]
    assert row(text, "2 b") == ["0.75", "*0.2*", "0.1", *floor]  # nobody else took 16 steps
    assert row(text, "3 c") == ["*0.5*", "-", "-", *floor]
    assert text.count(NOTE) == 3  # told once below the name, and of the paths in the head and below
    assert "radius ↓" in text
    assert "ranked" not in text


@pytest.mark.parametrize(
    ("better", "one", "other"),
    [("lower", "*0.25*", "0.5"), ("higher", "0.25", "*0.5*"), ("neither", "0.25", "0.5")],
)
def test_what_is_best_the_metric_says(better: str, one: str, other: str, built: Callable[..., runs.Run]) -> None:
    text = page(built("a", figures(0.25, better=better)), built("b", figures(0.5, better=better)))
    assert (row(text, "1 a")[0], row(text, "2 b")[0]) == (one, other)


def test_equal_values_have_no_best(built: Callable[..., runs.Run]) -> None:
    assert 'class="best"' not in page(built("a"), built("b"))


@pytest.mark.parametrize(
    ("found", "record", "told"),
    [(figures(0.1, count=64), {}, "the number of samples"),
     (figures(0.1, note="another judge"), {}, "how it is measured"),
     (figures(0.1, unit="m"), {}, "how it is measured"),
     (figures(0.1), {"data": {"name": "x", "fingerprint": "beef"}}, "the data")],
)  # fmt: skip
def test_only_what_was_measured_alike_is_ranked(
    found: Any, record: dict[str, Any], told: str, built: Callable[..., runs.Run]
) -> None:
    data = {"data": {"name": "x", "fingerprint": "f00d"}}
    one, other = built("a", figures(0.5), **data), built("b", figures(0.25), **data)
    odd = built("c", found, **(data | record))
    text = page(one, other, odd)
    assert [row(text, name)[0] for name in ("1 a", "2 b", "3 c")] == ["0.5", "*0.25*", "0.1"]
    assert f"1 a, 2 b are ranked, not the others: the runs differ in {told}." in text
    alone = page(one, odd)
    assert [row(alone, name)[0] for name in ("1 a", "2 c")] == ["0.5", "0.1"]
    assert f"Not ranked: the runs differ in {told}." in alone


def test_the_notes_tell_whose_they_are_where_they_differ(built: Callable[..., runs.Run]) -> None:
    text = page(built("a"), built("b", figures(0.1, note="<other>")), built("c"))
    assert f">1 a, 3 c: {NOTE}</p>" in text
    assert ">2 b: &lt;other&gt;</p>" in text


def test_network_evaluations_stand_where_a_step_takes_more_than_one(built: Callable[..., runs.Run]) -> None:
    text = page(built("a", figures(0.5, 0.4)), built("b", figures(0.3, 0.2, calls=2)))
    assert row(text, "1 a")[:2] == ["0.5", "0.4"]
    assert row(text, "2 b")[:2] == ["*0.3* NFE 2", "*0.2* NFE 8"]


def test_runs_of_two_plugins_share_what_both_measured(built: Callable[..., runs.Run]) -> None:
    other = figures(0.25)
    other["by_steps"][0]["figures"]["entropy"] = figure(2.0)
    other["paths"] = {}
    text = page(built("a", figures(0.5)), built("b", other, plugin="disc"))
    assert "The runs are of different plugins" in text
    shared, alone = text.split("<h2>Figures of one run alone</h2>")
    assert row(shared, "2 disc / b")[0] == "*0.25*"
    assert row(alone, "2 disc / b", "entropy")[0] == "2"
    assert "Not measured: 2 disc / b." in alone  # its paths
    nothing = page(built("a", figures(0.5)), built("b", other | {"by_steps": []}))
    assert "No figure was measured in two of the runs." in nothing
    assert "different plugins" not in nothing


def test_paths_are_a_table_with_the_straightest_marked(built: Callable[..., runs.Run]) -> None:
    straight = figures(0.5)
    straight["paths"] = {"straightness": figure(0.1, floor=0.0), "cost": figure(2.0, floor=None)}
    text = page(built("a"), built("b", straight)).split("<h2>Paths</h2>")[1].split("<h2>")[0]
    assert "<td>0.5 (0)</td><td>-</td>" in text
    assert '<td><strong class="best">0.1</strong> (0)</td><td>2</td>' in text


def test_settings_that_differ_are_a_table(built: Callable[..., runs.Run]) -> None:
    text = page(built("a", config="train: {steps: 40, ema: true}\n"), built("b", config="train: {steps: 80}\n"))
    assert "<td>train.steps</td><td>40</td><td>80</td>" in text
    assert "<td>train.ema</td><td>true</td><td>-</td>" in text
    one = built("a")
    assert "None: the configs are equal." in page(one, one)


def test_the_page_stands_alone(built: Callable[..., runs.Run]) -> None:
    text = page(built("a"), built("b"))
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", text)
    pictures = [base64.b64decode(one.partition("base64,")[2]) for one in sources if one.startswith("data:image/")]
    assert len(pictures) == len(sources) == 4
    assert pictures[1:3] == [b"\x89PNG 1", b"\x89PNG 2"]
    for drawing in (pictures[0], pictures[3]):
        assert ET.fromstring(drawing.decode()).tag.endswith("svg")
    for word in ("http:", "https:", "//", "@import", "url(", "<script", "<link"):
        assert word not in re.sub(r"base64,[\w+/=]+", "", text)
    assert text == page(
        *(runs.read(Path(f"runs/ring/{name}/2026010{i}T000000Z-aaaaaa")) for i, name in enumerate("ab"))
    )


def test_what_a_run_has_not_is_told(built: Callable[..., runs.Run], make: Make) -> None:
    whole, bare = (
        built("whole"),
        make("20260201T000000Z-bbbbbb", preset="bare", status="failed", config="smoke: true\n"),
    )
    (bare / "metrics.jsonl").unlink()
    text = page(whole, runs.read(bare))  # whose metrics.json the fixture leaves incomplete
    for told in ("2 bare: a smoke run: its figures mean nothing.", "2 bare: not finished: failed at step 40 of ?",
                 "2 bare: no figures: eval/metrics.json is damaged.", "none: samples/sheet.png is missing",
                 "No figure was measured in two of the runs."):  # fmt: skip
        assert told in text
    (bare / "eval" / "metrics.json").unlink()
    text = page(runs.read(bare), runs.read(bare))
    for told in (
        "1 bare: no figures: eval/metrics.json is missing.",
        "No paths were followed.",
        "There is none: no run",
    ):
        assert told in text
    assert "<img" not in text


@pytest.mark.parametrize("record", [{"data": 5}, {"data": {"fingerprint": 5}}, {"parameters": None}, {"sessions": 5}])
def test_a_record_of_another_shape_has_a_page_too(record: dict[str, Any], built: Callable[..., runs.Run]) -> None:
    assert "</html>" in page(built("a"), built("b", **record))


def test_names_mean_nothing_to_the_page_or_the_pictures(built: Callable[..., runs.Run]) -> None:
    found = figures(0.5)
    found["by_steps"][0]["figures"]["$\\frac{<script>"] = figure(1.0)
    first = {"steps": 1, "nfe": 1, "figures": {"$\\frac{<b>$": figure(1.0)}}
    found["by_steps"].insert(0, first)
    text = page(built("$x_{$", found), built("b", found))
    assert "<script" not in text
    assert "$\\frac{&lt;b&gt;$" in text
    assert "1 $x_{$" in text


# the pictures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, as matplotlib has them."""
    kept, svg = list[Any](), report.svg
    monkeypatch.setattr(report, "svg", lambda figure: kept.append(figure.axes[0]) or svg(figure))
    return kept


def lines(axes: Any) -> dict[str, Any]:
    """Points of each named line, and the heights of the level ones."""
    return {
        line.get_label(): [*zip(*(map(float, axis) for axis in line.get_data()), strict=True)] for line in axes.lines
    }


@pytest.mark.filterwarnings("error")
def test_the_first_metric_is_drawn_by_nfe_beside_the_floors(built: Callable[..., runs.Run], drawn: list[Any]) -> None:
    page(built("a", figures(0.5, None, 0.25)), built("b", figures(0.75, 0.5, calls=2, floor=0.25)))
    curves, _ = drawn
    found = lines(curves)
    assert found["1 a"] == [(1, 0.5), (16, 0.25)]
    assert found["2 b"] == [(2, 0.75), (8, 0.5)]
    assert sorted(line.get_ydata()[0] for line in curves.lines if line.get_linestyle() == "--") == [0.125, 0.25]
    assert (curves.get_xscale(), curves.get_yscale(), curves.get_ylabel()) == ("log", "log", "radius")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "floor"), [((0.5, -0.5), 0.125), ((0.5, 0.25), 0.0), ((None, None), None), ((None, None), 0.125)]
)
def test_what_is_not_positive_is_drawn_too(
    values: Any, floor: float | None, built: Callable[..., runs.Run], drawn: list[Any]
) -> None:
    text = page(built("a", figures(*values, floor=floor)), built("b", figures(*values, floor=floor)))
    *curves, _ = drawn
    assert [axes.get_yscale() for axes in curves] == ["linear"] * (values[0] is not None)
    assert row(text, "1 a")[2] == ("-" if floor is None else f"{floor:g}")


@pytest.mark.filterwarnings("error")
def test_losses_are_drawn_in_one_picture(built: Callable[..., runs.Run], drawn: list[Any]) -> None:
    one, other = built("a"), built("b")
    (other.folder / "metrics.jsonl").write_text('{"step": 5, "val_loss": -1}\n{"step": "x", "loss": 2}\n{"loss": null')
    page(one, other)
    losses = drawn[1]
    assert lines(losses) == {"1 a": [(20, 2), (40, 1)], "2 b": [(5, -1)]}
    assert losses.get_yscale() == "linear"


def test_a_long_curve_is_thinned_to_means() -> None:
    assert thinned([]) == []
    assert thinned([(1.0, 5.0), (2.0, 7.0)]) == [(1.0, 5.0), (2.0, 7.0)]
    points = [(float(i), float(i % 2)) for i in range(2 * POINTS)]
    assert thinned(points) == [(2 * i + 0.5, 0.5) for i in range(POINTS)]
    assert len(thinned(points[:-1])) == POINTS


# the verb


def test_the_verb_writes_the_page_of_real_runs(trained: Path, tmp_path: Path, platform: Callable[..., Said]) -> None:
    place = tmp_path / "new" / "page.html"
    words = ("runs", "compare", str(trained), str(trained), "--html", str(place))
    assert platform(*words) == (0, f"{place}\n", "")
    text = place.read_text(encoding="utf-8")
    assert "2 runs compared" in text
    assert "radius" in text
    assert "straightness" in text
    assert platform(*words, "--json")[:2] == (0, json.dumps({"page": str(place)}, indent=2) + "\n")
    assert place.read_text(encoding="utf-8") == text
    assert [path.name for path in place.parent.iterdir()] == ["page.html"]


def test_what_is_no_page_of_this_verb_stays(
    trained: Path, tmp_path: Path, platform: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "dangling").symlink_to("nothing")
    there, none = "is there already", "is no file"
    for name, told in (("mine.html", there), ("run/report.html", there), ("run", none), ("dangling", none)):
        before = (trained / "report.html").read_bytes()
        code, out, err = platform("runs", "compare", "run", "run", "--html", name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{name} {told}" in err
        assert (trained / "report.html").read_bytes() == before
    assert (tmp_path / "mine.html").read_text() == "mine"
    code, out, err = platform("runs", "compare", "run", "run", "--html", "mine.html/page.html")
    assert (code, out, err.count("\n")) == (4, "", 1)


def test_a_config_that_cannot_be_read_is_named(built: Callable[..., runs.Run]) -> None:
    one, other = built("a"), built("b")
    (other.folder / "config.yaml").write_text("train: [")
    with pytest.raises(FlowError, match=re.escape(str(other.folder))):
        page(one, other)
    assert not Path("page.html").exists()
