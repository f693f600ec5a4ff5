"""A plugin to begin with: the files of this folder with a name put in.

Each ends in .txt, so that nothing takes it for a part of flowplat; ``dot_`` begins what begins with a dot, and
``package`` is the plugin's package.
"""

import json
import keyword
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from flowcore import __version__
from flowcore.errors import UsageError
from flowplat import modelfolder
from flowplat.discovery import CORE

HERE = Path(__file__).parent
LICENSE = "Apache-2.0"


def write(name: str, out: Path, author: str | None = None, license: str = LICENSE) -> list[str]:
    """Write the project of a plugin called ``name`` as the new folder ``out``; the paths of its files.

    Raises ``UsageError`` for a name that no plugin should have or a licence that can be none, ``InputError`` where
    ``out`` holds something, ``MachineError`` where the disk refuses.
    """
    _refuse_name(name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+ ()-]*", license):
        raise UsageError(f"{license!r} is no SPDX licence identifier, such as Apache-2.0, MIT or BSD-3-Clause")
    package = f"flowplat_{name.replace('-', '_')}"
    words = {
        "@NAME@": name,
        "@PACKAGE@": package,
        "@REQUIRES@": requires(__version__),
        "@LICENSE@": license,
        "@AUTHORS@\n": "" if author is None else f"authors = [{{ name = {json.dumps(author, ensure_ascii=False)} }}]\n",
    }
    with modelfolder.placed(out) as place:
        written = []
        for path, text in _templates():
            for word, value in words.items():
                text = text.replace(word, value)
            file = place / path.replace("dot_", ".").replace("package", package)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            written.append(file.relative_to(place).as_posix())
    return written


def _templates() -> Iterator[tuple[str, str]]:
    for file in sorted(HERE.rglob("*.txt")):
        yield file.relative_to(HERE).as_posix().removesuffix(".txt"), file.read_text(encoding="utf-8")


def requires(version: str) -> str:
    """The versions of flowplat whose plugin interface is that of ``version``: 0.1.4 is as 0.1, and 1.2.3 as 1."""
    major, minor = version.split(".")[:2]
    return f">={major}.{minor},<0.{int(minor) + 1}" if major == "0" else f">={major}.{minor},<{int(major) + 1}"


def _refuse_name(name: str) -> None:
    from flowplat.cli.main import COMMANDS

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise UsageError(f"{name!r} is no name of a plugin: lower-case letters and digits, in words joined by '-'")
    taken = {CORE: "the platform's own name", "platform": "the name of the command"} | dict.fromkeys(COMMANDS, "a verb")
    taken |= dict.fromkeys(keyword.kwlist, "a word of Python") | dict.fromkeys(
        sys.stdlib_module_names, "part of Python"
    )
    if name.replace("-", "_") in taken or name in taken:
        what = taken.get(name) or taken[name.replace("-", "_")]
        raise UsageError(f"{name!r} is {what}; choose another name, such as {name}-data")
