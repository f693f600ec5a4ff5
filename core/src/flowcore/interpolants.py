"""Stochastic interpolants and bridges: two data sets as ends, and a noise gamma(t) z on the way between them,

    x_t = I(t, x0, x1) + gamma(t) z,   I = alpha(t) x1 + sigma(t) x0,   z ~ N(0, I),   gamma(0) = gamma(1) = 0.

Two regressions describe it: the velocity b = E[dI/dt + gamma' z | x_t] and the denoiser eta = E[z | x_t], which gives
the score q = -eta / gamma. With them the ODE and every SDE of the same marginals can be run
(``solvers.euler_maruyama``; ``stochastic`` makes runs of it). Source: Albergo, Boffi and Vanden-Eijnden 2023
(arXiv 2303.08797). With gamma = s sqrt(t (1 - t)) and the entropic coupling of regularisation 2 s^2 this is the
Schroedinger bridge matching of Tong et al. 2023 (arXiv 2307.03672).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.field import Network, evaluation
from flowcore.paths import Scalar, Source, gaussian
from flowcore.state import State, expand, first_leaf, tree_map

MARGIN = 1e-3
"""Draws and solves keep this far from both ends, where gamma' or 1 / gamma is infinite."""


class Gamma(NamedTuple):
    """gamma(t), and gamma(t) gamma'(t), which stays finite where gamma' does not."""

    value: Scalar
    slope: Scalar


def brownian(variance: float = 1.0) -> Gamma:
    """gamma = sqrt(c t (1 - t)), gamma gamma' = c (1 - 2 t) / 2: a Brownian bridge of variance c = sigma^2."""
    return Gamma(lambda t: (variance * t * (1 - t)).sqrt(), lambda t: variance * (1 - 2 * t) / 2)


def quadratic(scale: float = 1.0) -> Gamma:
    """gamma = c t (1 - t)."""
    return Gamma(lambda t: scale * t * (1 - t), lambda t: scale**2 * t * (1 - t) * (1 - 2 * t))


def sine_squared(scale: float = 1.0) -> Gamma:
    """gamma = c sin^2(pi t)."""

    def slope(t: Tensor) -> Tensor:
        sine = torch.sin(math.pi * t)
        return 2 * math.pi * scale**2 * sine**3 * torch.cos(math.pi * t)

    return Gamma(lambda t: scale * torch.sin(math.pi * t).square(), slope)


def zero() -> Gamma:
    """gamma = 0: an affine path between two data sets; it has no denoiser and no score."""
    return Gamma(torch.zeros_like, torch.zeros_like)


@dataclass(frozen=True)
class Interpolant:
    """``alpha`` multiplies x1, ``sigma`` x0, ``gamma`` the noise; tensors or dicts, ``t`` scalar or (B,).

    ``source`` draws x0 where the data bring none: with a Gaussian one the interpolant is one-sided.
    """

    name: str
    alpha: Scalar
    sigma: Scalar
    dalpha: Scalar
    dsigma: Scalar
    gamma: Gamma
    start: float = MARGIN
    stop: float = 1 - MARGIN
    source: Source = gaussian

    def draw_source(self, like: State, generator: torch.Generator) -> State:
        """x0 from the source distribution, shaped like ``like``."""
        return tree_map(lambda leaf: self.source(leaf, generator), like)

    def spread(self, t: Tensor) -> Tensor:
        """The size of the noise in x_t: gamma(t)."""
        return self.gamma.value(t)

    def interpolate(self, x0: State, x1: State, t: float | Tensor, z: State) -> State:
        """x_t = alpha x1 + sigma x0 + gamma z."""

        def mix(a: Tensor, b: Tensor, noise: Tensor) -> Tensor:
            time = expand(t, b)
            return self.alpha(time) * b + self.sigma(time) * a + self.gamma.value(time) * noise

        return tree_map(mix, x0, x1, z)

    def drift(self, x0: State, x1: State, t: float | Tensor) -> State:
        """dI/dt = alpha' x1 + sigma' x0."""

        def mix(a: Tensor, b: Tensor) -> Tensor:
            time = expand(t, b)
            return self.dalpha(time) * b + self.dsigma(time) * a

        return tree_map(mix, x0, x1)


def linear(gamma: Gamma) -> Interpolant:
    """I = t x1 + (1 - t) x0."""
    return Interpolant("linear", lambda t: t, lambda t: 1 - t, torch.ones_like, lambda t: -torch.ones_like(t), gamma)


def bridge(sigma: float) -> Interpolant:
    """The Brownian bridge: I linear, gamma = sigma sqrt(t (1 - t))."""
    return linear(brownian(sigma**2))


def trigonometric(gamma: Gamma) -> Interpolant:
    """I = sqrt(1 - gamma^2) (sin(pi t / 2) x1 + cos(pi t / 2) x0): variance one throughout for ends of variance one."""
    half = math.pi / 2

    def shrink(t: Tensor) -> Tensor:
        return (1 - gamma.value(t).square()).sqrt()

    def derivative(wave: Scalar, slope: Scalar) -> Scalar:
        return lambda t: shrink(t) * slope(t) - gamma.slope(t) / shrink(t) * wave(t)

    def sin(t: Tensor) -> Tensor:
        return torch.sin(half * t)

    def cos(t: Tensor) -> Tensor:
        return torch.cos(half * t)

    return Interpolant(
        "trigonometric",
        lambda t: shrink(t) * sin(t),
        lambda t: shrink(t) * cos(t),
        derivative(sin, lambda t: half * cos(t)),
        derivative(cos, lambda t: -half * sin(t)),
        gamma,
    )


def encoding_decoding(gamma: Gamma | None = None) -> Interpolant:
    """sigma = cos^2(pi t) up to t = 1/2, then alpha = cos^2(pi t): x0 becomes noise, and the noise becomes x1."""

    def fall(t: Tensor) -> Tensor:
        return torch.cos(math.pi * t).square()

    def slope(t: Tensor) -> Tensor:
        return -math.pi * torch.sin(2 * math.pi * t)

    def early(f: Scalar) -> Scalar:
        return lambda t: torch.where(t <= 0.5, f(t), torch.zeros_like(t))

    def late(f: Scalar) -> Scalar:
        return lambda t: torch.where(t > 0.5, f(t), torch.zeros_like(t))

    return Interpolant("encoding_decoding", late(fall), early(fall), late(slope), early(slope), gamma or sine_squared())


def mirror(gamma: Gamma) -> Interpolant:
    """x_t = x1 + gamma z, both ends the same data set: variations of a sample. x0 is not used."""
    return Interpolant("mirror", torch.ones_like, torch.zeros_like, torch.zeros_like, torch.zeros_like, gamma)


def interpolant(
    between: Literal["linear", "trigonometric", "encoding_decoding", "mirror"] = "linear",
    gamma: Literal["brownian", "quadratic", "sine_squared", "zero"] = "brownian",
    scale: float = 1.0,
) -> Interpolant:
    """An interpolant by the names of I and gamma; ``scale`` is the c of the gamma. Raises ``ValueError`` for a scale
    that is not positive, and for a trigonometric I whose gamma reaches 1."""
    if not 0 < scale < math.inf:
        raise ValueError(f"the scale of an interpolant is a number above 0, not {scale}")
    scaled = {"brownian": brownian, "quadratic": quadratic, "sine_squared": sine_squared}
    noise = scaled[gamma](scale) if gamma in scaled else zero()
    top = noise.value(torch.tensor(0.5, dtype=torch.float64)).item()
    if between == "trigonometric" and top >= 1:
        reaches = f"{gamma} of scale {scale:g} goes to {top:g}; take a smaller scale"
        raise ValueError(f"a trigonometric interpolant needs gamma below 1, and {reaches}")
    kinds = {"linear": linear, "trigonometric": trigonometric, "mirror": mirror, "encoding_decoding": encoding_decoding}
    return kinds[between](noise)


class InterpolantField:
    """``network(x, t, condition) -> (b, eta)`` read as a field: velocity, denoiser, score, for ``solvers.solve``.

    b has the shape of x, and so has eta. ``learns="v"`` says that the first output is v = E[dI/dt | x_t] instead, from
    which b = v + gamma' eta.
    """

    def __init__(
        self, network: Network, path: Interpolant, condition: Any = None, learns: Literal["b", "v"] = "b"
    ) -> None:
        self.network, self.path, self.condition, self.learns = network, path, condition, learns
        self.calls = 0
        self._last: tuple[Any, tuple[State, State], State, Any] | None = None

    def predict(self, x: State, t: float | Tensor) -> tuple[State, State]:
        """The network's two outputs at (x, t)."""
        self.calls += 1
        leaf = first_leaf(x)
        time = torch.as_tensor(t, dtype=leaf.dtype, device=leaf.device)
        return self.network(x, time.expand(len(leaf)) if time.ndim == 0 else time, self.condition)

    def _heads(self, x: State, t: float | Tensor) -> tuple[State, State]:
        # one evaluation serves the velocity and the score of a step
        key = evaluation(self.network, x, t)
        if key is None or self._last is None or self._last[0] != key:
            self._last = (key, self.predict(x, t), x, t)
        return self._last[1]

    def velocity(self, x: State, t: float | Tensor) -> State:
        """b(x, t), the drift of the ODE."""
        first, eta = self._heads(x, t)
        return first if self.learns == "b" else self._with_noise(first, eta, t, 1.0)

    def _with_noise(self, first: State, eta: State, t: float | Tensor, sign: float) -> State:
        """``first`` + sign gamma' eta."""

        def add(v: Tensor, noise: Tensor) -> Tensor:
            time = expand(t, v)
            return v + sign * self.path.gamma.slope(time) / self.path.gamma.value(time) * noise

        return tree_map(add, first, eta)

    __call__ = velocity

    def drift(self, x: State, t: float | Tensor) -> State:
        """v(x, t) = E[dI/dt | x_t], which stays finite where gamma' does not."""
        first, eta = self._heads(x, t)
        return first if self.learns == "v" else self._with_noise(first, eta, t, -1.0)

    def denoiser(self, x: State, t: float | Tensor) -> State:
        """eta(x, t) = E[z | x_t]."""
        return self._heads(x, t)[1]

    def score(self, x: State, t: float | Tensor) -> State:
        """q = -eta / gamma; infinite at both ends."""
        return tree_map(lambda eta: -eta / self.path.gamma.value(expand(t, eta)), self.denoiser(x, t))


def interpolant_loss(field: InterpolantField, pairs: Pairs, t: Tensor, generator: torch.Generator) -> Tensor:
    """Per sample, shape (B,), over the antithetic pair x_+- = I +- gamma z, each term divided by the dimension:

        |b|^2 / 2 - (dI/dt + gamma' z) . b   (or |v|^2 / 2 - dI/dt . v)   +   |eta|^2 / 2 - z . eta

    Its value can be negative: a constant is left out that has infinite variance at the ends, as has the b term without
    the pair. ``t`` is kept ``MARGIN`` from both ends.
    """
    path = field.path
    t = t.clamp(path.start, path.stop)

    def noise(leaf: Tensor) -> Tensor:
        return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device=leaf.device)

    z = tree_map(noise, pairs.x1)
    drift = path.drift(pairs.x0, pairs.x1, t)
    total = torch.zeros(len(t), dtype=first_leaf(pairs.x1).dtype, device=t.device)
    for sign in (1.0, -1.0):
        signed = tree_map(lambda leaf, sign=sign: sign * leaf, z)
        first, eta = field.predict(path.interpolate(pairs.x0, pairs.x1, t, signed), t)

        def terms(v: Tensor, e: Tensor, slope: Tensor, n: Tensor) -> Tensor:
            wanted = slope
            if field.learns == "b":
                time = expand(t, n)
                gamma = path.gamma.value(time)
                rate = torch.where(gamma > 0, path.gamma.slope(time) / gamma, torch.zeros_like(gamma))
                wanted = slope + rate * n
            both = v.square() / 2 - wanted * v + e.square() / 2 - n * e
            return both.reshape(len(n), -1).mean(1)

        parts = tree_map(terms, first, eta, drift, signed)
        total = total + _sum_of_leaves(parts) / 2
    if pairs.weight is not None:
        total = total * (pairs.weight / pairs.weight.mean()).to(total.dtype)
    return total


def _sum_of_leaves(parts: State) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.stack([_sum_of_leaves(p) for p in parts.values()]).sum(0)
