"""A config made into objects: the data, the network, the field, what is minimised and how samples are drawn."""

import math
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowcore.couplings import Coupled
from flowcore.data import Batch, Share, Source, batches, end_to_end, head
from flowcore.errors import PluginError, UsageError
from flowcore.paths import Affine
from flowcore.plugin.contracts import Data, Objective, Parts, Spec
from flowcore.seeds import derive, generator
from flowcore.state import tree_map
from flowcore.training.engine import Engine
from flowplat.chosen import Chosen
from flowplat.progress import progress
from flowplat.settings import RunConfig

if TYPE_CHECKING:
    from flowplat.model import Model


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
    def teacher(self) -> "Model | None":
        """The trained model that the run learns from."""
        from flowplat import teacher  # which loads a model, whose parts are an experiment's

        settings = self.config.teacher  # one that is yet to be trained is named by its preset alone
        return None if settings is None or settings.model is None else teacher.find(settings.model, self.device)

    @cached_property
    def _untrained_teacher(self) -> "Model | None":
        """One to try the parts of a run with whose teacher is yet to be trained."""
        from flowplat import stages, teacher

        wanted = stages.wanted_by(self.config)
        return None if wanted is None else teacher.untrained(wanted)

    @cached_property
    def source(self) -> Source:
        """What is trained on: the teacher's pairs where there are any. Every coupling but the independent one is made
        with the batch, where a loader's worker hides it behind the step; independent noise is drawn on the device by
        ``loss``."""
        return self._coupled(self.data.train()) if self._pairs is None else self._pairs[0]

    @cached_property
    def held_out(self) -> Source:
        """What is validated on, paired in the same way."""
        return self._coupled(self.data.val()) if self._pairs is None else self._pairs[1]

    @cached_property
    def _pairs(self) -> tuple[Source, Source] | None:
        """The teacher's pairs, generated as far as they are not there yet; in all processes of the run at once."""
        from flowplat import teacher

        settings = self.config.teacher
        if settings is None or settings.pairs is None or self.teacher is None:
            return None
        folder = teacher.make(self.teacher, settings.pairs, self)
        return teacher.read(folder, teacher.invert(self.teacher, settings.pairs, self), settings.pairs, self.data)

    def _coupled(self, source: Source) -> Source:
        choice = self.config.coupling
        if choice is None or choice.component.full_name == "core/independent":
            return source
        draw = None if self.parts.path is None else self.parts.path.draw_source
        return Coupled(source, draw, self.parts.coupling)

    @cached_property
    def parts(self) -> Parts:
        """What the objective is built from."""
        config = self.config

        def built(choice: Chosen | None) -> Any:
            return None if choice is None else choice.build()

        path = built(config.path)
        if config.predicts == "edm" and not isinstance(path, Affine):
            raise UsageError("predicts=edm needs a path with one noise level, as alpha x1 + sigma x0 has")
        if config.sigma_data is not None:
            path = replace(path, sigma_data=config.sigma_data)
        return Parts(
            self.spec, self.data, self.device, config.seed, config.train.drop_condition, path,
            built(config.coupling), built(config.times), built(config.loss), config.predicts,  # type: ignore[arg-type]
            teacher=self.teacher or self._untrained_teacher,
        )  # fmt: skip

    def steered(self) -> Parts:
        """What a sampler is built from: guidance and solver, which may remember a trajectory, are made anew."""
        settings = self.config.sample
        solver = None if settings.solver is None else settings.solver.build()
        guidance = tuple(choice.build(self.spec) for choice in settings.guidance)
        return replace(self.parts, solver=solver, guidance=guidance)  # type: ignore[arg-type]

    @property
    def follows_field(self) -> bool:
        """Whether samples come along a field's trajectories, which can be measured."""
        return self.config.sample.sampler.component.full_name == "core/flow"

    @cached_property
    def loss(self) -> Objective:
        """What is minimised: ``loss(network, batch, generator)``, one value a sample."""
        objective: Objective = self.config.objective.build(self.parts)
        return objective

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
        try:
            batch = self._two().to(self.device)
            with torch.no_grad():  # first, as it says more plainly what does not fit
                self.loss(network, batch, generator(0, "rehearse", device=self.device))
            self.chunk(network, 0, 1, 1, 0)
        except ValueError as error:
            raise UsageError(str(error)) from error
        except FloatingPointError as error:
            solver, path = self.config.sample.solver, self.config.path
            if solver is None or path is None or getattr(solver.build(), "adaptive", False):
                return  # training may yet make the field smooth enough
            way_out = "predict the velocity, or take a solver or a path that leaves the singular end out"
            raise UsageError(
                f"predicts={self.config.predicts} cannot be sampled by {solver.component.name} on path"
                f" {path.component.name}: {error}; {way_out}"
            ) from error

    def _two(self) -> Batch:
        """Two samples as training meets them; the noise of pairs that are yet to be made is any."""
        settings, draws = self.config.teacher, generator(0, "rehearse")
        if settings is None or settings.pairs is None:
            return self.source.batch(torch.arange(min(2, len(self.source))), draws)
        if self.config.coupling is not None and self.config.coupling.component.full_name != "core/independent":
            raise UsageError("coupling: the teacher's pairs are coupled already; leave coupling out, or teacher.pairs")
        if self.config.train.validate_every is not None and not settings.pairs.held_out:
            raise UsageError("train.validate_every needs pairs to validate on: set teacher.pairs.held_out")
        data = self.data.train()
        batch = data.batch(torch.arange(min(2, len(data))), draws)
        return replace(batch, x0=tree_map(torch.randn_like, batch.x1))

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
        mine = None
        if conditions is not None:
            rows = torch.arange(first, first + size).clamp(max=count - 1)
            mine = tree_map(lambda c: c[rows].to(self.device), conditions)
        sampler, called = settings.sampler.build(self.steered()), self.engine.called(network, settings.precision)
        drawn: Batch = sampler(called, mine, size, steps, generator(seed, "sample", number, device=self.device))
        return head(drawn, count - first).map(Tensor.cpu)

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
        return replace(end_to_end(chunks), extra={"calls": chunks[0].extra.get("calls")})
