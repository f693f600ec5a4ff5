"""Checkpoints: a folder of safetensors and JSON that is either whole or not there.

    step-00005000/{model,ema,optim}.safetensors  state.json  manifest.json      latest

A checkpoint is written to a temporary folder, synced, renamed, and named in ``latest`` last. The manifest holds the
sha256 of every file. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowcore.errors import IntegrityError
from flowcore.training.loop import TrainState

MANIFEST = "manifest.json"
FILES = {"model.safetensors", "ema.safetensors", "optim.safetensors", "state.json"}


def sha256(path: Path) -> str:
    """The hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(folder: Path, state: TrainState) -> Path:
    """Write ``state`` as ``folder/step-N`` and make it the latest; returns the new folder."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    for left in folder.glob(".step-*.tmp"):  # by a save that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_tensors(temporary / "model.safetensors", state.network.state_dict())
    _write_tensors(temporary / "ema.safetensors", state.ema.module.state_dict())
    tensors, plain = _flatten(state.optimizer.state_dict())
    _write_tensors(temporary / "optim.safetensors", tensors)
    record = {"step": state.step, "ema_updates": int(state.ema.n_averaged), "optimizer": plain}
    (temporary / "state.json").write_text(json.dumps(record, indent=1))
    hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps(hashes, indent=1))
    for path in temporary.iterdir():
        _sync(path)
    if final.exists():  # the same step saved before goes only when the new one is in its place
        old = folder / f".{final.name}.old.tmp"
        final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(final)
    _sync(folder)
    pointer = folder / ".latest.tmp"
    pointer.write_text(final.name + "\n")
    _sync(pointer)
    pointer.replace(folder / "latest")
    return final


def verify(checkpoint: Path) -> None:
    """Raise ``IntegrityError`` naming the first file of ``checkpoint`` that is missing or not what was written."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{checkpoint / MANIFEST} cannot be read: {error}") from error
    if not isinstance(hashes, dict) or not set(hashes) >= FILES:
        raise IntegrityError(f"{checkpoint / MANIFEST} is damaged: it does not name {', '.join(sorted(FILES))}")
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file() or sha256(path) != expected:
            raise IntegrityError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")


def latest(folder: Path) -> Path:
    """The newest whole checkpoint of ``folder``. Raises ``IntegrityError`` when there is none."""
    damaged = []
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify(checkpoint)
        except IntegrityError as error:
            damaged.append(str(error))
        else:
            return checkpoint
    raise IntegrityError("; ".join(damaged) or f"{folder} holds no checkpoint")


def load_weights(checkpoint: Path, network: nn.Module, averaged: bool = True) -> None:
    """Load the averaged (or the raw) weights of a verified checkpoint into ``network``."""
    network.load_state_dict(load_file(checkpoint / ("ema.safetensors" if averaged else "model.safetensors")))


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as (tensors by "parameter.name", the rest as plain JSON)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"groups": optimizer["param_groups"], "scalars": {}}
    for parameter, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{parameter}.{name}"] = value
            else:
                plain["scalars"][f"{parameter}.{name}"] = value
    return tensors, plain


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
