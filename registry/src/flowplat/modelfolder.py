"""A model folder: what is in it, that it is what was exported, and how one is put in its place, whole or not at all.

    model.safetensors  config.yaml  manifest.json  README.md
    facts.json  figures.json  provenance.json  sheet.png        those that there are

The manifest holds the sha256 of every other file. Nothing else in the folder is ever read, and nothing is unpickled.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowcore import __version__, files
from flowcore.errors import InputError, IntegrityError, UsageError
from flowplat.progress import progress

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
FACTS = "facts.json"
FIGURES = "figures.json"
PROVENANCE = "provenance.json"
SHEET = "sheet.png"
CARD = "README.md"
NEEDED = (WEIGHTS, CONFIG)
OURS = {WEIGHTS, CONFIG, FACTS, FIGURES, PROVENANCE, SHEET, CARD}

FORMAT = 1
"""Raised when an older flowplat could no longer read a model."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""File names that a manifest may hold: they mean the same everywhere, and lead nowhere else."""

LARGEST = 1 << 20  # of a manifest, in bytes
WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy", ".h5", ".onnx"}


def is_model(folder: Path) -> bool:
    """Whether a folder is meant as an exported model. No run has these files at its top."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, WEIGHTS))


def find(text: str | Path, root: Path = Path("runs")) -> Path:
    """The model folder or run that ``text`` names; a run as ``flowplat.runs.find`` knows it."""
    if is_model(Path(text)):
        return Path(text)
    from flowplat import runs

    return runs.find(text, root)


def seal(folder: Path) -> None:
    """Write the manifest of the files in ``folder``."""
    hashes = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
    record = {"format": FORMAT, "flowplat": __version__, "files": hashes}
    (folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read(manifest: Path) -> dict[str, str]:
    """The sha256 of each file by its name. Raises ``IntegrityError`` on a manifest that is damaged or means harm."""
    try:
        status = manifest.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise IntegrityError(f"{manifest} is no manifest: it should be a small file")
        record = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{manifest} is missing, and without it nothing tells what the model should be") from None
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{manifest} is damaged: {' '.join(str(error).split())[:200]}") from error
    found = record.get("files") if isinstance(record, dict) else None
    if not isinstance(found, dict) or type(record.get("format")) is not int:
        raise IntegrityError(f"{manifest} is damaged: it states no format and no files")
    if record["format"] > FORMAT:
        raise IntegrityError(f"{manifest} is of a newer flowplat, {record.get('flowplat')}; update to read the model")
    for name, hash_ in found.items():
        if not NAME.fullmatch(name) or name == MANIFEST:
            raise IntegrityError(f"{manifest} names {name!r}, which can be no file of a model")
        if not isinstance(hash_, str) or not re.fullmatch(r"[0-9a-f]{64}", hash_):
            raise IntegrityError(f"{manifest} is damaged: it holds no sha256 of {name}")
    for name in NEEDED:
        if name not in found:
            raise IntegrityError(f"{manifest} names no {name}, without which there is no model")
    return found


def verify(folder: Path) -> list[str]:
    """The names of the files of a model, all of them whole.

    Raises ``IntegrityError`` naming a file that is missing, not what was exported, no ordinary file, or that holds
    weights and is not in the manifest.
    """
    hashes = read(folder / MANIFEST)
    for path in sorted(folder.iterdir()):
        strange = path.name not in hashes and (path.suffix.lower() in WEIGHT_FILES or path.name in OURS)
        if strange:
            raise IntegrityError(f"{path} is not in {MANIFEST}: it is not part of the model, take it away")
    sizes = {name: _size(folder / name) for name in hashes}
    with progress("verify", sum(sizes.values()), "B") as bar:
        for name, expected in hashes.items():
            if files.sha256(folder / name) != expected:
                raise IntegrityError(f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}")
            bar.update(sizes[name])
    return sorted(hashes)


def read_json(path: Path) -> Any:
    """The content of a verified JSON file. Raises ``IntegrityError`` when it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is no JSON: {' '.join(str(error).split())[:200]}") from error


def copy(source: Path, names: Sequence[str], target: Path) -> None:
    """Copy the manifest and the files it names from one model folder into another."""
    everything = [*names, MANIFEST]
    with progress("copy", sum(_size(source / name) for name in everything), "B") as bar:
        for name in everything:
            shutil.copyfile(source / name, target / name, follow_symlinks=False)
            bar.update((target / name).stat().st_size)


def refuse_used(target: Path) -> None:
    """Raise ``InputError`` when ``target`` is there and anything but an empty folder."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} is no folder; name a new one")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target} is not empty; name a new folder")


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place, synced, when all went well, and is gone when not.

    Raises ``InputError`` when ``target`` holds something, ``MachineError`` when the disk refuses.
    """
    target = Path(os.path.abspath(target))
    if not target.name:
        raise UsageError(f"{target} cannot be the folder of a model; name a new one")
    refuse_used(target)
    temporary = target.with_name(f".{target.name}.tmp")
    above = [folder for folder in target.parents if not folder.exists()]
    with files.refusals(f"{target} cannot be written"):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
            temporary.mkdir(parents=True)
            yield temporary
            for path in temporary.iterdir():
                files.sync(path)
            files.sync(temporary)
            if target.is_dir():
                target.rmdir()
            temporary.rename(target)
            files.sync(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                for folder in above:
                    folder.rmdir()
            raise


def _size(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"{path} is no ordinary file")
    return status.st_size
