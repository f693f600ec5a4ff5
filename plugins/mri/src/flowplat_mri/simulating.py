"""Scans of simulated subjects as files: several scanners each, with their tissues, to try harmonization on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from tqdm import tqdm

from flowcore import files
from flowcore.errors import UsageError
from flowcore.plugin.contracts import Trained
from flowplat_mri import simulate, writing

FIRST = 500_000  # of the subjects that are written, so that no run with data=simulated has learned from them
DEFAULT = ("target", "S1", "S2", "S3", "S4", "S5")


def simulated(
    trained: Trained | None,
    inputs: Sequence[Any],
    out: Path | None,
    count: Annotated[int, Field(ge=1, description="subjects")] = 3,
    scanners: Annotated[tuple[str, ...], Field(min_length=1, description="scanners that each is scanned on")] = DEFAULT,
    resolution: Annotated[float, Field(ge=1, le=6, description="edge of a voxel in mm")] = 3.0,
    seed: Annotated[int, Field(ge=0, description="the source of every draw")] = 0,
) -> Any:
    """A BIDS root of subjects, a session for each scanner, whose T1w images show the same anatomy; in
    ``derivatives/truth`` their tissues (``dseg``: 1 CSF, 2 grey, 3 white matter) and masks, and ``pairs.csv`` for the
    task ``evaluate``. From Python without ``out``: nibabel images by subject and scanner.
    """
    if inputs:
        raise UsageError(f"simulate takes no files: leave {inputs[0]} out")
    if unknown := [name for name in scanners if name not in simulate.SCANNERS]:
        raise UsageError(f"no scanner {unknown[0]!r}; there are {', '.join(simulate.SCANNERS)}")
    made: dict[str, dict[str, Any]] = {}
    rows = ["subject,group,path,truth,mask,labels"]
    for number in tqdm(range(count), desc="simulate", unit="subject", disable=None):
        name = f"sub-{number + 1:02d}"
        drawn = FIRST + 1000 * seed + number
        tissues = simulate.subject(drawn, resolution)
        volumes = {
            scanner: simulate.scan(tissues, scanner, drawn * 31 + place)
            for place, scanner in enumerate(simulate.SCANNERS)
            if scanner in scanners
        }
        images = {scanner: image(1000 * volume, tissues.affine) for scanner, volume in volumes.items()}
        if out is None:
            made[name] = images
            continue
        truth = out / "derivatives" / "truth" / name / "anat"
        writing.save(truth / f"{name}_dseg.nii.gz", image(tissues.labels, tissues.affine, np.uint8))
        writing.save(truth / f"{name}_desc-brain_mask.nii.gz", image(tissues.mask, tissues.affine, np.uint8))
        for scanner, one in images.items():
            writing.save(out / place_of(name, scanner), one)
            if "target" in images and scanner != "target":
                there = [place_of(name, scanner), place_of(name, "target")]
                there += [(truth / f"{name}_{end}.nii.gz").relative_to(out) for end in ("desc-brain_mask", "dseg")]
                rows.append(",".join([f"{name}_{session(scanner)}", scanner, *(path.as_posix() for path in there)]))
    if out is None:
        return made
    with files.refusals(f"{out} cannot be written"):
        writing.note(out / "dataset_description.json", {
            "Name": "Simulated brains (flowplat-mri); anatomy after the ICBM 152 average",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
        })  # fmt: skip
        if len(rows) > 1:
            files.write(out / "pairs.csv", "\n".join(rows) + "\n")
    return {"subjects": count, "scanners": list(scanners), "resolution": resolution}


def session(scanner: str) -> str:
    """A scanner as the label of a BIDS session, which has letters and digits only."""
    return f"ses-{scanner.replace('.', '')}"


def place_of(name: str, scanner: str) -> Path:
    """Where a scan goes, below the root."""
    suffix = "T2w" if scanner == "T2w" else "T1w"
    return Path(name) / session(scanner) / "anat" / f"{name}_{session(scanner)}_{suffix}.nii.gz"


def image(data: np.ndarray, affine: np.ndarray, kind: Any = np.float32) -> Any:
    """A NIfTI image in mm whose sform and qform say scanner space."""
    import nibabel

    made: Any = nibabel.Nifti1Image(data.astype(kind), affine)
    made.set_sform(affine, code="scanner")
    made.set_qform(affine, code="scanner")
    made.header.set_xyzt_units("mm")
    return made
