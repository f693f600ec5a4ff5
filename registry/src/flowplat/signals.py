"""Ctrl-C and SIGTERM: a run that trains finishes the step under way and saves it before it ends."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

AT_ONCE = 5.0  # seconds in which a second signal means that saving is not wanted either


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it before they kill. Exit code 143."""

    exit_code = 143


KINDS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextmanager
def raised() -> Iterator[None]:
    """Either signal is raised where it comes, so that SIGTERM is told and recorded like Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise KINDS[number]

    with _handled(end):
        yield


@contextmanager
def noted() -> Iterator[list[int]]:
    """The list gets the number of each signal that comes; one within ``AT_ONCE`` of the last is raised at once."""
    came: list[int] = []
    last = -AT_ONCE

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before < AT_ONCE:
            raise KINDS[number]
        came.append(number)

    with _handled(note):
        yield came


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = {number: signal.signal(number, handler) for number in KINDS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
