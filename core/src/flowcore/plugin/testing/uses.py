"""Checks of what is done with samples and models: a metric, a task."""

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from flowcore.data import Batch
from flowcore.errors import FlowError
from flowcore.plugin.contracts import Data, Figure, Measured, Metric, Task, Trained
from flowcore.plugin.testing.trees import must
from flowcore.seeds import generator


def _measure(metric: Metric, data: Data, trained: Trained | None) -> Mapping[str, Figure]:
    source = data.val()
    real = source.batch(torch.arange(16) % len(source), generator(0, "check"))
    samples = Batch(real.x1, real.condition, index=real.index, samples=real.samples, extra={"calls": 1})
    with tempfile.TemporaryDirectory() as folder:
        return metric(samples, Measured(data, Path(folder), 0, torch.device("cpu"), trained))


def its_figures_are_numbers_beside_others(
    make: Callable[[], Metric], data: Data, trained: Trained | None = None
) -> None:
    """Held-out data measured: at least one ``Figure``, finite, and none alone: with a floor or a baseline, unless
    neither direction is better."""
    found = _measure(make(), data, trained)
    must(isinstance(found, Mapping) and bool(found), f"it returned {found!r}; it should be {{name: Figure}}")
    for name, figure in found.items():
        must(
            isinstance(figure, Figure), f"{name} is {type(figure).__name__}; a number goes into a Figure with its floor"
        )
        must(
            isinstance(figure.value, int | float) and math.isfinite(figure.value),
            f"{name} is {figure.value}; not finite",
        )
        alone = figure.floor is None and not figure.baselines and figure.better != "neither"
        must(not alone, f"{name} stands alone; give it a floor (what real data score) or a baseline")


def its_figures_come_again(make: Callable[[], Metric], data: Data, trained: Trained | None = None) -> None:
    """The same samples and seed have the same figures, whatever the global seed."""
    found = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append({name: figure.value for name, figure in _measure(make(), data, trained).items()})
    must(found[0] == found[1], f"its figures are {found[0]} and then {found[1]}; draw from measured.seed alone")


def it_refuses_what_is_not_there(make: Callable[[], Task], trained: Trained | None) -> None:
    """An input that does not exist is an error of ours, in one line that names it, and nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        missing, out = Path(folder) / "missing-input", Path(folder) / "out"
        try:
            make()(trained, [missing], out)
        except FlowError as error:
            named = missing.name in str(error)
            must(named, f"of an input that is not there it says {str(error)!r}; name the file and the way out")
        except Exception as error:
            raise AssertionError(
                f"an input that is not there raised {type(error).__name__}: {error}; raise InputError that names it"
            ) from error
        else:
            raise AssertionError("it took an input that is not there; raise InputError that names it")
        must(not out.exists() or not any(out.iterdir()), "it failed and left something in its output")


METRIC = (its_figures_are_numbers_beside_others, its_figures_come_again)
TASK = (it_refuses_what_is_not_there,)
