"""Measuring a trained field: the plugin's metrics at several numbers of solver steps, and the geometry of its paths.
Or samples that are files, whatever made them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flowcore.data import Batch
from flowcore.diagnostics import first_order_defect, transport
from flowcore.errors import FlowError, InputError, PluginError, UsageError
from flowcore.paths import Affine
from flowcore.plugin.contracts import Figure, Measured
from flowcore.plugin.testing.trees import fault
from flowplat.components import one_line
from flowplat.experiment import Experiment
from flowplat.manager import Manager
from flowplat.model import Model
from flowplat.progress import progress

Result = dict[str, Any]
STEPS = 100  # in which paths are followed


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
    settings, trained = experiment.config.eval, Model(experiment, network, folder)
    with progress("evaluate", len(drawn.by_steps) * len(settings.metrics)) as bar:
        rows = [
            _measured(experiment, samples, steps, folder, bar, trained) for steps, samples in drawn.by_steps.items()
        ]
    return {
        "count": settings.count,
        "seed": experiment.config.seed,
        "by_steps": rows,
        "paths": {name: asdict(figure) for name, figure in _paths(experiment, network, drawn.paths).items()},
    }


def read(experiment: Experiment, folder: Path) -> Batch:
    """The samples in ``folder``, as the run's data set reads what it wrote.

    Raises ``UsageError`` for a data set that reads nothing back, ``InputError`` where there are no samples, or where
    they are not as the data's spec says.
    """
    chosen, data = experiment.config.data.component, experiment.data
    if not hasattr(data, "read_back"):
        others = ", ".join(_reading(chosen.plugin))
        way_out = f"these do: {others}" if others else "`platform eval MODEL` measures what a model draws"
        raise UsageError(f"data {chosen.full_name} reads no samples from files, it has no read_back(folder); {way_out}")
    try:
        samples: Batch = data.read_back(folder)
        count = len(samples)
    except FlowError:
        raise
    except Exception as error:  # a plugin's own, of any kind, on files that it may not have written
        raise InputError(f"{folder} cannot be read as samples of data {chosen.full_name}: {one_line(error)}") from error
    if count == 0:
        raise InputError(f"{folder} holds no samples")
    ragged = samples.samples is not None  # rows are not samples there, and no number of them is expected
    if wrong := "" if ragged else fault(experiment.spec.state, samples.x1, count, "a batch of them"):
        raise InputError(f"the samples in {folder} do not fit data {chosen.full_name}: {wrong}")
    return samples


def _reading(plugin: str) -> list[str]:
    """The data sets of a plugin that read samples back."""
    manager = Manager()
    manager.load(plugin)
    return [one.name for one in manager.components.of("data", plugin) if hasattr(one.load(), "read_back")]


def evaluate_files(experiment: Experiment, samples: Batch, folder: Path) -> Result:
    """``evaluate`` for samples that were read: one column, of no number of steps, and no paths."""
    with progress("evaluate", len(experiment.config.eval.metrics)) as bar:
        rows = [_measured(experiment, samples, None, folder, bar)]
    return {"count": len(samples), "seed": experiment.config.seed, "by_steps": rows, "paths": {}}


def _measured(
    experiment: Experiment, samples: Batch, steps: int | None, folder: Path, bar: Any, trained: Model | None = None
) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(experiment.data, folder, experiment.config.seed, experiment.device, trained)
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
    """Transport cost and straightness over ``STEPS`` Euler steps, by the dimension of a sample, and of a path that is
    not straight the first-order defect, which says there what straightness cannot; nothing where the sampler follows
    no field."""
    if drawn is None:
        return {}
    path = experiment.parts.path
    curved = isinstance(path, Affine) and not path.straight
    chunk = drawn.to(experiment.device)
    called = experiment.engine.called(network.eval(), experiment.config.sample.precision)
    with progress("paths", (2 + curved) * STEPS, "call") as bar:  # they are walked twice, and once more for the defect

        def counted(*told: Any) -> Any:
            bar.update()
            return called(*told)

        x0, field = path.initial(chunk.x0), experiment.parts.field(counted, chunk.condition)
        found = transport(field, x0, STEPS)
        defect = first_order_defect(field, x0, STEPS) if curved else None
    d = found.dimension
    figures = {
        "straightness": Figure(
            found.straightness / d, floor=0.0, note="mean squared distance of the velocity from the chord, by dimension"
        ),
        "transport_cost": Figure(
            found.cost / d, better="neither", note="mean squared length of the chord, by dimension"
        ),
    }
    if defect is not None:
        figures["first_order_defect"] = Figure(
            defect, floor=0.0, note="mean squared change of the noise seen along the path, by dimension"
        )
    return figures
