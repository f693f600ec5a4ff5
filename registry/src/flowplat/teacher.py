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
from flowcore.pairs import PairStore, Recipe, generate_pairs, invert_pairs, store_size
from flowcore.paths import Affine
from flowcore.plugin.contracts import Data
from flowcore.samplers import empty
from flowcore.seeds import generator
from flowcore.solvers import edm_grid
from flowcore.state import tree_map
from flowcore.training import checkpoints
from flowplat import modelfolder
from flowplat.components import one_line
from flowplat.config import plain
from flowplat.model import Model, load
from flowplat.progress import progress
from flowplat.settings import PairSettings, RunConfig

if TYPE_CHECKING:
    from flowplat.experiment import Experiment

log = logging.getLogger("flowplat")


def find(text: str, device: torch.device) -> Model:
    """The model that ``teacher.model`` names, on ``device``. Raises ``InputError`` or ``IntegrityError``."""
    model = load(modelfolder.find(text))
    model.experiment.device = device
    model.network.to(device).requires_grad_(False)
    return model


def untrained(config: RunConfig) -> Model:
    """The model of a config before any training, where nothing is asked of what it says."""
    from flowplat.experiment import Experiment  # which asks here for a teacher

    experiment = Experiment(config)
    return Model(experiment, experiment.network().eval().requires_grad_(False), Path("untrained"))


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
    """Some rows of a source; ``transform`` augments each batch."""

    def __init__(self, source: Source, rows: Tensor, transform: Transform | None = None) -> None:
        self.source, self.rows, self.transform = source, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``flowcore.data.Source.batch``."""
        batch = self.source.batch(self.rows[rows], generator)
        return batch if self.transform is None else self.transform(batch, generator)


class Joined:
    """The pairs of one source, and behind them those of another."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``flowcore.data.Source.batch``."""
        late = rows >= len(self.first)
        if not late.any():
            return self.first.batch(rows, generator)
        if late.all():
            return self.second.batch(rows - len(self.first), generator)
        one = self.first.batch(rows[~late], generator)
        other = self.second.batch(rows[late] - len(self.first), generator)
        place = torch.cat([(~late).nonzero(), late.nonzero()]).flatten().argsort()

        def join(a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b])[place]

        condition = None if one.condition is None else tree_map(join, one.condition, other.condition)
        return Batch(tree_map(join, one.x1, other.x1), condition, tree_map(join, one.x0, other.x0))


def folder_of(model: Model, record: dict[str, Any]) -> Path:
    """Where the pairs of this record are: with the teacher's run, for every student to use; an exported model's
    folder stays as it is, and its pairs are under runs/pairs."""
    recipe = json.dumps({"teacher": fingerprint(model)} | record, sort_keys=True)
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
    record = _record(settings)
    engine, folder = experiment.engine, folder_of(model, record)
    parts = model.parts()
    recipe = _recipe(model, settings, experiment, record, settings.count)
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


def invert(model: Model, settings: PairSettings, experiment: "Experiment") -> Path | None:
    """As ``make``, of training samples of the run's own data set, and without guidance; None where none are asked for.

    A share of such pairs keeps the student from drifting off the data (Lee et al. 2024, arXiv 2405.20320).
    """
    training = experiment.data.train()
    count = min(settings.inverted, len(training))
    if count == 0:
        return None
    kept = {key: value for key, value in _record(settings).items() if key not in ("count", "guidance")}
    record = kept | {"inverted": count, "data": experiment.data.fingerprint()}
    folder, recipe = folder_of(model, record), _recipe(model, settings, experiment, record, count)
    rows = torch.randperm(len(training), generator=generator(settings.seed, "inverted"))[:count]
    log.info("%d training samples, inverted by %s, in %s", count, model.source, folder)
    engine = experiment.engine
    with progress("inverted pairs", count, "pair", shown=engine.rank == 0) as bar:
        field = model.parts().field(engine.called(model.network))
        invert_pairs(field, recipe, folder, Part(training, rows), settings.seed, _advance(bar), engine)
    return folder


def read(folder: Path, inverted: Path | None, settings: PairSettings, data: Data) -> tuple[Source, Source]:
    """The pairs to train on, in the guises of ``data`` where it has any, and those kept back for validation."""
    store, held = PairStore(folder), settings.held_out
    augment = getattr(data, "augment", None) if settings.augment else None
    rows = torch.arange(len(store))
    training: Source = Part(store, rows[: len(rows) - held])
    if inverted is not None:
        training = Joined(training, PairStore(inverted))
    return Part(training, torch.arange(len(training)), augment), Part(store, rows[len(rows) - held :])


def _recipe(
    model: Model, settings: PairSettings, experiment: "Experiment", record: dict[str, Any], count: int
) -> Recipe:
    grid: int | Tensor = settings.steps
    path = model.parts().path
    if settings.rho is not None:
        if not isinstance(path, Affine):
            raise UsageError("teacher.pairs.rho is for a teacher whose path has one noise level; leave it out")
        try:
            grid = edm_grid(settings.steps, rho=settings.rho, path=path)
        except ValueError as error:
            raise UsageError(f"teacher.pairs.rho: {error}; leave it out") from error
    return Recipe(
        fingerprint(model), grid, settings.solver.build(), settings.dtype, batch_size=settings.batch_size,
        shard_size=_shard_size(settings.batch_size, count), device=experiment.device, record=record,
    )  # fmt: skip


def _advance(bar: Any) -> Callable[[int], None]:
    return lambda done: bar.update(done - bar.n)


def _shard_size(batch_size: int, count: int) -> int:
    """A few batches: what is lost when the run is stopped, and what a process makes at a time."""
    return min(4 * batch_size, math.ceil(count / batch_size) * batch_size)


def _record(settings: PairSettings) -> dict[str, Any]:
    """What decides the pairs, as plain JSON."""
    others = {"held_out", "augment", "inverted"} | ({"rho"} if settings.rho is None else set())
    kept = {key: plain(getattr(settings, key)) for key in type(settings).model_fields if key not in others}
    return kept | {"solver": settings.solver.plain(), "guidance": [choice.plain() for choice in settings.guidance]}
