"""``platform run``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowplat.cli.options import as_json, config_source, echo_json, figures_table, results_only

if TYPE_CHECKING:
    from flowplat.experiment import Experiment
    from flowplat.settings import RunConfig


@click.command("run")
@config_source
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The run folder; a new one under runs/ if not given."
)
@click.option(
    "--resume", metavar="RUN|last", help="Go on with a run: its folder, its id, or last; --out DIR --resume last goes "
    "on with the run in DIR, or begins it there.",
)  # fmt: skip
@click.option("--emit-sbatch", is_flag=True, help="Print a batch script for SLURM that does this run, and do nothing.")
@click.option("--dry-run", is_flag=True, help="Check the config, the data and the network, and train nothing.")
@as_json()
def command(
    plugin: str, overrides: tuple[str, ...], preset: str | None, file: str | None, smoke: bool, out: Path | None,
    resume: str | None, emit_sbatch: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """PLUGIN is an installed plugin, KEY=VALUE a setting such as train.steps=500.

    The run folder holds the config, checkpoints, samples, figures and report.html.
    """
    from flowplat.config import resolve
    from flowplat.resume import begun

    going_on = None if resume is None else begun(plugin, resume, out)
    source = file if going_on is None or file or preset else going_on / "config.yaml"
    config = resolve(plugin, overrides, preset, source, smoke)  # before torch is imported: a typo is told at once
    if emit_sbatch:
        from flowplat.sbatch import script

        click.echo(script(config, overrides, preset, file, smoke, out or going_on), nl=False)
        return
    from flowcore.errors import UsageError
    from flowcore.training.engine import needs_start
    from flowplat.experiment import Experiment
    from flowplat.runner import execute

    if file == "-" and needs_start(config.engine) and not dry_run:
        raise UsageError("-c - is read once, and engine asks for several processes; save the config, and name its file")
    if dry_run:
        with results_only():
            plan = _plan(Experiment(config))
        if as_json:
            echo_json(plan)
        for key, value in {} if as_json else plan.items():
            click.echo(f"{key:12}{value}")
        return
    with results_only():
        finished = execute(config, going_on or out, going_on is not None)
    if not finished.first:
        return
    if as_json:
        echo_json({"folder": str(finished.folder), "figures": finished.figures})
        return
    figures_table(finished.figures)
    click.echo(f"report: {finished.folder / 'report.html'}")


def _teacher(config: "RunConfig") -> str | None:
    """The teacher of a run, and whether it is there."""
    from flowplat.stages import look_for, wanted_by

    wanted = wanted_by(config)
    if wanted is None:
        return config.teacher.model if config.teacher else None
    found = look_for(wanted)[0]
    return f"preset {wanted.preset}, {f'which is there: {found}' if found else 'which is trained first'}"


def _plan(experiment: "Experiment") -> dict[str, Any]:
    """What a run would do, every part of it built and tried once."""
    config, spec = experiment.config, experiment.spec
    source, network = experiment.data.train(), experiment.network()
    experiment.rehearse(network)
    return {
        "plugin": config.plugin,
        "preset": config.preset,
        "data": config.data.component.full_name,
        "samples": len(source),
        "state": str(spec.state),
        "condition": str(spec.condition),
        "network": config.network.component.full_name,
        "teacher": _teacher(config),
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": config.train.steps,
        "epochs": round(config.train.steps * config.train.batch_size / len(source), 1),
        "device": str(experiment.device),
    }
