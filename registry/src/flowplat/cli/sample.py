"""``platform sample``."""

import re
from pathlib import Path

import click

from flowplat.cli.options import as_json, echo_json, results_only


@click.command("sample")
@click.argument("source", metavar="MODEL")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-n", "--count", type=click.IntRange(min=1), default=64, show_default=True, help="How many.")
@click.option("--steps", type=click.IntRange(min=1), help="Solver steps; the run's own if not given.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed; the run's own if not given.")
@click.option("--condition", metavar="TEXT", help="What to condition on, in the domain's words.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder; if not given, RUN/samples/<name>, or samples/<model>/<name> here.",
)
@as_json()
def command(
    source: str, overrides: tuple[str, ...], count: int, steps: int | None, seed: int | None, condition: str | None,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """MODEL is a run (its folder, its id or the beginning of it, or `last`) or an exported model.

    KEY=VALUE changes its config, as in sample.solver=heun.

    Samples are written in the plugin's own formats, with a picture of them all, sheet.png.
    """
    from flowplat import modelfolder

    folder = modelfolder.find(source)  # before torch is imported: a typo is told at once
    with results_only():
        from flowplat.model import load

        model = load(folder, *overrides)
    config = model.experiment.config
    steps = config.sample.steps if steps is None else steps
    seed = config.seed if seed is None else seed
    wishes = "".join(f"-{re.sub('[^A-Za-z0-9.,=]+', '_', wish)}" for wish in (condition, *overrides) if wish)
    exported = modelfolder.is_model(folder)  # whose folder stays as it is
    home = Path("samples") / folder.resolve().name if exported else folder / "samples"
    target = out if out is not None else home / f"n{count}-steps{steps}-seed{seed}{wishes}"
    modelfolder.refuse_used(target)
    with results_only():
        samples = model.draw(count, steps, seed, condition)
        model.experiment.engine.close()
        if samples is None:
            return
        target.mkdir(parents=True, exist_ok=True)
        model.data.write(samples, target)
        (target / "sheet.png").write_bytes(model.data.show(samples))
    if as_json:
        echo_json({"folder": str(target), "count": count, "steps": steps, "nfe": samples.extra["calls"], "seed": seed})
    else:
        click.echo(target)
