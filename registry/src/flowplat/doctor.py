"""What a maintainer asks of a machine before anything else: is everything there, and where does it come from?

Nothing heavy is imported: torch and the plugins are tried in processes of their own, so that one which hangs or crashes
is a line of the answer.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from flowcore import __version__
from flowcore.errors import FlowError
from flowplat import disabled
from flowplat.components import one_line

PATIENCE = 60.0
"""Seconds that importing torch may take."""

ROOM = 2_000_000_000
"""Bytes of free disk below which a run may well end by a full one."""


@dataclass(frozen=True)
class Finding:
    """One line of the answer. ``way_out`` is what to do where ``state`` is not ok; ``area`` is machine or plugins."""

    name: str
    state: Literal["ok", "warn", "FAIL"]
    text: str
    way_out: str = ""
    area: Literal["machine", "plugins"] = "machine"


def examinations() -> list[Callable[[], Iterator[Finding]]]:
    """What is looked at, in order; each is called by itself, and yields its findings."""
    return [_flowplat, _python, _shadows, _dependencies, _torch, _processor, _disk, _user, _catalogue, _plugins]


def examine(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one of ``examinations``. What it raises is a finding too: a doctor does not faint."""
    found: list[Finding] = []
    try:
        for finding in look():
            found.append(finding)
    except Exception as error:
        said, way_out = one_line(error), "" if isinstance(error, FlowError) else "report it with this output"
        if isinstance(error, FileNotFoundError) and not os.stat(".").st_nlink:
            said, way_out = "the folder you are in has been removed", "change to another"
        found.append(Finding(look.__name__.lstrip("_"), "FAIL", said, way_out))
    return [replace(one, text=_private(one.text), way_out=_private(one.way_out)) for one in found]


def _private(text: str) -> str:
    """``text`` as it can be pasted anywhere: one line, without the user's name in paths and secrets in addresses."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", " ".join(text.split()))
    for home in {str(Path.home()), os.path.realpath(Path.home())}:
        if home != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def _flowplat() -> Iterator[Finding]:
    import flowplat

    place, copies = Path(flowplat.__path__[0]).resolve(), _copies("flowplat", "flowcore")
    installed = {os.path.realpath(str(one.locate_file(""))): one for one in distributions(name="flowplat")}
    versions = {one.version for one in installed.values()}
    if installed:
        how = "editable, " if _editable("flowplat") else ""
        yield Finding("flowplat", "ok", f"{__version__}, {how}{place}")
    else:
        way_out = "install it with pip, so that plugins can require it"
        yield Finding("flowplat", "warn", f"{__version__}, {place}, on a path and not installed", way_out)
    if len(installed) > 1 or copies:
        every = [*copies, *(f"{one.version} installed in {where}" for where, one in installed.items())]
        text = f"there are several copies: {', '.join(every)}"
        yield Finding("flowplat", "FAIL", text, "uninstall or remove all but one of them")
    elif versions - {__version__}:
        text = f"its metadata says {', '.join(versions)}, its code {__version__}"
        yield Finding("flowplat", "FAIL", text, "`pip install --force-reinstall` it")


def _copies(*packages: str) -> list[str]:
    """The folders of each package that is on sys.path more than once."""
    found = list[str]()
    for name in packages:
        held = {os.path.realpath(Path(entry or ".") / name): None for entry in sys.path if _holds(entry, name)}
        found += [*held] if len(held) > 1 else []
    return found


def _holds(entry: str, name: str) -> bool:
    place = Path(entry or ".")
    return (place / name / "__init__.py").is_file() or (place / f"{name}.py").is_file()


def _python() -> Iterator[Finding]:
    import sysconfig

    text = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}, {sysconfig.get_platform()}"
    try:
        wanted = distribution("flowplat").metadata["Requires-Python"]
    except PackageNotFoundError:
        wanted = None
    if wanted:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(wanted).contains(".".join(map(str, sys.version_info[:3])), prereleases=True):
            yield Finding("Python", "FAIL", text, f"flowplat requires Python {wanted}")
            return
    yield Finding("Python", "ok", text)


def _shadows() -> Iterator[Finding]:
    """What hides a module of another by its name."""
    standard = os.path.realpath(os.__file__.rpartition(os.sep)[0])
    extra = {os.path.realpath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one}
    before, theirs = dict[str, str](), True
    hidden = []
    for entry in map(os.path.realpath, dict.fromkeys([*sys.path])):
        if entry == standard:
            theirs = False
        for name in _modules(entry) if entry != standard else ():
            if theirs and name in sys.stdlib_module_names:
                hidden.append((f"{entry} has a module {name!r}, which hides Python's own", "FAIL"))
            elif name in before and before[name] in extra and before[name] != entry:
                hidden.append((f"{before[name]} on PYTHONPATH has a {name!r}, which hides that in {entry}", "warn"))
            before.setdefault(name, entry)
    if os.path.realpath(".") not in map(os.path.realpath, sys.path):
        for name in sorted(_modules(".") & sys.stdlib_module_names):
            text = f"this folder has a module {name!r}, which hides Python's own from `python -m` and scripts here"
            hidden.append((text, "warn"))
    for text, state in hidden:
        yield Finding("modules", state, text, "rename it, or take it off the path")  # type: ignore[arg-type]
    if extra or not hidden:
        yield Finding("PYTHONPATH", "ok", ", ".join(sorted(extra)) or "not set")


def _modules(entry: str) -> set[str]:
    """Names that can be imported from a folder."""
    with_code = set()
    try:
        for one in os.scandir(entry):
            if one.name.endswith(".py"):
                with_code.add(one.name.removesuffix(".py"))
            elif one.is_dir() and (Path(one.path) / "__init__.py").is_file():
                with_code.add(one.name)
    except OSError:  # not there, or a zip
        return set()
    return with_code - {"__init__", "setup", "conftest"}


def _dependencies() -> Iterator[Finding]:
    """What flowplat requires, and its extras."""
    try:
        ours = distribution("flowplat")
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, ours.requires or ()):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield _dependency(requirement, f"pip install '{requirement.name}{requirement.specifier}'", optional=False)
            continue
        for extra in ("hub", "tensorboard"):
            if marker.evaluate({"extra": extra}):
                yield _dependency(requirement, f"pip install 'flowplat[{extra}]'", optional=True)


def _dependency(requirement: Requirement, command: str, optional: bool) -> Finding:
    name, wanted = requirement.name, str(requirement.specifier)
    try:
        version = distribution(name).version
    except PackageNotFoundError:
        if optional:
            return Finding(name, "ok", f"not installed; optional, `{command}` brings it")
        return Finding(name, "FAIL", f"not installed, {wanted or 'any version'} is required", command)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "warn" if optional else "FAIL", f"{version}, and {wanted} is required", command)
    return Finding(name, "ok", f"{version} ({wanted})" if wanted else version)


TORCH = """
import json, torch
cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
free = [torch.cuda.mem_get_info(i)[0] for i in range(len(cuda))]
mps = torch.backends.mps
print("\\n" + json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "threads": torch.get_num_threads(),
    "devices": [[one.name, one.total_memory, left] for one, left in zip(cuda, free)],
    "mps": mps.is_available(), "sum": torch.ones(3).sum().item(),
}))
"""


def _torch() -> Iterator[Finding]:
    """torch computes, and on what."""
    mend = "install torch anew for this machine, as pytorch.org says"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", TORCH], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=PATIENCE,
        )  # fmt: skip
        told = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Finding("torch", "FAIL", f"it cannot be imported within {PATIENCE:g} s", mend)
        return
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"it ends the process with {done.returncode}"])[-1]
        yield Finding("torch", "FAIL", f"it cannot be imported: {last}", mend)
        return
    built = f"built for {told['cuda']}" if told["cuda"] else "built without CUDA"
    yield Finding("torch", "ok", f"{told['version']}, {built}, computing threads: {told['threads']}")
    for number, (name, total, free) in enumerate(told["devices"]):
        yield Finding("GPU", "ok", f"cuda:{number} {name}, {free / 1e9:.1f} GB of {total / 1e9:.1f} GB free")
    if told["mps"]:
        yield Finding("GPU", "ok", "mps, which shares the machine's memory")
    if not told["devices"] and Path("/proc/driver/nvidia").is_dir():
        text = f"an NVIDIA driver is here, and torch, {built}, sees no GPU"
        yield Finding("GPU", "warn", text, "install a torch built for the driver's CUDA; see `nvidia-smi`")
    elif not told["devices"] and not told["mps"]:
        yield Finding("GPU", "ok", "none; runs compute on the CPU")


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cores} of {os.cpu_count()} cores"
    asked = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    text += "".join(f", {name}={value}" for name, value in asked.items())
    if any(value.isdecimal() and int(value) > cores for value in asked.values()):
        yield Finding("CPU", "warn", text, f"more threads than cores slow a run down; set {next(iter(asked))}={cores}")
    else:
        yield Finding("CPU", "ok", text)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("memory", "ok", f"{size / 1e9:.1f} GB")


def _disk() -> Iterator[Finding]:
    """Where runs and temporary files go."""
    runs = Path("runs")
    place = runs if runs.exists() else Path()
    yield _place("runs", place.resolve(), "change to a folder that can be written, or name one with --out", locks=True)
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as error:
        yield Finding("TMPDIR", "FAIL", str(error), "set TMPDIR to a folder that can be written")
        return
    stated = "" if "TMPDIR" in os.environ else " (TMPDIR is not set)"
    found = _place("TMPDIR", temporary, "set TMPDIR to another folder")
    yield replace(found, text=found.text + stated)


def _place(name: str, place: Path, way_out: str, locks: bool = False) -> Finding:
    """Whether there is room in a folder, and files can be made in it, and locked; none stays behind."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".flowplat-") as folder:
            (Path(folder) / "file").write_bytes(bytes(4096))
            if locks:
                from filelock import FileLock

                with FileLock(Path(folder) / "lock", timeout=1):
                    pass
        free = shutil.disk_usage(place).free
    except (OSError, NotImplementedError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        return Finding(name, "FAIL", f"{place} cannot be written: {reason}", way_out)
    text = f"{place}, {free / 1e9:.1f} GB free"
    return Finding(name, "ok", text) if free >= ROOM else Finding(name, "warn", text, f"make room, or {way_out}")


def _user() -> Iterator[Finding]:
    """The user's list of disabled plugins."""
    try:
        names = sorted(disabled.names())
    except FlowError as error:
        yield Finding("disabled", "FAIL", str(error), "mend or remove the file")
        return
    yield Finding("disabled", "ok", f"{', '.join(names) or 'no plugin'}, by {disabled.path()}")


def _catalogue() -> Iterator[Finding]:
    from flowplat.catalogue import entries

    yield Finding("catalogue", "ok", f"{len(entries())} plugins, as shipped")


def _plugins() -> Iterator[Finding]:
    """Every plugin, loaded in a process of its own."""
    from flowplat.probe import plugins

    found = plugins(components=True)
    for one in found:
        who = f"{one.distribution} {one.version}{', editable' if _editable(one.distribution) else ''}"
        name = f"plugin {one.name}"
        broken = [f"{part['kind']} {part['name']}: {part['cause']}" for part in one.components or () if "cause" in part]
        if one.state == "disabled":
            yield Finding(name, "ok", f"{who}, disabled", area="plugins")
        elif one.state != "ok":
            way_out = "" if one.state in ("incompatible", "duplicate") else "tell its author, or uninstall it"
            yield Finding(name, "FAIL", f"{who} is {one.state}: {one.cause}", way_out, "plugins")
        elif broken:
            yield Finding(name, "FAIL", f"{who}: {'; '.join(broken)}", "tell its author", "plugins")
        else:
            count = len(one.components or ())
            yield Finding(name, "ok", f"{who}, {count} component{'' if count == 1 else 's'}", area="plugins")
    if not found:
        yield Finding("plugins", "warn", "none is installed", "`platform search` lists those there are", "plugins")


def _editable(name: str) -> bool:
    from flowplat.source import note

    try:
        return bool(note(distribution(name)).get("dir_info", {}).get("editable"))
    except (PackageNotFoundError, ValueError):
        return False
