"""cli: the verbs, their output, and the one place where errors become exit codes."""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest

import flowplat
from flowcore import errors
from flowplat.cli.main import COMMANDS, group, main
from flowplat.config import plain, resolve
from flowplat.export import export
from flowplat.manager import Manager
from flowplat.plain_yaml import parse


def platform(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``platform ...`` in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_of_the_table_is_there_and_says_what_it_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = platform(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: platform {verb} " in out
    assert " ".join(COMMANDS[verb].split())[1:] in " ".join(out.split())
    command = group.commands.get(verb) or import_module(f"flowplat.cli.{verb.replace('-', '_')}").command
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


def test_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = platform(capsys, "--help")
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = platform(capsys, "--version")
    assert code == 0
    assert flowplat.__version__ in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rn"], "did you mean 'run'?"),
        (["zzz"], "there are run, sample"),
        (["run"], "PLUGIN"),
        (["list", "--xml"], "--xml"),
        (["sample", "."], "is no run folder"),
        (["sample", "x", "-n", "0"], "0"),
        (["run", "ring", "nonsense"], "key=value"),
        (["run", "ring", "-c", "missing.yaml"], "missing.yaml"),
        (["run", "ring", "--preset", "halfs"], "'halves'"),
    ],
)
def test_what_was_typed_wrong_is_code_2(
    arguments: list[str], told: str, ring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = platform(capsys, *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error", [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.FlowError)]
)
def test_an_error_is_one_line_and_its_code(
    error: type[errors.FlowError], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(components: bool) -> None:
        raise error("the reason and the way out")

    monkeypatch.setattr("flowplat.probe.plugins", raises)
    assert platform(capsys, "list") == (error.exit_code, "", "platform: the reason and the way out\n")
    with pytest.raises(error):
        main(["list", "--debug"])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (--debug shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/data"), 4, "/data"),
        (OSError(28, "No space left on device"), 4, "No space left on device"),
    ],
    ids=["bug", "ctrl-c", "permission", "disk"],
)
def test_any_other_error_is_a_line_too(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(components: bool) -> None:
        raise error

    monkeypatch.setattr("flowplat.probe.plugins", raises)
    found, out, err = platform(capsys, "list")
    assert (found, out) == (code, "")
    assert told in err
    assert err.strip().startswith("platform: ")
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_code_4(ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = platform(capsys, "run", "ring", "--out", str(tmp_path / "file" / "run"))
    assert (code, out) == (4, "")
    assert "file/run" in err


def test_a_run_whose_checkpoints_are_all_damaged_is_code_5(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in (trained / "checkpoints").rglob("ema.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = platform(capsys, "sample", str(trained), "-o", str(tmp_path / "drawn"))
    assert (code, out) == (5, "")
    assert "ema.safetensors is damaged" in err
    assert not (tmp_path / "drawn").exists()


def test_list(ring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = platform(capsys, "list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("ring")] == [["ring", "1.0"]]
    rows = {row["plugin"]: row for row in json.loads(platform(capsys, "list", "--json")[1])}
    assert rows["ring"] == {
        "plugin": "ring", "distribution": "flowplat-ring", "version": "1.0", "state": "ok", "summary": "a test",
        "cause": "", "components": None,
    }  # fmt: skip


def test_list_shows_a_name_that_is_claimed_twice(install, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    install("wind", "")
    install("wind", "", distribution="windflow")
    code, out, _ = platform(capsys, "list")
    assert code == 0
    assert out.count("[duplicate]") == 2
    rows = json.loads(platform(capsys, "list", "--json")[1])
    assert [row["state"] for row in rows if row["plugin"] == "wind"] == ["duplicate", "duplicate"]


@pytest.mark.parametrize("plugin", ["core", "ring"])
def test_info_shows_every_component_and_option(plugin: str, ring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager = Manager()
    if plugin != "core":
        manager.load(plugin)
    components = list(manager.components.of(plugin=plugin))
    code, out, _ = platform(capsys, "info", plugin)
    assert code == 0
    told = json.loads(platform(capsys, "info", plugin, "--json")[1])
    assert told["plugin"] == plugin
    assert {(row["kind"], row["name"]) for row in told["components"]} == {(c.kind, c.name) for c in components}
    for row in told["components"]:
        assert row["name"] in out
        assert all(option["name"] in out for option in row["options"])
    if plugin == "ring":
        (data,) = [row for row in told["components"] if (row["kind"], row["name"]) == ("data", "ring")]
        (count,) = [option for option in data["options"] if option["name"] == "count"]
        assert (count["type"], count["bounds"], count["default"]) == ("int", ">= 0", 64)
        assert "(default)" in out


def test_show_config_prints_what_a_run_would_use(ring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = platform(capsys, "show-config", "ring", "seed=4")
    assert (code, err) == (0, "")
    assert parse(out, "stdout") == plain(resolve("ring", ["seed=4"]))
    out = platform(capsys, "show-config", "ring", "seed=4", "--json")[1]
    assert json.loads(out) == plain(resolve("ring", ["seed=4"]))


def test_show_config_says_where_each_value_comes_from(
    ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my\n- file.yaml").write_text("train: {lr: 0.5}")
    monkeypatch.chdir(tmp_path)
    arguments = ("show-config", "ring", "-c", "my\n- file.yaml", "seed=4", "--smoke", "--origin")
    code, out, err = platform(capsys, *arguments)
    assert (code, err) == (0, "")
    config = plain(resolve("ring", ["seed=4"], file="my\n- file.yaml", smoke=True))
    assert parse(out, "stdout") == config  # what `run -c -` makes of it
    for line in (
        "seed: 4 # command line",
        "lr: 0.5 # my?- file.yaml",
        "warmup: 0 # --smoke",
        "width: 24 # preset ring",
    ):
        assert line in re.sub(" +", " ", out)
    told = json.loads(platform(capsys, *arguments, "--json")[1])
    assert told["config"] == config
    assert (told["origins"]["train.lr"], told["origins"]["train.clip"]) == ("my\n- file.yaml", "default")


def test_a_run_tells_its_figures_on_stdout(ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = platform(capsys, "run", "ring", "--out", str(tmp_path / "one"))
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["solver", "steps", "1", "2", "floor", "baselines"]
    assert "radius" in out
    assert "noise 0.5" in out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'one' / 'report.html'}"
    told = json.loads(platform(capsys, "run", "ring", "--json", "--out", str(tmp_path / "two"))[1])
    assert told["folder"] == str(tmp_path / "two")
    assert told["figures"] == json.loads((tmp_path / "one" / "eval" / "metrics.json").read_text())


def test_a_figure_that_is_not_finite_is_null(ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    overrides = ("eval.metrics=[{name: radius, wanted: .nan}]", "eval.steps=[1]")
    code, out, _ = platform(capsys, "run", "ring", *overrides, "--json", "--out", str(tmp_path / "run"))
    assert code == 0
    (column,) = json.loads(out, parse_constant=refuse)["figures"]["by_steps"]
    assert column["figures"]["radius"]["value"] is None


def test_what_a_plugin_prints_in_a_run_is_kept_off_stdout(
    ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ring / "plugin.py"
    source.write_text(source.read_text().replace("    away = ", "    print('measuring')\n    away = "))
    code, out, err = platform(capsys, "run", "ring", "--json", "--out", str(tmp_path / "run"))
    assert code == 0
    assert json.loads(out)["folder"] == str(tmp_path / "run")
    assert "measuring" in err


def test_a_dry_run_trains_nothing(
    ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    code, out, _ = platform(capsys, "run", "ring", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert (plan["preset"], plan["samples"], plan["steps"], plan["epochs"]) == ("ring", 64, 12, 1.5)
    assert plan["parameters"] == (6 * 24 + 24) + (24 * 2 + 2)
    assert "parameters" in platform(capsys, "run", "ring", "--dry-run")[1]
    assert set(tmp_path.iterdir()) == before


def test_what_training_may_yet_mend_is_not_refused(ring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stiff = ("path=vp", "predicts=score", "sample.solver=dopri5")  # before training, and in one step
    code, _, err = platform(capsys, "run", "ring", *stiff, "--dry-run")
    assert (code, err) == (0, "")


def test_samples(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained)
    code, out, err = platform(capsys, "sample", run, "-n", "5", "--steps", "3")
    assert (code, err) == (0, "")
    folder = Path(out.strip())
    assert folder == tmp_path / "run" / "samples" / "n5-steps3-seed0"
    assert {f.name for f in folder.iterdir()} == {"points.csv", "sheet.png"}
    code, _, err = platform(capsys, "sample", run, "-n", "5", "--steps", "3")
    assert code == 2
    assert "is not empty" in err
    out = platform(capsys, "sample", run, "-n", "8", "--steps", "3", "-o", str(tmp_path / "more"), "--json")[1]
    assert json.loads(out) == {"folder": str(tmp_path / "more"), "count": 8, "steps": 3, "nfe": 3, "seed": 0}
    few, many = ((f / "points.csv").read_text().splitlines() for f in (folder, tmp_path / "more"))
    assert many[:5] == few
    (tmp_path / "file").write_text("")
    code, _, err = platform(capsys, "sample", run, "-o", str(tmp_path / "file"))
    assert code in (2, 4)
    assert str(tmp_path / "file") in err


def test_a_long_name_is_apart_from_its_version(
    install: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install("wind-and-weather", "")
    (line,) = [line for line in platform(capsys, "list")[1].splitlines() if line.startswith("wind")]
    assert line.split() == ["wind-and-weather", "1.0", "a", "test"]


# verbs of a plugin


def test_x_lists_the_verbs_of_a_plugin(ring: Path, normal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = platform(capsys, "x", "normal")
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["tools", "a group of verbs"], ["end", "ends as it is told"], ["none", "no command"],
    ]  # fmt: skip
    found = json.loads(platform(capsys, "x", "--json", "normal")[1])
    assert [verb["name"] for verb in found] == ["tools", "end", "none"]
    code, out, err = platform(capsys, "x", "ring")
    assert (code, out, err) == (0, "", "plugin 'ring' brings no verb of its own\n")
    assert json.loads(platform(capsys, "x", "--json", "ring")[1]) == []


def test_what_follows_the_name_of_a_verb_is_the_verbs(normal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert platform(capsys, "x", "normal", "tools", "say", "good", "day", "--json") == (0, "True good day\n", "")
    assert platform(capsys, "x", "normal", "tools", "say", "--", "-m", "x=1") == (0, "False -m x=1\n", "")
    code, out, _ = platform(capsys, "x", "normal", "tools", "say", "--help")
    assert code == 0
    assert out.startswith("Usage: platform x normal tools say ")
    assert "An option of its own." in out


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("well", 0, ""),
        ("0", 0, ""),
        ("7", 7, ""),
        ("error", 2, "platform: table.csv has no header; add one\n"),
        ("usage", 2, "Error: there is no such day\n"),
        ("interrupted", 130, "platform: interrupted\n"),
        ("bug", 1, "platform: ZeroDivisionError: by zero (--debug shows where)\n"),
    ],
)
def test_a_verb_ends_with_its_own_code(
    how: str, code: int, told: str, normal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = platform(capsys, "x", "normal", "end", "--how", how)
    assert (found, out) == (code, "done\n" if how == "well" else "")
    assert err.endswith(told)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["normal", "tolls"], 2, "plugin 'normal' brings no verb 'tolls'; there are tools, end, none"),
        (["ring", "tools"], 2, "plugin 'ring' brings no verb 'tools'; there are none"),
        (["normal", "none"], 3, "plugin 'normal': command 'none' is no click.Command but function"),
        (["normal", "--json"], 2, "options of the verb `x` stand before the plugin: platform x --json normal"),
        (["normall"], 3, "did you mean 'normal'?"),
    ],
)
def test_a_verb_that_is_none_is_told_in_a_line(
    words: list[str], code: int, told: str, normal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = platform(capsys, "x", *words)
    assert (found, out) == (code, "")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["normal", "--help"], ["--help"], ["normal", "-h"]])
def test_help_of_x_itself(words: list[str], normal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = platform(capsys, "x", *words)
    assert code == 0
    assert out.startswith("Usage: platform x ")


# measuring again


def test_eval_finds_the_figures_that_the_run_found(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    code, out, err = platform(capsys, "eval", str(trained), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((trained / "eval" / "metrics.json").read_text())
    table = platform(capsys, "eval", str(trained))[1]
    assert table.splitlines()[0].split() == ["solver", "steps", "1", "2", "floor", "baselines"]
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == kept


def test_eval_measures_what_is_asked_and_keeps_it_where_it_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("eval.steps=[3]", "eval.count=32", "eval.metrics=[radius, keeps]", "sample.solver=heun")
    out = tmp_path / "measured"
    code, said, _ = platform(capsys, "eval", str(trained), *asked, "-o", str(out), "--json")
    assert code == 0
    figures = json.loads(said)
    assert [(row["steps"], row["nfe"]) for row in figures["by_steps"]] == [(3, 6)]
    assert figures["count"] == 32
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert (out / "kept").read_text() == "32"
    code, said, err = platform(capsys, "eval", str(trained), "-o", str(out))
    assert (code, said) == (2, "")
    assert "is not empty" in err


def test_eval_of_a_model_and_of_what_is_none(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = export(trained, tmp_path / "model")
    assert json.loads(platform(capsys, "eval", str(sent), "--json")[1]) == json.loads(
        (trained / "eval" / "metrics.json").read_text()
    )
    for words, told in (([str(tmp_path)], str(tmp_path)), ([str(trained), "eval.cuont=3"], "did you mean eval.count?")):
        code, out, err = platform(capsys, "eval", *words)
        assert (code, out) == (2, "")
        assert told in err
