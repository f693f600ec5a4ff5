"""The plugin's verbs: volumes made to look as if taken on the target scanner, and a page to judge them by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from flowcore import files
from flowcore.errors import InputError, UsageError
from flowcore.plugin.contracts import Trained
from flowplat_mri import batch, judging, reading
from flowplat_mri.applying import Asked, target_of
from flowplat_mri.jobs import jobs

Mode = Annotated[
    Literal["auto", "2d", "2.5d", "3d"],
    Field(description="slices, their average over three planes, or blocks; auto is what the model was trained for"),
]
Plane = Annotated[
    Literal["trained", "axial", "coronal", "sagittal"], Field(description="the slices that mode=2d goes through")
]
Samples = Annotated[
    int,
    Field(ge=0, le=64, description="draws that are averaged; 0 is the mean of all, in one call of the network"),
]
Steps = Annotated[int, Field(ge=1, le=1000, description="steps of each draw")]
Weight = Annotated[
    float | None,
    Field(ge=0, le=1, description="share of the learned prior beside histogram matching; null: as training told"),
]
Match = Annotated[
    str, Field(description="in a folder that is no BIDS root, what the names have in them that count, such as T1w")
]
MaskPath = Annotated[str, Field(description="brain mask, or a folder of masks named like the volumes; empty: found")]
LesionPath = Annotated[str, Field(description="lesion mask, or a folder of them; what lies within is protected")]
Seed = Annotated[int, Field(ge=0, description="the source of every draw")]


def harmonize(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    mode: Mode = "auto",
    plane: Plane = "trained",
    samples: Samples = 0,
    steps: Steps = 8,
    weight: Weight = None,
    range: Annotated[
        Literal["target", "source"],
        Field(description="the units that are written: the target scanner's, or the source's"),
    ] = "target",
    background: Annotated[
        Literal["zero", "keep"], Field(description="what is written outside of the mask: 0, or what was there")
    ] = "zero",
    match: Match = "",
    mask: MaskPath = "",
    lesion: LesionPath = "",
    protect: Annotated[bool, Field(description="false: lesion masks are only reported on")] = True,
    spread: Annotated[
        bool, Field(description="write how much draws differ by voxel, too (samples of 2 and more)")
    ] = False,
    force: Annotated[bool, Field(description="harmonize what looks like another, inverted contrast")] = False,
    overwrite: Annotated[bool, Field(description="make again what is there already")] = False,
    seed: Seed = 0,
) -> Any:
    """Volumes as if taken on the target scanner, with the headers they came with.

    An input is a ``.nii``, ``.nii.gz``, ``.mgz``, ``.mgh``, a folder of them, a CSV list (subject, path, mask, lesion)
    or a BIDS root, whose derivatives are written as BIDS asks. ``out`` is a file for one volume, or a folder, with a
    sidecar for each volume, ``summary.csv`` and ``quality.html``. Called again, it goes on with what is missing. From
    Python inputs may be nibabel images, and without ``out`` images are returned.
    """
    if spread and samples < 2:
        raise UsageError("spread is how much draws differ: set samples=2 or more")
    asked = Asked(mode, plane, samples, steps, weight, range, background, protect, force, seed)
    target = target_of(trained)
    if out is None:
        return batch.images(trained, inputs, asked)
    if bad := [one for one in inputs if not isinstance(one, str | Path)]:
        raise UsageError(f"{type(bad[0]).__name__} is no path; leave out away to get images back")
    paths = [Path(one) for one in inputs]
    work = jobs(paths, target.contrast, match, _path(mask), _path(lesion))
    folder = out
    if ending := reading.ending(out):
        if len(work) != 1:
            raise UsageError(f"{out} is one file, and there are {len(work)} volumes; name a folder")
        if ending.replace(".gz", "") != reading.ending(work[0].path).replace(".gz", ""):
            raise UsageError(f"{out} is of another format than {work[0].path}; its header would be lost")
        work, folder = [work[0].at(Path(out.name))], out.parent
    elif out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file of another kind; name a folder, or a file that ends as volumes do")
    if collision := next((job for job in work if (folder / job.place).resolve() == job.path.resolve()), None):
        raise UsageError(f"{collision.path} would be written over; name another place")
    roots = sorted({str(job.bids) for job in work if job.bids is not None})
    if len(roots) > 1:
        raise UsageError(f"{' and '.join(roots)} are two data sets; harmonize each into a folder of its own")
    with files.refusals(f"{out} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
    records, failed = batch.carry_out(trained, work, folder, asked, overwrite, spread)
    told: dict[str, Any] = {
        "volumes": len(work),
        "done": sum(record["status"] == "done" for record in records),
        "skipped": sum(record["status"] == "skipped" for record in records),
        "flagged": sum(bool(record["Flags"]) for record in records),
        "failed": failed,
    }
    if ending:
        return told | {"flags": records[0]["Flags"]}
    if not told["done"] and not failed and (folder / batch.PAGE).exists():
        return told  # the table and the page are of these volumes already
    if roots:
        batch.describe(folder, roots[0])
    with files.refusals(f"{out} cannot be written"):
        files.write(folder / batch.TABLE, batch.table(records, failed))
        page = judging.page(trained, [(folder / job.place, job) for job in work], failed)
        files.write(folder / batch.PAGE, page)
    return told


def _path(given: str) -> Path | None:
    return Path(given) if given else None


def qc(
    trained: Trained,
    inputs: Sequence[Any],
    out: Path | None,
    match: Match = "",
) -> Any:
    """The quality page of volumes that are harmonized already, by this plugin or by any other tool.

    An input is a folder that ``harmonize`` has written, or a CSV list (subject, path, harmonized, mask), where path is
    the source. ``out`` is the page, or without it the figures by subject are returned.
    """
    if not inputs:
        raise InputError("no volume is named; give a folder that harmonize has written, or a CSV list")
    pairs = [pair for one in inputs for pair in judging.pairs(Path(one), match)]
    shown, failed = judging.looked(trained, pairs)
    if not shown:
        raise InputError(f"none of {len(pairs)} pairs can be compared; the first: {next(iter(failed.values()))}")
    if out is None:
        return {one.name: one.look.figures for one in shown}
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out} should end in .html: it is one page")
    with files.refusals(f"{out} cannot be written"):
        files.write(out, judging.rendered(trained, shown, failed))
    return {"volumes": len(shown), "flagged": sum(bool(one.look.flags) for one in shown), "failed": failed}
