"""What the time series plugin registers."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_data(register: Register) -> None:
    data = "flowplat_timeseries.data"
    register(
        "builtin", f"{data}:Builtin", config=f"{data}:BuiltinConfig", summary="hourly series of four kinds, no download"
    )
    register("files", f"{data}:Files", config=f"{data}:FilesConfig", summary="tables, long or wide, and JSON lines")
    gluonts = "flowplat_timeseries.repository"
    register(
        "gluonts", f"{gluonts}:GluonTS", config=f"{gluonts}:GluonTSConfig", summary="GluonTS's folders and names, split"
    )


@hookimpl
def register_networks(register: Register) -> None:
    networks = "flowplat_timeseries.networks"
    register(
        "s4d", f"{networks}:s4d", config=f"{networks}:S4DOptions",
        summary="diagonal state spaces that see a window in both directions: TSDiff",
    )  # fmt: skip


@hookimpl
def register_paths(register: Register) -> None:
    register(
        "gaussian_process", "flowplat_timeseries.priors:gaussian_process",
        summary="straight lines from a Gaussian process: TSFlow",
    )  # fmt: skip


@hookimpl
def register_samplers(register: Register) -> None:
    register(
        "conditional", "flowplat_timeseries.conditional:sampler", uses=("path", "predicts", "solver", "guidance"),
        summary="forecasts of a conditional model, from a process regressed on what it is told",
    )  # fmt: skip


@hookimpl
def register_metrics(register: Register) -> None:
    register(
        "forecasts",
        "flowplat_timeseries.metrics:forecasts",
        summary="CRPS and others of forecasts, with and without gaps",
    )
    register(
        "linear_predictive_score", "flowplat_timeseries.synthesis:linear_predictive_score",
        summary="the error of ridge regression that learns from the samples",
    )  # fmt: skip
    register(
        "downstream_score", "flowplat_timeseries.downstream:downstream_score",
        summary="CRPS of DeepAR, or another of GluonTS's networks, that learns from the samples",
    )  # fmt: skip


@hookimpl
def register_tasks(register: Register) -> None:
    tasks, further = "flowplat_timeseries.tasks", "flowplat_timeseries.further"
    register("forecast", f"{tasks}:forecast", summary="what comes next, with bands")
    register("impute", f"{tasks}:impute", summary="what is missing, filled in")
    register("refine", f"{further}:refine", summary="the forecasts of another method made likelier")
    register("synthesize", f"{further}:synthesize", summary="series drawn from the model")
    register("detect", f"{further}:detect", summary="windows that the model finds unusual")


@hookimpl
def register_presets(register: Register) -> None:
    presets = "flowplat_timeseries:presets"
    register(
        "flow", f"{presets}/flow.yaml", summary="hourly series by flow matching, minutes on a laptop", default=True
    )
    register("gp", f"{presets}/gp.yaml", summary="TSFlow: noise from a Gaussian process, paired by optimal transport")
    register("conditional", f"{presets}/conditional.yaml", summary="TSFlow's conditional model: forecasts alone")
    register("tsdiff", f"{presets}/tsdiff.yaml", summary="TSDiff: the same by variance-preserving diffusion")
