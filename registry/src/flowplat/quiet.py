"""Stdout carries results alone, whatever a plugin prints."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, everything printed goes to stderr: by Python, by a library beneath it, by another process."""
    with contextlib.ExitStack() as undo:
        undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError, AttributeError):  # a process may have no stdout, or none of its own
            sys.__stdout__.flush()  # type: ignore[union-attr]
            kept = os.dup(1)
            undo.callback(os.close, kept)
            os.dup2(2, 1)
            undo.callback(os.dup2, kept, 1)
        yield
