"""A count on the standard error for what takes seconds; nothing where that is no terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

Thing = TypeVar("Thing")


def counter(what: str, total: int) -> Callable[[int], None]:
    """A function that is told how much of ``total`` is done."""

    def told(done: int) -> None:
        if sys.stderr.isatty() and (done == total or done % max(1, (total or 100_000) // 100) == 0):
            text = f"\r{what} {done}/{total}" if total else f"\r{what}: {done}"
            print(text, end="\n" if done == total else "", file=sys.stderr, flush=True)

    return told


def counted(what: str, things: Iterable[Thing], total: int | None = None) -> Iterator[Thing]:
    """The things, counted as they are gone through."""
    size = total if total is not None else len(things) if isinstance(things, Sized) else 0
    told = counter(what, size)
    for number, thing in enumerate(things, 1):
        yield thing
        told(number)
