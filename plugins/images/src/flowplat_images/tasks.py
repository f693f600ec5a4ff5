"""The plugin's verbs on pictures: another class for each of them, and the way from one to another.

Both go through the noise that the model's flow joins a picture to: x0 = x1 - int_0^1 v(x_t, t, class) dt, found by
following the flow backwards, and a picture again by following it forwards.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.files import refusals
from flowcore.guidance import Guidance
from flowcore.paths import END, Affine
from flowcore.plugin.contracts import Leaf, Parts, Trained
from flowcore.seeds import generator
from flowcore.solvers import solve, time_grid
from flowcore.state import expand
from flowplat_images import pictures
from flowplat_images.data import Images
from flowplat_images.inputs import Brought, brought

CHUNK = 256
METHOD = "midpoint"  # of order 2: it takes its way back to the second order too, as Euler's method does not
GUESSES = 16
Steps = Annotated[int, Field(ge=1, description="steps backwards, and as many forwards, of two evaluations each")]
Classes = Annotated[str | int, Field(description="the class that the pictures are of, if their folder does not tell")]


def translate(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    to: Annotated[str | int, Field(description="the class that the pictures are to be of")] = "",
    of: Classes = "",
    steps: Steps = 50,
) -> Any:
    """Each picture as one of the class ``to``: backwards to its noise under its own class, forwards under the other.

    Its own class is ``of``, or told by labels.csv or the sub-folder that it lies in, or else the one under which the
    model explains it best. The way forwards has the run's guidance. Writes the pictures as samples are written,
    sheet.png with each beside what became of it, and pictures.csv; from Python it returns a ``Batch``. Raises
    ``InputError`` naming a picture that cannot be read and ``UsageError`` for a model without classes.
    """
    parts = _parts(trained)
    given = brought(inputs, _shape(parts))
    if not _classes(parts):
        raise UsageError("this model knows no classes to translate between; train one with data.conditional=true")
    names = _names(trained)
    if str(to) == "":
        raise UsageError(f"say which class they are to be of, with to=CLASS; the classes are {', '.join(names)}")
    wanted = _numbers(trained, len(given.x), str(to))
    own, told = _own(trained, parts, given, str(of))
    times, results = _times(parts, steps), []
    for x, mine, other in zip(given.x.split(CHUNK), own.split(CHUNK), wanted.split(CHUNK), strict=True):
        noise, calls = _follow(trained, parts, x, mine, times.flip(0))
        again, _ = _follow(trained, parts, noise, mine, times)
        there, more = _follow(trained, parts, noise, other, times, parts.guidance)
        results.append((noise, again, there))
    noise, again, there = (torch.cat(part) for part in zip(*results, strict=True))
    apart = (again - given.x).square().flatten(1).mean(1)
    summary = {
        "pictures": len(given.x),
        "classes_guessed": len(told) - sum(told),
        "round_trip_error": apart.mean().sqrt().item(),
        "nfe": calls + more,
    }
    batch = Batch(there, wanted, x0=noise, extra={"of": own, **summary})
    if out is None:
        return batch
    rows = zip(given.names, own.tolist(), wanted.tolist(), apart.sqrt().tolist(), strict=True)
    with refusals(f"{out} cannot be written"):
        out.mkdir(parents=True)
        trained.data.write(batch, out)
        both = torch.stack([given.x, there], 1).flatten(0, 1)
        (out / "sheet.png").write_bytes(pictures.sheet(both, ["from", "to"]))
        with (out / "pictures.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("file", "picture", "of", "to", "round_trip_error"))
            for i, (name, mine, other, error) in enumerate(rows):
                table.writerow((f"images/{i:05d}.png", name, names[mine], names[other], f"{error:.4g}"))
    return summary


def interpolate(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    frames: Annotated[int, Field(ge=2, le=1000, description="pictures in all, both ends included")] = 10,
    of: Classes = "",
    steps: Steps = 50,
) -> Any:
    """The way from the first picture to the last: both backwards to their noise, the great circle between these,
    and forwards again from ``frames`` points of it.

    Under a model with classes the ends are of the classes ``of`` (``"3,8"`` for two), or as ``translate`` finds them,
    and between them the velocity is the mean of both, weighted by the nearness of the ends. Writes the frames as
    samples are written, and strip.png; from Python it returns a ``Batch``. Raises as ``translate`` does.
    """
    parts = _parts(trained)
    given = brought(inputs, _shape(parts), ends=True)
    own = _own(trained, parts, given, str(of))[0] if _classes(parts) else None
    if own is None and str(of):
        raise UsageError("this model knows no classes; leave `of` out")
    times = _times(parts, steps)
    noise, calls = _follow(trained, parts, given.x, own, times.flip(0))
    share = torch.linspace(0, 1, frames)
    between = slerp(noise[:1], noise[1:], share)
    results, more = [], 0
    for z, nearness in zip(between.split(CHUNK), share.split(CHUNK), strict=True):
        there, more = _follow(trained, parts, z, own, times, nearness=nearness)
        results.append(there)
    x = torch.cat(results)
    error = (x[[0, -1]] - given.x).square().mean().sqrt().item()
    summary = {"frames": frames, "from": given.names[0], "to": given.names[1], "round_trip_error": error}
    summary["nfe"] = calls + more
    batch = Batch(x, x0=between, extra=dict(summary))
    if out is None:
        return batch
    with refusals(f"{out} cannot be written"):
        out.mkdir(parents=True)
        trained.data.write(batch, out)
        (out / "strip.png").write_bytes(pictures.sheet(x, [f"{a:.2g}" for a in share.tolist()], limit=frames))
    return summary


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """sin((1 - s) w) / sin w a + sin(s w) / sin w b, w the angle between a and b (1, ...): the great circle, on which
    noise keeps its length; the straight line where they are parallel. ``share`` s is (n,), the result (n, ...)."""
    flat_a, flat_b = a.flatten().double(), b.flatten().double()
    angle = torch.acos((flat_a @ flat_b / (flat_a.norm() * flat_b.norm()).clamp(min=1e-300)).clamp(-1, 1))
    s = share.double()
    first, last = 1 - s, s
    if angle.sin() > 1e-6:
        first, last = torch.sin(first * angle) / angle.sin(), torch.sin(last * angle) / angle.sin()
    return (first[:, None] * flat_a + last[:, None] * flat_b).view(-1, *a.shape[1:]).to(a.dtype)


def _parts(trained: Trained) -> Parts:
    parts = trained.parts()
    if not isinstance(parts.path, Affine):
        raise UsageError("this model's samples do not come by following a flow, so there is none to follow backwards")
    trained.network.eval()
    return parts


def _shape(parts: Parts) -> tuple[int, ...]:
    state = parts.spec.state
    if not isinstance(state, Leaf) or len(state.shape) != 3:
        raise UsageError(f"this task works on models of images (channels, height, width), not of {state}")
    if state.shape[0] not in pictures.MODES:
        raise UsageError(f"this task works on models of pictures, not of what has {state.shape[0]} channels")
    return state.shape


def _classes(parts: Parts) -> int:
    """How many classes the model is told apart, 0 where it is told nothing."""
    condition = parts.spec.condition
    return (condition.classes or 0) if isinstance(condition, Leaf) and condition.kind == "class" else 0


def _names(trained: Trained) -> list[str]:
    return cast(Images, trained.data).names


def _numbers(trained: Trained, count: int, wanted: str) -> Tensor:
    """Class numbers in a user's words; see ``Images.condition``."""
    return cast(Tensor, trained.data.condition(count, wanted))


def _times(parts: Parts, steps: int) -> Tensor:
    """The times of the way forwards. It stops short where the velocity is computed by a division by sigma(1) = 0."""
    path = parts.path
    return time_grid(steps, path.start, path.stop if parts.predicts in ("velocity", "edm") else min(path.stop, 1 - END))


@torch.no_grad()
def _follow(
    trained: Trained,
    parts: Parts,
    x: Tensor,
    condition: Tensor | None,
    times: Tensor,
    guidance: Sequence[Guidance] = (),
    nearness: Tensor | None = None,
) -> tuple[Tensor, int]:
    """The flow followed from x over ``times``, and the evaluations it took. With ``nearness`` (n,) ``condition`` has
    that of either end, and sample i the velocity under the second to the share ``nearness[i]``."""
    x = x.to(trained.device)
    told = None if condition is None else condition.to(trained.device)
    field: Any = parts.field(trained.network, told)
    follow: Callable[..., Any] = field
    if nearness is not None and told is not None:
        ends = [field.with_condition(end.expand(len(x))) for end in told]
        if bool(told[0] == told[1]):
            follow = ends[0]
        else:
            s = expand(nearness.to(x), x)

            def follow(y: Tensor, t: Tensor) -> Tensor:
                return (1 - s) * ends[0].velocity_once(y, t) + s * ends[1].velocity_once(y, t)

    try:
        end = solve(
            follow, x, times, METHOD, guidance, generator=generator(trained.seed, "task", device=trained.device)
        )
    except FloatingPointError as error:
        raise UsageError(f"the model's flow cannot be followed from these pictures: {error}") from error
    return end.cpu(), field.calls


def _own(trained: Trained, parts: Parts, given: Brought, of: str) -> tuple[Tensor, list[bool]]:
    """The class number of each picture, and whether it was told."""
    count = len(given.x)
    if of:
        return _numbers(trained, count, of), [True] * count
    names = _names(trained)
    for name, one in zip(given.names, given.classes, strict=True):
        if isinstance(one, str) and one not in names:
            raise UsageError(f"{name} is of class {one!r}, and the model knows {', '.join(names)}; say of=CLASS")
    told = [one is not None for one in given.classes]
    numbers = [names.index(one) if isinstance(one, str) else one or 0 for one in given.classes]
    own, guessed = torch.tensor(numbers), ~torch.tensor(told)
    if bool(guessed.any()):
        own[guessed] = torch.cat([guess(trained, parts, x) for x in given.x[guessed].split(CHUNK)])
    return own, told


@torch.no_grad()
def guess(trained: Trained, parts: Parts, x: Tensor) -> Tensor:
    """The class under which the model's matching loss of each image is least, by the same noise and times for all.

    It is the likeliest class by the model's own bound. (Li et al. 2023, arXiv 2303.16203.)
    """
    x, draws = x.to(trained.device), generator(trained.seed, "guess", device=trained.device)
    path, losses = parts.path, torch.zeros(_classes(parts), len(x), device=x.device)
    for t in torch.linspace(0.1, 0.9, GUESSES, device=x.device):
        x0 = path.draw_source(x, draws)
        there, target = path.interpolate(x0, x, t), path.target("velocity", x0, x, t)
        for number in range(len(losses)):
            told = torch.full((len(x),), number, device=x.device)
            v = parts.field(trained.network, told).velocity_once(there, t)
            losses[number] += (v - target).square().flatten(1).sum(1)
    return losses.argmin(0).cpu()
