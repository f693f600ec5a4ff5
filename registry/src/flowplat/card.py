"""The README.md of an exported model: a card as the Hugging Face hub reads it, and as people do."""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flowcore.errors import UsageError
from flowplat import discovery
from flowplat.comparison import measured
from flowplat.config import chosen
from flowplat.plain_yaml import dump
from flowplat.report import number, table
from flowplat.settings import RunConfig

UNSTATED = "unknown"
"""The hub's word for a licence that nobody stated."""


def licence(identifier: str | None) -> str:
    """A licence identifier as the hub writes it, in lower case. Raises ``UsageError`` when it can be none."""
    if identifier is None:
        return UNSTATED
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier.lower()):
        raise UsageError(f"{identifier!r} is no licence identifier, such as apache-2.0, mit, cc-by-4.0 or other")
    return identifier.lower()


def card(
    name: str,
    config: RunConfig,
    record: dict[str, Any],
    figures: dict[str, Any],
    parameters: int,
    license: str,
    picture: bool,
) -> str:
    """The page. ``record`` is the run's provenance and ``record["exported"]`` its name and step; ``figures`` is its
    eval/metrics.json. Both are as far as they are there."""
    pages = Environment(
        loader=PackageLoader("flowplat"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False,
    )  # fmt: skip
    pages.filters |= {"number": number, "cell": cell}
    needed = _needed(config, record)
    mark = _part(record, "data").get("fingerprint")
    return pages.get_template("card.md").render(
        front=dump(_front(name, config, figures, license)),
        name=cell(name),
        config=config,
        step=record["exported"]["step"],
        fingerprint=mark if isinstance(mark, str) and mark.isalnum() else None,
        needed=[f"`{owner} {version}".rstrip() + "`" for owner, version in needed.items()],
        origin=_origin(record, needed),
        figures=figures,
        rows=table(figures) if figures else [],
        parameters=parameters,
        license=license if license != UNSTATED else None,
        picture=picture,
    )


def cell(text: Any) -> str:
    """Text for one cell of a table: on one line, with nothing in it that Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(text).split()))


def _front(name: str, config: RunConfig, figures: dict[str, Any], license: str) -> dict[str, Any]:
    """The metadata; of the figures those that are numbers, which is what the hub can show."""
    tags = ["flow-matching", "generative-model", config.plugin]
    tags += [config.path.component.name] if config.path else []
    front: dict[str, Any] = {
        "license": license,
        "library_name": "flowplat",
        "tags": list(dict.fromkeys(tags)),
    }
    metrics = [
        {
            "type": row["name"],
            "name": row["name"] if row["steps"] is None else f"{row['name']}, solver steps: {row['steps']}",
            "value": row["value"],
            "args": {key: row[key] for key in ("steps", "floor") if row[key] is not None},
        }
        for row in measured(figures)
        if isinstance(row["value"], int | float)
    ]
    if metrics:
        dataset = config.data.component.full_name
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "other", "name": "sampling"},
                        "dataset": {"type": dataset, "name": dataset},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return front


def _needed(config: RunConfig, record: dict[str, Any]) -> dict[str, str]:
    """The distributions to install, with their versions: the platform, and the plugins that the config names."""
    plugins = {config.plugin, *(choice.component.plugin for choice in chosen(config))}
    owners = [claim.distribution for plugin in sorted(plugins) for claim in discovery.installed().get(plugin, [])]
    known = _part(record, "versions")
    return {owner: str(known.get(owner) or "") for owner in dict.fromkeys(["flowplat", *owners])}


def _origin(record: dict[str, Any], needed: dict[str, str]) -> list[tuple[str, Any]]:
    """The rows that say where the weights come from."""
    rows = [("run", record["exported"]["run"]), ("started", record.get("started"))]
    versions = _part(record, "versions")
    rows += [(owner, versions.get(owner)) for owner in (*needed, "python", "torch", "numpy")]
    for owner, source in _part(record, "sources").items():
        if isinstance(source, dict):
            changed = " with changes" if source.get("changed") else ""
            rows.append((f"source of {owner}", f"{source.get('commit') or 'no commit'}{changed}"))
    return [(label, text) for label, text in rows if text]


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    part = record.get(name)
    return part if isinstance(part, dict) else {}
