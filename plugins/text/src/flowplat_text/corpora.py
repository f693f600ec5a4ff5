"""Texts that every Python brings along: its help topics, its docstrings, its source.

Nothing is downloaded, and no text is shipped with the plugin. What is there depends on the version of Python.
"""

import ast
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from flowcore.errors import MachineError


def pydoc() -> Iterator[str]:
    """The topics of ``help()``: some 80 texts, 0.46 MB."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MachineError(
            "this Python has no pydoc_data; take data.corpus=docstrings or your own data=files"
        ) from error
    yield from (topics[name] for name in sorted(topics))


def docstrings() -> Iterator[str]:
    """The docstrings of the standard library: some 8,600, 1.8 MB."""
    for source in stdlib():
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def stdlib() -> Iterator[str]:
    """The source of the standard library without its tests: some 12 MB."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if left_out & set(parts) or parts[0] in ("pydoc_data", "lib-dynload"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            yield text


CORPORA: dict[str, Callable[[], Iterator[str]]] = {"pydoc": pydoc, "docstrings": docstrings, "stdlib": stdlib}
