"""The observer ``tensorboard``: losses, figures and the picture of the samples, in the run's folder ``tensorboard``."""

from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flowcore.plugin import hookimpl
from flowcore.plugin.contracts import Watched

_writers: dict[str, SummaryWriter] = {}


@hookimpl
def run_started(run: Watched) -> None:
    _writers[str(run.folder)] = SummaryWriter(str(run.folder / "tensorboard"))


@hookimpl
def after_step(run: Watched, step: int, row: dict[str, Any] | None) -> None:
    for name, value in (row or {}).items():
        if name != "step":
            _writers[str(run.folder)].add_scalar(f"train/{name}", value, step)


@hookimpl
def run_finished(run: Watched, status: str, figures: dict[str, Any] | None) -> None:
    writer = _writers.pop(str(run.folder))
    for column in (figures or {}).get("by_steps", []):
        for name, figure in column["figures"].items():
            writer.add_scalar(f"eval/{name}", figure["value"], column["steps"])
    sheet = run.folder / "samples" / "sheet.png"
    if sheet.is_file():
        import matplotlib.image

        writer.add_image("samples", matplotlib.image.imread(str(sheet))[..., :3], dataformats="HWC")
    writer.close()
