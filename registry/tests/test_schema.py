"""schema: options in a user's words, and what is said is what a config takes."""

import enum
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, TypeVar

import pytest
from annotated_types import Ge, Le, Len, MultipleOf
from pydantic import BaseModel, Field

from flowplat.plain_yaml import parse
from flowplat.schema import options, said

Width = NewType("Width", int)
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    OFF = "off"


class Point(BaseModel):
    x: int = 1
    y: float | None = None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"), (float, "float"), (bool, "bool"), (str, "text"), (Path, "path"), (None, "null"),
        (Any, "anything"),
        (type(None), "null"), (int | None, "int | null"), (Optional[str], "text | null"), (None | int, "int | null"),  # noqa: UP045
        (float | Callable[[float], float], "float"), (float | str | None, "float | text | null"),
        (Literal["a", "b"], "a | b"), (Literal[1, 3], "1 | 3"), (Literal["1", None, True], "'1' | null | true"),
        (Literal["yes no", "null"], "yes no | 'null'"), (Literal["a"] | int, "a | int"),
        (list[int], "list[int]"), (Sequence[float], "list[float]"), (set[str], "list[text]"), (list, "list"),
        (tuple[int, ...], "list[int]"), (tuple[float, float], "[float, float]"), (tuple[int, str] | None,
         "[int, text] | null"), (dict[str, int], "{text: int}"), (Mapping[str, list[Path]], "{text: list[path]}"),
        (dict, "mapping"), (Annotated[int, Ge(1)], "int >= 1"), (Annotated[float, Ge(0), Le(1)], "float >= 0, <= 1"),
        (list[Annotated[int, Field(ge=1)]], "list[int >= 1]"), (list[Annotated[int, MultipleOf(8)]],
         "list[int multiple of 8]"), (Annotated[list[int], Len(2, 3)], "list[int] length >= 2, length <= 3"),
        (list[tuple[Literal["l", "r"], int]], "list[[l | r, int]]"), (Colour, "red | off"), (Width, "int"),
        (T, "anything"),
        (list[Point], "list[{x: int, y: float | null}]"), (Callable[[int], int] | int | None, "int | null"),
    ],
    ids=str,
)  # fmt: skip
def test_a_type_is_said_as_a_user_would(annotation: Any, words: str) -> None:
    assert said(annotation) == words


class Config(BaseModel):
    size: int = Field(8, ge=4, le=512, multiple_of=4, description="a size")
    rate: float | None = Field(None, gt=0, lt=1)
    names: list[str] = Field(default_factory=lambda: ["a", "b"], min_length=1, max_length=9)
    code: str = Field("ab", pattern="^[a-z]+$")
    file: Path
    place: Path = Path("here/there")
    far: float = math.inf
    colour: Colour = Colour.OFF
    pair: tuple[float, float] = (0.0, 1.0)
    flag: bool = True
    empty: str = ""
    finite: float = Field(0.5, allow_inf_nan=False)
    corner: Point = Point(x=7)
    other: Point


def test_an_option_has_type_bounds_default_and_description() -> None:
    found = {option.name: option.said()[1:] for option in options(Config)}
    assert found == {
        "size": ("int >= 4, <= 512, multiple of 4", "8", "a size"),
        "rate": ("float > 0, < 1 | null", "null", ""),
        "names": ("list[text] length >= 1, length <= 9", "[a, b]", ""),
        "code": ("text like ^[a-z]+$", "ab", ""),
        "file": ("path", "required", ""),
        "place": ("path", "here/there", ""),
        "far": ("float", ".inf", ""),
        "colour": ("red | off", "off", ""),
        "pair": ("[float, float]", "[0.0, 1.0]", ""),
        "flag": ("bool", "true", ""),
        "empty": ("text", "''", ""),
        "finite": ("float finite", "0.5", ""),
        "corner.x": ("int", "7", ""),
        "corner.y": ("float | null", "null", ""),
        "other.x": ("int", "1", ""),
        "other.y": ("float | null", "null", ""),
    }


def test_a_default_as_it_is_said_is_the_default() -> None:
    config = Config(file=Path("x"), other=Point())
    for option in options(Config):
        if "." not in option.name and not option.required:
            given = parse(option.said()[2], "said")
            assert getattr(Config(**{"file": "x", "other": {}, option.name: given}), option.name) == getattr(
                config, option.name
            )


def test_json_holds_a_default_as_it_is_and_infinity_as_text() -> None:
    found = {option.name: option.plain()["default"] for option in options(Config)}
    assert (found["size"], found["names"], found["far"], found["rate"]) == (8, ["a", "b"], ".inf", None)
    assert json.dumps(found, allow_nan=False)
