"""completion: what a shell is answered, asked as the shells ask, and that it is answered at once."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import wheels
from conftest import ENVIRONMENT, SCRIPT, Platform

PLUGIN = """
    from flowcore.plugin import hookimpl

    @hookimpl
    def register_presets(register):
        register("gale", "flowplat_wind:gale.yaml", summary="a strong one")
        register("breeze", "flowplat_wind:breeze.yaml", summary="a weak one", default=True)

    @hookimpl
    def register_tasks(register):
        register("forecast", "flowplat_wind.heavy:forecast", summary="hours ahead")

    @hookimpl
    def register_commands(register):
        register("plot", "flowplat_wind.heavy:plot", summary="a plot")

    print("noise")
    """
TRAP = "raise RuntimeError('it was imported')"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the plugins wind and trap, whose import fails, are installed: a folder for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    for plugin, code in (("wind", PLUGIN), ("trap", TRAP)):
        wheel = wheels.wheel(folder / "wheels", plugin, {"plugin.py": code, "heavy.py": TRAP})
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


Ask = Callable[[str], list[str]]


@pytest.fixture
def ask(site: Path, tmp_path: Path) -> Ask:
    """``ask("run wi")``: what bash is answered when the line ``platform run wi`` ends there."""

    def ask(line: str) -> list[str]:
        return answers("bash", line, site, tmp_path)

    return ask


def answers(shell: str, line: str, site: Path, cwd: Path) -> list[str]:
    words = f"platform {line}"
    count = len(words.split()) - (not words.endswith(" "))
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(count), "_PLATFORM_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [SCRIPT],
        cwd=cwd,
        env=ENVIRONMENT | {"PYTHONPATH": str(site)} | asked,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [answer for answer in done.stdout.splitlines() if answer]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("sh", ["show-config"]), ("run", ["run", "runs"]), ("--he", ["--help"]), ("zzz", []),
        ("run wi", ["wind"]), ("run nothing", []), ("run wind --pres", ["--preset"]),
        ("run wind --preset ", ["gale", "breeze"]), ("run wind --preset br", ["breeze"]), ("run --preset br", []),
        ("run wind train.steps=5 --preset g", ["gale"]), ("show-config wind --smoke --preset g", ["gale"]),
        ("run trap --preset ", []), ("run nothing --preset ", []), ("run images --preset digits-", ["digits-by-class"]),
        ("apply wi", ["wind"]), ("apply wind ", ["forecast"]), ("apply wind f", ["forecast"]), ("apply trap ", []),
        ("x wind ", ["plot"]), ("info wind p", ["plot"]), ("info co", ["core"]), ("info core hen", []),
        ("info core heu", ["heun"]), ("info core network/", []), ("completion ", ["bash", "zsh", "fish"]),
        ("runs sh", ["show"]), ("runs show la", ["last"]), ("sample la", ["last"]), ("run wind --resume la", ["last"]),
    ],
)  # fmt: skip
def test_what_could_be_typed_next(line: str, answer: list[str], ask: Ask) -> None:
    assert ask(line) == [f"plain,{word}" for word in answer]


@pytest.mark.parametrize(
    ("line", "kind"),
    [("run wind -c my", "file"), ("run wind --out my", "file"), ("apply wind forecast my", "file"),
     ("sample my", "dir"), ("export ./", "dir"), ("install my", "file")],
)  # fmt: skip
def test_where_files_belong_the_shell_completes_them(line: str, kind: str, ask: Ask) -> None:
    assert ask(line) == [f"{kind},{line.split()[-1]}"]


def test_runs_are_completed_by_their_ids_the_newest_first(ask: Ask, tmp_path: Path) -> None:
    names = ["20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb", "20270101T000000Z-cccccc"]
    for plugin, name in zip(("wind", "trap", "wind"), names, strict=True):
        folder = tmp_path / "runs" / plugin / "gale" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"plugin: {plugin}\n")
    (tmp_path / "runs" / "wind" / "gale" / "20280101T000000Z-no-run").mkdir()
    every = [f"plain,{name}" for name in reversed(names)]
    for line in (
        "sample ",
        "eval ",
        "export ",
        "report ",
        "runs show ",
        "runs compare 2026 ",
        "apply wind forecast -m ",
    ):
        assert ask(line) == [*every, "plain,last"], line
    assert ask("sample 2026") == every[1:]
    assert ask("run wind --resume ") == [every[0], every[2], "plain,last"]
    shutil.move(tmp_path / "runs", tmp_path / "old")
    assert ask("sample 2026") == ["dir,2026"]
    assert ask("runs prune --root old 2026") == every[1:]


def test_a_plugin_that_is_disabled_is_offered_where_it_can_be_enabled(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "FLOWPLAT_CONFIG", str(tmp_path))
    assert (ask("enable "), ask("disable wi")) == ([], ["plain,wind"])
    (tmp_path / "disabled").write_text("wind\n")
    assert (ask("enable "), ask("disable wi"), ask("run wi")) == (["plain,wind"], [], [])
    assert ask("run wind --preset ") == []
    (tmp_path / "disabled").unlink()
    (tmp_path / "disabled").mkdir()  # a fault is told when the command is given, not while it is typed
    assert ask("run wi") == []


def test_other_shells_are_told_what_each_is(site: Path, tmp_path: Path) -> None:
    assert answers("zsh", "run wind --preset g", site, tmp_path) == ["plain", "gale", "a strong one"]
    asked = {"COMP_WORDS": "platform apply wind f", "COMP_CWORD": "f", "_PLATFORM_COMPLETE": "fish_complete"}
    done = subprocess.run(
        [SCRIPT], cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": str(site)} | asked, capture_output=True, text=True
    )
    assert "forecast" in done.stdout
    assert "hours ahead" in done.stdout


@pytest.mark.parametrize(
    ("shell", "lines"),
    [("bash", ["_PLATFORM_COMPLETE=bash_complete", "complete -o nosort -F _platform_completion platform"]),
     ("zsh", ["#compdef platform", "_PLATFORM_COMPLETE=zsh_complete"]),
     ("fish", ["_PLATFORM_COMPLETE=fish_complete", "complete --no-files --command platform"])],
)  # fmt: skip
def test_the_script_of_each_shell(shell: str, lines: list[str], platform: Platform) -> None:
    done = platform("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for line in lines:
        assert line in done.stdout


def test_another_shell_is_refused(platform: Platform) -> None:
    done = platform("completion", "tcsh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'bash', 'zsh', 'fish'" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_itself_completes(site: Path, tmp_path: Path) -> None:
    script = """
        eval "$(platform completion bash)"
        COMP_WORDS=(platform run wind --preset br) COMP_CWORD=4
        _platform_completion platform
        echo "${COMPREPLY[@]}"
    """
    variables = ENVIRONMENT | {"PYTHONPATH": str(site), "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("breeze\n", "")


@pytest.mark.parametrize("instruction", ["bash_nonsense", "nonsense_complete", "x"])
def test_what_no_shell_asks_is_answered_by_nothing(instruction: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT], cwd=tmp_path, env=ENVIRONMENT | {"_PLATFORM_COMPLETE": instruction}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_an_answer_costs_little(site: Path, tmp_path: Path) -> None:
    def spent(line: str) -> float:
        before = os.times()
        answers("bash", line, site, tmp_path)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    for line in ("", "run wi", "run wind --preset ", "apply wind "):
        assert min(spent(line) for _ in range(5)) <= 0.3, line
