"""A user's volumes of one scanner: the target."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from flowcore.errors import InputError
from flowplat_mri import geometry, jobs, reading, simulate
from flowplat_mri.data import Scan, SetConfig, VolumeSet
from flowplat_mri.prepared import prepared

HELD = 0.1  # share of the volumes that are held out


def _absolute(value: list[str] | str) -> list[str]:
    """Paths that mean the same from every working directory, so that a run's config.yaml does too."""
    given = [value] if isinstance(value, str) else value
    return [str(Path(one).expanduser().absolute()) for one in given]


class VolumesConfig(SetConfig):
    """A user's volumes, all of one scanner and one contrast."""

    path: Annotated[list[str] | str, AfterValidator(_absolute)] = Field(
        description="the target scanner's volumes: files, folders, CSV lists (subject, path, mask), BIDS roots"
    )
    match: str = Field("", description="in a folder that is no BIDS root, what names have in them that count: T1w")
    mask: str = Field("", description="a folder of brain masks named like the volumes; empty: found")
    contrast: str = Field("T1w", description="as BIDS calls it; in a BIDS root the suffix that counts")
    voxel: float | None = Field(
        None, gt=0, description="edge in mm of the model's voxels; null: the first volume's own"
    )
    held: int | None = Field(None, ge=1, description="volumes that are held out; null for one in ten, one at least")


class Volumes(VolumeSet):
    """See ``VolumesConfig``. The last volumes, by name, are held out."""

    config: VolumesConfig

    @staticmethod
    def example(folder: Path) -> Mapping[str, Any]:
        """See ``Checkable.example``: three simulated subjects at 6 mm."""
        from flowplat_mri import writing
        from flowplat_mri.simulating import image

        for number in range(3):
            tissues = simulate.subject(number, 6.0)
            one = image(1000 * simulate.scan(tissues, "target", number), tissues.affine)
            writing.save(folder / f"sub-{number}_T1w.nii.gz", one)
        return {"path": str(folder), "guises": 1}

    def read(self) -> tuple[list[Scan], list[Scan], tuple[float, float, float]]:
        """The volumes of the paths, with the model's voxels. Raises ``InputError`` naming the one at fault."""
        config = self.config
        found = jobs.jobs(
            [Path(one) for one in config.path],
            config.contrast,
            config.match,
            Path(config.mask) if config.mask else None,
        )
        voxel = None if config.voxel is None else (config.voxel,) * 3
        scans = []
        for job in found:
            volume = reading.read(job.path)
            mask = None if job.mask is None else reading.read_mask(job.mask, volume)
            if voxel is None:
                voxel = geometry.canonical(volume.data, volume.affine, volume.name).voxel
            one = prepared(volume, mask, voxel)
            scans.append(Scan(one.x, one.mask, one.scale, job.subject))
        if len(scans) < 2:
            raise InputError(f"data.path names one volume, {found[0].path}; two are needed, one of them held out")
        held = min(len(scans) - 1, config.held or max(1, round(HELD * len(scans))))
        return scans[:-held], scans[-held:], voxel
