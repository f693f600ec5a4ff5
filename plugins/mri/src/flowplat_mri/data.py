"""The target's volumes as slices: simulated ones, and a user's."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Leaf, Spec
from flowplat_mri import simulate, slices, target, views
from flowplat_mri.blocks import Blocks
from flowplat_mri.scaling import Scale, common
from flowplat_mri.simulate import Tissues
from flowplat_mri.slices import Slices
from flowplat_mri.target import Target
from flowplat_mri.views import View

AXES = {"sagittal": (0,), "coronal": (1,), "axial": (2,), "all": (0, 1, 2)}
TINY, SHOWN = 2, 16
STAND_IN = 900_000  # the simulated subject whose slices a run samples


class SetConfig(BaseModel):
    """What every data set of volumes can be asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: View = Field(
        "contrast", description="what the network is told of a volume: as other scanners show it, its edges, or none"
    )
    planes: Literal["axial", "coronal", "sagittal", "all"] = Field("axial", description="the slices that are learnt")
    neighbours: int = Field(1, ge=0, le=4, description="slices on either side whose view the network is told too")
    block: int = Field(0, ge=0, description="edge in voxels of the blocks of a 3D network; 0 for slices")
    guises: int = Field(4, ge=1, description="views that are made of every training volume")
    mirror: bool = Field(True, description="half of the training slices are mirrored, left to right")
    seed: int = Field(0, ge=0, description="of the views, and of simulated subjects")


class SimulatedConfig(SetConfig):
    """Simulated subjects on the simulated target scanner."""

    resolution: float = Field(3.0, ge=1.0, le=6.0, description="edge of a voxel in mm")
    subjects: int = Field(20, ge=1, description="subjects that are trained on")
    held: int = Field(3, ge=1, description="subjects that are held out")


@dataclass(frozen=True)
class MRISpec(Spec):
    """Slices (1, H, W) or blocks (1, D, H, W) of mean 0 and standard deviation 1 within the brain. ``view`` is the
    channel of the condition that shows the slice itself, None where there is none."""

    view: int | None = None


@dataclass(frozen=True)
class Scan:
    """A volume on the common scale, zero outside of its mask."""

    x: np.ndarray
    mask: np.ndarray
    scale: Scale
    name: str


class _Cut(NamedTuple):
    """A framed volume on the common scale, its mask, and views of it."""

    x: np.ndarray
    mask: np.ndarray
    views: list[np.ndarray]


class VolumeSet:
    """What the data sets share; each says only where its scans are. Satisfies
    ``flowcore.plugin.contracts.Portable``."""

    def __init__(self, config: Any, facts: Any = None) -> None:
        self.config = config
        self._facts = facts

    @abstractmethod
    def read(self) -> tuple[list[Scan], list[Scan], tuple[float, float, float]]:
        """Training scans, held-out ones, and the edges of a voxel in mm."""

    @cached_property
    def scans(self) -> tuple[list[Scan], list[Scan], tuple[float, float, float]]:
        """What is trained on, what is held out, and the edges of a voxel in mm."""
        return self.read()

    @cached_property
    def target(self) -> Target:
        """What is known of the target scanner; see ``Target``."""
        if self._facts:
            return target.of_facts(self._facts["target"])
        train, _, voxel = self.scans
        contrast = getattr(self.config, "contrast", "T1w")
        x, masks, scales = ([getattr(one, name) for one in train] for name in ("x", "mask", "scale"))
        return target.of_volumes(x, masks, scales, voxel, contrast)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """The frame in voxels that holds every brain; a cube where slices are cut across all axes."""
        if self._facts:
            x, y, z = self._facts["shape"]
        else:
            x, y, z = sizes = self.frame()
            if self.config.planes == "all":
                x = y = z = max(sizes)
        return x, y, z

    def frame(self) -> tuple[int, int, int]:
        """Of the brains as they are."""
        x, y, z = np.array([slices.frame(s.mask)[1] for part in self.scans[:2] for s in part]).max(0)
        return int(x), int(y), int(z)

    def facts(self) -> dict[str, Any]:
        """See ``Portable.facts``."""
        return {"target": self.target.facts(), "shape": list(self.shape)}

    def spec(self) -> MRISpec:
        """See ``Data.spec``."""
        config, n = self.config, 0 if self.config.block else self.config.neighbours
        axis = AXES[config.planes][0]
        size = (config.block,) * 3 if config.block else tuple(s for k, s in enumerate(self.shape) if k != axis)
        count = slices.channels(n, config.view)
        return MRISpec(Leaf((1, *size)), Leaf((count, *size)), null=0.0, view=n if config.view == "contrast" else None)

    def train(self) -> Slices | Blocks:
        """See ``Data.train``."""
        return self._source(self.scans[0], self.config.guises, self.config.mirror, self.config.seed)

    def val(self) -> Slices | Blocks:
        """See ``Data.val``: held-out volumes, each in one other guise."""
        return self._source(self.scans[1], 1, False, self.config.seed + 1)

    def _source(self, scans: Sequence[Scan], guises: int, mirror: bool, seed: int) -> Slices | Blocks:
        about, told = self.target, self.config.view

        def made(number: int) -> _Cut:
            x, mask = self._framed(scans[number])
            draws = [np.random.default_rng([seed, number, guise]) for guise in range(guises if told != "none" else 0)]
            return _Cut(x, mask, [views.of_target(x, mask, about, told, rng) for rng in draws])

        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # scipy works without the interpreter's lock
            return self._of(list(pool.map(made, range(len(scans)))), mirror)

    def _framed(self, one: Scan) -> tuple[np.ndarray, np.ndarray]:
        begin, _ = slices.frame(one.mask, self.shape)
        return slices.framed(one.x, begin, self.shape), slices.framed(one.mask, begin, self.shape)

    def _of(self, cuts: Sequence["_Cut"], mirror: bool) -> Slices | Blocks:
        """A source of framed volumes and their views."""
        config, about = self.config, self.target
        seen = [np.stack(cut.views) for cut in cuts if cut.views]
        places = [slices.coordinates(cut.mask) for cut in cuts]
        lines = [torch.from_numpy(np.stack([p[axis] for p in places])) for axis in range(3)]
        x = torch.from_numpy(np.stack([views.standard(cut.x, cut.mask, about) for cut in cuts])).half()
        shown = torch.from_numpy(np.stack(seen)).half() if seen else None
        parts = x, shown, torch.from_numpy(np.stack([cut.mask for cut in cuts])), lines
        if config.block:
            return Blocks(*parts, config.block, mirror)
        return Slices(*parts, AXES[config.planes], config.neighbours, mirror)

    def tiny(self) -> "VolumeSet":
        """Two of the scans in one guise."""
        train, held, voxel = self.scans
        given = Given(self.config.model_copy(update={"guises": 1}), train[:TINY], held[:1], voxel)
        given.target, given.shape = self.target, self.shape
        return given

    def fingerprint(self) -> str:
        """sha256 of the scans on the common scale, to five digits, and of the voxels."""
        train, held, voxel = self.scans
        digest = hashlib.sha256(f"{voxel} {len(train)}".encode())
        for one in (*train, *held):
            digest.update(np.packbits(one.mask).tobytes())
            digest.update(np.round(one.x[one.mask] * 1e4).astype("<i4").tobytes())
        return digest.hexdigest()

    def condition(self, count: int, wanted: str | None) -> Tensor:
        """Views of a simulated brain on a scanner that no model has seen, from all over it: a brain that is nobody's,
        and the same wherever the model is."""
        if wanted is not None:
            raise UsageError("a slice cannot be asked for in words; `platform apply mri harmonize` takes a volume")
        voxel = float(np.clip(np.mean(self.target.voxel), 1, 6))
        x, mask = self._framed(simulated([STAND_IN], "S3", voxel)[0])
        shown = [] if self.config.view == "none" else [views.of_source(x, mask, self.target, self.config.view)]
        source = self._of([_Cut(x, mask, shown)], False)
        middle = np.linspace(0.25, 0.75, count) * (len(source) - 1)
        rows = torch.from_numpy(middle.round().astype(np.int64))
        return source.batch(rows, torch.Generator().manual_seed(0)).condition

    def write(self, samples: Batch, folder: Path) -> None:
        """``slices.npz``: ``x`` (n, 1, H, W), float32, of mean 0 and standard deviation 1 within the brain."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "slices.npz", x=samples.x1.cpu().numpy().astype(np.float32))

    def read_back(self, folder: Path) -> Batch:
        """See ``Checkable.read_back``."""
        with np.load(folder / "slices.npz", allow_pickle=False) as held:
            return Batch(torch.from_numpy(held["x"].astype(np.float32)))

    def show(self, samples: Batch) -> bytes:
        """Slices, each below the view it was drawn for."""
        from flowplat_mri.drawing import sheet

        told, spec = samples.condition, self.spec()
        view = None if told is None or spec.view is None else told[:SHOWN, spec.view]
        x = samples.x1[:SHOWN, 0]
        if x.ndim == 4:  # blocks: their middle
            x, view = x[:, x.shape[1] // 2], None if view is None else view[:, view.shape[1] // 2]
        return sheet(x.cpu().numpy(), None if view is None else view.cpu().numpy())


class Given(VolumeSet):
    """Scans that are in memory already."""

    def __init__(self, config: Any, train: list[Scan], held: list[Scan], voxel: tuple[float, float, float]) -> None:
        super().__init__(config)
        self._given = train, held, voxel

    def read(self) -> tuple[list[Scan], list[Scan], tuple[float, float, float]]:
        """What was given."""
        return self._given


def simulated(subjects: Sequence[int], scanner: str, resolution: float) -> list[Scan]:
    """Scans of simulated subjects by their numbers, on the common scale."""
    return scanned(subjects, drawn(subjects, resolution), scanner)


def drawn(subjects: Sequence[int], resolution: float) -> list[Tissues]:
    """Simulated subjects by their numbers."""
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        return list(pool.map(lambda number: simulate.subject(number, resolution), subjects))


def scanned(subjects: Sequence[int], drawn: Sequence[Tissues], scanner: str, visit: int = 0) -> list[Scan]:
    """The scans of ``drawn`` subjects; each ``visit`` has its own noise, coil and tissue constants."""

    def made(number: int, tissues: Tissues) -> Scan:
        x, scale = common(simulate.scan(tissues, scanner, number * 101 + visit), tissues.mask)
        return Scan(x, tissues.mask, scale, f"sim-{number:03d}")

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        return list(pool.map(made, subjects, drawn))


class Simulated(VolumeSet):
    """See ``simulate``. Subjects are numbered on from 1000 times the seed."""

    config: SimulatedConfig

    @property
    def numbers(self) -> range:
        """The subjects, those that are held out last."""
        first = 1000 * self.config.seed
        return range(first, first + self.config.subjects + self.config.held)

    def read(self) -> tuple[list[Scan], list[Scan], tuple[float, float, float]]:
        """Simulated subjects on the target scanner."""
        config = self.config
        scans = simulated(self.numbers, "target", config.resolution)
        return scans[: config.subjects], scans[config.subjects :], (config.resolution,) * 3

    def frame(self) -> tuple[int, int, int]:
        """For brains a tenth larger than the template's, whichever subjects are drawn."""
        mask = simulate.template(self.config.resolution)[1]
        x, y, z = (8 * int(np.ceil((1.1 * (part.stop - part.start) + 2) / 8)) for part in slices.box(mask))
        return x, y, z

    def tiny(self) -> "Simulated":
        """Two of the subjects in one guise, and one that is held out."""
        first = {"subjects": min(TINY, self.config.subjects), "held": 1, "guises": 1}
        return Simulated(self.config.model_copy(update=first))
