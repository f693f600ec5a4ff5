"""A preset tried: trained for seconds, gone on with, exported and loaded elsewhere."""

import atexit
import shutil
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flowcore.data import Batch
from flowcore.plugin.testing.offline import no_network
from flowcore.plugin.testing.trees import must
from flowcore.state import leaves
from flowcore.training import checkpoints
from flowplat import isolated
from flowplat.config import resolve
from flowplat.evaluation import draw, evaluate
from flowplat.experiment import Experiment
from flowplat.export import export
from flowplat.model import load
from flowplat.runner import Finished, execute
from flowplat.settings import RunConfig

HERE = (
    "engine.accelerator=cpu", "engine.devices=1", "engine.num_nodes=1", "engine.strategy=auto", "engine.threads=1",
    "engine.precision=32-true", "engine.compile=false", "engine.workers=0", "observers=[]",
)  # fmt: skip
"""One process on the CPU, where two runs of one config agree to the last bit."""

SMOKE = "smoke"
"""The name of a preset that is small as it is."""

LIMIT = 60  # seconds of the processor
COUNT = 4


class Trial:
    """One short run of a preset, made when first asked for: under ``--smoke``, or as it is if it is called so."""

    def __init__(self, plugin: str, preset: str) -> None:
        whole = resolve(plugin, HERE, preset, smoke=preset != SMOKE)
        half = max(1, whole.train.steps // 2)
        overrides = [*HERE, f"train.checkpoint_every={half}"]
        self.config: RunConfig = resolve(plugin, overrides, preset, smoke=preset != SMOKE)
        self.folder = temporary()

    @cached_property
    def _run(self) -> tuple[Finished, float] | Exception:
        start = time.process_time()
        try:
            with no_network():
                finished = execute(self.config, self.folder / "run")
        except Exception as error:  # once for all checks, which all need the run
            return error
        return finished, time.process_time() - start

    def _done(self) -> tuple[Finished, float]:
        if isinstance(self._run, Exception):
            raise self._run
        return self._run

    def takes_under_a_minute(self) -> None:
        """The whole run, from data to report, takes less than a minute of the processor, without a network."""
        took = self._done()[1]
        must(took < LIMIT, f"it took {took:.0f} s of the processor; make tiny(), the network or the metrics smaller")

    def is_better_than_untrained(self) -> None:
        """The loss on held-out data, or else the first figure, is better than before training."""
        finished, _ = self._done()
        experiment = Experiment(self.config)
        network, trained = experiment.network(), load(finished.folder).network
        before, after = experiment.validate(network), experiment.validate(trained)
        if after < before:
            return
        line = f"the loss was {before:.4g} before training and is {after:.4g} after"
        row: dict[str, Any] = finished.figures["by_steps"][-1]["figures"]
        name = next((name for name, figure in row.items() if figure["better"] != "neither"), None)
        if name is not None:
            drawn = draw(experiment, network)
            assert drawn is not None  # one process
            first = evaluate(experiment, network, drawn, self.folder / "untrained")["by_steps"][-1]["figures"][name]
            better = row[name]["value"] - first["value"]
            if (better > 0) is (row[name]["better"] == "higher") and better != 0:
                return
            line += f"; {name} was {first['value']:.4g} and is {row[name]['value']:.4g}"
        raise AssertionError(f"{line}; a run as short as this should learn something: look at train.lr")

    def goes_on_where_it_stopped(self) -> None:
        """Begun again from the checkpoint in its middle, the run ends with the same weights to the last bit."""
        straight = self._done()[0].folder
        again = self.folder / "again"
        shutil.copytree(straight, again)
        *later, first = checkpoints.found(again / "checkpoints")
        must(bool(later), f"it has one checkpoint, at {first.name}; two steps are the least that can be compared")
        for checkpoint in later:
            shutil.rmtree(checkpoint)
        with no_network():
            execute(self.config, again, resume=True)
        last = later[0].name
        for part in sorted((straight / "checkpoints" / last).glob("*.safetensors")):
            one, other = load_file(part), load_file(again / "checkpoints" / last / part.name)
            differ = [name for name in one if not _equal(one[name], other[name])]
            must(
                not differ,
                f"going on from {first.name} ends with another {differ[:1]} in {part.name} than going straight; keep no"
                " state besides weights and buffers, and draw from the generators that are given",
            )

    def samples_alike_where_it_is_loaded(self) -> None:
        """Its export, loaded by a fresh process elsewhere, draws the samples that the run draws."""
        run = self._done()[0].folder
        model, here, there = self.folder / "model", self.folder / "here", self.folder / "there"
        if not model.exists():
            export(run, model)
        keep(load(run).sample(COUNT, seed=0), here)
        isolated.sampled(model, there, COUNT)
        one, other = load_file(here), load_file(there)
        differ = one.keys() != other.keys() or any(not _equal(one[name], other[name]) for name in one)
        must(
            not differ, "its export draws other samples than the run; a model is its weights, its config and its facts"
        )


def temporary() -> Path:
    """A new folder that goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="flowplat-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def keep(samples: Batch, path: str | Path) -> None:
    """The state of samples as safetensors, to compare them in another process."""
    save_file({str(number): leaf.contiguous() for number, leaf in enumerate(leaves(samples.x1))}, path)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
