"""What the MRI plugin registers."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_data(register: Register) -> None:
    data = "flowplat_mri.data"
    register(
        "simulated", f"{data}:Simulated", config=f"{data}:SimulatedConfig",
        summary="brains drawn from a template and scanned by signal equations, no download",
    )  # fmt: skip
    volumes = "flowplat_mri.volumes"
    register(
        "volumes", f"{volumes}:Volumes", config=f"{volumes}:VolumesConfig",
        summary="a user's volumes of the target scanner: NIfTI, MGH, folders, CSV lists, BIDS",
    )  # fmt: skip


@hookimpl
def register_networks(register: Register) -> None:
    networks = "flowplat_mri.networks"
    register(
        "unet", f"{networks}:unet", config=f"{networks}:UNetConfig",
        summary="MONAI's UNet on patches of pixels, told a view of the anatomy; slices or blocks",
    )  # fmt: skip
    coupling = "flowplat_mri.coupling"
    register(
        "glow", f"{coupling}:glow", config=f"{coupling}:GlowConfig",
        summary="a coupling flow of slices with spline couplings: BlindHarmony",
    )  # fmt: skip


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "harmonizing", "flowplat_mri.objective:harmonizing",
        summary="matching, with part of each batch at t = 0, and what the mean is worth beside histogram matching",
        uses=("path", "coupling", "times", "loss", "predicts"),
    )  # fmt: skip
    register(
        "likelihood", "flowplat_mri.coupling:likelihood", summary="the exact likelihood of a coupling flow, by pixel"
    )


@hookimpl
def register_samplers(register: Register) -> None:
    register("inverse", "flowplat_mri.coupling:inverse", summary="a coupling flow run backwards, in one call")


@hookimpl
def register_metrics(register: Register) -> None:
    register(
        "harmonization", "flowplat_mri.scoring:harmonization",
        summary="PSNR of unseen scanners' volumes against the truth, beside histogram matching; a quality page",
    )  # fmt: skip


@hookimpl
def register_tasks(register: Register) -> None:
    register(
        "harmonize", "flowplat_mri.tasks:harmonize", resumes=True,
        summary="volumes as if taken on the target scanner, headers kept, with a quality page",
    )  # fmt: skip
    register("qc", "flowplat_mri.tasks:qc", summary="the quality page of volumes that are harmonized already")
    register(
        "evaluate", "flowplat_mri.evaluating:evaluate",
        summary="how near the model comes to the truth, beside histogram matching",
    )  # fmt: skip
    register(
        "simulate", "flowplat_mri.simulating:simulated", model=False,
        summary="simulated subjects on several scanners, as a BIDS root with the truth",
    )  # fmt: skip
    register(
        "combat", "flowplat_mri.combat:combat", model=False,
        summary="ComBat: scanners' shift and scale taken out of a table of regions",
    )  # fmt: skip


@hookimpl
def register_presets(register: Register) -> None:
    presets = "flowplat_mri:presets"
    register(
        "brains",
        f"{presets}/brains.yaml",
        summary="simulated brains in slices of 3 mm, minutes on a laptop",
        default=True,
    )
    register("brains-edges", f"{presets}/brains-edges.yaml", summary="the same, told edges alone, as BlindHarmonyDiff")
    register("brains-planes", f"{presets}/brains-planes.yaml", summary="slices across all three axes, averaged: 2.5D")
    register("brains-blocks", f"{presets}/brains-blocks.yaml", summary="blocks of a volume and a 3D network")
    register("brains-2mm", f"{presets}/brains-2mm.yaml", summary="slices of 2 mm and a larger network, for one GPU")
    register(
        "blindharmony", f"{presets}/blindharmony.yaml", summary="BlindHarmony: a coupling flow and its loop of rounds"
    )
    register(
        "blindharmony-flow", f"{presets}/blindharmony-flow.yaml", summary="the same loop on a flow-matching velocity"
    )
    register("smoke", f"{presets}/smoke.yaml", summary="brains of 6 mm in seconds, to see whether everything works")
