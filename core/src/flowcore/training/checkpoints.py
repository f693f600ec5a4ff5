"""Checkpoints: a folder of safetensors and JSON that is either whole or not there.

    step-00005000/{model,ema,optim}.safetensors  state.json  manifest.json      latest

A checkpoint is written to a temporary folder, synced, renamed, and named in ``latest`` last. The manifest holds the
sha256 of every file. Nothing is ever unpickled. There are no states of random generators in it: every draw is made from
(seed, step, rank).
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from flowcore import files
from flowcore.errors import IntegrityError, UsageError
from flowcore.training.engine import Engine
from flowcore.training.loop import TrainState
from flowcore.training.settings import TrainSettings

log = logging.getLogger("flowplat")  # on stderr where no run keeps a log

MANIFEST = "manifest.json"
FILES = {"model.safetensors", "ema.safetensors", "optim.safetensors", "state.json"}
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # put together from the shards, on the first process


def save(
    folder: Path, state: TrainState, engine: Engine | None = None, config: Mapping[str, Any] | None = None
) -> Path:
    """Write ``state`` as ``folder/step-N`` and make it the latest; returns the new folder.

    Every process calls it and the first one writes. ``config`` is stored for ``load`` to give back. Raises
    ``MachineError`` when the disk refuses; what was saved before stays.
    """
    engine = engine or Engine()
    tensors, plain = _flatten(get_optimizer_state_dict(state.network, _plain(state.optimizer), options=WHOLE))
    model, mean = (get_model_state_dict(network, options=WHOLE) for network in (state.network, state.ema.module))
    record = {
        "step": state.step,
        "ema_updates": int(state.ema.n_averaged),
        "losses": state.losses,
        "best": state.best if math.isfinite(state.best) else None,
        "stale": state.stale,
        "score": state.score,
        "scaler": engine.fabric.strategy.precision.state_dict(),
        "processes": engine.world,
        "optimizer": plain,
        "config": config,
    }
    parts: dict[str, dict[str, Any]] = {"model": model, "ema": mean, "optim": tensors}
    return engine.first(lambda: _write(folder, f"step-{state.step:08d}", parts, record))


def _write(folder: Path, name: str, parts: dict[str, dict[str, Tensor]], record: dict[str, Any]) -> Path:
    final, temporary = folder / name, folder / f".{name}.tmp"
    with files.refusals(f"checkpoint {final} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        files.tidy(folder)
        try:
            temporary.mkdir()
            for part, tensors in parts.items():
                contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
                save_file(contiguous, temporary / f"{part}.safetensors")
            (temporary / "state.json").write_text(json.dumps(record, indent=1))
            hashes = {path.name: files.sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(hashes, indent=1))
            for path in temporary.iterdir():
                files.sync(path)
            files.sync(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, room for what was there before
            raise
        if final.exists():  # the same step saved before goes only when the new one is in its place
            old = files.aside(final)
            temporary.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(final)
        files.sync(folder)
        files.write(folder / "latest", name + "\n")
    return final


def load(checkpoint: Path, state: TrainState, engine: Engine | None = None) -> dict[str, Any]:
    """Bring ``state`` to a verified checkpoint; returns its ``config``. Every process calls it and reads the files.

    Raises ``UsageError`` where weights or optimiser do not fit the network, ``IntegrityError`` where a file with the
    right hash is not what it should be: somebody has put it there.
    """
    engine = engine or Engine()
    try:
        record = json.loads((checkpoint / "state.json").read_text())
        model, mean, tensors = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "ema", "optim"))
    except (ValueError, SafetensorError) as error:
        raise IntegrityError(f"{checkpoint} holds a file that is not safe to read: {_line(error)}") from error
    whole = StateDictOptions(full_state_dict=True)
    try:
        for network, weights in ((state.network, model), (state.ema.module, mean)):
            set_model_state_dict(network, dict[str, Any](weights), options=whole)
        optimizer = _unflatten(tensors, record["optimizer"])
        set_optimizer_state_dict(state.network, _plain(state.optimizer), optimizer, options=whole)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(f"{checkpoint} does not fit the network as configured: {_line(error)}") from error
    state.ema.n_averaged.fill_(record["ema_updates"])
    state.step, state.losses, state.stale = record["step"], record["losses"], record["stale"]
    state.best = math.inf if record["best"] is None else record["best"]
    if record["scaler"]:
        engine.fabric.strategy.precision.load_state_dict(record["scaler"])
    return record["config"] or {}


def verify(checkpoint: Path) -> None:
    """Raise ``IntegrityError`` naming the first file of ``checkpoint`` that is missing or not what was written."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{checkpoint / MANIFEST} cannot be read: {error}") from error
    if not isinstance(hashes, dict) or set(hashes) != FILES:
        raise IntegrityError(f"{checkpoint / MANIFEST} is damaged: it does not name {', '.join(sorted(FILES))}")
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file() or files.sha256(path) != expected:
            raise IntegrityError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")


def found(folder: Path) -> list[Path]:
    """The checkpoints of ``folder``, newest first, whole or not."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of ``folder``, if any, and what is wrong with those that are newer."""
    damaged = []
    for checkpoint in found(folder):
        try:
            verify(checkpoint)
        except IntegrityError as error:
            damaged.append(str(error))
        else:
            return checkpoint, damaged
    return None, damaged


def latest(folder: Path) -> Path:
    """The newest whole checkpoint of ``folder``; newer ones that are damaged are named in the log.

    Raises ``IntegrityError`` when there is none.
    """
    checkpoint, damaged = newest(folder)
    if checkpoint is None:
        raise IntegrityError("; ".join(damaged) or f"{folder} holds no checkpoint")
    for line in damaged:
        log.warning("%s; %s is used", line, checkpoint.name)
    return checkpoint


def chosen(folder: Path, settings: TrainSettings) -> Path:
    """The checkpoint that is a run's model: the latest, or with ``patience`` the one of the lowest validation loss.

    Raises ``IntegrityError`` when it is damaged, or when there is none.
    """
    if settings.patience is not None and (ranked := best(folder)):
        verify(ranked[0])
        return ranked[0]
    return latest(folder)


def best(folder: Path) -> list[Path]:
    """The checkpoints that were validated, the lowest loss first."""
    scored = []
    for checkpoint in found(folder):
        try:
            score = json.loads((checkpoint / "state.json").read_text())["score"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged, and told where it is asked for
        if isinstance(score, int | float):
            scored.append((score, checkpoint.name, checkpoint))
    return [checkpoint for *_, checkpoint in sorted(scored)]


def prune(folder: Path, keep: int | None, keep_best: int, newest: Path | None = None) -> None:
    """Delete all but the ``keep`` newest checkpoints, None for all, and the ``keep_best`` of lowest validation loss.

    ``newest`` is the one just saved. What is of later steps is damaged, or the run would have gone on from there: it
    counts for nothing and goes too.
    """

    def past(checkpoints: list[Path]) -> list[Path]:
        return [checkpoint for checkpoint in checkpoints if newest is None or checkpoint.name <= newest.name]

    kept = {*past(found(folder))[:keep], *past(best(folder))[:keep_best]}
    for checkpoint in found(folder):
        if checkpoint not in kept:
            shutil.rmtree(files.aside(checkpoint), ignore_errors=True)


def load_weights(checkpoint: Path, network: nn.Module, averaged: bool = True) -> None:
    """Load the averaged (or the raw) weights of a verified checkpoint into ``network``."""
    network.load_state_dict(load_file(checkpoint / ("ema.safetensors" if averaged else "model.safetensors")))


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside what Fabric has put around it."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _flatten(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as (tensors by "weight's name/entry", the rest as plain JSON)."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for weight, entries in optimizer.get("state", {}).items():  # other processes than the first are given nothing
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{weight}/{name}"] = value
    return tensors, {"groups": optimizer.get("param_groups"), "scalars": scalars}


def _unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["scalars"]}.items():
        weight, _, name = key.rpartition("/")
        state.setdefault(weight, {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
