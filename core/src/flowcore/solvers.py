"""Solvers: from a source sample to a data sample along the field,

    d x / d t = v(x, t)   from t = 0 to t = 1.

``solve`` is one loop for every method. A method is a function ``step(field, x, t, r, h) -> x`` from time t to time
r = t + h, made fresh for each solve by a factory in ``METHODS``, so that a multistep method may remember.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from flowcore.field import Field
from flowcore.guidance import Guidance, Guided, compose
from flowcore.paths import Affine, Product, ve
from flowcore.state import State, add, first_leaf, leaves, tree_map

Velocity = Callable[[State, Tensor], State]
Step = Callable[..., State]
"""``step(field, x, t, r, h) -> x``; t and r are 0-dimensional tensors, h = r - t a float. ``solve`` knows a method by
its attributes, where it has them: ``draws`` is set to the generator, ``reset()`` called before the first step;
``adaptive`` says that it chooses steps of its own, ``needs_field`` that a plain velocity will not do;
``after_reflow`` that it follows a field whose lines are straight, and no other."""
Callback = Callable[[int, float, State], None]


def euler() -> Step:
    """x + h v(x, t): order 1, one evaluation a step."""

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        return add(x, v(x, t), h)

    return step


def midpoint() -> Step:
    """x + h v(x + h/2 v(x, t), t + h/2): order 2, two evaluations a step."""

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        half = add(x, v(x, t), h / 2)
        return add(x, v(half, t + h / 2), h)

    return step


def heun(correct_last: bool = True) -> Step:
    """x + h/2 (v(x, t) + v(x + h v(x, t), r)): order 2, two evaluations a step.

    ``correct_last=False`` makes the step that arrives at t = 1 an Euler step, as EDM does: 2 N - 1 evaluations, none of
    them at t = 1, where a field that predicts data or noise is singular.
    """

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        first = v(x, t)
        if not correct_last and r == 1:
            return add(x, first, h)
        second = v(add(x, first, h), r)
        return add(add(x, first, h / 2), second, h / 2)

    return step


def rk4() -> Step:
    """The classical Runge-Kutta method: order 4, four evaluations a step."""

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        middle = t + h / 2
        k1 = v(x, t)
        k2 = v(add(x, k1, h / 2), middle)
        k3 = v(add(x, k2, h / 2), middle)
        k4 = v(add(x, k3, h), r)
        return add(add(add(add(x, k1, h / 6), k2, h / 3), k3, h / 3), k4, h / 6)

    return step


def dopri5(rtol: float = 1e-5, atol: float = 1e-5) -> Step:
    """Dormand and Prince's adaptive method of order 5, by torchdiffeq, from each time of the grid to the next.

    A grid of one step leaves every choice to it. The error is controlled for the batch as a whole, not for each sample.
    Raises ``FloatingPointError`` when its step underflows.
    """
    from torchdiffeq import odeint

    def step(v: Velocity, x: State, t: Tensor, r: Tensor, h: float) -> State:
        flat, rebuild = _flatten(x)

        early, late = (t, r) if h > 0 else (r, t)

        def slope(now: Tensor, y: Tensor) -> Tensor:
            # the guess of a first step looks ahead, and must not look past the end, where a path may have nothing
            return _flatten(v(rebuild(y), torch.minimum(torch.maximum(now, early), late)))[0]

        options = {"step_t": r.reshape(1)}  # the last step ends at r instead of being interpolated back to it
        try:
            ends = odeint(slope, flat, torch.stack([t, r]), rtol=rtol, atol=atol, method="dopri5", options=options)
            return rebuild(ends[-1])
        except AssertionError as error:
            if not str(error).startswith(("underflow in dt", "non-finite values")):
                raise  # the network's own
            raise FloatingPointError(
                f"dopri5 needs steps below the precision of t between {float(t):.4g} and {float(r):.4g} "
                f"({' '.join(str(error).split())}): the field is not finite or very stiff there, or rtol and atol are "
                "too small for the dtype"
            ) from error

    step.adaptive = True  # type: ignore[attr-defined]
    return step


def euler_maruyama(diffusion: float | Callable[[Tensor], Tensor] = 1.0) -> Step:
    """x + (v + e q) h + sqrt(2 e h) z with score q and e(t) >= 0: every e has the marginals of the ODE, e = 0.

    ``diffusion`` is e: a number times sigma(t) (gamma(t) of an interpolant), which keeps e q bounded as the score
    grows, or a function of t that is used as it is. On a descending grid the drift is v - e q, the time reversal. The
    step that arrives at t = 1 adds no noise. (Albergo et al. 2023, arXiv 2303.08797, with sigma_sde^2 = 2 e.)
    """

    def step(field: "Velocity", x: State, t: Tensor, r: Tensor, h: float) -> State:
        e = diffusion(t) if callable(diffusion) else diffusion * _single(field).spread(t)
        e = max(float(e), 0.0)  # a sigma that ends at 0 may end below it by rounding
        x = add(x, field(x, t), h) if e == 0 else add(
            add(x, field(x, t), h), field.score(x, t), e * abs(h)  # type: ignore[attr-defined]
        )  # fmt: skip
        if e == 0 or r == 1:
            return x
        draws: torch.Generator | None = step.draws  # type: ignore[attr-defined]
        if draws is None:
            raise ValueError("euler_maruyama draws noise: pass solve(..., generator=...)")

        def noise(leaf: Tensor) -> Tensor:
            return torch.randn(leaf.shape, generator=draws, dtype=leaf.dtype, device=leaf.device)

        return add(x, tree_map(noise, x), math.sqrt(2 * e * abs(h)))

    step.draws = None  # type: ignore[attr-defined]
    step.needs_field = True  # type: ignore[attr-defined]
    return step


def exponential(order: int = 2) -> Step:
    """The exponential integrator of the noise ratio, DPM-Solver++ of order 1 or 2M: one evaluation a step.

        x_r = alpha_r D + sigma_r e,   D = E[x1 | x_t],  e = E[x0 | x_t]                               (order 1, DDIM)

    Order 2 adds (alpha_r - alpha_t sigma_r / sigma_t) (D - D_before) / (2 k), k the ratio of the last step in
    log(alpha / sigma) to this one. Exact in one step for a single data point, on any path. Of order 1 are the first
    step, one that begins or ends where alpha or sigma is 0, and one more than twice as long as the last, which D_before
    says too little about. (Lu et al. 2022, arXiv 2211.01095; Song et al. 2021, arXiv 2010.02502.)
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, not {order}")
    before: tuple[State, float] | None = None

    def step(field: "Velocity", x: State, t: Tensor, r: Tensor, h: float) -> State:
        nonlocal before
        path = _single(field)
        data, noise = field.x1(x, t), field.noise(x, t)  # type: ignore[attr-defined]
        a_t, s_t, a_r, s_r = (float(value) for value in (path.alpha(t), path.sigma(t), path.alpha(r), path.sigma(r)))
        length = math.log(a_r * s_t / (a_t * s_r)) if min(a_t, s_t, a_r, s_r) > 0 else math.inf
        end = tree_map(lambda d, e: a_r * d + s_r * e, data, noise)
        if order == 2 and before is not None and math.isfinite(length) and abs(length) <= 2 * abs(before[1]) < math.inf:
            change = tree_map(torch.sub, data, before[0])
            end = add(end, change, (a_r - a_t * s_r / s_t) * length / (2 * before[1]))
        before = (data, length)
        return end

    def reset() -> None:
        nonlocal before
        before = None

    step.reset = reset  # type: ignore[attr-defined]
    step.needs_field = True  # type: ignore[attr-defined]
    return step


def kept_noise() -> Step:
    """x_r = alpha_r E[x1 | x_t] + sigma_r x0 with the noise x0 that the solve began with: one evaluation a step.

    The exponential integrator of order 1 would put E[x0 | x_t] there. A field whose pairs are a map, as after reflow,
    knows the noise of a trajectory to be x0 throughout, and keeping it adds no error of its own. x0 is the first state
    over sigma there. From source to data only. (The sampler of Lee et al. 2024, arXiv 2405.20320.)
    """
    x0: State | None = None

    def step(field: "Velocity", x: State, t: Tensor, r: Tensor, h: float) -> State:
        nonlocal x0
        path = _single(field)
        if h < 0:
            raise ValueError("kept_noise samples from noise to data; take another solver for the way back")
        if x0 is None:
            x0 = tree_map(lambda leaf: leaf / path.sigma(t), x)
        a, s = float(path.alpha(r)), float(path.sigma(r))
        return tree_map(lambda d, e: a * d + s * e, field.x1(x, t), x0)  # type: ignore[attr-defined]

    def reset() -> None:
        nonlocal x0
        x0 = None

    step.reset = reset  # type: ignore[attr-defined]
    step.needs_field = step.after_reflow = True  # type: ignore[attr-defined]
    return step


def _single(field: Any) -> Any:
    """The field's path, where it has one sigma for all of the state."""
    if isinstance(field.path, Product):
        raise ValueError("this solver needs one sigma, and a product of paths has one for each part")
    return field.path


METHODS: dict[str, Callable[[], Step]] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "dopri5": dopri5,
    "euler_maruyama": euler_maruyama,
    "exponential": exponential,
    "kept_noise": kept_noise,
}


def time_grid(grid: int | float | Tensor, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """The times of a solve in float64: N equal steps for a whole number N, steps of length h for a float h (the last
    one shorter where h does not divide), or the tensor itself. Raises ``ValueError`` where that makes no steps."""
    if isinstance(grid, Tensor):
        times = grid.detach().to("cpu", torch.float64)
    elif isinstance(grid, Integral):
        if grid < 1:
            raise ValueError(f"the time grid needs at least one step, not {grid}")
        times = torch.linspace(start, stop, int(grid) + 1, dtype=torch.float64)
    else:
        if not 0 < grid <= stop - start:
            raise ValueError(f"a step of the time grid is longer than 0 and at most {stop - start}, not {grid}")
        whole = math.ceil((stop - start) / grid - 1e-9)
        times = torch.tensor([start + i * grid for i in range(whole)] + [stop], dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError("the time grid needs at least one step")
    lengths = times.diff()
    if not (bool((lengths > 0).all()) or bool((lengths < 0).all())):
        raise ValueError("the times of a grid all ascend or all descend; no step has length 0")
    return times


def edm_grid(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, path: Affine | None = None
) -> Tensor:
    """The times on ``path``, or on ``ve(sigma_max)``, of the noise levels of Karras et al. 2022 (arXiv 2206.00364),

    sigma_i = (smax^(1/rho) + i / (N - 1) (smin^(1/rho) - smax^(1/rho)))^rho,   i = 0 .. N - 1,   then 0.

    They are levels of sigma / alpha. The first time is the path's start, also where that is above sigma_max, and the
    last its stop. Raises ``ValueError`` where the levels do not descend to 0, or the path has no such levels.
    """
    if not 0 < sigma_min < sigma_max or rho <= 0:
        raise ValueError(f"rho={rho} and 0 < sigma_min={sigma_min} < sigma_max={sigma_max} make no noise levels")
    path = ve(sigma_max) if path is None else path
    ends = torch.tensor([path.stop, path.start], dtype=torch.float64)
    low, high = (path.sigma(ends) / path.alpha(ends)).tolist()
    if sigma_min <= low or sigma_max > high * (1 + 1e-9):
        raise ValueError(
            f"sigma_min={sigma_min:g} to sigma_max={sigma_max:g} are not within the noise levels of path {path.name}, "
            f"{low:.3g} to {high:.3g}"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    inner = path.inverse(torch.ones_like(sigma), sigma)[1:]
    return torch.cat([sigma.new_tensor([path.start]), inner, sigma.new_tensor([path.stop])])


def solve(
    field: Velocity,
    x: State,
    grid: int | float | Tensor = 100,
    method: str | Step = "euler",
    guidance: Sequence[Guidance] = (),
    callback: Callback | None = None,
    generator: torch.Generator | None = None,
) -> State:
    """Carry ``x`` along ``field`` over the time grid and return the state at its end.

    ``field`` is a ``Field``, or any function (x, t) -> velocity where the method asks for nothing else and no guidance
    is given. ``grid`` is as in ``time_grid``, over the path's [start, stop] ([0, 1] for a plain function): ascending to
    sample, descending to invert. ``callback(i, t, x)`` sees the state before step i, and the last one. ``generator``
    draws the noise of stochastic methods and guidance. Raises ``ValueError`` on an unknown method, a grid without
    steps, or guidance that needs steps under an adaptive method; ``FloatingPointError`` when the result is not finite.
    """
    if torch.is_inference_mode_enabled():  # its tensors count no versions, by which a field knows an evaluation again
        with torch.inference_mode(False), torch.no_grad():
            return solve(field, tree_map(torch.clone, x), grid, method, guidance, callback, generator)
    path = getattr(field, "path", None)
    start, stop = (0.0, 1.0) if path is None else (path.start, path.stop)
    grid = time_grid(grid, start, stop)
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown solver {method!r}; one of {', '.join(METHODS)}")
        method = METHODS[method]()
    if guidance and not isinstance(field, Field):
        raise ValueError("guidance steers a flowcore.field.Field, not a plain function")
    if getattr(method, "needs_field", False) and path is None:
        raise ValueError("this solver asks for more than a velocity: pass a flowcore.field.Field")
    if hasattr(method, "draws"):
        method.draws = generator
    if hasattr(method, "reset"):
        method.reset()
    if getattr(method, "adaptive", False) and any(one.needs_steps for one in guidance):
        raise ValueError("this guidance acts step by step; use a solver with fixed steps")
    leaf = first_leaf(x)
    values: list[float] = grid.tolist()
    times = grid.to(device=leaf.device, dtype=leaf.dtype).unbind()
    last = len(times) - 1
    seen: Velocity = field
    if guidance and isinstance(field, Field):
        seen = compose(field, guidance, generator)
    elif type(field) is Field and callback is None and not getattr(method, "needs_field", False):
        seen = field.velocity_once  # nobody asks for more at the point of an evaluation
    for i in range(last):
        h = values[i + 1] - values[i]
        if callback is not None:
            callback(i, values[i], x)
        if isinstance(seen, Guided):
            seen.dt = h
        x = method(seen, x, times[i], times[i + 1], h)
        if guidance:
            coming = values[i + 2] - values[i + 1] if i + 1 < last else 0.0
            for one in guidance:
                x = one.state(field, x, times[i + 1], coming)  # type: ignore[arg-type]
    if callback is not None:
        callback(last, values[-1], x)
    for leaf in leaves(x):
        if not bool(torch.isfinite(leaf).all()):
            raise FloatingPointError(
                "the sample is not finite: the field diverged, or was evaluated at a time where it is singular "
                "(see the path's start and stop)"
            )
    return x


def _flatten(x: State) -> tuple[Tensor, Callable[[Tensor], State]]:
    """A state as one flat tensor, and the way back."""
    if isinstance(x, Tensor):
        return x, lambda y: y
    parts = list(leaves(x))

    def rebuild(y: Tensor) -> State:
        pieces = iter(y.split([part.numel() for part in parts]))
        return tree_map(lambda leaf: next(pieces).view_as(leaf), x)

    return torch.cat([part.reshape(-1) for part in parts]), rebuild
