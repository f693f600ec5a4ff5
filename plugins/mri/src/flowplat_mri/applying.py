"""One volume harmonized: what a model makes of it, in the order, units and voxels of its file."""

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from flowcore.errors import InputError
from flowcore.plugin.contracts import Trained
from flowplat_mri import quality
from flowplat_mri.prepared import Prepared, prepared
from flowplat_mri.quality import Look
from flowplat_mri.reading import Volume
from flowplat_mri.target import Target

PLANES = {"trained": None, "sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Asked:
    """How volumes are harmonized; each is an option of the task, which says what it is."""

    mode: Literal["auto", "2d", "2.5d", "3d"] = "auto"
    plane: Literal["trained", "axial", "coronal", "sagittal"] = "trained"
    samples: int = 0
    steps: int = 8
    weight: float | None = None
    range: Literal["target", "source"] = "target"
    background: Literal["zero", "keep"] = "zero"
    protect: bool = True
    force: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """``data`` and, of several samples, ``spread`` (X, Y, Z) float32 are in the order of the file; ``seen`` is the
    model's view of the source, ``after`` the result there."""

    data: np.ndarray
    spread: np.ndarray | None
    seen: Prepared
    after: np.ndarray
    look: Look
    told: dict[str, Any]


def target_of(trained: Trained) -> Target:
    """What a model knows of its target scanner. Raises ``InputError`` for a model of something else."""
    found = getattr(trained.data, "target", None)
    if not isinstance(found, Target):
        raise InputError("this model was not trained on MR volumes of a target scanner")
    return found


def identity(trained: Trained) -> str:
    """A hash of the model's weights and of what it knows of its target: the same for the same model anywhere."""
    digest = hashlib.sha256(repr(target_of(trained).facts()).encode())
    for name, value in sorted(trained.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def harmonized(
    trained: Trained,
    volume: Volume,
    asked: Asked,
    mask: np.ndarray | None = None,
    lesion: np.ndarray | None = None,
) -> Made:
    """``volume`` as if taken on the target scanner; ``mask`` and ``lesion`` (X, Y, Z) are in the order of its file.

    The change is computed on the model's view, brought back and added, so that nothing of the source is blurred and a
    change of nothing gives the same voxels. Within ``lesion``, if it is protected, the change is histogram matching's.
    Raises ``InputError`` naming the volume, also where its contrast is not the model's and ``asked.force`` is not set.
    """
    from flowplat_mri import harmonise

    begun, target = time.perf_counter(), target_of(trained)
    seen = prepared(volume, mask, target.voxel)
    if (like := target.likeness(seen.x, seen.mask)) < 0 and not asked.force:
        raise InputError(
            f"{volume.name} looks inverted against the model's {target.contrast}, correlating {like:.2f} with its"
            " mean; force=true harmonizes it all the same"
        )
    how: dict[str, Any] = {
        "mode": asked.mode, "samples": asked.samples, "steps": asked.steps, "axis": PLANES[asked.plane],
    }  # fmt: skip
    calls = harmonise.calls(trained, seen.mask, **how)
    with tqdm(total=calls, desc=volume.name[-30:], unit="call", leave=False, disable=None) as bar:
        made = harmonise.harmonize(
            trained, seen.x, seen.mask, **how, seed=asked.seed, weight=asked.weight, tick=bar.update
        )
    if not np.isfinite(made.volume[seen.mask]).all():
        raise InputError(f"{volume.name}: the model's result is not finite; look at its intensities")
    after = np.where(seen.mask, made.volume, 0).astype(np.float32)
    change = seen.onto_own(after - seen.x)
    if lesion is not None and asked.protect:
        matched = np.where(seen.mask, made.histogram_matched, 0)
        soft = soften(seen.space.forth(lesion))
        change = change + soft * (seen.onto_own(matched - seen.x) - change)
        after = (after + soften(seen.onto_model(lesion) > 0.5) * (matched - after)).astype(np.float32)
    width = target.scale.width if asked.range == "target" else seen.scale.width
    data = _units(volume, seen, change, target, asked)
    spread = None if made.std is None else seen.back(seen.onto_own(made.std) * np.float32(width))
    look = quality.look(seen.x, after, seen.mask, target, made.latent_norm)
    look.figures["weight"] = float(made.weight)
    if lesion is not None:
        look.figures.update(_lesion(seen, after, seen.onto_model(lesion) > 0.5))
    told = {
        "seconds": round(time.perf_counter() - begun, 2),
        "source_scale": [seen.scale.low, seen.scale.high],
        "target_scale": [target.low, target.high],
        "voxel": list(seen.space.voxel),
        "model_voxel": list(target.voxel),
    }
    return Made(data, spread, seen, after, look, told)


def soften(lesion: np.ndarray) -> np.ndarray:
    """1 within, falling off over two voxels around it, so that no seam is seen."""
    return np.maximum(lesion.astype(np.float32), ndimage.gaussian_filter(lesion.astype(np.float32), 1.0))


def _units(volume: Volume, seen: Prepared, change: np.ndarray, target: Target, asked: Asked) -> np.ndarray:
    if asked.range == "source":
        inside = seen.space.forth(volume.data) + change * np.float32(seen.scale.width)
    else:
        inside = target.scale.undo(seen.own + change)
    background = seen.space.forth(volume.data) if asked.background == "keep" else np.float32(0)
    return seen.space.back(np.where(seen.own_mask, inside, background).astype(np.float32))


def _lesion(seen: Prepared, after: np.ndarray, lesion: np.ndarray) -> dict[str, float]:
    within, outside = lesion & seen.mask, seen.mask & ~lesion
    change = np.abs(after - seen.x)
    found = {"outside_change": float(change[outside].mean())} if outside.any() else {}
    if int(within.sum()) > 1:
        found["lesion_change"] = float(change[within].mean())
        found["lesion_ncc"] = quality.ncc(seen.x[within], after[within])
        found["outside_ncc"] = quality.ncc(seen.x[outside], after[outside])
    return found
