"""Measuring a trained field: the plugin's metrics at several numbers of solver steps, and the geometry of its paths."""

from dataclasses import asdict
from typing import Any

from torch import nn

from flowcore.data import Batch
from flowcore.diagnostics import transport
from flowcore.errors import PluginError
from flowcore.plugin.contracts import Figure, Measured
from flowplat.components import keywords
from flowplat.experiment import Experiment
from flowplat.progress import progress
from flowplat.rundir import RunDir

Result = dict[str, Any]


def evaluate(experiment: Experiment, network: nn.Module, run: RunDir) -> Result:
    """All figures of a run, as JSON-ready data:

    ``{"count", "seed", "by_steps": [{"steps", "nfe", "figures": {name: figure}}], "paths": {name: figure}}``
    """
    settings, seed = experiment.config.eval, experiment.config.seed
    run.eval.mkdir(parents=True, exist_ok=True)
    measured = Measured(experiment.data, run.eval, seed, experiment.device)
    rows: list[Result] = []
    with progress("evaluate", len(settings.steps) * max(1, len(settings.metrics))) as bar:
        for steps in sorted(set(settings.steps)):
            samples = experiment.sample(network, settings.count, steps, seed)
            figures: dict[str, Figure] = {}
            for metric in settings.metrics:
                found = metric.component.load()(samples, measured, **keywords(metric.options))
                if both := sorted(set(found) & set(figures)):
                    raise PluginError(f"{metric.component} and another metric both return a figure {both[0]!r}")
                figures |= found
                bar.update()
            rows.append(
                {
                    "steps": steps,
                    "nfe": samples.extra["calls"],
                    "figures": {name: asdict(figure) for name, figure in figures.items()},
                }
            )
    return {
        "count": settings.count,
        "seed": seed,
        "by_steps": rows,
        "paths": {name: asdict(figure) for name, figure in _paths(experiment, network).items()},
    }


def _paths(experiment: Experiment, network: nn.Module) -> dict[str, Figure]:
    """Transport cost and straightness over 100 Euler steps, each divided by the dimension of a sample."""
    settings, seed = experiment.config.eval, experiment.config.seed
    chunk: Batch = experiment.sample(network, settings.paths, 1, seed).to(experiment.device)
    network.eval()
    found = transport(experiment.field(network, chunk.condition), experiment.path.initial(chunk.x0), 100)
    d = found.dimension
    return {
        "straightness": Figure(
            found.straightness / d, floor=0.0, note="mean squared distance of the velocity from the chord, by dimension"
        ),
        "transport_cost": Figure(
            found.cost / d, better="neither", note="mean squared length of the chord, by dimension"
        ),
    }
