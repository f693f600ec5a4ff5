"""A trained model: loaded from a run folder or an exported model, ready to sample."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flowcore.data import Batch
from flowcore.errors import FlowError, IntegrityError, UsageError
from flowcore.plugin.contracts import Parts
from flowcore.training import checkpoints
from flowcore.training.settings import EngineSettings
from flowplat import modelfolder
from flowplat.components import one_line
from flowplat.config import resolve
from flowplat.experiment import Experiment
from flowplat.plain_yaml import parse
from flowplat.rundir import RunDir
from flowplat.settings import RunConfig


class Model:
    """The averaged weights of a run, with the data set and settings it was trained under.

    ``source`` is where the weights were read: a checkpoint of a run, or the weights of an exported model.
    """

    def __init__(self, experiment: Experiment, network: Any, source: Path) -> None:
        self.experiment = experiment
        self.network = network
        self.source = source

    @property
    def data(self) -> Any:
        """The plugin's data set, which writes and shows samples."""
        return self.experiment.data

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.experiment.device

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.experiment.config.seed

    def parts(self) -> Parts:
        """What the run was made of, for a task that samples in a way of its own."""
        return self.experiment.steered()

    def apply(self, task: str, *inputs: Any, out: str | Path | None = None, **options: Any) -> Any:
        """What the plugin's ``task`` makes of ``inputs``: ``load(path).apply("forecast", frame)``.

        Inputs are paths or the domain's own objects. With ``out`` the result is written there and a summary returned.
        Raises ``UsageError`` for an unknown task or option, and what the task raises.
        """
        from flowplat import tasks

        component = tasks.find(self.experiment.config.plugin, task)
        return tasks.carry_out(component, self, inputs, None if out is None else Path(out), options)

    def sample(
        self, count: int, steps: int | None = None, seed: int | None = None, condition: str | None = None
    ) -> Batch:
        """``count`` samples; what is not given is as in the run's config."""
        samples = self.draw(count, steps, seed, condition)
        if samples is None:
            raise UsageError("only the first of several processes has the samples; `draw` returns None on the others")
        return samples

    def draw(
        self, count: int, steps: int | None = None, seed: int | None = None, condition: str | None = None
    ) -> Batch | None:
        """As ``sample``, dealt out to the processes ``engine`` asks for; the first one has all, the others None."""
        config = self.experiment.config
        steps = config.sample.steps if steps is None else steps
        seed = config.seed if seed is None else seed
        self.experiment.engine.launch()
        return self.experiment.sample(self.network, count, steps, seed, condition)


def load(folder: str | Path, *overrides: str) -> Model:
    """The model of a run folder or a model folder; ``overrides`` change its config, as in ``"sample.solver=heun"``.

    Raises ``InputError`` for a folder that is neither, ``IntegrityError`` when no checkpoint of a run is whole, or when
    a file of a model is not what was exported. Nothing is unpickled.
    """
    folder = Path(folder)
    if modelfolder.is_model(folder):
        return _exported(folder, overrides)
    run = RunDir.open(folder)
    experiment = Experiment(_config(run.config, overrides))
    network, checkpoint = experiment.network(), checkpoints.chosen(run.checkpoints, experiment.config.train)
    with _fitting(checkpoint):
        checkpoints.load_weights(checkpoint, network)
    return Model(experiment, network.to(experiment.device).eval(), checkpoint)


def _exported(folder: Path, overrides: Sequence[str]) -> Model:
    names = modelfolder.verify(folder)
    config = _config(folder / modelfolder.CONFIG, overrides)
    facts = folder / modelfolder.FACTS
    experiment = Experiment(config, modelfolder.read_json(facts) if facts.name in names else None)
    try:
        _ = experiment.data
    except FlowError:
        raise
    except Exception as error:  # a plugin's own, of any kind, on facts that it did not write
        raise IntegrityError(
            f"{facts} does not suit data {config.data.component.full_name}: {one_line(error)}"
        ) from error
    network, weights = experiment.network(), folder / modelfolder.WEIGHTS
    with _fitting(weights):
        network.load_state_dict(load_file(weights))
    return Model(experiment, network.to(experiment.device).eval(), weights)


def _config(file: Path, overrides: Sequence[str]) -> RunConfig:
    settings = parse(file.read_text(encoding="utf-8"), str(file))
    plugin = settings.get("plugin") if isinstance(settings, dict) else None
    if not isinstance(plugin, str):
        raise UsageError(f"{file} is no run's config: it names no plugin")
    taught = ["teacher=null"] if "teacher" in settings else []  # a student stands alone
    return resolve(plugin, [*_here(settings.get("engine")), *taught, *overrides], file=file)


def _here(engine: Any) -> Iterator[str]:
    """A model is used where it is loaded: by one process, on what is there, whatever it was trained on. A processor and
    its threads, which every machine has, stay as they were: they have a say in the last bits of a result."""
    on_cpu = isinstance(engine, dict) and engine.get("accelerator") == "cpu"
    for key, value in EngineSettings().model_dump().items():
        if key != "threads" and not (key == "accelerator" and on_cpu):
            yield f"engine.{key}={json.dumps(value)}"


@contextmanager
def _fitting(weights: Path) -> Iterator[None]:
    """What loading weights raises, in one line that names them."""
    try:
        yield
    except SafetensorError as error:
        raise IntegrityError(f"{weights} holds no weights that are safe to read: {one_line(error)}") from error
    except RuntimeError as error:
        raise UsageError(f"the weights in {weights} do not fit the network as configured: {one_line(error)}") from error
