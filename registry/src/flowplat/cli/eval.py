"""``platform eval``."""

from pathlib import Path

import click

from flowplat.cli.options import as_json, echo_json, figures_table, results_only


@click.command("eval")
@click.argument("source", metavar="MODEL")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for metrics.json and what metrics keep."
)
@as_json()
def command(source: str, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """MODEL is a run (its folder, its id or the beginning of it, or `last`) or an exported model whose data is here.

    KEY=VALUE changes its config, as in eval.count=5000, eval.steps=[10], eval.metrics=[...] or sample.solver=heun. The
    figures of the run itself stay as they are; without --out nothing is written.
    """
    from flowplat import modelfolder

    folder = modelfolder.find(source)
    if out is not None:
        modelfolder.refuse_used(out)
    with results_only():
        import tempfile

        from flowplat.evaluation import draw, evaluate
        from flowplat.model import load
        from flowplat.rundir import write_json

        model = load(folder, *overrides)
        model.experiment.engine.launch()
        drawn = draw(model.experiment, model.network)
        model.experiment.engine.close()
        if drawn is None:
            return
        with tempfile.TemporaryDirectory() as passing:
            figures = evaluate(model.experiment, model.network, drawn, out or Path(passing))
        if out is not None:
            write_json(out / "metrics.json", figures)
    if as_json:
        echo_json(figures)
    else:
        figures_table(figures)
