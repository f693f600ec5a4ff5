"""The pairs that a teacher's flow joins, kept on disk.

    (x0, x1),   x1 = x(1) of  d x / d t = v(x, t),  x(0) = x0

What reflow and distillation learn from (Liu et al. 2022, arXiv 2209.03003). A store is a folder of safetensors shards
and a ``meta.json``. x0 is drawn row by row from a seed and not stored, unless it is not such a draw: noise found by
inverting real data, or a source that is not Gaussian.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from flowcore import files
from flowcore.data import Batch, Source, Transform
from flowcore.errors import InputError, IntegrityError, MachineError, UsageError
from flowcore.field import Field
from flowcore.guidance import Guidance
from flowcore.likelihood import gaussian_source, initial_scale
from flowcore.paths import gaussian
from flowcore.seeds import generator
from flowcore.solvers import Step, solve, time_grid
from flowcore.state import State, first_leaf, tree_map

Kept = Literal["float16", "float32", "uint8"]
FORMAT = 1
META = "meta.json"


class Processes(Protocol):
    """Several processes that make a store together, such as ``flowcore.training.engine.Engine``."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def first(self, work: Callable[[], Any]) -> Any: ...
    def gather(self, mine: Any) -> list[Any] | None: ...


class Alone:
    """One process."""

    rank, world = 0, 1

    def first(self, work: Callable[[], Any]) -> Any:
        """``work()``."""
        return work()

    def gather(self, mine: Any) -> list[Any] | None:
        """What the only process brings."""
        return [mine]


@dataclass(frozen=True)
class Recipe:
    """How pairs are made and kept; with the same teacher it gives the same bytes.

    ``teacher`` is a hash of the teacher's weights and config. ``grid`` and ``method`` are as in ``solve``, the grid
    ascending. ``dtype`` is how x1 is stored: "uint8" is for images in [-1, 1], clamped to 256 levels. A shard holds
    ``shard_size`` pairs and is the unit of resuming; ``batch_size`` of them are solved at once on ``device``.
    ``record`` is whatever JSON should be known of the pairs later: it must name the "solver" where ``method`` is a
    function, and describe the "guidance" where there is any.
    """

    teacher: str
    grid: int | float | Tensor = 20
    method: str | Step = "heun"
    dtype: Kept = "float16"
    shard_size: int = 4096
    batch_size: int = 512
    device: torch.device | str = "cpu"
    record: Mapping[str, Any] = field(default_factory=dict)


def generate_pairs(
    teacher: Field,
    recipe: Recipe,
    folder: Path,
    sample: State,
    count: int,
    seed: int,
    condition: State | None = None,
    guidance: Sequence[Guidance] = (),
    progress: Callable[[int], None] = lambda done: None,
    processes: Processes | None = None,
) -> None:
    """Draw x0, solve for x1 and store ``count`` pairs in ``folder``; read them with ``PairStore``.

    ``sample`` has the shape and dtype of one sample of the state; ``condition`` has ``count`` rows. Pair i depends on
    (seed, i) alone. Each shard appears whole or not at all, so that a run that was stopped goes on where it was when
    called again with the same arguments, to the same bytes on the same machine. ``progress`` is told the number of
    pairs done after each shard. ``processes`` that all call this deal the shards out between them, to the same bytes.
    Raises ``UsageError`` where the folder was begun with other arguments, ``IntegrityError`` naming a shard that is
    damaged, ``MachineError`` when the disk is too small, ``ValueError`` on arguments that make no store.
    """
    given = None if condition is None else tree_map(lambda leaf: leaf[0], condition)
    if condition is not None and len(first_leaf(condition)) != count:
        raise ValueError(f"condition has {len(first_leaf(condition))} rows for {count} pairs")
    if guidance and "guidance" not in recipe.record:
        raise ValueError('describe the guidance in recipe.record["guidance"]: pairs made with another must not mix')
    seeded = gaussian_source(teacher.path)
    noise = {"kind": "seed", "recipe": NOISE} if seeded else {"kind": "stored", "from": "source"}
    settings = _settings(teacher, recipe, count, sample, given, {**noise, "seed": seed})
    if condition is not None:
        settings["condition_sha256"] = _sha256(save(_encoded({"condition": condition}, settings)))
    times = _times(teacher, recipe)

    def make(rows: Tensor) -> dict[str, State]:
        x0 = _noise(settings["state"], seed, rows.tolist(), None if seeded else teacher.path.draw_source)
        if not seeded:
            x0 = _rounded(x0, _noise_dtype(recipe.dtype))  # as it is stored, so that it leads to x1 exactly
        told = None if condition is None else tree_map(lambda leaf: leaf[rows], condition)
        told_teacher = teacher.with_condition(_to(told, recipe.device))
        start = teacher.path.initial(_to(x0, recipe.device))
        draws = generator(seed, "guidance", int(rows[0]), device=recipe.device)
        x1 = solve(told_teacher, start, times, recipe.method, guidance, generator=draws)
        return {"x1": x1, "condition": told, "x0": None if seeded else x0}

    _fill(folder, settings, recipe, teacher, make, progress, processes)


def invert_pairs(
    teacher: Field,
    recipe: Recipe,
    folder: Path,
    source: Source,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    processes: Processes | None = None,
) -> None:
    """Pairs of real data: x1 and its condition from ``source``, x0 from x1 back along the flow, stored.

    A share of such pairs keeps a reflowed model from drifting off the data (Lee et al. 2024, arXiv 2405.20320). One
    pair for each sample of ``source``, whose augmentation draws from ``seed``. Otherwise as ``generate_pairs``.
    """
    one = source.batch(torch.arange(1), generator(seed, "pairs", 0))
    if one.index is not None:
        raise ValueError("ragged batches have no pair store: their samples are not rows of one tensor")
    sample, given = (None if part is None else tree_map(lambda leaf: leaf[0], part) for part in (one.x1, one.condition))
    noise = {"kind": "stored", "from": "inversion", "seed": seed}
    settings = _settings(teacher, recipe, len(source), sample, given, noise)
    times = _times(teacher, recipe).flip(0)

    def make(rows: Tensor) -> dict[str, State]:
        batch = source.batch(rows, generator(seed, "pairs", int(rows[0])))
        x1 = _to(_rounded(batch.x1, recipe.dtype), recipe.device)  # as it is stored, so that x0 leads to it exactly
        start = solve(teacher.with_condition(_to(batch.condition, recipe.device)), x1, times, recipe.method)
        x0 = tree_map(torch.div, start, initial_scale(teacher.path, start))
        return {"x1": x1, "condition": batch.condition, "x0": x0}

    _fill(folder, settings, recipe, teacher, make, progress, processes)


def store_size(
    count: int, sample: State, dtype: Kept = "float16", condition: State | None = None, noise: bool = False
) -> int:
    """Bytes that ``count`` pairs take on disk, file headers aside.

    ``sample`` and ``condition`` are those of one pair; ``noise`` says whether x0 is stored beside x1.
    """
    kind = {"kind": "stored" if noise else "seed"}
    return count * _pair_size({"state": _spec(sample), "condition": _spec(condition), "dtype": dtype, "x0": kind})


class PairStore:
    """The pairs of a folder as a ``Source``: ``batch(rows)`` has x0, x1 and the condition each was made with.

    ``transform`` augments each batch, x0 and x1 alike. ``meta`` is the content of meta.json. The shards are mapped, not
    read into memory. Raises ``InputError`` where the folder holds no pairs, and ``IntegrityError`` naming the file that
    is missing, damaged, of another version, or whose noise is no longer what its seed gives.
    """

    def __init__(self, folder: Path, transform: Transform | None = None) -> None:
        self.meta = _read_meta(folder)
        self.transform = transform
        self._shards = []
        names = [name for name, _ in _shards(self.meta)]
        missing = [name for name in names if name not in self.meta["shards"]]
        if missing:
            raise IntegrityError(
                f"{folder} is incomplete: {len(missing)} of {len(names)} shards are missing, from {missing[0]} on; "
                "generate the pairs again with the same settings to finish it"
            )
        for name, rows in _shards(self.meta):
            tensors = _verified(folder / name, self.meta["shards"][name]["sha256"])
            if self._seeded:
                again = _named(_noise(self.meta["state"], self.meta["x0"]["seed"], rows[:1]), "first_x0")
                # the same draw may differ in its last bits on another processor, another draw differs altogether
                if not all(torch.allclose(tensors[key], leaf, 1e-3, 1e-3) for key, leaf in again.items()):
                    raise IntegrityError(f"{folder / name}: its noise cannot be drawn again from the seed in {META}")
            self._shards.append(tensors)

    def __len__(self) -> int:
        return int(self.meta["count"])

    @property
    def _seeded(self) -> bool:
        return bool(self.meta["x0"]["kind"] == "seed")

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """See ``flowcore.data.Source.batch``."""
        size = self.meta["shard_size"]
        places = [divmod(row, size) for row in rows.tolist()]

        def read(tree: Any, name: str) -> State:
            if isinstance(tree, Mapping):
                return {key: read(branch, f"{name}/{key}") for key, branch in tree.items()}
            return _decode(torch.stack([self._shards[n][name][i] for n, i in places]), _dtype(tree[0]))

        state, condition = self.meta["state"], self.meta["condition"]
        batch = Batch(
            read(state, "x1"),
            None if condition is None else read(condition, "condition"),
            _noise(state, self.meta["x0"]["seed"], rows.tolist()) if self._seeded else read(state, "x0"),
        )
        return batch if self.transform is None else self.transform(batch, generator)


# ---- making a store

NOISE = "pair i, leaf by leaf: randn on the CPU from flowcore.seeds.generator(seed, 'pair', i)"


def _noise(
    state: Any, seed: int, rows: Iterable[int], source: Callable[[State, torch.Generator], State] | None = None
) -> State:
    """x0 of the given rows, N(0, I) without ``source``: a row is its own draw, whatever batch or shard it is in."""
    like = tree_map(lambda leaf: torch.empty(1, *leaf[1], dtype=_dtype(leaf[0])), state)
    draws = []
    for row in rows:
        draw = generator(seed, "pair", row)
        # leaf by leaf in the order of the state, which is the one that meta.json keeps
        draws.append(tree_map(lambda leaf, g=draw: gaussian(leaf, g), like) if source is None else source(like, draw))
    return tree_map(lambda *leaves: torch.cat(leaves), *draws)


def _settings(
    teacher: Field, recipe: Recipe, count: int, sample: State, condition: State | None, noise: dict[str, Any]
) -> dict[str, Any]:
    """What two runs must share to write one store."""
    if teacher.index is not None:
        raise ValueError("ragged batches have no pair store: their samples are not rows of one tensor")
    if recipe.dtype not in get_args(Kept):
        raise ValueError(f"pairs are stored as {', '.join(get_args(Kept))}, not {recipe.dtype!r}")
    if min(count, recipe.shard_size, recipe.batch_size) < 1:
        raise ValueError("count, shard_size and batch_size must be at least 1")
    if not isinstance(recipe.method, str) and "solver" not in recipe.record:
        raise ValueError('name the solver in recipe.record["solver"]: a function has no name that lasts')
    return {
        "format": FORMAT,
        "teacher": recipe.teacher,
        "path": _path_name(teacher.path),
        "predicts": teacher.predicts,
        "solver": recipe.method if isinstance(recipe.method, str) else recipe.record["solver"],
        "times": _times(teacher, recipe).tolist(),
        "record": dict(recipe.record),
        "count": count,
        "shard_size": recipe.shard_size,
        "batch_size": recipe.batch_size,
        "dtype": recipe.dtype,
        "x0": noise,
        "state": _spec(sample),
        "condition": _spec(condition),
    }


def _path_name(path: Any) -> Any:
    parts = getattr(path, "paths", None)
    return path.name if parts is None else {key: _path_name(part) for key, part in parts.items()}


def _times(teacher: Field, recipe: Recipe) -> Tensor:
    times = time_grid(recipe.grid, teacher.path.start, teacher.path.stop)
    if times[0] > times[-1]:
        raise ValueError("the recipe's time grid ascends from source to data, for inversion too")
    return times


def _fill(
    folder: Path,
    settings: dict[str, Any],
    recipe: Recipe,
    teacher: Field,
    make: Callable[[Tensor], dict[str, State]],
    progress: Callable[[int], None],
    processes: Processes | None,
) -> None:
    """Write the shards that are not there yet, as many at once as there are processes; ``make(rows)`` gives their trees
    by name."""
    processes = processes or Alone()
    shards = processes.first(lambda: _begin(folder, settings))
    missing = [(name, rows) for name, rows in _shards(settings) if name not in shards]
    progress(settings["count"] - sum(len(rows) for _, rows in missing))
    with _evaluating(teacher.network), torch.no_grad():
        for place in range(0, len(missing), processes.world):
            together = missing[place : place + processes.world]
            mine = together[processes.rank] if processes.rank < len(together) else None
            entry = (
                None if mine is None else (mine[0], _shard(folder / mine[0], mine[1], settings, recipe, teacher, make))
            )
            entries = processes.gather(entry)
            if entries is not None:
                shards |= dict(one for one in entries if one is not None)
                _publish(folder / META, _sealed({**settings, "shards": dict(sorted(shards.items()))}))
            progress(settings["count"] - sum(len(rows) for _, rows in missing[place + processes.world :]))
    processes.first(lambda: None)  # nobody reads the store before it is whole


def _shard(
    path: Path,
    rows: range,
    settings: dict[str, Any],
    recipe: Recipe,
    teacher: Field,
    make: Callable[[Tensor], dict[str, State]],
) -> dict[str, Any]:
    """Make and write one shard; its entry in meta.json."""
    before = teacher.calls
    parts = [_encoded(make(some), settings) for some in torch.tensor(rows).split(recipe.batch_size)]
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if settings["x0"]["kind"] == "seed":
        tensors |= _named(_noise(settings["state"], settings["x0"]["seed"], rows[:1]), "first_x0")
    content = save(tensors)
    _publish(path, content)
    return {"rows": len(rows), "nfe": (teacher.calls - before) / len(parts), "sha256": _sha256(content)}


def _begin(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The shards already there, verified; the disk has room for the others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder} cannot be made: {error}") from error
    shards: dict[str, Any] = {}
    if (folder / META).exists():
        meta = _read_meta(folder)
        for key in {**settings, **meta}:
            # as text, because the order of a state's leaves is the order of their draws
            if key != "shards" and json.dumps(meta.get(key)) != json.dumps(settings.get(key)):
                raise UsageError(f"{folder} was begun with another {key}: choose an empty folder, or that {key} again")
        shards = {name: entry for name, entry in meta["shards"].items() if (folder / name).exists()}
        for name, entry in shards.items():
            _verified(folder / name, entry["sha256"])
    elif any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} holds shards and no {META}: choose an empty folder")
    missing = _pair_size(settings) * (settings["count"] - sum(entry["rows"] for entry in shards.values()))
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise MachineError(f"{folder}: the pairs need {missing:,} bytes and the disk has {free:,} left")
    _publish(folder / META, _sealed({**settings, "shards": shards}))
    return shards


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """No dropout in the pairs: evaluation mode, and afterwards the modes as they were."""
    modes = {module: module.training for module in network.modules()} if isinstance(network, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# ---- the files


def _spec(sample: State | None) -> Any:
    """[dtype, shape] of each leaf of one sample."""
    if sample is None:
        return None
    return tree_map(lambda leaf: [str(leaf.dtype).removeprefix("torch."), list(leaf.shape)], sample)


def _named(tree: Any, name: str) -> dict[str, Any]:
    """The leaves of a tree by name; "x1" alone, "x1/a" in a dict."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    return {key: leaf for k, branch in tree.items() for key, leaf in _named(branch, f"{name}/{k}").items()}


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _noise_dtype(kept: str) -> str:
    return "float32" if kept == "float32" else "float16"


def _pair_size(settings: Mapping[str, Any]) -> int:
    """Bytes of one pair on disk."""

    def size(tree: Any, kept: str | None) -> int:
        leaves = [(_dtype(dtype), shape) for dtype, shape in _named(tree, "").values()]
        return sum((_dtype(kept) if kept and d.is_floating_point else d).itemsize * math.prod(n) for d, n in leaves)

    total = size(settings["state"], settings["dtype"])
    if settings["x0"]["kind"] == "stored":
        total += size(settings["state"], _noise_dtype(settings["dtype"]))
    return total if settings["condition"] is None else total + size(settings["condition"], None)


def _shards(meta: Mapping[str, Any]) -> Iterator[tuple[str, range]]:
    """The name and the rows of each shard."""
    count, size = meta["count"], meta["shard_size"]
    for number, first in enumerate(range(0, count, size)):
        yield f"pairs-{number:05d}.safetensors", range(first, min(first + size, count))


def _encoded(trees: dict[str, State], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    kept = {"x1": settings["dtype"], "x0": _noise_dtype(settings["dtype"])}
    return {
        key: _encode(leaf.cpu(), kept.get(name))
        for name, tree in trees.items()
        if tree is not None
        for key, leaf in _named(tree, name).items()
    }


def _encode(x: Tensor, kept: str | None) -> Tensor:
    if kept is None or not x.is_floating_point():
        return x.contiguous()
    if kept == "uint8":
        outside = (x.abs() > 1.1).float().mean().item()
        if outside > 0.1:
            raise ValueError(f'uint8 holds images in [-1, 1], and {outside:.0%} of x1 is beyond: use dtype="float16"')
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    stored = x.to(_dtype(kept)).contiguous()
    if not torch.isfinite(stored).all():
        raise ValueError(f'{kept} cannot hold numbers as large as {x.abs().max():.3g}: use dtype="float32"')
    return stored


def _decode(stored: Tensor, dtype: torch.dtype) -> Tensor:
    image = stored.dtype == torch.uint8 and dtype.is_floating_point
    return stored.to(dtype) / 127.5 - 1 if image else stored.to(dtype)


def _rounded(x: State, kept: str) -> State:
    return tree_map(lambda leaf: _decode(_encode(leaf, kept), leaf.dtype), x)


def _to(tree: State | None, device: torch.device | str) -> State | None:
    return None if tree is None else tree_map(lambda leaf: leaf.to(device), tree)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sealed(meta: Mapping[str, Any]) -> bytes:
    """meta.json with its own hash inside."""
    return (json.dumps({**meta, "sha256": _sha256(json.dumps(meta).encode())}, indent=1) + "\n").encode()


def _publish(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the machine stops."""
    with files.refusals(f"{path} cannot be written, the shards made so far are kept"):
        files.write(path, content)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.is_file():
        raise InputError(f"{folder} holds no pairs: there is no {META}")
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
        version, seal = meta["format"], meta.pop("sha256")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if version != FORMAT:
        raise IntegrityError(f"{path} is of format {version}, and this version reads {FORMAT}")
    if seal != _sha256(json.dumps(meta).encode()):
        raise IntegrityError(f"{path} was changed since it was written: its sha256 does not match")
    return meta


def _verified(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a shard, mapped into memory."""
    try:
        found = files.sha256(path)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if found != sha256:
        raise IntegrityError(f"{path} is damaged: its sha256 is not the one in {META}; delete it and generate again")
    return load_file(path)
