"""What the molecules plugin registers."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_data(register: Register) -> None:
    builtin, sdf, qm9 = "flowplat_molecules.builtin", "flowplat_molecules.sdf", "flowplat_molecules.qm9"
    register(
        "builtin", f"{builtin}:Builtin", config=f"{builtin}:BuiltinConfig",
        summary="small molecules of C, H, N, O, F with GFN2-xTB properties, no download",
    )  # fmt: skip
    register("sdf", f"{sdf}:Sdf", config=f"{sdf}:SdfConfig", summary="a user's SDF files, properties in them or in CSV")
    register("qm9", f"{qm9}:Qm9", config=f"{qm9}:Qm9Config", summary="QM9 from its raw files, or fetched")


@hookimpl
def register_networks(register: Register) -> None:
    networks = "flowplat_molecules.networks"
    register(
        "gvp", f"{networks}:gvp", config=f"{networks}:GVPOptions",
        summary="geometric vector perceptrons on the whole graph, told properties: PropMolFlow",
    )  # fmt: skip


@hookimpl
def register_couplings(register: Register) -> None:
    register(
        "aligned",
        "flowplat_molecules.prior:aligned",
        summary="atoms of the noise assigned and turned onto a molecule's",
    )


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "molecules", "flowplat_molecules.objective:objective",
        summary="positions by squares, atoms, charges and bonds by cross-entropy", uses=("coupling", "times"),
    )  # fmt: skip


@hookimpl
def register_samplers(register: Register) -> None:
    register(
        "molecules", "flowplat_molecules.sampler:sampler",
        summary="positions flow while atoms and bonds appear; a size for each property", uses=("guidance",),
    )  # fmt: skip


@hookimpl
def register_metrics(register: Register) -> None:
    metrics = "flowplat_molecules.metrics"
    register("structure", f"{metrics}:structure", summary="validity, stability, closed shells, unique and new ones")
    register("judge", f"{metrics}:judge_error", summary="asked properties against the judge's")
    register("xtb", f"{metrics}:xtb_error", summary="asked properties against xTB's")
    register("ood", f"{metrics}:out_of_distribution", summary="how near samples come to a far target")
    register("posebusters", f"{metrics}:posebusters", summary="PoseBusters' ten checks")


@hookimpl
def register_tasks(register: Register) -> None:
    tasks, checking = "flowplat_molecules.tasks", "flowplat_molecules.checking"
    register("generate", f"{tasks}:generate", summary="molecules for a property asked for: SDF, CSV, pictures")
    register(
        "validate", f"{checking}:validate", summary="properties of molecules by xTB, or by density functional theory",
        model=False,
    )  # fmt: skip
    register("score", f"{checking}:score", summary="properties of molecules as the model's judge sees them")


@hookimpl
def register_presets(register: Register) -> None:
    presets = "flowplat_molecules:presets"
    register(
        "molecules", f"{presets}/molecules.yaml", summary="small molecules by dipole, minutes on a laptop", default=True
    )
    register("propmolflow", f"{presets}/propmolflow.yaml", summary="the paper's network and training, for one GPU")
