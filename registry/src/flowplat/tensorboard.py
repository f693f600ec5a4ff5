"""The observer ``tensorboard``: losses, figures and the picture of the samples, in the run's folder ``tensorboard``."""

from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flowcore.plugin import hookimpl
from flowcore.plugin.contracts import Watched

_writers: dict[str, SummaryWriter] = {}


def _writer(run: Watched, step: int | None = None) -> SummaryWriter:
    """The run's writer; made at ``step``, it hides what a session that was killed wrote of that step and later."""
    if (key := str(run.folder)) not in _writers:
        _writers[key] = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step)
    return _writers[key]


@hookimpl
def after_step(run: Watched, step: int, row: dict[str, Any] | None) -> None:
    for name, value in (row or {}).items():
        if name != "step":
            _writer(run, step).add_scalar(f"train/{name}", value, step)


@hookimpl
def run_finished(run: Watched, status: str, figures: dict[str, Any] | None) -> None:
    for column in (figures or {}).get("by_steps", []):
        for name, figure in column["figures"].items():
            _writer(run).add_scalar(f"eval/{name}", figure["value"], column["steps"])
    sheet = run.folder / "samples" / "sheet.png"
    if figures and sheet.is_file():
        import matplotlib.image

        _writer(run).add_image("samples", matplotlib.image.imread(str(sheet))[..., :3], dataformats="HWC")
    if (writer := _writers.pop(str(run.folder), None)) is not None:
        writer.close()
