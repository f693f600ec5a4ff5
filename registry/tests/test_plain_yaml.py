"""plain_yaml: what a scalar is, what is refused, and that everything written is read back."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowcore.errors import UsageError
from flowplat.plain_yaml import commented, dump, inline, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("+2.5e+3", 2500.0), (".5", 0.5), ("1.", 1.0),
        ("-.inf", -math.inf), (".INF", math.inf),
        ("5", 5), ("-3", -3), ("+7", 7), ("0123", 123),
        ("true", True), ("True", True), ("FALSE", False),
        ("", None), ("~", None), ("null", None), ("NULL", None),
    ],
)  # fmt: skip
def test_scalars_of_the_core_schema(text: str, value: Any) -> None:
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(parse(".nan", "here"))


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "Yes", "NO", "y", "n", "tRue", "2026-01-01", "2026-01-01T10:00:00Z", "12:30", "12:30:00",
     "190:20:30.15", "1_000", "0x1F", "0b101", "0o17", "1e", "e5", "1.2.3", "=", "<<", "nan", "inf"],
)  # fmt: skip
def test_everything_else_is_text(text: str) -> None:
    assert parse(text, "here") == text
    assert parse(f"key: {text}", "here") == {"key": text}


def test_merge_keys_are_ordinary_keys() -> None:
    assert parse("<<: {a: 1}", "here") == {"<<": {"a": 1}}


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.mkdir [{path}]", "!!python/object/new:os.mkdir {{args: [{path}]}}",
     "!!python/name:os.mkdir", "!!binary aGVsbG8=", "!!set {{a, b}}", "!!omap [a: 1]", "!!timestamp 2026-01-01",
     "!mine {{a: 1, a: 2}}", "!mine 5", "!!str 5", "!!int x", "!!float []", "!!seq {{a: 1}}", "!!map 5", "! 5"],
)  # fmt: skip
def test_tags_are_refused_and_nothing_is_executed(text: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(UsageError, match=r"here, line 2, column 6: .*tag"):
        parse("a: 1\nkey: " + text.format(path=trap), "here")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("a: 1\nb: 2\na: 3", 3, "a"), ("train:\n  steps: 1\n  steps: 1", 3, "steps"), ("x: [{a: 1, a: 2}]", 1, "a")],
)
def test_duplicate_keys_are_refused(text: str, line: int, key: str) -> None:
    with pytest.raises(UsageError, match=rf"^my\.yaml, line {line}, column \d+: the key '{key}' is given twice$"):
        parse(text, "my.yaml")


@pytest.mark.parametrize("key", ["1", "true", "null", "~", "1.5", "[a]", "{a: 1}"])
def test_keys_are_text(key: str) -> None:
    with pytest.raises(UsageError, match=r"^here, line 2, column \d+: the key .* is not text$"):
        parse(f"a: 1\n? {key}\n: 2", "here")


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1", 1), ("a: 1\n\tb: 2", 2), ("a: 'x", 1), ("a: 1\n---\nb: 2", 2), ("a: *unknown", 1), ("a: 1\n  b: 2", 2),
     ("a: 1\nb: &x [*x]", 2)],
)  # fmt: skip
def test_a_syntax_error_names_origin_and_line(text: str, line: int) -> None:
    with pytest.raises(UsageError, match=rf"^/some/file\.yaml, line {line}, column \d+: \S"):
        parse(text, "/some/file.yaml")


@pytest.mark.parametrize("text", ["a: \x01", "[" * 5000, "a: " + "9" * 5000], ids=["control", "deep", "long"])
def test_what_cannot_be_read_at_all_is_one_line_with_its_origin(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "/some/file.yaml")
    assert str(caught.value).startswith("/some/file.yaml")
    assert "\n" not in str(caught.value)


def same(one: Any, other: Any) -> bool:
    """Equal, with types and signs of zero, and NaN the same as NaN."""
    return repr(one) == repr(other)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
@example(1e-05)
@example(1e22)
@example(-0.0)
@example(
    ["1e-05", "yes", "null", "", "~", "5", ".5", "2026-01-01", "12:30:00", "True", "a: b", "# c", "- d", "<<", "="]
)
@example({"a\nb": " leading", "tab\t": "trailing ", "": {"": []}, "\u2028": "\x85\ufeff\U0001f600"})
@example("word " * 60)
def test_what_is_dumped_is_read_back(data: Any) -> None:
    assert same(parse(dump(data), "dumped"), data)


def test_the_order_of_keys_is_kept() -> None:
    assert list(parse(dump({"b": 1, "a": 2, "c": 3}), "here")) == ["b", "a", "c"]


def test_what_is_shared_is_written_out() -> None:
    steps = [1, 4]
    assert dump({"a": steps, "b": steps}) == "a:\n- 1\n- 4\nb:\n- 1\n- 4\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [(5, "5"), (1e-05, "1e-05"), (None, "null"), (True, "true"), ("true", "'true'"), ("", "''"),
     ([1, None], "[1, null]"), ({"a": [], "b": "x y"}, "{a: [], b: x y}"), ("a: b", "'a: b'"),
     ("word " * 60, "'" + "word " * 60 + "'")],
)  # fmt: skip
def test_inline_is_one_line_that_is_read_back(data: Any, text: str) -> None:
    assert inline(data) == text
    assert same(parse(inline(data), "here"), data)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), PLAIN, min_size=1))
@example({"a": {"b": "word " * 60, "c": ["two\nlines", [], {}]}, "d.e": None})
def test_comments_change_nothing(data: dict[str, Any]) -> None:
    class Every(dict[str, str]):
        def __contains__(self, key: object) -> bool:
            return True

        def __missing__(self, key: str) -> str:
            return "said: [of it]"

    assert same(parse(commented(data, Every()), "here"), data)
    assert commented(data, {}) == dump(data)


def test_comments_stand_behind_their_values_in_one_column() -> None:
    data = {"train": {"steps": 5, "lr": 0.1}, "list": ["a", {"b": 1}], "none": []}
    comments = {"train.steps": "one", "train.lr": "two", "list.0": "three", "list.1.b": "four", "none": "five"}
    assert commented(data, comments).splitlines() == [
        "train:", "  steps: 5  # one", "  lr: 0.1   # two", "list:", "- a         # three", "- b: 1      # four",
        "none: []    # five",
    ]  # fmt: skip
    assert commented({"a": "x" * 90, "b": 1}, {"a": "one", "b": "two"}).splitlines()[1] == f"{'b: 1':48}  # two"
