"""A run's model as a folder that stands alone: weights, config, what sampling needs to know of the data, a card."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from flowcore.errors import PluginError, UsageError
from flowplat import modelfolder, runs
from flowplat.card import card, licence
from flowplat.components import one_line
from flowplat.model import Model, load
from flowplat.rundir import to_json

PRIVATE = ("host", "pid")
"""What a run notes of its sessions and a model does not tell."""


def export(run: str | Path, out: str | Path, license: str | None = None, name: str | None = None) -> Path:
    """Write the model of a run folder as the new folder ``out``; see ``flowplat.modelfolder`` for what is in it.

    ``license`` is an identifier such as ``apache-2.0``; ``name`` heads the card, the folder's own if not given. Figures
    are exported only where they are those of these weights. Raises ``InputError`` when ``out`` holds something or
    ``run`` is no run, ``IntegrityError`` when no checkpoint is whole, ``MachineError`` when the disk refuses.
    """
    folder, out = Path(run), Path(out)
    license = licence(license)
    modelfolder.refuse_used(out)
    if modelfolder.is_model(folder):
        raise UsageError(f"{folder} is a model already; `platform publish` or `platform pull` copies it")
    model, found = load(folder), runs.read(folder)
    config, step = model.experiment.config, runs.step_of(model.source)
    facts = _facts(model)
    current = found.status == "done" and not _outdated(model, found)  # or else figures and picture are of other weights
    figures = found.figures if current else {}
    record = {**found.record, "exported": {"run": found.id, "step": step}}
    if isinstance(record.get("sessions"), list):
        record["sessions"] = [_without(session) for session in record["sessions"]]
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.network.state_dict().items()}
    sheet = folder / "samples" / modelfolder.SHEET
    picture = current and sheet.is_file()
    with modelfolder.placed(out) as place:
        save_file(weights, place / modelfolder.WEIGHTS, metadata={"format": "pt"})
        shutil.copyfile(folder / modelfolder.CONFIG, place / modelfolder.CONFIG)
        shutil.copymode(place / modelfolder.CONFIG, place / modelfolder.WEIGHTS)  # safetensors lets nobody else read
        _write(place / modelfolder.PROVENANCE, to_json(record))
        if facts is not None:
            _write(place / modelfolder.FACTS, facts)
        if figures:
            _write(place / modelfolder.FIGURES, to_json(figures))
        if picture:
            shutil.copyfile(sheet, place / modelfolder.SHEET)
        count = sum(value.numel() for value in model.network.parameters())
        page = card(name or out.absolute().name, config, record, figures, count, license, picture)
        _write(place / modelfolder.CARD, page)
        modelfolder.seal(place)
    return out


def _facts(model: Model) -> str | None:
    """What the data set states of itself for sampling elsewhere, as JSON; None where its config says all."""
    state = getattr(model.data, "facts", None)
    if state is None:
        return None
    name = model.experiment.config.data.component.full_name
    try:
        return json.dumps(state(), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(f"the facts() of data {name} are no plain JSON: {one_line(error)}") from error


def _outdated(model: Model, run: runs.Run) -> bool:
    """Whether the newest checkpoint is damaged and an older one took its place, which nobody has measured."""
    picks = model.experiment.config.train.patience is not None  # the best one, on purpose
    return not picks and model.source.name != run.checkpoints[-1].name


def _without(session: Any) -> Any:
    return {k: v for k, v in session.items() if k not in PRIVATE} if isinstance(session, dict) else session


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
