"""The hooks a plugin may implement. Each is called once with ``register``, and every call of that is one component:

    register(name, "module:attribute", summary="...", config="module:Model")

The reference is text, so naming a component imports nothing; it is loaded when a run asks for it. ``name`` is lower
case, unique within the kind and the plugin. With ``config`` (a pydantic model) the component is called with that and
what is described below; without it the component is a function of what is described below, if anything, whose further
parameters, all with defaults, are its options, as the core's own paths, couplings, times and solvers are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from flowcore.plugin import hookspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flowcore.plugin.contracts import Watched


class Register(Protocol):
    """How a component is registered. What follows ``config`` belongs to one kind or two, whose hooks say what it is."""

    def __call__(
        self,
        name: str,
        reference: str,
        *,
        summary: str,
        config: str | None = None,
        default: bool = False,
        uses: Sequence[str] = (),
        off: Mapping[str, Any] | None = None,
        model: bool = True,
        resumes: bool = False,
    ) -> None: ...


@hookspec
def register_data(register: Register) -> None:
    """Data sets: a class ``Data(config)`` that satisfies ``flowcore.plugin.contracts.Data``.

    One that is nothing without a user's files brings an ``example`` of them for ``platform check``: see
    ``flowcore.plugin.contracts.Checkable``."""


@hookspec
def register_networks(register: Register) -> None:
    """Networks: a factory ``(config, spec) -> torch.nn.Module`` with forward ``(x, t, condition)``, t of shape (B,).

    A module may state what it is symmetric under in an attribute ``symmetries``, of "permutation", "rotation" and
    "translation"; ``platform check`` tries them, as ``flowcore.plugin.testing.networks`` says."""


@hookspec
def register_guidance(register: Register) -> None:
    """Guidance: a factory ``(config, spec) -> flowcore.guidance.Guidance``, or a function of its options alone.

    ``off`` are the options with which it changes nothing, ``{"scale": 0}`` if it is not given; ``platform check`` tries
    them."""


@hookspec
def register_objectives(register: Register) -> None:
    """Objectives, where matching a path is not what is minimised: a factory ``(config, parts)`` of a
    ``flowcore.plugin.contracts.Objective``; the core's is ``matching``.

    ``uses`` names the settings it reads of path, coupling, times, loss and predicts. They are there in its ``parts``; a
    setting that nothing of a run uses is refused."""


@hookspec
def register_samplers(register: Register) -> None:
    """Samplers, where integrating a field is not how a sample is drawn: a factory ``(config, parts)`` of a
    ``flowcore.plugin.contracts.Sampler``; the core's is ``flow``.

    ``uses`` names the settings it reads of path, predicts, solver and guidance, as with an objective."""


@hookspec
def register_metrics(register: Register) -> None:
    """Metrics: a ``flowcore.plugin.contracts.Metric``, a function whose further keyword parameters are its options."""


@hookspec
def register_paths(register: Register) -> None:
    """Probability paths: a function of its options that returns a ``flowcore.paths.Affine``, or, for the objective and
    the sampler ``interpolant``, a ``flowcore.interpolants.Interpolant``."""


@hookspec
def register_couplings(register: Register) -> None:
    """Couplings: a function of its options that returns a ``flowcore.couplings.Coupling``."""


@hookspec
def register_times(register: Register) -> None:
    """Training-time distributions: a function of its options that returns a ``flowcore.times.Times``."""


@hookspec
def register_losses(register: Register) -> None:
    """Loss metrics: a function of its options that returns ``(prediction, target) -> (B,)``."""


@hookspec
def register_solvers(register: Register) -> None:
    """Solvers: a function of its options that returns a ``flowcore.solvers.Step``."""


@hookspec
def register_tasks(register: Register) -> None:
    """Tasks, the domain's verbs: a ``flowcore.plugin.contracts.Task``, a function of what it is called with and of its
    options. ``platform apply PLUGIN TASK`` calls it on files, ``flowplat.load(path).apply(TASK, ...)`` on objects.

    ``model=False`` marks one that works without a trained model; ``resumes=True`` one that goes on in an output that is
    there already, which is refused otherwise."""


@hookspec
def register_commands(register: Register) -> None:
    """Further verbs: a ``click.Command``, called by ``platform x PLUGIN NAME``."""


@hookspec
def register_presets(register: Register) -> None:
    """Presets: ``"package:path/in/package.yaml"``, a complete config; ``default=True`` marks the one `run` takes."""


@hookspec
def run_started(run: Watched) -> None:
    """Observers of a run, this hook and the next three, are the run's own plugin and those that the config names under
    ``observers``. They are called in the first process. One that raises is named once and dropped; the run goes on.
    This one is called when training begins, or goes on."""


@hookspec
def after_step(run: Watched, step: int, row: dict[str, Any] | None) -> None:
    """Called after every optimiser step; ``row`` is what that step adds to metrics.jsonl, or None."""


@hookspec
def checkpoint_saved(run: Watched, step: int, folder: Path) -> None:
    """Called when the checkpoint in ``folder`` is on the disk."""


@hookspec
def run_finished(run: Watched, status: str, figures: dict[str, Any] | None) -> None:
    """Called when the run ends: ``status`` is done, failed or interrupted, ``figures`` as in eval/metrics.json, or None
    where it did not come so far."""
