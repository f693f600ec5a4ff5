"""The core's own components, registered through the hooks that plugins use."""

from flowcore.plugin import hookimpl
from flowcore.plugin.hookspecs import Register


@hookimpl
def register_paths(register: Register) -> None:
    paths = "flowcore.paths"
    register("linear", f"{paths}:linear", summary="straight lines: rectified flow, conditional OT")
    register("polynomial", f"{paths}:polynomial", summary="straight lines at another speed, t^n")
    register("cosine", f"{paths}:cosine", summary="sine and cosine, variance preserving")
    register("linear_vp", f"{paths}:linear_vp", summary="alpha = t, variance preserving")
    register("vp", f"{paths}:vp", summary="the variance-preserving diffusion")
    register("ve", f"{paths}:ve", summary="the variance-exploding diffusion, EDM's noise levels; PFGM++")
    register(
        "interpolant", "flowcore.interpolants:interpolant",
        summary="two data sets and noise between them, for objective and sampler interpolant",
    )  # fmt: skip


@hookimpl
def register_couplings(register: Register) -> None:
    couplings = "flowcore.couplings"
    register("independent", f"{couplings}:independent", summary="source and data as they come")
    register("exact", f"{couplings}:exact", summary="optimal transport of the batch; condition_weight=.inf by class")
    register("entropic", f"{couplings}:entropic", summary="entropic transport; reg = 2 sigma^2: Schroedinger bridge")
    register("unbalanced", f"{couplings}:unbalanced", summary="entropic transport that leaves outliers out")
    register("gibbs", f"{couplings}:gibbs", summary="independent pairs weighted by exp(-distance / eps): W-CFM")


@hookimpl
def register_times(register: Register) -> None:
    times = "flowcore.times"
    register("uniform", f"{times}:uniform", summary="t ~ U(0, 1)")
    register("logit_normal", f"{times}:logit_normal", summary="the middle of the path more often")
    register("u_shaped", f"{times}:u_shaped", summary="both ends more often, for reflow")
    register("mode", f"{times}:mode", summary="more or less often in the middle, both ends kept")
    register("cosmap", f"{times}:cosmap", summary="the linear path timed like the cosine one")
    register("log_normal_noise", f"{times}:log_normal_noise", summary="EDM's log-normal noise level, for path=ve")


@hookimpl
def register_losses(register: Register) -> None:
    register("l2", "flowcore.losses:l2", summary="mean squared error")
    register("pseudo_huber", "flowcore.losses:pseudo_huber", summary="squared near zero, linear far from it")


@hookimpl
def register_solvers(register: Register) -> None:
    solvers = "flowcore.solvers"
    register("euler", f"{solvers}:euler", summary="order 1, one evaluation a step")
    register("midpoint", f"{solvers}:midpoint", summary="order 2, two evaluations a step")
    register("heun", f"{solvers}:heun", summary="order 2, two evaluations a step, ends included")
    register("rk4", f"{solvers}:rk4", summary="order 4, four evaluations a step")
    register("dopri5", f"{solvers}:dopri5", summary="adaptive, order 5, by torchdiffeq; use it with one step")
    register("euler_maruyama", f"{solvers}:euler_maruyama", summary="the SDE with the same marginals")
    register("exponential", f"{solvers}:exponential", summary="DPM-Solver++, order 1 or 2M, one evaluation a step")
    register("kept_noise", f"{solvers}:kept_noise", summary="the noise is kept throughout: for fields after reflow")


@hookimpl
def register_guidance(register: Register) -> None:
    register(
        "classifier_free", "flowcore.guidance:classifier_free", summary="follow the condition w times as strongly",
        off={"scale": 1},
    )  # fmt: skip


@hookimpl
def register_objectives(register: Register) -> None:
    register(
        "matching", "flowcore.objectives:matching", summary="the loss of a network on a path between coupled pairs",
        uses=("path", "coupling", "times", "loss", "predicts"),
    )  # fmt: skip
    distillation, steps = "flowcore.distillation", ("path", "loss", "predicts")
    register("one_step", f"{distillation}:one_step", summary="a teacher's pairs in one Euler step", uses=steps)
    register("k_step", f"{distillation}:k_step", summary="a teacher's pairs in k Euler steps", uses=steps)
    register(
        "annealed", f"{distillation}:annealed", summary="reflow that begins as a first flow, for a smaller student",
        uses=("path", "times", "loss", "predicts"),
    )  # fmt: skip
    register(
        "flow_guided", f"{distillation}:flow_guided", summary="one Euler step, and a teacher's second of two",
        uses=steps,
    )  # fmt: skip
    register(
        "phased", f"{distillation}:phased", summary="a teacher's way through each phase of a path in one step",
        uses=("path", "times", "loss", "predicts"),
    )  # fmt: skip
    register(
        "interpolant", "flowcore.stochastic:objective", summary="velocity and denoiser of a stochastic interpolant",
        uses=("path", "coupling", "times"),
    )  # fmt: skip
    register("masked", "flowcore.tokens:objective", summary="a bound on -log p of tokens, of which some are masked")


@hookimpl
def register_samplers(register: Register) -> None:
    register(
        "flow", "flowcore.samplers:flow", summary="the field, integrated from source to data",
        uses=("path", "predicts", "solver", "guidance"),
    )  # fmt: skip
    register(
        "interpolant", "flowcore.stochastic:sampler",
        summary="an interpolant's ODE, or with epsilon its SDE of the same marginals", uses=("path",),
    )  # fmt: skip
    register(
        "masked", "flowcore.tokens:sampler", summary="tokens drawn one after the other, or some at once",
        uses=("guidance",),
    )  # fmt: skip
