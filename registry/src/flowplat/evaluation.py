"""Measuring a trained field: the plugin's metrics at several numbers of solver steps, and the geometry of its paths."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flowcore.data import Batch
from flowcore.diagnostics import transport
from flowcore.errors import PluginError
from flowcore.plugin.contracts import Figure, Measured
from flowplat.experiment import Experiment
from flowplat.progress import progress

Result = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """What a model is measured on: samples by number of steps, and those whose paths are followed."""

    by_steps: dict[int, Batch]
    paths: Batch | None


def draw(experiment: Experiment, network: nn.Module) -> Drawn | None:
    """Everything that is measured, drawn over all processes; None on all but the first."""
    settings, seed = experiment.config.eval, experiment.config.seed
    by_steps = {n: experiment.sample(network, settings.count, n, seed) for n in sorted(set(settings.steps))}
    paths = experiment.sample(network, settings.paths, 1, seed) if experiment.follows_field else None
    return None if experiment.engine.rank else Drawn(by_steps, paths)  # type: ignore[arg-type]


def evaluate(experiment: Experiment, network: nn.Module, drawn: Drawn, folder: Path) -> Result:
    """All figures of a run, as JSON-ready data; ``folder`` takes what its metrics keep.

    ``{"count", "seed", "by_steps": [{"steps", "nfe", "figures": {name: figure}}], "paths": {name: figure}}``
    """
    settings = experiment.config.eval
    with progress("evaluate", len(drawn.by_steps) * len(settings.metrics)) as bar:
        rows = [_measured(experiment, samples, steps, folder, bar) for steps, samples in drawn.by_steps.items()]
    return {
        "count": settings.count,
        "seed": experiment.config.seed,
        "by_steps": rows,
        "paths": {name: asdict(figure) for name, figure in _paths(experiment, network, drawn.paths).items()},
    }


def _measured(experiment: Experiment, samples: Batch, steps: int, folder: Path, bar: Any) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(experiment.data, folder, experiment.config.seed, experiment.device)
    figures: dict[str, Figure] = {}
    for metric in experiment.config.eval.metrics:
        found = metric.build(samples, measured)
        if both := sorted(set(found) & set(figures)):
            raise PluginError(f"{metric.component} and another metric both return a figure {both[0]!r}")
        figures |= found
        bar.update()
    return {
        "steps": steps,
        "nfe": samples.extra.get("calls"),
        "figures": {name: asdict(figure) for name, figure in figures.items()},
    }


def _paths(experiment: Experiment, network: nn.Module, drawn: Batch | None) -> dict[str, Figure]:
    """Transport cost and straightness over 100 Euler steps, each divided by the dimension of a sample; nothing where
    the sampler follows no field."""
    if drawn is None:
        return {}
    chunk = drawn.to(experiment.device)
    called = experiment.engine.called(network.eval(), experiment.config.sample.precision)
    found = transport(experiment.parts.field(called, chunk.condition), experiment.parts.path.initial(chunk.x0), 100)
    d = found.dimension
    return {
        "straightness": Figure(
            found.straightness / d, floor=0.0, note="mean squared distance of the velocity from the chord, by dimension"
        ),
        "transport_cost": Figure(
            found.cost / d, better="neither", note="mean squared length of the chord, by dimension"
        ),
    }
