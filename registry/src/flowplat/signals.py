"""Ctrl-C and SIGTERM: a run that trains finishes the step under way and saves it before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


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
def noted() -> Iterator[list[type[KeyboardInterrupt]]]:
    """The list gets what the signal should raise; a second signal is raised at once."""
    came: list[type[KeyboardInterrupt]] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise KINDS[number]
        came.append(KINDS[number])

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
