"""A teacher that is named by its preset: the run there is of it, or one that is made first.

teacher -> pairs -> student: each is a run of its own, with its own folder, and is used again while nothing that decides
it has changed. So a chain of any length is one command, and the same command goes on where it was interrupted.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowcore.errors import UsageError
from flowcore.training.engine import needs_start
from flowplat import runs, teacher
from flowplat.apart import run_apart
from flowplat.config import Plain, plain, resolve
from flowplat.experiment import Experiment
from flowplat.settings import RunConfig

CHANGES_NOTHING = (
    "engine", "sample", "eval", "observers", "teacher.model", "train.log_every", "train.checkpoint_every", "train.keep",
    "train.keep_best",
)  # fmt: skip
"""Settings in which a run may differ and be the same teacher."""


def ready(config: RunConfig) -> RunConfig:
    """The same config with the folder of its teacher in ``teacher.model``; the teacher is trained first where there is
    none yet.

    Raises what a run raises, and ``UsageError`` where it would be for processes that others have started to train it.
    """
    wanted = wanted_by(config)
    if wanted is None or config.teacher is None:
        return config
    wanted = ready(wanted)
    finished, begun = look_for(wanted)
    folder = finished or _train(wanted, begun)
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": str(folder)})})


def wanted_by(config: RunConfig) -> RunConfig | None:
    """The config of the teacher, where it is named by its preset and not by its folder.

    It is the preset with the student's data, seed and devices, with the student's network where the student begins with
    its weights, and with what ``teacher.config`` says.
    """
    settings = config.teacher
    if settings is None or settings.model is not None:
        return None
    shared: Plain = {"data": plain(config.data), "seed": config.seed, "engine": plain(config.engine)}
    if settings.start is not None:
        shared["network"] = plain(config.network)
    over = [("the student's config", shared), ("teacher.config", settings.config)]
    return resolve(config.plugin, preset=settings.preset, smoke=config.smoke, over=over)


def look_for(config: RunConfig) -> tuple[Path | None, Path | None]:
    """The first finished run under ``config``, and the last one that was begun and has not finished."""
    folder = Path("runs") / config.plugin / (config.preset or "config").replace("/", "-")
    if not folder.is_dir():
        return None, None
    experiment, key = Experiment(config), _key(plain(config))
    data, learnt = experiment.data.fingerprint(), teacher.record(experiment.teacher)
    same = [
        run for run in runs.scan(folder)[0]
        if run.record.get("data", {}).get("fingerprint") == data and run.record.get("teacher") == learnt
        and _key(runs.config_of(run.folder)) == key
    ]  # fmt: skip
    finished = [run.folder for run in same if run.status == "done"]
    begun = [run.folder for run in same if run.status in ("interrupted", "killed", "failed")]
    return finished[-1] if finished else None, begun[0] if begun else None


def _key(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key not in CHANGES_NOTHING:
            found |= _key(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return found


def _train(config: RunConfig, begun: Path | None) -> Path:
    from flowplat.runner import execute  # which asks here for the teacher

    if teacher.started_by_others():
        raise UsageError(
            f"the teacher, preset {config.preset} of plugin {config.plugin}, has to be trained first: run it the same"
            " way, and name it by teacher.model"
        )
    how = f"goes on in {begun}" if begun else "is trained first"
    print(f"platform: the teacher, preset {config.preset}, {how}", file=sys.stderr)
    apart = needs_start(config.engine)
    return (run_apart if apart else execute)(config, begun, begun is not None).folder
