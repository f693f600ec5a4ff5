"""Runs side by side: where their configs differ, and their figures with their floors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowcore.errors import InputError
from flowplat.runs import Run, shown


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """``{"runs", "config": [{"key", "values"}], "figures": [{"name", "steps", "values", "floors"}]}``, one value a run.

    Of the config only the keys that differ; null where a run has no such key or figure. Raises ``InputError`` when a
    config cannot be read.
    """
    configs = [dict(flat(_config(run))) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if any((key in config, config.get(key)) != (True, configs[0].get(key))
                                            for config in configs)]  # fmt: skip
    tables = [{(row["name"], row["steps"]): row for row in measured(run.figures)} for run in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return {
        "runs": [{"id": shown(run.id), "folder": shown(run.folder)} for run in runs],
        "config": [{"key": key, "values": [config.get(key) for config in configs]} for key in differing],
        "figures": [
            {"name": name, "steps": steps,
             "values": [table.get((name, steps), {}).get("value") for table in tables],
             "floors": [table.get((name, steps), {}).get("floor") for table in tables]}
            for name, steps in names
        ],
    }  # fmt: skip


def flat(settings: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(``train.steps``, 500) and so on; an empty list or mapping is a value."""
    if isinstance(settings, dict | list) and settings:
        for name, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
            yield from flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, settings


def measured(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure of an eval/metrics.json: name, solver steps (None for the paths'), value, floor, baselines."""
    columns = figures.get("by_steps")
    columns = [column for column in columns if isinstance(column, dict)] if isinstance(columns, list) else []
    groups = [(column.get("steps"), column.get("figures")) for column in columns]
    rows = []
    for steps, group in [*groups, (None, figures.get("paths"))]:
        for name, figure in group.items() if isinstance(group, dict) else ():
            if isinstance(figure, dict):
                baselines = figure.get("baselines")
                rows.append(
                    {
                        "name": name,
                        "steps": steps if isinstance(steps, int) else None,
                        "value": figure.get("value"),
                        "floor": figure.get("floor"),
                        "baselines": baselines if isinstance(baselines, dict) else {},
                    }
                )
    return rows


def _config(run: Run) -> dict[str, Any]:
    from flowplat.plain_yaml import parse

    path = run.folder / "config.yaml"
    try:
        found = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no settings")
    return found
