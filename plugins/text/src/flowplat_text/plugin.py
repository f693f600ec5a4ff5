"""What the text plugin registers."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_data(register: Register) -> None:
    data, hub = "flowplat_text.data", "flowplat_text.hub"
    register(
        "builtin", f"{data}:Builtin", config=f"{data}:BuiltinConfig", summary="texts that come with Python, no download"
    )
    register("files", f"{data}:Files", config=f"{data}:FilesConfig", summary="text, JSON lines, tables, packed or not")
    register("hf", f"{hub}:Hf", config=f"{hub}:HfConfig", summary="Hugging Face datasets, on the disk or the Hub")


@hookimpl
def register_networks(register: Register) -> None:
    networks = "flowplat_text.networks"
    register(
        "radd", f"{networks}:radd", config=f"{networks}:RaddOptions", summary="transformer that is told no time: RADD"
    )


@hookimpl
def register_metrics(register: Register) -> None:
    metrics = "flowplat_text.metrics"
    register("bits_per_byte", f"{metrics}:bits_per_byte", summary="what held-out text costs, beside n-grams and zlib")
    register("likeness", f"{metrics}:likeness", summary="how usual, how varied, how repetitive the samples are")
    judge = "flowplat_text.judge"
    register(
        "generative_perplexity", f"{judge}:generative_perplexity", config=f"{judge}:JudgeConfig",
        summary="what another model, in a folder of yours, says of the samples",
    )  # fmt: skip


@hookimpl
def register_tasks(register: Register) -> None:
    tasks, hugging = "flowplat_text.tasks", "flowplat_text.hugging"
    register("fill", f"{tasks}:fill", summary="texts with blanks anywhere, filled in")
    register("score", f"{tasks}:score", summary="what texts cost the model, in nats and bits a byte")
    register("export-hf", f"{hugging}:export_hf", summary="the model as a folder for transformers")
    register(
        "import-hf", f"{hugging}:import_hf", summary="published RADD or MDLM weights as a folder for transformers",
        model=False,
    )  # fmt: skip


@hookimpl
def register_presets(register: Register) -> None:
    presets = "flowplat_text:presets"
    register(
        "radd", f"{presets}/radd.yaml", summary="Python's help topics byte by byte, minutes on a laptop", default=True
    )
    register("radd-small", f"{presets}/radd-small.yaml", summary="RADD's small model (100 M), for one GPU")
    register("radd-medium", f"{presets}/radd-medium.yaml", summary="RADD's medium model (320 M), for several GPUs")
