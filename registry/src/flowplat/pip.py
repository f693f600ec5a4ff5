"""pip, the one of the Python that runs: how it is started, and what its complaints become."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flowcore.errors import FlowError, IntegrityError, MachineError, PluginError

KEPT = ("torch", "numpy", "flowplat")
"""What installing a plugin never changes."""

ELSEWHERE = "install it in an environment of its own, or ask its author for a release that fits"

OFFLINE = "check the network and pip's settings, or name a wheel that is here"
OWN = "make an environment of your own with `python3 -m venv`, and install flowplat there"

CODE = r"[a-z]+(-[a-z]+)+"
"""What newer versions of pip call an error by, ahead of saying it."""

UNREACHED = re.compile(
    r"HTTPS?ConnectionPool\(host='([^']+)'"  # an older pip
    r"|^error: (?:connection|ssl|proxy)-.*\n+.* to (\S+)",
    re.M,
)


def kept() -> dict[str, str]:
    """The versions of ``KEPT`` that are installed."""
    found = {}
    for name in KEPT:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # flowcore alone, on a path: there is nothing to keep
            continue
    return found


def pip(what: str, *arguments: str | Path, changes: bool = False) -> str:
    """What ``pip ARGUMENTS`` prints. Raises what its refusal to do ``what`` means, in one line.

    Ctrl-C stops it, and is passed on when it has ended. With ``changes`` the first one only waits for its end, so that
    nothing is left half installed; the second stops it.
    """
    if find_spec("pip") is None:
        raise MachineError(f"{sys.executable} has no pip, which installs plugins; `python -m ensurepip` brings it")
    command = [sys.executable, "-P", "-m", "pip", arguments[0], "--disable-pip-version-check", "--no-input"]
    process = subprocess.Popen(
        [*command, *arguments[1:]], text=True, errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,  # a terminal's Ctrl-C comes to us alone
    )  # fmt: skip
    interrupted = 0
    while True:
        try:
            text = process.communicate()[0]
            break
        except KeyboardInterrupt:
            interrupted += 1
            if changes and interrupted == 1:
                print("finishing what pip has begun; Ctrl-C once more stops it", file=sys.stderr)
            else:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
    if interrupted:
        raise KeyboardInterrupt
    if process.returncode:
        raise refusal(what, text, kept())
    return text


def refusal(what: str, text: str, frozen: Mapping[str, str]) -> FlowError:
    """What pip's output says of why it refused ``what``, as an error of ours."""
    if hashes := re.search(r"Expected sha256 (\S+)\s+Got\s+(\S+)", text):
        whose = re.search(r"^ +([\w.-]+).* from \S+.*:$", text, re.M)
        return other_file(whose[1] if whose else what, hashes[1], hashes[2])
    if told := _conflict(what, text, frozen):
        return PluginError(told)
    if lacks := re.search(r"No matching distribution found for (.+)", text):
        if "Retrying (" in text:
            return MachineError(f"{what}: the index cannot be reached, to look for {lacks[1]}; {OFFLINE}")
        versions = re.search(r"\(from versions: (?!none)(.+)\)", text)
        others = f"there are {versions[1]}" if versions else "`platform search` lists what the catalogue knows"
        return PluginError(f"{what}: pip finds no wheel of {lacks[1]} for this Python where it looks; {others}")
    reason = _complaint(text)
    if re.search(r"^ERROR: Wheel .* is invalid", text, re.M):
        return IntegrityError(f"{what} is damaged: {reason}; fetch it again")
    if "externally-managed-environment" in text:
        return MachineError(f"{what}: this Python belongs to the system, which lets nothing be installed; {OWN}")
    if "no such option" in text:
        return MachineError(f"pip is too old ({reason}); `python -m pip install --upgrade pip` renews it")
    if host := UNREACHED.search(text):
        why = "shows a certificate that is not trusted" if "CERTIFICATE_VERIFY" in text else "cannot be reached"
        return MachineError(f"{what}: {host[1] or host[2]} {why}; {OFFLINE}")
    if "HTTP error" in text:
        return MachineError(f"{what}: {reason}; {OFFLINE}")
    if "OSError" in text or "PermissionError" in text:
        return MachineError(f"{what}: {reason}; where this cannot be written, {OWN}")
    return PluginError(f"pip refuses {what}: {reason}")


def other_file(what: str, wanted: str, found: str) -> IntegrityError:
    """The error for a file with another hash than it should have."""
    reason = f"{what} is not the file it should be: expected sha256 {wanted}, got {found}"
    return IntegrityError(f"{reason}; nothing was installed, tell whoever published it")


def _conflict(what: str, text: str, frozen: Mapping[str, str]) -> str | None:
    """The requirements that cannot be met together, where that is what pip found."""
    found = re.search(r"The conflict is caused by:\n((?: {4}.*\n)+)", text)
    if found is None:
        return None
    lines = [line.strip() for line in found[1].splitlines()]
    for line in lines:
        if depends := re.fullmatch(r"(\S+) (\S+) depends on (.+)", line):
            try:
                wanted = Requirement(depends[3].replace(" and ", ","))  # as pip writes >=0.2,<0.3
            except InvalidRequirement:
                continue
            there = frozen.get(canonicalize_name(wanted.name))
            if there is not None and not wanted.specifier.contains(there, prereleases=True):
                whose = f"{depends[1]} {depends[2]}"
                if canonicalize_name(depends[1]) not in canonicalize_name(what):
                    whose = f"{what} brings along {whose}, which"
                return clash(whose, wanted, there)
    return f"{what} cannot be installed: {' and '.join(lines)}; {ELSEWHERE}"


def clash(whose: str, wanted: Requirement, there: str) -> str:
    """The sentence for a requirement that what is installed, and stays, does not meet."""
    required = f"requires {wanted.name}{wanted.specifier}, and {wanted.name} {there} is installed"
    return f"{whose} {required}, which install never changes; {ELSEWHERE}"


def _complaint(text: str) -> str:
    """The lines of pip's output that say what went wrong, as one."""
    found: list[str] = []
    for line in map(str.strip, text.splitlines()):
        said = re.match(r"(?:ERROR|error|\N{MULTIPLICATION SIGN}):? (.+)|([\w.]*(?:Error|Exception): .+)", line)
        reason = (said[1] or said[2]).removeprefix("Could not install packages due to an ").rstrip(".") if said else ""
        if reason not in (*found, "", "Exception:") and not re.fullmatch(CODE, reason):
            found.append(reason)
    return " ".join("; ".join(found[:2]).split())[:400] or "it says nothing of why"
