"""tasks: a plugin's verbs, on files from the command line and on objects from Python; their output is whole or none.

The options, the faults and the exit codes are asked of ``platform apply``, which is how a user meets them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowplat
from flowcore.errors import InputError, PluginError, UsageError
from flowplat import tasks

Install = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]

TASKS = '''

from typing import Annotated
from pydantic import Field


@hookimpl
def register_tasks(register):
    register("join", f"{__name__}:join", summary="one file of several", model=False)
    register("noise", f"{__name__}:noise", summary="samples", config=f"{__name__}:NoiseConfig")
    register("add", f"{__name__}:add", summary="one more line", model=False, resumes=True)
    register("told", f"{__name__}:told", summary="what it is called with")


def join(trained, inputs, out, mark: str = "", times: Annotated[int, Field(ge=1)] = 1, how: str = "well"):
    """The inputs' text, in order."""
    assert trained is None
    text = mark + "".join(one if isinstance(one, str) else one.read_text() for one in inputs) * times
    if out is None:
        return text
    if how == "folder":
        out.mkdir()
        (out / "joined").write_text(text)
    elif how == "beside":
        out.write_text(text)
        (out.parent / "notes.txt").write_text("")
    elif how != "nothing":
        out.write_text(text)
    if how == "fails":
        raise InputError(f"{inputs[0]} has no end; give it one")
    if how in ("KeyboardInterrupt", "SystemExit", "RuntimeError"):
        raise getattr(builtins, how)("on purpose")
    print("joined")
    return {"files": len(inputs), "letters": len(text)}


class NoiseConfig(BaseModel, extra="forbid"):
    count: int = 2


def noise(config, trained, inputs, out):
    """Samples, as the model draws them."""
    batch = trained.sample(config.count, steps=1)
    if out is None:
        return batch
    out.mkdir()
    trained.data.write(batch, out)


def add(trained, inputs, out):
    """A line more in what is there."""
    with out.open("a") as file:
        file.write("line\\n")


def told(trained, inputs, out):
    """What a task is told of a model."""
    parts = trained.parts()
    return {
        "inputs": [*map(str, inputs)], "out": out, "seed": trained.seed, "device": trained.device.type,
        "training": trained.network.training, "path": parts.path.name, "solver": parts.solver is not None,
        "data": type(trained.data).__name__,
    }
'''


@pytest.fixture
def tasked(ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin ring with four tasks, in a folder of the user's that has two files."""
    file = ring / "plugin.py"
    file.write_text(file.read_text(encoding="utf-8") + TASKS)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (home / "a.txt").write_text("A")
    (home / "b=2.txt").write_text("B")
    return home


def names(folder: Path) -> list[str]:
    """All that is in a folder, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# what comes out


def test_a_task_writes_its_file_and_tells_a_summary(tasked: Path, platform: Command) -> None:
    code, out, err = platform("apply", "ring", "join", "a.txt", "b=2.txt", "-o", "c.txt")
    assert (code, out) == (0, "c.txt\n")
    assert [line.split() for line in err.splitlines()] == [["joined"], ["files", "2"], ["letters", "2"]]
    assert (tasked / "c.txt").read_text() == "AB"
    code, out, _ = platform("apply", "ring", "join", "a.txt", "-o", "new/deep/d.txt", "mark=+", "times=3", "--json")
    assert (code, json.loads(out)) == (0, {"out": "new/deep/d.txt", "files": 1, "letters": 4})
    assert (tasked / "new" / "deep" / "d.txt").read_text() == "+AAA"
    assert platform("apply", "ring", "join", "a.txt", "-o", "gone/../e.txt")[0] == 0
    assert names(tasked) == ["a.txt", "b=2.txt", "c.txt", "e.txt", "new", "new/deep", "new/deep/d.txt"]


def test_a_task_writes_a_folder_also_where_an_empty_one_is(tasked: Path, platform: Command) -> None:
    (tasked / "empty").mkdir()
    for place in ("empty", "new/", "./other/"):
        assert platform("apply", "ring", "join", "a.txt", "how=folder", "-o", place)[0] == 0
        assert (tasked / place / "joined").read_text() == "A"
    (tasked / "file").mkdir()
    assert platform("apply", "ring", "join", "a.txt", "-o", "file")[0] == 0  # a file where an empty folder was
    assert (tasked / "file").read_text() == "A"


def test_a_task_writes_into_the_folder_that_one_is_in(
    tasked: Path, platform: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tasked / "here").mkdir()
    monkeypatch.chdir(tasked / "here")
    assert platform("apply", "ring", "join", "../a.txt", "how=folder", "-o", ".")[0] == 0
    assert (tasked / "here" / "joined").read_text() == "A"
    assert names(tasked) == ["a.txt", "b=2.txt", "here", "here/joined"]


@pytest.mark.parametrize("there", ["file", "folder", "link", "dead link"])
def test_what_is_there_is_kept(there: str, tasked: Path, platform: Command) -> None:
    out = tasked / "out"
    match there:
        case "file":
            out.write_text("kept")
        case "folder":
            out.mkdir()
            (out / "file").write_text("kept")
        case "link":
            (tasked / "empty").mkdir()
            out.symlink_to("empty")
        case "dead link":
            out.symlink_to("nowhere")
    before = names(tasked)
    code, said, err = platform("apply", "ring", "join", "a.txt", "-o", "out")
    assert (code, said) == (2, "")
    assert err == "platform: out is there already; name a new place, or move it away\n"
    assert names(tasked) == before


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("fails", 2, "a.txt has no end; give it one"),
        ("RuntimeError", 1, "RuntimeError: on purpose"),
        ("KeyboardInterrupt", 130, "interrupted"),
        ("nothing", 3, "task ring/join has ended without writing new/out"),
        ("beside", 3, "task ring/join has written notes.txt beside new/out, where it would be lost"),
    ],
)
def test_a_task_that_does_not_end_well_leaves_nothing(
    how: str, code: int, told: str, tasked: Path, platform: Command
) -> None:
    before = names(tasked)
    found, out, err = platform("apply", "ring", "join", "a.txt", f"how={how}", "-o", "new/out")
    assert (found, out) == (code, "")
    assert told in err
    assert names(tasked) == before


def test_what_a_killed_one_has_left_is_cleared_away(tasked: Path, platform: Command) -> None:
    (tasked / ".out.tmp").mkdir()
    (tasked / ".out.tmp" / "half").write_text("")
    assert platform("apply", "ring", "join", "a.txt", "-o", "out")[0] == 0
    assert names(tasked) == ["a.txt", "b=2.txt", "out"]


def test_one_that_resumes_goes_on_in_what_is_there(tasked: Path, platform: Command) -> None:
    for count in (1, 2, 3):
        code, out, _ = platform("apply", "ring", "add", "-o", "log")
        assert (code, out) == (0, "log\n")
        assert (tasked / "log").read_text() == "line\n" * count


def test_a_place_that_cannot_be_written_is_code_4(tasked: Path, platform: Command) -> None:
    code, out, err = platform("apply", "ring", "join", "b=2.txt", "-o", "a.txt/out")
    assert (code, out) == (4, "")
    assert "a.txt/out cannot be written" in err
    assert names(tasked) == ["a.txt", "b=2.txt"]


# what goes in


def test_a_word_is_an_option_unless_it_is_the_name_of_a_file(tasked: Path, platform: Command) -> None:
    (tasked / "mark=x").write_text("M")
    assert platform("apply", "ring", "join", "mark=x", "mark=y", "b=2.txt", "-o", "c")[0] == 0
    assert (tasked / "c").read_text() == "yMB"
    assert platform("apply", "ring", "join", "./mark=x", "-o", "d")[0] == 0
    assert (tasked / "d").read_text() == "M"


def test_the_value_of_an_option_may_be_longer_than_a_file_name(tasked: Path, platform: Command) -> None:
    sequence = "MKV" * 2000
    assert platform("apply", "ring", "join", "a.txt", f"mark={sequence}", "-o", "c")[0] == 0
    assert (tasked / "c").read_text() == f"{sequence}A"


@pytest.mark.parametrize("word", ["missing.txt", "x" * 5000, "times 3", "3=4"])
def test_an_input_that_is_not_there_is_named(word: str, tasked: Path, platform: Command) -> None:
    code, out, err = platform("apply", "ring", "join", "a.txt", word, "-o", "c")
    assert (code, out) == (2, "")
    assert err == f"platform: {word} is not there; an option of the task is written key=value\n"


def test_all_faults_of_the_options_are_told_at_once(tasked: Path, platform: Command) -> None:
    code, out, err = platform("apply", "ring", "join", "a.txt", "times=0", "mrak=x", "how=[1]", "-o", "c")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "platform: task ring/join has 3 faults:",
        "  times: should be greater than or equal to 1, not 0",
        "  how: should be a valid string, not [1]",
        "  mrak: no such key; did you mean mark?",
    ]
    assert names(tasked) == ["a.txt", "b=2.txt"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["ring", "jion"], 2, "plugin 'ring' has no task 'jion'; did you mean 'join'?"),
        (["ring", "zzz"], 2, "plugin 'ring' has no task 'zzz'; there are join, noise, add, told"),
        (["rnig", "join"], 3, "did you mean 'ring'?"),
        (["core", "join"], 3, "'core'"),
        (["ring", "noise"], 2, "task ring/noise needs a trained model: name a run or a model with --model"),
        (["ring", "join", "a..b=3"], 2, "'a..b=3' is no setting"),
        (["ring", "noise", "--model", "nothere"], 2, "nothere"),
    ],
)
def test_what_was_asked_wrong_is_told_in_a_line(
    words: list[str], code: int, told: str, tasked: Path, platform: Command
) -> None:
    found, out, err = platform("apply", *words, "-o", "c")
    assert (found, out) == (code, "")
    assert told in err
    assert err.count("\n") == 1
    assert names(tasked) == ["a.txt", "b=2.txt"]


def test_a_plugin_without_a_task_says_so(ring: Path, platform: Command) -> None:
    code, _, err = platform("apply", "ring", "join", "-o", "c")
    assert (code, err) == (2, "platform: plugin 'ring' has no task 'join'; there are none\n")


# with a model


def test_a_task_with_a_model(tasked: Path, trained: Path, platform: Command) -> None:
    code, out, err = platform("apply", "ring", "noise", "count=5", "--model", str(trained), "-o", "drawn")
    assert (code, out, err) == (0, "drawn\n", "")
    rows = [[*map(float, line.split(","))] for line in (tasked / "drawn" / "points.csv").read_text().splitlines()]
    model = flowplat.load(trained)
    torch.testing.assert_close(torch.tensor(rows), model.sample(5, steps=1).x1)
    # and from Python, on objects
    batch = model.apply("noise", count=3)
    assert torch.equal(batch.x1, model.sample(3, steps=1).x1)
    assert model.apply("noise", count=3, out=tasked / "again") is None
    assert names(tasked / "again") == ["points.csv"]
    for faulty in ({"cuont": 3}, {"count": "many"}):
        with pytest.raises(UsageError, match="task ring/noise has 1 fault:"):
            model.apply("noise", **faulty)
    with pytest.raises(UsageError, match="has no task 'nois'; did you mean 'noise'"):
        model.apply("nois")
    with pytest.raises(InputError, match="is there already"):
        model.apply("noise", out=str(tasked / "again"))


def test_what_a_task_is_told_of_a_model(tasked: Path, trained: Path) -> None:
    told = flowplat.load(trained).apply("told", "any", 5)
    assert told == {
        "inputs": ["any", "5"], "out": None, "seed": 0, "device": "cpu", "training": False, "path": "linear",
        "solver": True, "data": "Ring",
    }  # fmt: skip


def test_a_model_of_another_plugin_is_refused(tasked: Path, trained: Path, install: Install, platform: Command) -> None:
    code = """
        from flowcore.plugin import hookimpl

        @hookimpl
        def register_tasks(register):
            register("blow", f"{__name__}:blow", summary="of another domain")

        def blow(trained, inputs, out):
            out.touch()
        """
    install("wind", code)
    found, out, err = platform("apply", "wind", "blow", "--model", str(trained), "-o", "c")
    assert (found, out) == (2, "")
    assert err == f"platform: {trained} is a model of plugin 'ring', not of 'wind'\n"
    assert not (tasked / "c").exists()


def test_without_an_output_the_result_is_returned(tasked: Path) -> None:
    join = tasks.find("ring", "join")
    assert tasks.carry_out(join, None, ["x", "y"], None, {"times": 2}) == "xyxy"
    with pytest.raises(PluginError, match="has ended without writing"):
        tasks.carry_out(join, None, ["x"], Path("c"), {"how": "nothing"})
    with pytest.raises(SystemExit):
        tasks.carry_out(join, None, ["x"], Path("c"), {"how": "SystemExit"})
    assert names(tasked) == ["a.txt", "b=2.txt"]


def model_of_options(**given: Any) -> dict[str, Any]:
    return tasks.settings([f"{key}={value}" for key, value in given.items()])


def test_words_are_options_as_a_config_would_read_them() -> None:
    assert model_of_options(count="3", lr="1e-4", names="[a, b]", off="null") == {
        "count": 3, "lr": 1e-4, "names": ["a", "b"], "off": None,
    }  # fmt: skip
    assert tasks.settings(["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}
    assert tasks.settings([]) == {}
