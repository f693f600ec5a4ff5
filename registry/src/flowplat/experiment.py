"""A config made into objects: the data, the network, the field, what is minimised and how samples are drawn."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.couplings import Coupled, Pairs
from flowcore.data import Batch, Source
from flowcore.errors import MachineError, PluginError, UsageError
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.plugin.contracts import Data, Leaf, Spec
from flowcore.seeds import derive, generator
from flowcore.solvers import solve
from flowcore.state import State, tree_map
from flowplat.settings import RunConfig


def device_of(wanted: str) -> torch.device:
    """The torch device for ``engine.device``. Raises ``MachineError`` when the machine has none such."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present[wanted.partition(":")[0]]:
        raise MachineError(f"engine.device={wanted}: this machine has no such device; engine.device=auto takes what is")
    return torch.device(wanted)


class Experiment:
    """The parts of one run; everything is built when it is first asked for."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = device_of(config.engine.device)
        if config.engine.threads is not None:
            torch.set_num_threads(config.engine.threads)

    @cached_property
    def data(self) -> Data:
        """The data set; its tiny version in a smoke run."""
        data: Data = self.config.data.build()
        return data.tiny() if self.config.smoke else data

    @cached_property
    def spec(self) -> Spec:
        """What the network takes and returns."""
        return self.data.spec()

    def network(self) -> nn.Module:
        """A new network, its first weights drawn from the seed."""
        torch.manual_seed(derive(self.config.seed, "weights"))
        network = self.config.network.build(self.spec)
        if not isinstance(network, nn.Module):
            name = self.config.network.component.full_name
            raise PluginError(f"network {name} returned {type(network).__name__}, not a torch.nn.Module")
        return network.to(self.device)

    @cached_property
    def source(self) -> Source:
        """What is trained on. Every coupling but the independent one is made with the batch, where a loader's worker
        hides it behind the step; independent noise is drawn on the device by ``loss``."""
        source = self.data.train()
        if self.config.coupling.component.full_name == "core/independent":
            return source
        return Coupled(source, self.path.draw_source, self.config.coupling.build())

    @cached_property
    def path(self) -> Any:
        """The probability path."""
        return self.config.path.build()

    def field(self, network: nn.Module, condition: State | None = None) -> Field:
        """``network`` read as a field."""
        return Field(network, self.path, self.config.predicts, condition, self._null)

    @cached_property
    def _null(self) -> State | None:
        """The null condition on the device."""
        null = self.spec.null
        return None if null is None else tree_map(lambda n: torch.as_tensor(n, device=self.device), null)

    @cached_property
    def _matching(self) -> tuple[Any, Any]:
        return self.config.times.build(), self.config.loss.build()

    def loss(self, network: nn.Module, batch: Batch, draws: torch.Generator) -> Tensor:
        """The matching loss of a batch, one value a sample; see ``flowcore.losses.matching_loss``."""
        times, metric = self._matching
        x0 = self.path.draw_source(batch.x1, draws) if batch.x0 is None else batch.x0
        pairs = Pairs(x0, batch.x1, batch.weight)
        t = times(len(batch), draws)
        field = self.field(network, batch.condition)
        if self.config.train.drop_condition > 0 and field.condition is not None and field.null is not None:
            dropped = torch.rand(len(batch), generator=draws, device=draws.device) < self.config.train.drop_condition
            keep = tree_map(lambda c, n: torch.where(_wide(dropped, c), n, c), field.condition, field.null_condition())
            field = field.with_condition(keep)
        return matching_loss(field, pairs, t.float(), metric, batch.index, times.weights(t))

    def rehearse(self, network: nn.Module) -> None:
        """Draw one sample in one step and compute one loss, for the faults that would show only after training.

        Raises ``UsageError`` where guidance, solver, condition, coupling or network do not fit each other.
        """
        rows = torch.arange(min(2, len(self.source)))
        try:
            batch = self.source.batch(rows, generator(0, "rehearse")).to(self.device)
            next(self.draw(network, 1, 1, 0))
            with torch.no_grad():
                self.loss(network, batch, generator(0, "rehearse", device=self.device))
        except ValueError as error:
            raise UsageError(str(error)) from error
        except FloatingPointError as error:
            solver, path = (choice.component.name for choice in (self.config.sample.solver, self.config.path))
            if getattr(self.config.sample.solver.build(), "adaptive", False):
                return  # training may yet make the field smooth enough
            way_out = "predict the velocity, or take a solver or a path that leaves the singular end out"
            raise UsageError(
                f"predicts={self.config.predicts} cannot be sampled by {solver} on path {path}: {error}; {way_out}"
            ) from error

    @torch.no_grad()
    def draw(
        self, network: nn.Module, count: int, steps: int, seed: int, condition: str | None = None
    ) -> Iterator[Batch]:
        """``count`` samples, in chunks of ``sample.batch_size``.

        Chunk k depends on (seed, k) alone and is always drawn whole, so a sample is the same however many are asked
        for. Each chunk's ``x0`` is the noise it came from, and ``extra["calls"]`` the network evaluations it took.
        """
        network.eval()
        settings = self.config.sample
        conditions = self.data.condition(count, condition if condition is not None else settings.condition)
        size = settings.batch_size
        for number, first in enumerate(range(0, count, size)):
            kept = min(size, count - first)
            like = _empty(self.spec.state, size, self.device)
            x0 = self.path.draw_source(like, generator(seed, "sample", number, device=self.device))
            mine = None
            if conditions is not None:
                rows = torch.arange(first, first + size).clamp(max=count - 1)
                mine = tree_map(lambda c, rows=rows: c[rows].to(self.device), conditions)
            field = self.field(network, mine)
            guidance = [choice.build(self.spec) for choice in settings.guidance]
            noise = generator(seed, "solve", number, device=self.device)
            x1 = solve(field, self.path.initial(x0), steps, settings.solver.build(), guidance, generator=noise)

            def cut(leaf: Tensor, kept: int = kept) -> Tensor:
                return leaf[:kept].cpu()

            yield Batch(
                tree_map(cut, x1),
                None if mine is None else tree_map(cut, mine),
                x0=tree_map(cut, x0),
                extra={"calls": field.calls},
            )

    def sample(self, network: nn.Module, count: int, steps: int, seed: int, condition: str | None = None) -> Batch:
        """All chunks of ``draw`` as one batch."""
        chunks = list(self.draw(network, count, steps, seed, condition))

        def join(*parts: Tensor) -> Tensor:
            return torch.cat(parts)

        return Batch(
            tree_map(join, *(chunk.x1 for chunk in chunks)),
            None if chunks[0].condition is None else tree_map(join, *(chunk.condition for chunk in chunks)),
            x0=tree_map(join, *(chunk.x0 for chunk in chunks)),
            extra={"calls": chunks[0].extra["calls"]},
        )


def _empty(leaf: Any, count: int, device: torch.device) -> State:
    if isinstance(leaf, Leaf):
        return torch.empty(count, *leaf.shape, dtype=getattr(torch, leaf.dtype), device=device)
    return {name: _empty(child, count, device) for name, child in leaf.items()}


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (like.ndim - 1)).to(like.device)
