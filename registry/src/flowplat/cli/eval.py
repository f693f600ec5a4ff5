"""``platform eval``."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flowplat.cli.options import as_json, echo_json, figures_table, results_only


@click.command("eval")
@click.argument("source", metavar="MODEL|PLUGIN")
@click.argument("words", nargs=-1, metavar="[FOLDER] [KEY=VALUE]...")
@click.option("--preset", metavar="NAME", help="With FOLDER: the preset whose data and metrics it is measured by.")
@click.option(
    "-c", "--config", "file", metavar="FILE", help="With FOLDER: a YAML config laid over the preset; - is stdin."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for metrics.json and what metrics keep."
)
@as_json()
def command(
    source: str, words: tuple[str, ...], preset: str | None, file: str | None, out: Path | None, as_json: bool
) -> None:
    """MODEL is a run (its folder, its id or the beginning of it, or `last`) or an exported model whose data is here.

    Behind a PLUGIN, FOLDER holds samples of any origin, laid out as the plugin writes its own: they are measured
    against the plugin's data. Where a run is called as a plugin is, a FOLDER behind the name means the plugin.

    KEY=VALUE changes the config, as in eval.count=5000, eval.steps=[10], eval.metrics=[...] or sample.solver=heun. The
    figures of the run itself stay as they are; without --out nothing is written.
    """
    from flowplat import modelfolder

    folder, overrides = _sorted(words)
    if out is not None:
        modelfolder.refuse_used(out)
    if folder is None:
        figures = _of_model(source, overrides, {"--preset": preset, "-c": file}, out)
    else:
        figures = _of_files(source, folder, overrides, preset, file, out)
    if figures is None:
        return
    if as_json:
        echo_json(figures)
    elif folder is None:
        figures_table(figures)
    else:
        _table(figures)


def _sorted(words: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    """The folder of samples, if one is named, and the settings."""
    from flowcore.errors import InputError, UsageError

    overrides = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    folders = [word for word in words if word not in overrides]
    for word in folders:
        if not Path(word).is_dir():
            raise InputError(f"{word!r} is no folder of samples; a setting is written key=value")
    if len(folders) > 1:
        raise UsageError(f"one folder is measured at a time, not {' and '.join(folders)}")
    return (Path(folders[0]) if folders else None), overrides


def _of_model(source: str, overrides: list[str], misplaced: dict[str, str | None], out: Path | None) -> Any:
    """The figures of fresh samples of a model; None on all processes but the first."""
    from flowcore.errors import InputError, UsageError
    from flowplat import modelfolder
    from flowplat.discovery import installed

    for option, value in misplaced.items():
        if value is not None:
            raise UsageError(f"{option} goes with a folder of samples; a model has its config, which key=value changes")
    try:
        folder = modelfolder.find(source)
    except InputError as error:
        if source not in installed():
            raise
        raise InputError(f"{error}; to measure files by plugin {source!r}, name their folder behind it") from error
    with results_only():
        from flowplat.evaluation import draw, evaluate
        from flowplat.model import load

        model = load(folder, *overrides)
        model.experiment.engine.launch()
        drawn = draw(model.experiment, model.network)
        model.experiment.engine.close()
        if drawn is None:
            return None
        return _kept(lambda place: evaluate(model.experiment, model.network, drawn, place), out)


def _of_files(
    plugin: str, folder: Path, overrides: list[str], preset: str | None, file: str | None, out: Path | None
) -> Any:
    """The figures of the samples in a folder, measured by one process, whatever the config asks for."""
    from flowplat.config import resolve

    config = resolve(plugin, overrides, preset, file)  # before torch is imported: a typo is told at once
    devices = config.engine.devices[:1] if isinstance(config.engine.devices, list) else 1
    alone = config.engine.model_copy(update={"devices": devices, "num_nodes": 1, "strategy": "auto"})
    with results_only():
        from flowplat.evaluation import evaluate_files, read
        from flowplat.experiment import Experiment

        experiment = Experiment(config.model_copy(update={"engine": alone}))
        samples = read(experiment, folder)
        return _kept(lambda place: evaluate_files(experiment, samples, place), out)


def _kept(measure: Callable[[Path], Any], out: Path | None) -> Any:
    """The figures that ``measure(folder)`` finds, kept in ``out`` if that is given."""
    import tempfile

    from flowplat.rundir import write_json

    with tempfile.TemporaryDirectory() as passing:
        figures = measure(out or Path(passing))
    if out is not None:
        write_json(out / "metrics.json", figures)
    return figures


def _table(figures: dict[str, Any]) -> None:
    """Print the figures of files: no solver made them, so there is one value each."""
    from flowplat.report import number, table

    title = f"{figures['count']} samples"
    click.echo(f"{title:24}{'value':>10}{'floor':>10}  baselines")
    for row in table(figures):
        baselines = ", ".join(f"{name} {number(value)}" for name, value in row["baselines"].items())
        click.echo(f"{row['name']:24}{number(row['value']):>10}{number(row['floor']):>10}  {baselines}")
