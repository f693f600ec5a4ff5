"""A config made into objects: the data, the network, the field, what is minimised and how samples are drawn."""

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.couplings import Coupled, Pairs
from flowcore.data import Batch, Share, Source, batches
from flowcore.errors import PluginError, UsageError
from flowcore.field import Field
from flowcore.losses import matching_loss
from flowcore.plugin.contracts import Data, Leaf, Spec
from flowcore.seeds import derive, generator
from flowcore.solvers import solve
from flowcore.state import State, tree_map
from flowcore.training.engine import Engine
from flowplat.progress import progress
from flowplat.settings import RunConfig


class Experiment:
    """The parts of one run; everything is built when it is first asked for."""

    def __init__(self, config: RunConfig, facts: Any = None) -> None:
        self.config = config
        self.facts = facts  # of the data set, where its files may not be there; see ``contracts.Portable``
        self.engine = Engine(config.engine)
        self.device = self.engine.device

    @cached_property
    def data(self) -> Data:
        """The data set; its tiny version in a smoke run, unless it is known by its facts."""
        if self.facts is not None:
            return self.config.data.build(self.facts)
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
        return self._coupled(self.data.train())

    @cached_property
    def held_out(self) -> Source:
        """What is validated on, paired in the same way."""
        return self._coupled(self.data.val())

    def _coupled(self, source: Source) -> Source:
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

    @torch.no_grad()
    def validate(self, network: nn.Module) -> float:
        """The mean matching loss of held-out samples, under the same draws each time, over all processes."""
        network.eval()
        engine, settings, seed = self.engine, self.config.train, derive(self.config.seed, "validate")
        count = min(len(self.held_out), settings.validate_samples)
        size = min(settings.batch_size, count) // engine.world * engine.world or engine.world
        share, total = Share(engine.rank, engine.world), torch.zeros((), device=self.device)
        steps = max(1, count // size)
        for step, batch in enumerate(batches(self.held_out, size, 0, steps, seed, share)):
            draws = generator(seed, "loss", step, engine.rank, device=self.device)
            total += self.loss(network, batch.to(self.device), draws).mean()
        return engine.mean(total / steps).item()

    def rehearse(self, network: nn.Module) -> None:
        """Draw one sample in one step and compute one loss, for the faults that would show only after training.

        Raises ``UsageError`` where guidance, solver, condition, coupling or network do not fit each other.
        """
        rows = torch.arange(min(2, len(self.source)))
        try:
            batch = self.source.batch(rows, generator(0, "rehearse")).to(self.device)
            self.chunk(network, 0, 1, 1, 0)
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
    def chunk(
        self, network: nn.Module, number: int, count: int, steps: int, seed: int, condition: str | None = None
    ) -> Batch:
        """Samples ``number * sample.batch_size`` and on of ``count``, as many as a chunk holds.

        A chunk depends on (seed, number) alone and is always drawn whole, so a sample is the same however many are
        asked for, and whichever process draws it. ``x0`` is the noise it came from, and ``extra["calls"]`` the network
        evaluations it took.
        """
        network.eval()
        settings = self.config.sample
        conditions = self.data.condition(count, condition if condition is not None else settings.condition)
        size = settings.batch_size
        first = number * size
        like = _empty(self.spec.state, size, self.device)
        x0 = self.path.draw_source(like, generator(seed, "sample", number, device=self.device))
        mine = None
        if conditions is not None:
            rows = torch.arange(first, first + size).clamp(max=count - 1)
            mine = tree_map(lambda c: c[rows].to(self.device), conditions)
        field = self.field(network, mine)
        guidance = [choice.build(self.spec) for choice in settings.guidance]
        noise = generator(seed, "solve", number, device=self.device)
        x1 = solve(field, self.path.initial(x0), steps, settings.solver.build(), guidance, generator=noise)
        drawn = Batch(x1, mine, x0=x0).map(lambda leaf: leaf[: count - first].cpu())
        return replace(drawn, extra={"calls": field.calls})

    def sample(
        self, network: nn.Module, count: int, steps: int, seed: int, condition: str | None = None
    ) -> Batch | None:
        """``count`` samples as one batch on the first process, None on the others; each draws its share of chunks."""
        numbers = range(self.engine.rank, math.ceil(count / self.config.sample.batch_size), self.engine.world)
        mine = []
        with progress(f"sample in {steps} steps", len(numbers), "chunk", shown=self.engine.rank == 0) as bar:
            for number in numbers:
                mine.append(self.chunk(network, number, count, steps, seed, condition))
                bar.update()
        shares = self.engine.gather(mine)
        if shares is None:
            return None
        longest = max(map(len, shares))
        chunks = [share[place] for place in range(longest) for share in shares if place < len(share)]

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
