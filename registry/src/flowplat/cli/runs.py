"""``platform runs``: list, show, compare, prune."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from flowplat.cli.options import agreed, as_json, echo_json, size

root_option = click.option(
    "--root", type=click.Path(path_type=Path), default="runs", show_default=True, metavar="DIR",
    help="Where runs are: <plugin>/<preset>/<id> below it.",
)  # fmt: skip
plugin_option = click.option("--plugin", metavar="NAME", help="Only runs of this plugin.")


@click.group("runs")
def command() -> None:
    """A RUN is named by its folder, by its id or the beginning of it, or by `last`."""


@command.command("list")
@root_option
@plugin_option
@click.option("--status", metavar="NAME,...", help="Only runs that are done, failed, interrupted, running, killed ...")
@as_json()
def list_(root: Path, plugin: str | None, status: str | None, as_json: bool) -> None:
    """The runs there are, the last one first.

    A figure stands with its floor in brackets; it is the first of those measured, at the most solver steps. A run is
    killed when its process is gone and could not say so, and damaged when its record cannot be read.
    """
    from flowplat import runs

    wanted = _statuses(status)
    found, notes = runs.scan(root)
    _tell(notes)
    rows = [
        run.row() for run in found
        if plugin in (None, run.plugin) and (wanted is None or run.status in wanted)
    ]  # fmt: skip
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(f"no run below {root}{' is like that' if found else ''}", err=True)
        return
    table = [["id", "plugin", "preset", "status", "started", "steps", "figure", "size"]]
    for row in rows:
        steps = f"{row['steps']['done']}/{'?' if row['steps']['asked'] is None else row['steps']['asked']}"
        figure = row["figure"]
        measured = f"{figure['name']} {_beside(figure['value'], figure['floor'])}" if figure else "-"
        started = row["started"][:16].replace("T", " ")
        table.append(
            [row["id"], row["plugin"], row["preset"], row["status"], started, steps, measured, size(row["size"])]
        )
    _print(table)


@command.command("show")
@click.argument("run")
@root_option
@plugin_option
@click.option("--verify", is_flag=True, help="Hash every checkpoint, and say which are whole.")
@as_json()
def show(run: str, root: Path, plugin: str | None, verify: bool, as_json: bool) -> None:
    """All that is known of a run: where it came from, how it went, its figures, checkpoints and files."""
    from flowplat import runs

    found = runs.read(runs.find(run, root, plugin))
    _tell(found.faults)
    told = _told(found, verify)
    if as_json:
        echo_json(told)
        return
    for label, text in _lines(found, told):
        if text not in (None, ""):
            click.echo(f"{label:12}{text}")
    _figures(found.figures)


@command.command("compare")
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@root_option
@click.option(
    "--html", "page", type=click.Path(path_type=Path), metavar="PAGE",
    help="Write one page instead, with the best figures marked, the samples, and curves of all runs in one picture.",
)  # fmt: skip
@as_json()
def compare(names: tuple[str, ...], root: Path, page: Path | None, as_json: bool) -> None:
    """What differs between runs: the keys of their configs, and their figures, each with its floor in brackets.

    A PAGE that an earlier comparison wrote is replaced; any other file is left as it is.
    """
    from flowcore.errors import UsageError
    from flowplat import comparison, runs

    if len(names) < 2:
        raise UsageError("name two runs or more to compare")
    found = [runs.read(runs.find(name, root)) for name in names]
    _tell([fault for run in found for fault in run.faults])
    if page is not None:
        from flowplat.comparepage import write_page

        write_page(found, page)
        echo_json({"page": str(page)}) if as_json else click.echo(page)
        return
    told = comparison.compare(found)
    if as_json:
        echo_json(told)
        return
    ids = [run["id"] for run in told["runs"]]
    if told["config"]:
        _print([["config", *ids], *([row["key"], *map(_plain, row["values"])] for row in told["config"])])
    else:
        click.echo("the configs are equal", err=True)
    if told["figures"]:
        click.echo()
        rows = [
            [_title(row), *(_beside(value, floor) for value, floor in zip(row["values"], row["floors"], strict=True))]
            for row in told["figures"]
        ]
        _print([["figure", *ids], *rows])


@command.command("prune")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@root_option
@click.option("--status", metavar="NAME,...", help="Which to delete; failed,interrupted,killed if not given.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Only those that ended before that.")
@click.option(
    "--checkpoints", "thin", is_flag=True,
    help="Keep the runs (those that are done, if not given) and delete their checkpoints but the last and the best.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json()
def prune(
    names: tuple[str, ...], root: Path, status: str | None, older_than: float | None, thin: bool, dry_run: bool,
    yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Delete runs, to have their disk space back: those named, or those that did not finish.

    What would go is shown first. A run that is being trained is never touched, and one that --out named goes only when
    it is named here too.
    """
    from flowplat.prune import choose, delete
    from flowplat.runs import shown

    doomed, spared = choose(root, names, _statuses(status), older_than, thin)
    _tell(spared)
    freed = sum(one.size for one in doomed)
    told: dict[str, Any] = {
        "deleted": False,
        "size": freed,
        "runs": [
            {"folder": shown(one.run.folder), "status": one.run.status, "size": one.size,
             "checkpoints": [] if one.whole else [path.name for path in one.paths]}
            for one in doomed
        ],
        "spared": spared,
    }  # fmt: skip
    if not doomed:
        click.echo("there is nothing to delete", err=True)
    for one in [] if as_json else doomed:
        what = "" if one.whole else f"  {', '.join(path.name for path in one.paths)}"
        click.echo(f"{one.run.status:12}{size(one.size):>10}  {shown(one.run.folder)}{what}", err=not dry_run)
    if doomed and not dry_run:
        things = sum(len(one.paths) for one in doomed)
        noun = ("checkpoint" if thin else "run") + ("s" if things > 1 else "")
        if agreed(f"Delete {things} {noun}, {size(freed)}?", yes):
            delete(doomed, root)
            told["deleted"] = True
        click.echo(f"{size(freed)} freed" if told["deleted"] else "nothing was deleted", err=True)
    if as_json:
        echo_json(told)


def _told(run: Any, verify: bool) -> dict[str, Any]:
    """What ``show`` tells, as JSON."""
    from flowplat.runs import files_of, shown, size_of, step_of

    checkpoints = [
        {"step": step_of(path), "folder": path.name, "size": size_of(path), "whole": None, "fault": None}
        for path in run.checkpoints
    ]
    if verify and checkpoints:
        from flowcore.errors import IntegrityError
        from flowcore.training.checkpoints import verify as check
        from flowplat.progress import progress

        with progress("verify", len(checkpoints), "checkpoint") as bar:
            for path, one in zip(run.checkpoints, checkpoints, strict=True):
                try:
                    check(path)
                    one["whole"] = True
                except (IntegrityError, OSError) as error:
                    one |= {"whole": False, "fault": " ".join(str(error).split())}
                bar.update()
    kept = ("exit_code", "seed", "versions", "sources", "data", "hardware", "resumed_from")
    return run.row() | {
        "config": shown(run.folder / "config.yaml"),
        "sessions": run.sessions,
        **{key: run.record.get(key) for key in kept},
        "checkpoints": checkpoints,
        "figures": run.figures or None,
        "files": {shown(name): count for name, count in files_of(run.folder).items()},
    }


def _lines(run: Any, told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What ``show`` prints above the figures: a label and what stands behind it."""
    data, hardware, versions, sources = (
        told[name] if isinstance(told[name], dict) else {} for name in ("data", "hardware", "versions", "sources")
    )
    yield "run", told["folder"]
    yield "plugin", run.plugin
    yield "preset", run.preset
    yield "status", run.status
    yield "steps", f"{run.done} of {'?' if run.asked is None else run.asked}"
    yield "seed", told["seed"]
    yield "data", " ".join(str(data[key]) for key in ("name", "fingerprint") if data.get(key))
    yield "hardware", ", ".join(f"{key} {value}" for key, value in hardware.items() if value is not None)
    yield "size", size(run.size)
    yield "config", told["config"]
    for session in told["sessions"]:
        yield "session", ", ".join(_session(session))
        argv = session.get("argv")
        yield "", " ".join(["platform", *map(str, argv[1:])]) if isinstance(argv, list) else None
    for name, version in versions.items():
        source = sources.get(name)
        state = f", commit {source.get('commit') or 'none'}" if isinstance(source, dict) else ""
        yield "version", f"{name} {version}{state}{' with changes' if state and source.get('changed') else ''}"
    for one in told["checkpoints"]:
        whole = {True: ", whole", False: f", damaged: {one['fault']}", None: ""}[one["whole"]]
        yield "checkpoint", f"step {one['step']}, {size(one['size'])}{whole}"
    for name, count in told["files"].items():
        if "/" not in name and not name.startswith("."):
            yield "file", f"{name}, {size(count)}"


def _session(session: dict[str, Any]) -> Iterator[str]:
    times = [str(session[key]) for key in ("started", "ended") if session.get(key)]
    if times:
        yield " to ".join(times)
    if session.get("from_step"):
        yield f"from step {session['from_step']}"
    if session.get("status"):
        yield str(session["status"])
    if session.get("exit_code") is not None:
        yield f"exit code {session['exit_code']}"
    if session.get("host"):
        yield f"on {session['host']}"


def _figures(figures: dict[str, Any]) -> None:
    from flowplat.comparison import measured

    rows = measured(figures)
    if not rows:
        return
    click.echo()
    table = [["figure", "value", "floor", "baselines"]]
    for row in rows:
        baselines = ", ".join(f"{name} {_number(value)}" for name, value in row["baselines"].items())
        table.append([_title(row), _number(row["value"]), _number(row["floor"]), baselines])
    _print(table)


def _title(row: dict[str, Any]) -> str:
    if row["steps"] is None:
        return str(row["name"])
    return f"{row['name']}, {row['steps']} step{'' if row['steps'] == 1 else 's'}"


def _statuses(text: str | None) -> list[str] | None:
    """``--status`` as a list. Raises ``UsageError`` on a status that no run can have."""
    from difflib import get_close_matches

    from flowcore.errors import UsageError
    from flowplat.runs import STATUSES

    names = None if text is None else [word.strip() for word in text.split(",")]
    for name in names or ():
        if name not in STATUSES:
            close = get_close_matches(name, STATUSES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(STATUSES)}"
            raise UsageError(f"no status is called {name!r}; {hint}")
    return names


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"platform: {note}", err=True)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _beside(value: Any, floor: Any) -> str:
    return _number(value) + (f" ({_number(floor)})" if isinstance(floor, int | float) else "")


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _print(table: list[list[Any]]) -> None:
    """Columns side by side, as wide as they need to be."""
    rows = [["-" if cell is None else str(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
