"""The core's own components, registered through the hooks that plugins use."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_paths(register: Register) -> None:
    register("linear", "flowcore.paths:linear", summary="straight lines: rectified flow, conditional OT")
    register("cosine", "flowcore.paths:cosine", summary="sin/cos, variance preserving")


@hookimpl
def register_couplings(register: Register) -> None:
    register("independent", "flowcore.couplings:independent", summary="source and data as they come")


@hookimpl
def register_times(register: Register) -> None:
    register("uniform", "flowcore.times:uniform", summary="t ~ U(0, 1)")
    register("logit_normal", "flowcore.times:logit_normal", summary="the middle of the path more often")


@hookimpl
def register_losses(register: Register) -> None:
    register("l2", "flowcore.losses:l2", summary="mean squared error")


@hookimpl
def register_solvers(register: Register) -> None:
    register("euler", "flowcore.solvers:euler", summary="order 1, one evaluation a step")
    register("midpoint", "flowcore.solvers:midpoint", summary="order 2, two evaluations a step")
    register("heun", "flowcore.solvers:heun", summary="order 2, two evaluations a step, ends included")


@hookimpl
def register_guidance(register: Register) -> None:
    register("classifier_free", "flowcore.guidance:classifier_free", summary="follow the condition w times as strongly")
