"""The network as CUDA graphs. Thousands of small operations keep a GPU waiting for Python; a graph launches all of them
at once, and needs sizes that stay as they were recorded. So a batch is filled up with molecules that are not there:

    (B, N, P) molecules, atoms, pairs  ->  a recorded (B', N', P'), whose first rows are the answer

Molecules do not see one another: what is there gets the same numbers, up to the order of sums, and the same gradients.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowcore.state import State
from flowplat_molecules.graphs import ATOMWISE, LEAVES

log = logging.getLogger("flowplat")

Plain = Callable[[State, Tensor, Tensor | None, Any], State]
KEPT = {True: 2, False: 6}  # graphs with gradients, which hold what they remember, and without


@dataclass(frozen=True)
class Size:
    """What a batch has, or a graph has room for."""

    molecules: int
    atoms: int
    pairs: int

    def filling(self, room: "Size") -> list[int] | None:
        """Sizes of molecules that fill ``room`` up exactly, or None where none do, or half of it would be filling."""
        atoms, pairs = room.atoms - self.atoms, room.pairs - self.pairs
        if atoms < 0 or pairs < 0 or 2 * self.pairs < room.pairs:
            return None
        sizes = []
        while pairs:  # the largest n (n - 1) / 2 that there is room for, and again
            n = (1 + isqrt(1 + 8 * pairs)) // 2
            sizes.append(n)
            pairs -= n * (n - 1) // 2
        alone = atoms - sum(sizes)
        if alone < 0 or len(sizes) + alone > room.molecules - self.molecules:
            return None
        return [*sizes, *[1] * alone]

    def with_room(self) -> "Size":
        """Room for this and for batches like it."""
        pairs = self.pairs + self.pairs // 8 + 32
        spare = self.atoms // 8 + 2 * isqrt(2 * pairs) + 16  # the atoms of filling, as many pairs as it may have
        return Size(self.molecules + self.atoms // 4 + spare, self.atoms + spare, pairs)


def filled(
    x: State, t: Tensor, condition: Tensor | None, index: Any, sizes: list[int], room: Size
) -> tuple[Tensor, ...]:
    """The batch with molecules of ``sizes`` behind it: four leaves, molecules of atoms and of pairs, t, condition."""
    device, first, more = t.device, len(t), room.molecules - len(t)
    counts = torch.tensor([sizes, [n * (n - 1) // 2 for n in sizes]], dtype=torch.long).view(2, -1)
    numbers = torch.arange(first, first + len(sizes))

    def extended(leaf: Tensor, length: int) -> Tensor:
        return torch.cat([leaf, leaf.new_zeros(length - len(leaf), *leaf.shape[1:])])

    leaves = [extended(x[name], room.pairs if name == "bonds" else room.atoms) for name in LEAVES]
    atom, pair = (numbers.repeat_interleave(count).to(device, non_blocking=True) for count in counts)
    times = torch.cat([t, t.new_zeros(more)])
    told = (
        ()
        if condition is None
        else (torch.cat([condition, condition.new_full((more, *condition.shape[1:]), torch.nan)]),)
    )
    return (*leaves, torch.cat([index["positions"], atom]), torch.cat([index["bonds"], pair]), times, *told)


class Flat(nn.Module):
    """The network as a function of tensors to a tuple of tensors, which is what can be recorded."""

    def __init__(self, network: nn.Module, plain: Plain) -> None:
        super().__init__()
        self.network, self.plain = network, plain

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        x = dict(zip(LEAVES, given, strict=False))
        atom, pair, t = given[4:7]
        condition = given[7] if len(given) > 7 else None
        answer = self.plain(x, t, condition, {**dict.fromkeys(ATOMWISE, atom), "bonds": pair})
        return tuple(answer[name] for name in LEAVES)


@dataclass
class Recorded:
    """A graph: ``call`` of tensors of its ``room``."""

    room: Size
    kinds: tuple[Any, ...]
    call: Callable[..., tuple[Tensor, ...]]


def _captured(work: Callable[[], Any], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of ``work``, and what it returns, which every replay fills anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # a loader may pin memory meanwhile
        return graph, work()


def _refill(static: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """What a graph reads, in its place."""
    for here, there in zip(static, given, strict=True):
        here.copy_(there)


class _Replay(torch.autograd.Function):
    """The answer of a forward graph; its backward graph gives the gradients of the weights."""

    @staticmethod
    def forward(ctx: Any, graphs: Any, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        forward, static, answer, *ctx.graphs = graphs
        ctx.inputs = count
        _refill(static, given[:count])
        forward.replay()
        return tuple(one.detach().clone() for one in answer)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:  # type: ignore[override]
        backward, static, gradients = ctx.graphs
        _refill(static, slopes)
        backward.replay()
        return None, None, *[None] * ctx.inputs, *(None if one is None else one.clone() for one in gradients)


def _recorded(network: nn.Module, plain: Plain, given: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    flat, static = Flat(network, plain), tuple(one.clone() for one in given)
    names = [name for name, weight in flat.named_parameters() if weight.requires_grad and torch.is_grad_enabled()]
    # other leaves on the weights' memory: what waits for the weights' own gradients may belong to another stream
    own = {name: weight.detach().requires_grad_(name in names) for name, weight in flat.named_parameters()}
    weights = [own[name] for name in names]

    def run() -> tuple[Tensor, ...]:
        return cast(tuple[Tensor, ...], functional_call(flat, own, static))

    def slopes(answer: tuple[Tensor, ...], given: list[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(answer, weights, given, allow_unused=True)

    def once() -> None:  # of which nothing outlives it: what is alive ties the graph to this stream
        answer = run()
        if weights:
            slopes(answer, [torch.zeros_like(one) for one in answer])

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what libraries set up at a first call is set up before
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(aside)
    forward, answer = _captured(run)
    if weights:
        asked = [torch.zeros_like(one) for one in answer]
        backward, gradients = _captured(lambda: slopes(answer, asked), forward.pool())
        graphs = forward, static, tuple(one.detach() for one in answer), backward, asked, gradients
        learned = [flat.get_parameter(name) for name in names]
        return lambda *given: _Replay.apply(graphs, len(static), *given, *learned)  # type: ignore[no-untyped-call,no-any-return]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        _refill(static, given)
        forward.replay()
        return tuple(one.clone() for one in answer)

    return call


class Graphs:
    """The graphs of one network. A copy of them is empty, since a graph is not for copying and a network is."""

    def __init__(self) -> None:
        self.kept: dict[bool, list[Recorded]] = {True: [], False: []}
        self.refused: set[bool] = set()  # what no graph could be recorded of, with gradients and without

    def __reduce__(self) -> tuple[Any, ...]:
        return Graphs, ()

    def __call__(
        self, network: nn.Module, plain: Plain, x: State, t: Tensor, condition: Tensor | None, index: Any
    ) -> State:
        """``plain(x, t, condition, index)`` by a graph that has room for it, recorded where none has; without one and
        after a word in the log, where none can be recorded."""
        grad, size = torch.is_grad_enabled(), Size(len(t), len(x["positions"]), len(x["bonds"]))
        kinds = tuple(x[name].dtype for name in LEAVES), t.dtype, None if condition is None else condition.dtype
        kept = self.kept[grad]
        one = next((one for one in kept if one.kinds == kinds and size.filling(one.room) is not None), None)
        room = size.with_room() if one is None else one.room
        sizes = size.filling(room)
        if sizes is None or grad in self.refused:  # so few pairs that it would not matter
            return plain(x, t, condition, index)
        given = filled(x, t, condition, index, sizes, room)
        if one is None:
            del kept[: max(0, len(kept) + 1 - KEPT[grad])]
            try:
                one = Recorded(room, kinds, _recorded(network, plain, given))
            except RuntimeError as error:  # CUDA's, and whatever else cannot be captured
                why = str(error).partition("\n")[0]
                log.warning("engine.compile: no graph can be recorded (%s), so steps are made one by one", why)
                self.refused.add(grad)
                return plain(x, t, condition, index)
            kept.append(one)
        rows = dict.fromkeys(LEAVES, size.atoms) | {"bonds": size.pairs}
        return {name: leaf[: rows[name]] for name, leaf in zip(LEAVES, one.call(*given), strict=True)}
