"""The trained model that a run learns from: the weights it begins with, and the pairs that its flow joins."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowcore import files
from flowcore.data import Batch, Source, Transform
from flowcore.errors import UsageError
from flowcore.pairs import PairStore, Recipe, generate_pairs, store_size
from flowcore.plugin.contracts import Data
from flowcore.samplers import empty
from flowcore.state import tree_map
from flowcore.training import checkpoints
from flowplat import modelfolder
from flowplat.components import one_line
from flowplat.config import plain
from flowplat.model import Model, load
from flowplat.progress import progress
from flowplat.settings import PairSettings

if TYPE_CHECKING:
    from flowplat.experiment import Experiment

log = logging.getLogger("flowplat")


def find(text: str, device: torch.device) -> Model:
    """The model that ``teacher.model`` names, on ``device``. Raises ``InputError`` or ``IntegrityError``."""
    model = load(modelfolder.find(text))
    model.experiment.device = device
    model.network.to(device).requires_grad_(False)
    return model


def fingerprint(model: Model) -> str:
    """The sha256 of the weights that are sampled."""
    source = model.source
    return files.sha256(source / "ema.safetensors" if source.is_dir() else source)


def record(model: Model | None) -> dict[str, str] | None:
    """What a run records of its teacher."""
    return None if model is None else {"fingerprint": fingerprint(model)}


def started_by_others() -> bool:
    """Whether torchrun or srun has started this process, or the first of the run's own."""
    return any(name in os.environ for name in ("LOCAL_RANK", "SLURM_STEP_ID"))


def start(model: Model, network: nn.Module, averaged: bool) -> None:
    """Give ``network`` the teacher's weights. Raises ``UsageError`` where they do not fit, or only averaged ones are
    there."""
    try:
        if averaged:
            network.load_state_dict(model.network.state_dict())
        elif model.source.is_dir():
            checkpoints.load_weights(model.source, network, averaged=False)
        else:
            raise UsageError(f"{model.source} is of an exported model, which has no raw weights; take averaged ones")
    except RuntimeError as error:
        raise UsageError(
            f"teacher.start: the weights of {model.source} do not fit the network: {one_line(error)}; take the same"
            " network, or leave teacher.start out"
        ) from error


class Part:
    """Some rows of a source, from ``first`` on; ``transform`` augments each batch."""

    def __init__(self, source: Source, first: int, count: int, transform: Transform | None = None) -> None:
        self.source, self.first, self.count, self.transform = source, first, count, transform

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``flowcore.data.Source.batch``."""
        batch = self.source.batch(rows + self.first, generator)
        return batch if self.transform is None else self.transform(batch, generator)


def folder_of(model: Model, settings: PairSettings) -> Path:
    """Where the pairs of these settings are: with the teacher's run, for every student to use; an exported model's
    folder stays as it is, and its pairs are under runs/pairs."""
    recipe = json.dumps({"teacher": fingerprint(model)} | _record(settings), sort_keys=True)
    name = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    source = model.source
    return (source.parents[1] if source.is_dir() else Path("runs")) / "pairs" / name


def make(model: Model, settings: PairSettings, experiment: "Experiment") -> Path:
    """Generate the pairs that are not there yet, over all processes of the run; the folder they are in.

    Raises what ``flowcore.pairs.generate_pairs`` raises.
    """
    if hasattr(model.data, "draw_source"):
        raise UsageError(
            f"teacher.pairs are made from noise, and the flow of {model.source} begins at samples of its data; train"
            " without pairs"
        )
    engine, folder = experiment.engine, folder_of(model, settings)
    parts = model.parts()
    recipe = Recipe(
        fingerprint(model), settings.steps, settings.solver.build(), settings.dtype, batch_size=settings.batch_size,
        shard_size=_shard_size(settings), device=experiment.device, record=_record(settings),
    )  # fmt: skip
    sample = tree_map(lambda leaf: leaf[0], empty(parts.spec.state, 1, torch.device("cpu")))
    condition = model.data.condition(settings.count, None)
    one = None if condition is None else tree_map(lambda leaf: leaf[0], condition)
    size = store_size(settings.count, sample, settings.dtype, one)
    log.info("%d pairs of %s, %.1f MB, in %s", settings.count, model.source, size / 1e6, folder)
    guidance = [choice.build(parts.spec) for choice in settings.guidance]
    label = f"pairs, {size / 1e6:.3g} MB"
    with progress(label, settings.count, "pair", shown=engine.rank == 0) as bar:
        generate_pairs(
            parts.field(engine.called(model.network)), recipe, folder, sample, settings.count, settings.seed,
            condition, guidance, _advance(bar), engine,
        )  # fmt: skip
    return folder


def read(folder: Path, settings: PairSettings, data: Data) -> tuple[Source, Source]:
    """The pairs to train on, in the guises of ``data`` where it has any, and those kept back for validation."""
    store, held = PairStore(folder), settings.held_out
    augment = getattr(data, "augment", None) if settings.augment else None
    return Part(store, 0, len(store) - held, augment), Part(store, len(store) - held, held)


def _advance(bar: Any) -> Callable[[int], None]:
    return lambda done: bar.update(done - bar.n)


def _shard_size(settings: PairSettings) -> int:
    """A few batches: what is lost when the run is stopped, and what a process makes at a time."""
    return min(4 * settings.batch_size, math.ceil(settings.count / settings.batch_size) * settings.batch_size)


def _record(settings: PairSettings) -> dict[str, Any]:
    """What decides the pairs, as plain JSON."""
    kept = {
        key: plain(getattr(settings, key)) for key in type(settings).model_fields if key not in ("held_out", "augment")
    }
    return kept | {"solver": settings.solver.plain(), "guidance": [choice.plain() for choice in settings.guidance]}
