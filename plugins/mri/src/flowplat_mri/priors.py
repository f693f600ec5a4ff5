"""Priors that are told nothing of a source, asked round by round: a coupling flow, or a velocity followed both ways."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Trained
from flowcore.solvers import solve
from flowplat_mri import histogram, loop, slices
from flowplat_mri.data import VolumeSet
from flowplat_mri.geometry import onto
from flowplat_mri.loop import Map, Settings

BATCH = 64  # slices at once
VELOCITY = Settings(shrink=0.05, rounds=4)
"""Of a velocity, each round of which takes two solves: fewer rounds, and larger steps towards the prior."""


def kind(trained: Trained) -> str:
    """``coupling`` flow, ``velocity``, or ``conditional``: which way there is from a source to the target."""
    if hasattr(trained.network, "decode"):
        return "coupling"
    return "velocity" if cast(VolumeSet, trained.data).config.view == "none" else "conditional"


@torch.no_grad()
def looped(
    trained: Trained, x: np.ndarray, inside: np.ndarray, axis: int, steps: int, tick: Callable[[int], Any]
) -> tuple[np.ndarray, float]:
    """A framed source (X, Y, Z) harmonized by ``loop``, slice by slice, and |z|^2 / d of its latents.

    It begins at the target's mean, laid into the box of the brain.
    """
    target, device = cast(VolumeSet, trained.data).target, trained.device
    mean, sd = histogram.moments(target)
    box = slices.box(inside)
    start = np.zeros(x.shape, np.float32)
    start[box] = onto(np.nan_to_num(target.view), inside[box].shape)
    masks = slices.planes(torch.from_numpy(inside).float(), axis)[:, None]
    source, first = (
        slices.planes(torch.from_numpy(np.clip(one, 0, 1).astype(np.float32)), axis)[:, None] * masks
        for one in (x, start)
    )
    places = [torch.from_numpy(one) for one in slices.coordinates(inside)]
    told = slices.conditions(None, torch.from_numpy(inside), places, axis, 0)
    coupling = kind(trained) == "coupling"
    settings = Settings() if coupling else VELOCITY
    out, sizes = source.clone(), []
    for part in torch.from_numpy(slices.shown(inside, axis)).split(BATCH):
        mask = masks[part].to(device)

        def forth(x: Tensor, mask: Tensor = mask) -> Tensor:
            return (x - mean) / sd * mask

        def back(x: Tensor, mask: Tensor = mask) -> Tensor:
            return (x * sd + mean) * mask

        encode, decode = _coupling(trained) if coupling else _velocity(trained, told[part].to(device), steps)
        made, z = loop.harmonized(
            first[part].to(device), source[part].to(device),
            lambda x, encode=encode, forth=forth: encode(forth(x)),
            lambda z, decode=decode, back=back: back(decode(z)), settings,
        )  # fmt: skip
        out[part] = made.cpu()
        sizes.append(z.square().flatten(1).mean(1).cpu())
        tick(1)
    return out[:, 0].movedim(0, axis).numpy(), float(torch.cat(sizes).mean())


def _coupling(trained: Trained) -> tuple[Map, Map]:
    network: Any = trained.network
    return lambda x: network.encode(x)[0], network.decode


def _velocity(trained: Trained, condition: Tensor, steps: int) -> tuple[Map, Map]:
    """The latent of an image is where its path began: the field followed from t = 1 to 0, and from 0 to 1."""
    parts = trained.parts()
    if parts.predicts != "velocity":
        raise UsageError(
            f"a path can be followed back from an image with predicts=velocity alone, not {parts.predicts}"
        )
    field = parts.field(trained.network, condition)
    grid = torch.linspace(0, 1, steps + 1, device=condition.device)

    def encode(x: Tensor) -> Tensor:
        return cast(Tensor, solve(field, x, grid.flip(0), parts.solver))

    return encode, lambda z: cast(Tensor, solve(field, z, grid, parts.solver))
