"""How molecules are drawn: a size for each property asked for, and then all of a molecule at once, step by step."""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowcore import guidance as guiding
from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.field import Field as Learned
from flowcore.plugin.contracts import Parts, Sampler
from flowcore.state import State
from flowplat_molecules.graphs import LEAVES, centred, graph
from flowplat_molecules.objective import Categories, path_of
from flowplat_molecules.spec import MoleculeSpec

BANDWIDTH = 0.1  # of the kernel in p(N | y), in standard deviations of the training values
NEAREST = 200  # training molecules that speak where the kernel reaches none

Eta = Annotated[float, Field(ge=0, description="how often a revealed atom or bond is masked again; masked only")]
Temperature = Annotated[
    float | None,
    Field(gt=0, description="divides the logits; near 0 the likeliest is taken; null for 0.05, on the simplex for 1"),
]
Edges = Annotated[int, Field(ge=1, description="directed edges that the network is shown at once")]


def sampler(
    parts: Parts,
    categories: Categories = "masked",
    eta: Eta = 10.0,
    temperature: Temperature = None,
    edges: Edges = 200_000,
) -> Sampler:
    """Molecules from noise and masks in ``steps`` evaluations (the paper's number of times less one); sizes are drawn
    from p(N | y). ``extra["masked"]`` counts what is masked at the end."""

    def sample(network: Any, condition: State | None, count: int, steps: int, generator: torch.Generator) -> Batch:
        sizes = draw_sizes(parts.spec, condition, count, generator)
        return draw(parts, network, sizes, condition, steps, generator, categories, eta, temperature, edges)

    return sample


@torch.no_grad()
def draw(
    parts: Parts,
    network: Any,
    sizes: Tensor,
    condition: Tensor | None,
    steps: int,
    generator: torch.Generator,
    categories: str = "masked",
    eta: float = 10.0,
    temperature: float | None = None,
    edges: int = 200_000,
    atoms: Tensor | None = None,
) -> Batch:
    """Molecules of given ``sizes`` (B,), and with ``atoms`` (sum N,) of given classes, under ``condition`` (B, K).

    In each of ``steps`` equal steps positions move by h (x1_hat - x) / (1 - t), and hidden classes are drawn, or hidden
    again, as in ``masked.euler_step`` with logits / ``temperature``: where none is given 0.05, and 1 on the simplex,
    whose flow it would bend. The centre of each molecule stays at 0. Molecules are drawn in groups of like sizes, of
    ``edges`` directed edges at most. Raises ``FloatingPointError`` where the network's answer is not finite.
    """
    path, sizes = path_of(parts.spec.state, categories), sizes.cpu()
    if condition is None:  # where nothing is asked, what insists on it is the identity
        parts = replace(parts, guidance=tuple(g for g in parts.guidance if not isinstance(g, guiding.ClassifierFree)))
    if atoms is not None and categories == "simplex":
        raise UsageError("a formula is kept by categories=masked only")
    heat = temperature or (0.05 if categories == "masked" else 1.0)
    order = sizes.argsort(stable=True)
    starts, rows = sizes.cumsum(0) - sizes, []
    drawn: list[tuple[Tensor, Batch]] = []
    for group in _groups(sizes[order], edges):
        mine = order[group]
        told = None if condition is None else condition[mine.to(condition.device)]
        if atoms is not None:
            rows = [atoms[starts[k] : starts[k] + sizes[k]] for k in mine.tolist()]
        field = Learned(network, path, "x1", told, parts.spec.null)
        given = torch.cat(rows) if rows else None
        drawn.append((mine, _group(field, sizes[mine], steps, generator, parts, eta, heat, given)))
    return _ordered(drawn, sizes, condition)


def _group(
    field: Learned, sizes: Tensor, steps: int, generator: torch.Generator, parts: Parts, eta: float,
    temperature: float, given: Tensor | None,
) -> Batch:  # fmt: skip
    path: Any = field.path
    laid, device, samples = graph(sizes), parts.device, len(sizes)
    index = {name: leaf.to(device) for name, leaf in laid.index.items()}
    rows, pairs = len(laid.atom), len(laid.pair)
    like = {
        name: torch.zeros(pairs if name == "bonds" else rows, dtype=torch.long, device=device) for name in LEAVES[1:]
    }
    x = path.draw_source({"positions": torch.zeros(rows, 3, device=device), **like}, generator)
    x = {**x, "positions": centred(x["positions"], index["positions"], samples)}
    free = None
    if given is not None:
        x["atoms"] = given.to(device)
        free = {"atoms": torch.zeros(rows, dtype=torch.bool, device=device)}
    told = field.with_condition(field.condition, index, samples)
    composed = guiding.compose(told, parts.guidance, generator)
    times = torch.tensor([number / steps for number in range(steps)], dtype=x["positions"].dtype).to(device)
    for number in range(steps):  # nothing in here waits for a GPU
        t, r = number / steps, (number + 1) / steps
        if isinstance(composed, guiding.Guided):
            composed.dt = r - t
        x = path.step(x, composed.velocity_once(x, times[number]), t, r, generator, index, eta, temperature, free)
        x = {**x, "positions": centred(x["positions"], index["positions"], samples)}
        for one in parts.guidance:
            x = one.state(told, x, torch.tensor(r), 1 / steps if r < 1 else 0.0)
    left = torch.zeros((), dtype=torch.long, device=device)
    if not any(leaf.is_floating_point() for name, leaf in x.items() if name != "positions"):
        left = sum(((x[name] == path.paths[name].mask).sum() for name in LEAVES[1:]), left)
    if not bool(x["positions"].isfinite().all()) or int(left):
        raise FloatingPointError("the network's answer is not finite")
    return Batch(path.tokens(x), index=index, samples=samples, extra={"masked": int(left), "calls": told.calls})


def _groups(sizes: Tensor, edges: int) -> list[Tensor]:
    """Consecutive numbers, each group with at most ``edges`` directed edges, or one molecule."""
    groups, first, total = [], 0, 0
    for number, n in enumerate(sizes.tolist()):
        total += n * (n - 1)
        if total > edges and number > first:
            groups.append(torch.arange(first, number))
            first, total = number, n * (n - 1)
    return [*groups, torch.arange(first, len(sizes))]


def _ordered(drawn: list[tuple[Tensor, Batch]], sizes: Tensor, condition: Tensor | None) -> Batch:
    """The molecules of all groups in the order they were asked for."""
    place = torch.cat([mine for mine, _ in drawn])
    there = place.argsort()
    device = drawn[0][1].x1["positions"].device
    x1 = {}
    for name in LEAVES:
        counts = sizes * (sizes - 1) // 2 if name == "bonds" else sizes
        sorted_counts = counts[place]
        begin = (sorted_counts.cumsum(0) - sorted_counts)[there]
        whose = torch.arange(len(sizes)).repeat_interleave(counts)
        rows = begin[whose] + torch.arange(len(whose)) - (counts.cumsum(0) - counts)[whose]
        x1[name] = torch.cat([batch.x1[name] for _, batch in drawn])[rows.to(device)]
    index = {name: leaf.to(device) for name, leaf in graph(sizes).index.items()}
    extra = {"masked": sum(b.extra["masked"] for _, b in drawn), "calls": drawn[0][1].extra["calls"]}
    return Batch(x1, condition, index=index, samples=len(sizes), extra=extra)


def draw_sizes(spec: Any, condition: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """N ~ p(N | y) for each row of ``condition`` (B, K), NaN where nothing is asked; (count,), on the CPU.

    Over the training molecules i, p(N_i | y) ~ exp(-sum_k (y_k - y_ik)^2 / (2 h_k^2)) with h_k a tenth of the standard
    deviation; where that leaves the weight of less than one molecule, the nearest 200 count alike.
    """
    if not isinstance(spec, MoleculeSpec) or spec.counts is None or len(spec.counts) == 0:
        raise UsageError("the data set does not say how large its molecules are")
    u = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).cpu().numpy()
    asked = np.full((count, 0), np.nan) if condition is None else condition.double().cpu().numpy()
    values, sizes = spec.values, np.empty(count, np.int64)
    scale = np.array([max(one.std, 1e-12) for one in spec.properties])
    for row, one in _alike(asked):
        known = ~np.isnan(one)
        weights = np.ones(len(spec.counts))
        if known.any():
            apart = (((values[:, known] - one[known]) / scale[known]) ** 2).sum(1)
            apart = np.where(np.isnan(apart), np.inf, apart)
            weights = np.exp(-apart / (2 * BANDWIDTH**2))
            if weights.sum() < 1:
                weights = np.zeros(len(apart))
                weights[np.argsort(apart, kind="stable")[:NEAREST]] = 1
        total = weights.cumsum()
        sizes[row] = spec.counts[np.searchsorted(total, u[row] * total[-1], side="right").clip(max=len(total) - 1)]
    return torch.from_numpy(sizes)


def _alike(asked: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The different rows of what is asked, each with where it is asked."""
    if asked.shape[1] == 0:
        return [(np.arange(len(asked)), asked[0])] if len(asked) else []
    rows, which = np.unique(asked, axis=0, return_inverse=True)
    return [(np.flatnonzero(which.reshape(-1) == number), row) for number, row in enumerate(rows)]
