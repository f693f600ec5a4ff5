"""A trained model: loaded from a run folder, ready to sample."""

from pathlib import Path
from typing import Any

from flowcore.data import Batch
from flowcore.errors import UsageError
from flowcore.training import checkpoints
from flowplat.components import one_line
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.plain_yaml import parse
from flowplat.rundir import RunDir


class Model:
    """The averaged weights of a run, with the data set and settings it was trained under."""

    def __init__(self, experiment: Experiment, network: Any) -> None:
        self.experiment = experiment
        self.network = network

    @property
    def data(self) -> Any:
        """The plugin's data set, which writes and shows samples."""
        return self.experiment.data

    def sample(
        self, count: int, steps: int | None = None, seed: int | None = None, condition: str | None = None
    ) -> Batch:
        """``count`` samples; what is not given is as in the run's config."""
        config = self.experiment.config
        steps = config.sample.steps if steps is None else steps
        return self.experiment.sample(self.network, count, steps, config.seed if seed is None else seed, condition)


def load(folder: str | Path, *overrides: str) -> Model:
    """The model of a run folder; ``overrides`` change its config, as in ``"sample.solver=heun"``.

    Raises ``InputError`` for a folder that is no run, ``IntegrityError`` when no checkpoint in it is whole.
    """
    run = RunDir.open(Path(folder))
    settings = parse(run.config.read_text(encoding="utf-8"), str(run.config))
    plugin = settings.get("plugin") if isinstance(settings, dict) else None
    if not isinstance(plugin, str):
        raise UsageError(f"{run.config} is no run's config: it names no plugin")
    experiment = Experiment(resolve(plugin, overrides, file=run.config))
    network, checkpoint = experiment.network(), checkpoints.latest(run.checkpoints)
    try:
        checkpoints.load_weights(checkpoint, network)
    except RuntimeError as error:
        raise UsageError(
            f"the weights in {checkpoint} do not fit the network as configured: {one_line(error)}"
        ) from error
    return Model(experiment, network.eval())
