"""One volume as the target scanner would show it: the prior's picture of its anatomy, and histogram matching,
weighed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from flowcore.errors import UsageError
from flowcore.plugin.contracts import Trained
from flowcore.solvers import solve
from flowplat_mri import histogram, priors, slices, trust, views
from flowplat_mri.data import AXES, VolumeSet

Mode = Literal["auto", "2d", "2.5d", "3d"]
BATCH = 32  # slices a network call
OVERLAP = 0.25  # of neighbouring blocks


@dataclass(frozen=True)
class Harmonized:
    """On the common scale, (X, Y, Z) float32, zero outside the mask: ``volume`` = ``weight`` * ``prior`` + (1 -
    ``weight``) * ``histogram_matched``; ``std`` is how much draws of the prior differ, by voxel, None where there was
    one. ``latent_norm`` is |z|^2 / d of a prior that has a latent, about 1 for what it was trained on; else None."""

    volume: np.ndarray
    std: np.ndarray | None
    histogram_matched: np.ndarray
    prior: np.ndarray
    weight: float
    latent_norm: float | None = None


def harmonize(
    trained: Trained,
    x: np.ndarray,
    mask: np.ndarray,
    *,
    mode: Mode = "auto",
    samples: int = 0,
    steps: int = 8,
    seed: int = 0,
    axis: int | None = None,
    weight: float | None = None,
    tick: Callable[[int], Any] = lambda done: None,
) -> Harmonized:
    """``x`` (X, Y, Z), a volume in RAS on the common scale, zero outside of ``mask``, as the target would show it.

    The mean of ``samples`` draws in ``steps`` steps, or with ``samples`` 0 the mean in one network call, weighed
    against histogram matching by what training told (``trust``), or by ``weight``. ``mode`` 2d goes through slices
    across ``axis`` (the one that was trained), 2.5d averages all three axes, 3d goes through blocks. ``tick`` is told
    of network calls as they are done. A prior that is told nothing of the source (``priors``) goes through the rounds
    of ``loop``, with ``steps`` each way for a velocity, and is not weighed unless ``weight`` is given. Raises
    ``UsageError`` for a mode the model was not trained for."""
    data = cast(VolumeSet, trained.data)
    axes = _axes(data, mode, axis)
    target, view = data.target, data.config.view
    matched = histogram.matched(x, mask, target)
    shape = (data.config.block,) * 3 if data.config.block else (0, 0, 0)
    begin, size = slices.frame(mask, shape, max(8, int(getattr(trained.network, "multiple", 8))))
    inside = slices.framed(mask, begin, size)
    if (axes is not None) and priors.kind(trained) != "conditional":
        framed = slices.framed(x, begin, size)
        made = [priors.looped(trained, framed, inside, one, steps, tick) for one in axes]
        prior = np.where(mask, slices.unframed(np.mean([one for one, _ in made], 0), begin, x.shape), 0)
        share = 1.0 if weight is None else weight
        volume = share * prior + (1 - share) * matched
        norm = float(np.mean([norm for _, norm in made]))
        return Harmonized(volume.astype(np.float32), None, matched, prior.astype(np.float32), share, norm)
    told = views.of_source(slices.framed(x, begin, size), inside, target, view)
    start = slices.framed(views.standard(matched, mask, target), begin, size)
    draw = _Draw(trained, samples, steps, seed, tick)
    drawn = [_blocks(draw, told, inside, view)] if axes is None else [
        _slices(draw, told, inside, start, axis, data.config.neighbours, view) for axis in axes
    ]  # fmt: skip
    mean = torch.stack([one.mean(0) for one in drawn]).mean(0).numpy()
    spread = None
    if samples > 1:
        spread = torch.stack([one.var(0) for one in drawn]).mean(0).sqrt().numpy()
    sd = histogram.moments(target)[1]
    prior = views.unstandard(slices.unframed(mean, begin, x.shape), mask, target)
    if weight is None:
        apart = float(np.sqrt(np.mean(np.square((prior - matched)[mask])))) / sd
        known = getattr(trained.network, "known", None)  # a network of others may gather nothing
        weight = 0.5 if known is None else trust.weight(known, apart)
    volume = weight * prior + (1 - weight) * matched
    std = None if spread is None else np.where(mask, slices.unframed(spread, begin, x.shape) * sd * weight, 0)
    return Harmonized(
        volume.astype(np.float32), None if std is None else std.astype(np.float32), matched, prior, weight
    )


def calls(trained: Trained, mask: np.ndarray, mode: Mode, samples: int, steps: int, axis: int | None) -> int:
    """Network calls that ``harmonize`` will tick."""
    data = cast(VolumeSet, trained.data)
    axes = _axes(data, mode, axis)
    each = max(1, samples) * (steps if samples else 1)
    if axes is None:
        return each
    begin, size = slices.frame(mask)
    counts = [len(slices.shown(slices.framed(mask, begin, size), one)) for one in axes]
    if priors.kind(trained) != "conditional":
        return sum(-(-count // priors.BATCH) for count in counts)
    return sum(-(-count // BATCH) for count in counts) * each


def _axes(data: VolumeSet, mode: Mode, axis: int | None) -> Sequence[int] | None:
    """The axes that slices are cut across, or None for blocks."""
    trained = AXES[data.config.planes]
    if data.config.block:
        if mode not in ("auto", "3d") or axis is not None:
            raise UsageError("this model was trained on blocks (data.block): leave mode out, or say 3d, and no axis")
        return None
    if mode == "3d":
        raise UsageError("this model was trained on slices; mode=3d needs one that was trained with data.block")
    if mode == "2.5d" and len(trained) < 3:
        raise UsageError(f"mode=2.5d needs a model that was trained with data.planes=all, not {data.config.planes}")
    if axis is not None and axis not in trained:
        raise UsageError(f"this model was trained on {data.config.planes} slices; mode=2d goes through those")
    if axis is not None and mode != "2.5d":
        return (axis,)
    return trained if mode in ("2.5d", "auto") else trained[-1:]


class _Draw:
    """Draws of x1 for conditions, every one from noise of its own place in the volume."""

    def __init__(self, trained: Trained, samples: int, steps: int, seed: int, tick: Callable[[int], Any]) -> None:
        self.trained, self.parts, self.tick = trained, trained.parts(), tick
        self.samples, self.steps, self.seed = samples, steps, seed
        self.network: Any = trained.network

    def noise(self, number: int, shape: Sequence[int]) -> Tensor:
        """Noise of draw ``number`` for a whole volume, made on the CPU: the same on every machine."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randn(*shape, generator=generator)

    @torch.no_grad()
    def __call__(self, x0: Tensor, condition: Tensor) -> Tensor:
        """(B, 1, ...) from noise of that shape; the mean of all draws where no sample is wanted."""
        device = self.trained.device
        field = self.parts.field(self._counted, condition.to(device))
        x0 = self.parts.path.initial(x0.to(device))
        if self.samples == 0:
            return field.x1(x0, 0.0).float().cpu()
        generator = torch.Generator(device).manual_seed(self.seed)
        drawn: Tensor = solve(field, x0, self.steps, self.parts.solver, self.parts.guidance, generator=generator)
        return drawn.float().cpu()

    def _counted(self, *told: Any) -> Any:
        self.tick(1)
        return self.network(*told)


def _slices(
    draw: _Draw, told: np.ndarray, inside: np.ndarray, start: np.ndarray, axis: int, neighbours: int, view: str
) -> Tensor:
    """Draws (S, X, Y, Z) of a framed volume, slice by slice; slices with hardly any brain stay as they are matched."""
    mask, places = torch.from_numpy(inside), [torch.from_numpy(one) for one in slices.coordinates(inside)]
    conditions = slices.conditions(None if view == "none" else torch.from_numpy(told), mask, places, axis, neighbours)
    numbers = torch.from_numpy(slices.shown(inside, axis))
    made = []
    for number in range(max(1, draw.samples)):
        noise = slices.planes(draw.noise(number, inside.shape), axis)[:, None]
        out = slices.planes(torch.from_numpy(start), axis).clone()
        for part in numbers.split(BATCH):
            out[part] = draw(noise[part], conditions[part])[:, 0]
        made.append(out.movedim(0, axis))
    return torch.stack(made)


def _blocks(draw: _Draw, told: np.ndarray, inside: np.ndarray, view: str) -> Tensor:
    """Draws (S, X, Y, Z) of a framed volume, each call of the network over blocks that overlap."""
    from monai.inferers import SlidingWindowInferer

    edge = cast(Any, draw.trained.data).config.block
    network, inferer = draw.network, SlidingWindowInferer((edge,) * 3, 4, OVERLAP, mode="gaussian")
    mask = torch.from_numpy(inside)
    grids = torch.stack(torch.meshgrid(*(torch.from_numpy(one) for one in slices.coordinates(inside)), indexing="ij"))
    parts = [mask.float()[None], grids * mask]
    if view != "none":
        parts.insert(0, torch.from_numpy(told)[None])

    def whole(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        def window(both: Tensor) -> Tensor:
            return cast(Tensor, network(both[:, :1], t[:1].expand(len(both)), both[:, 1:]))

        return cast(Tensor, inferer(torch.cat([x, condition], 1), window))

    draw.network = whole
    condition = torch.cat(parts)[None]
    made = [draw(draw.noise(number, (1, 1, *inside.shape)), condition)[0, 0] for number in range(max(1, draw.samples))]
    return torch.stack(made)
