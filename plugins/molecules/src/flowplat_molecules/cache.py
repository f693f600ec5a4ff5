"""Molecules as they were read, kept in a file that is read again as long as what they came from is the same."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowcore.files import refusals, write
from flowplat_molecules.data import Loaded
from flowplat_molecules.graphs import LEAVES
from flowplat_molecules.vocabulary import Vocabulary, from_facts

NAME = "molecules.npz"
Kept = tuple[Loaded, Vocabulary]


def kept(folder: Path, origin: Any, read: Callable[[], Kept]) -> Kept:
    """What ``read()`` gives, from the file in ``folder`` where that is of the same ``origin`` (plain JSON), else read
    and written there. A file that is damaged is made anew. Raises ``MachineError`` where it cannot be written."""
    path, told = folder / NAME, json.dumps(origin)
    try:
        with np.load(path, allow_pickle=False) as there:
            if _text(there["origin"]) == told:
                return _loaded(there)
    except (OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile):
        pass
    loaded, vocabulary = read()
    arrays: dict[str, Any] = {
        "origin": _bytes(told),
        "vocabulary": _bytes(json.dumps(vocabulary.facts())),
        "smiles": _bytes("\n".join(loaded.smiles)),
        "names": _bytes(json.dumps(loaded.names)),
        "sizes": loaded.sizes.numpy().astype(np.int32),
        "values": loaded.values.numpy(),
        **{name: _small(leaf.numpy()) for name, leaf in loaded.x1.items()},
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    with refusals(f"{folder} cannot be written"):
        write(path, packed.getvalue())
    return loaded, vocabulary


def _loaded(arrays: Any) -> Kept:
    x1 = {name: torch.from_numpy(arrays[name]) for name in LEAVES}
    x1 = {name: leaf if leaf.is_floating_point() else leaf.long() for name, leaf in x1.items()}
    sizes, smiles = torch.from_numpy(arrays["sizes"]).long(), _text(arrays["smiles"]).split("\n")
    loaded = Loaded(x1, sizes, torch.from_numpy(arrays["values"]), smiles, json.loads(_text(arrays["names"])))
    return loaded, from_facts(json.loads(_text(arrays["vocabulary"])))


def _small(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "f" else array.astype(np.uint8)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _text(array: np.ndarray) -> str:
    return bytes(array).decode()
