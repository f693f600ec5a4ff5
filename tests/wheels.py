"""Wheels written in a moment, and environments of their own that share the heavy packages."""

import base64
import hashlib
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
Done = subprocess.CompletedProcess[str]


def wheel(
    folder: Path,
    plugin: str,
    files: Mapping[str, str],
    distribution: str | None = None,
    version: str = "1.0",
    requires: Iterable[str] = ("flowplat",),
    licence: str = "MIT",
) -> Path:
    """A wheel of a plugin: package ``flowplat_<plugin>`` of ``files``, whose ``plugin.py`` is the entry module."""
    distribution = distribution or f"flowplat-{plugin}"
    stem = distribution.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    lines = ["Metadata-Version: 2.4", f"Name: {distribution}", f"Version: {version}", "Summary: a test"]
    lines += [f"License-Expression: {licence}", *(f"Requires-Dist: {one}" for one in requires)]
    content = {f"{stem}/{name}": dedent(text) for name, text in {"__init__.py": "", **files}.items()}
    content |= {
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[flowplat.plugins]\n{plugin} = {stem}.plugin\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text.encode())}\n" for name, text in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    path = folder / f"{stem}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def build(project: Path, out: Path) -> Path:
    """The wheel of a project folder, built as its author would build it, by what is installed here."""
    before = set(out.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*command, "-w", out, project], check=True, capture_output=True, text=True, timeout=120)
    (made,) = set(out.glob("*.whl")) - before
    return made


@dataclass(frozen=True)
class Environment:
    """A virtual environment: what is installed in it is its own, what is heavy is shared with the one of the tests."""

    folder: Path
    home: Path  # the user's: settings are kept there, and no network is asked

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path, cwd: Path | None = None, stdin: str = "", **more: str) -> Done:
        """A command in the environment, with nobody at the terminal; ``more`` adds to the variables."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FLOWPLAT", "XDG_"))}
        variables = kept | {"HOME": str(self.home), "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"}
        return subprocess.run(
            [str(word) for word in command], cwd=cwd or self.home, env=variables | more, input=stdin,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def platform(self, *arguments: str | Path, cwd: Path | None = None, stdin: str = "", **more: str) -> Done:
        """``platform ...`` as it is installed there."""
        return self.run(self.folder / "bin" / "platform", *arguments, cwd=cwd, stdin=stdin, **more)

    def pip(self, *arguments: str | Path) -> Done:
        """``pip ...``, which must succeed."""
        done = self.run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stderr
        return done


def environment(folder: Path, *wheels: Path) -> Environment:
    """A new environment below ``folder`` in which ``wheels`` are installed, without what they depend on."""
    venv, shared, home = folder / "venv", folder / "shared", folder / "home"
    home.mkdir(parents=True)
    shared.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    site = Path(sysconfig.get_path("purelib"))
    for path in site.iterdir():  # all but flowplat and its plugins, which are there only where a test installs them
        if "flowplat" not in path.name:
            (shared / path.name).symlink_to(path)
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(f"{shared}\n")
    made = Environment(venv, home)
    if wheels:
        made.pip("install", "-q", "--no-deps", *wheels)
    return made
