"""Probability paths from the source x0 (t = 0) to the data x1 (t = 1), and the conversions between predictions.

    x_t = alpha(t) x1 + sigma(t) x0,      u = d x_t / dt = alpha'(t) x1 + sigma'(t) x0

A network may predict the velocity v = E[u | x_t], the data x1 = E[x1 | x_t], the noise e = E[x0 | x_t], or the score
q = -e / sigma (Gaussian source only). Any one gives the others; ``Affine.convert`` is the only place that does it.
A fifth prediction is the output F of EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364). With sd the data's
standard deviation and R^2 = sigma^2 + alpha^2 sd^2, the network is shown x_t / R and

    x1 = (alpha sd^2 x_t + sigma sd R F) / R^2,      e = (sigma x_t - alpha sd R F) / R^2,

which is c_skip y + c_out F of y = x_t / alpha at the noise level sigma / alpha. Nothing is divided by alpha or sigma,
so that both ends are reached; F has unit variance at all t, and its squared error is EDM's weighted loss. As the
network is shown the same at one ratio alpha : sigma on every path, its weights are a model on all of them.
Sources: Lipman et al. 2023 (arXiv 2210.02747), Albergo et al. 2023 (arXiv 2303.08797).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcore.prediction import PREDICTIONS, Prediction
from flowcore.state import State, branch, expand, tree_map

Scalar = Callable[[Tensor], Tensor]
Source = Callable[[Tensor, torch.Generator], Tensor]
END = 1e-3  # how far samplers keep from an end at which a coefficient is infinite


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """x0 ~ N(0, I) with the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def student_t(dimension: float) -> Source:
    """x0 = z / sqrt(chi2_D / D), one chi2 a sample: the perturbation kernel of PFGM++ at scale 1.

    Every affine path with this source is a Poisson flow with D = ``dimension`` added dimensions: D = 1 is PFGM, D to
    infinity Gaussian diffusion. E|x0|^2 = N D / (D - 2) for D > 2. There is no score for finite D. (Xu et al. 2023,
    arXiv 2302.04265; the equality with the Student t is elementary.)
    """

    def draw(like: Tensor, generator: torch.Generator) -> Tensor:
        z = gaussian(like, generator)
        shape = torch.full((len(like),), dimension / 2, dtype=torch.float64, device=like.device)
        chi2 = 2 * torch._standard_gamma(shape, generator=generator)  # torch.distributions takes no generator
        return z * (dimension / chi2).sqrt().to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))

    draw.scoreless = True  # type: ignore[attr-defined]
    return draw


@dataclass(frozen=True)
class Affine:
    """x_t = alpha(t) x1 + sigma(t) x0 with alpha' sigma - sigma' alpha > 0 on (0, 1).

    ``inverse(a, s)`` is the time at which alpha : sigma = a : s, or the nearest there is, for a change of path.
    ``start`` and ``stop`` bound the times a sampler may use: they leave out an end at which a coefficient is infinite
    or the velocity says nothing of the data. ``slopes`` are alpha' and sigma' where they are constant: multiplying a
    batch by a number is many times quicker than by a number for each sample. ``straight`` says that alpha = t and
    sigma = 1 - t, which is one operation instead of four. ``sigma_data`` is the data's standard deviation, which the
    prediction ``edm`` alone needs. All methods take states (tensors or dicts), ``t`` scalar or
    (B,), and an optional ragged ``index``.
    """

    name: str
    alpha: Scalar
    sigma: Scalar
    dalpha: Scalar
    dsigma: Scalar
    inverse: Callable[[Tensor, Tensor], Tensor]
    source: Source = gaussian
    start: float = 0.0
    stop: float = 1.0
    slopes: tuple[float, float] | None = None
    straight: bool = False
    sigma_data: float = 0.5

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(alpha, sigma, alpha', sigma') at ``t``, each of t's shape."""
        return self.alpha(t), self.sigma(t), self.dalpha(t), self.dsigma(t)

    def spread(self, t: Tensor) -> Tensor:
        """The size of the noise in x_t: sigma(t)."""
        return self.sigma(t)

    def draw_source(self, like: State, generator: torch.Generator) -> State:
        """x0 from the source distribution, shaped like ``like``."""
        return tree_map(lambda leaf: self.source(leaf, generator), like)

    def shown(self, x: State, t: Tensor, index: Any = None) -> tuple[State, Tensor]:
        """What a network that predicts ``edm`` is shown of (x_t, t): x_t / R, and alpha / (alpha + sigma).

        That is the time at which the linear path has this ratio of data to noise: in [0, 1], and finite at both ends,
        which ln(sigma / alpha) / 4, the monotone function of it that EDM itself tells its networks, is not.
        """
        a, s = self.alpha(t), self.sigma(t)
        told = a / (a + s)
        if not isinstance(x, Tensor):
            return {key: self.shown(x[key], t, branch(index, key))[0] for key in x}, told
        return x / expand(self._root(a, s), x, index), told

    def _root(self, a: Tensor, s: Tensor) -> Tensor:
        """R, the standard deviation of x_t."""
        return torch.hypot(s, self.sigma_data * a)

    def initial(self, x0: State) -> State:
        """The state a sampler starts from: sigma(start) x0, which forgets alpha(start) x1 where alpha(0) is not 0."""
        scale = self.sigma(torch.tensor(self.start, dtype=torch.float64)).item()
        return x0 if scale == 1.0 else tree_map(lambda leaf: leaf * scale, x0)

    def interpolate(self, x0: State, x1: State, t: float | Tensor, index: Any = None) -> State:
        """x_t = alpha x1 + sigma x0."""
        if isinstance(x1, Tensor):
            time = expand(t, x1, index)
            if self.straight and time.dtype == x0.dtype == x1.dtype:
                return torch.lerp(x0, x1, time)
            return self.alpha(time) * x1 + self.sigma(time) * x0
        return {key: self.interpolate(x0[key], x1[key], t, branch(index, key)) for key in x1}

    def target(self, wanted: Prediction, x0: State, x1: State, t: float | Tensor, index: Any = None) -> State:
        """What a network predicting ``wanted`` is regressed on, given the pair (x0, x1)."""
        if not isinstance(x1, Tensor):
            return {key: self.target(wanted, x0[key], x1[key], t, branch(index, key)) for key in x1}
        if wanted == "velocity" and self.slopes is not None:
            rise, fall = self.slopes
            return torch.add(x1 if rise == 1 else rise * x1, x0, alpha=fall)
        time = expand(t, x1, index)
        match wanted:
            case "velocity":
                return self.dalpha(time) * x1 + self.dsigma(time) * x0
            case "x1":
                return x1
            case "noise":
                return x0
            case "score":
                return self._whitened(-x0 / self.sigma(time))
            case "edm":
                return self._edm(x0, x1, self.alpha(time), self.sigma(time))
        raise ValueError(_unknown(wanted))

    def _whitened(self, x: Tensor) -> Tensor:
        """K^-1 x, K the covariance of the source: x itself where the source states none."""
        return self.source.precision(x) if hasattr(self.source, "precision") else x

    def _coloured(self, x: Tensor) -> Tensor:
        """K x."""
        return self.source.covariance(x) if hasattr(self.source, "covariance") else x

    def _edm(self, x0: Tensor, x1: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """F = (sigma x1 - alpha sd^2 x0) / (sd R)."""
        return (s * x1 - a * self.sigma_data**2 * x0) / (self.sigma_data * self._root(a, s))

    def convert(
        self, value: State, x: State, t: float | Tensor, given: Prediction, wanted: Prediction, index: Any = None
    ) -> State:
        """Turn a prediction of one kind at (x, t) into another kind.

        With W = alpha' sigma - sigma' alpha:  x1 = (sigma v - sigma' x) / W,  e = (alpha' x - alpha v) / W,
        q = -K^-1 e / sigma, and x = alpha x1 + sigma e closes the circle. K is the covariance of a Gaussian source: I,
        unless the source has functions ``covariance(x)`` = K x and ``precision(x)`` = K^-1 x. Dividing by alpha is
        singular at t = 0, by sigma at t = 1: noise -> x1 and x1 -> noise inherit that, velocity or edm -> anything but
        the score does not.
        """
        for kind in (given, wanted):
            if kind not in PREDICTIONS:
                raise ValueError(_unknown(kind))
        if given == wanted:
            return value
        if "score" in (given, wanted) and getattr(self.source, "scoreless", False):
            raise ValueError("a Student-t source has no score: predict something else, and use a solver of the ODE")
        if not isinstance(x, Tensor):
            return {key: self.convert(value[key], x[key], t, given, wanted, branch(index, key)) for key in x}
        a, s, da, ds = self.coefficients(expand(t, x, index))
        match given:
            case "velocity":
                W = da * s - ds * a
                if wanted == "x1":
                    return (s * value - ds * x) / W
                noise = (da * x - a * value) / W
                if wanted == "edm":
                    return self._edm(noise, (s * value - ds * x) / W, a, s)
                return noise if wanted == "noise" else self._whitened(-noise / s)
            case "x1":
                x1, noise = value, (x - a * value) / s
            case "noise":
                x1, noise = (x - s * value) / a, value
            case "score":
                coloured = self._coloured(value)
                x1, noise = (x + s * s * coloured) / a, -s * coloured
            case _:
                sd, R = self.sigma_data, self._root(a, s)
                x1 = (a * sd**2 / R**2) * x + (s * sd / R) * value
                noise = (s / R**2) * x - (a * sd / R) * value
        match wanted:
            case "velocity":
                return da * x1 + ds * noise
            case "x1":
                return x1
            case "noise":
                return noise
            case "edm":
                return self._edm(noise, x1, a, s)
        return self._whitened(-noise / s)


def _unknown(kind: str) -> str:
    return f"unknown prediction {kind!r}; one of {', '.join(PREDICTIONS)}"


def linear(floor: float = 0.0) -> Affine:
    """x_t = t x1 + (1 - (1 - m) t) x0 with m = ``floor``: straight lines.

    m = 0 is rectified flow (Liu et al. 2022, arXiv 2209.03003); m > 0 leaves noise of that size on the data and keeps
    every conversion finite at t = 1 (Lipman et al. 2023, arXiv 2210.02747).
    """
    fall = 1 - floor
    return Affine(
        "linear",
        lambda t: t,
        lambda t: 1 - fall * t,
        torch.ones_like,
        lambda t: torch.full_like(t, -fall),
        lambda a, s: (a / (s + fall * a)).clamp(max=1),
        slopes=(1.0, -fall),
        straight=floor == 0,
    )


def polynomial(power: float = 2.0) -> Affine:
    """x_t = t^n x1 + (1 - t^n) x0, n = ``power`` > 0: straight lines run at another speed."""
    if power <= 0:
        raise ValueError(f"power must be positive, not {power}")
    return Affine(
        "polynomial",
        lambda t: t**power,
        lambda t: 1 - t**power,
        lambda t: power * t ** (power - 1),
        lambda t: -power * t ** (power - 1),
        lambda a, s: (a / (a + s)) ** (1 / power),
        start=0.0 if power == 1 else END,  # at t = 0 the velocity says nothing of the data, or is infinite
    )


def cosine() -> Affine:
    """x_t = sin(pi t / 2) x1 + cos(pi t / 2) x0: variance preserving for unit-variance data."""
    half = math.pi / 2
    return Affine(
        "cosine",
        lambda t: torch.sin(half * t),
        lambda t: torch.sin(half * (1 - t)),  # cos(pi t / 2), and exactly 0 at t = 1
        lambda t: half * torch.sin(half * (1 - t)),
        lambda t: -half * torch.sin(half * t),
        lambda a, s: torch.atan2(a, s) / half,
    )


def linear_vp() -> Affine:
    """x_t = t x1 + sqrt(1 - t^2) x0: variance preserving; sigma' is infinite at t = 1, so sampling stops before it."""
    return Affine(
        "linear_vp",
        lambda t: t,
        lambda t: (1 - t * t).sqrt(),
        torch.ones_like,
        lambda t: -t / (1 - t * t).sqrt(),
        lambda a, s: a / torch.hypot(a, s),
        stop=1 - END,
    )


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Affine:
    """alpha = exp(-T/2), sigma = sqrt(1 - exp(-T)), T = (1-t)^2 (B - b)/2 + (1-t) b: the diffusion of Song et al. 2021
    (arXiv 2011.13456) with b = ``beta_min``, B = ``beta_max``, in our direction of time.

    alpha(0) = exp(-(B + b)/4) is small and not 0; sigma' is infinite at t = 1, so sampling stops before it.
    """
    rise = beta_max - beta_min

    def exponent(t: Tensor) -> Tensor:
        u = 1 - t
        return u * u * rise / 2 + u * beta_min

    def slope(t: Tensor) -> Tensor:  # -dT/dt
        return (1 - t) * rise + beta_min

    def alpha(t: Tensor) -> Tensor:
        return torch.exp(-exponent(t) / 2)

    def sigma(t: Tensor) -> Tensor:
        return (-torch.expm1(-exponent(t))).sqrt()

    def inverse(a: Tensor, s: Tensor) -> Tensor:
        wanted = torch.log1p((s / a).square()).clamp(max=rise / 2 + beta_min)
        root = (beta_min**2 + 2 * rise * wanted).sqrt()
        return 1 - 2 * wanted / (root + beta_min)

    return Affine(
        "vp",
        alpha,
        sigma,
        lambda t: slope(t) * alpha(t) / 2,
        lambda t: -slope(t) * alpha(t).square() / (2 * sigma(t)),
        inverse,
        stop=1 - END,
    )


def ve(sigma_max: float = 80.0, dimension: float | None = None) -> Affine:
    """x_t = x1 + sigma_max (1 - t) x0: variance exploding, with the noise level linear in t.

    A step in t is then a step in the noise level, as in EDM (Karras et al. 2022, arXiv 2206.00364); the EDM grid is
    ``solvers.edm_grid``. With the source ``student_t(dimension)`` it is PFGM++ with that many added dimensions;
    without, the source is Gaussian. alpha(0) = 1: sampling starts from sigma_max x0.
    """
    if dimension is not None and not dimension > 0:
        raise ValueError(f"dimension must be positive, or null for a Gaussian source, not {dimension}")
    return Affine(
        "ve",
        torch.ones_like,
        lambda t: sigma_max * (1 - t),
        torch.zeros_like,
        lambda t: torch.full_like(t, -sigma_max),
        lambda a, s: (1 - s / (sigma_max * a)).clamp(min=0),
        gaussian if dimension is None else student_t(dimension),
        slopes=(0.0, -sigma_max),
    )


def general(alpha: Scalar, sigma: Scalar, name: str = "general", start: float = 0.0, stop: float = 1.0) -> Affine:
    """A path from any two functions of t; derivatives by forward differentiation, the inverse by bisection."""

    def derivative(f: Scalar) -> Scalar:
        # an expanded t shares memory between its elements, which forward differentiation refuses
        return lambda t: torch.func.jvp(f, (t.contiguous(),), (torch.ones_like(t),))[1]

    def inverse(a: Tensor, s: Tensor) -> Tensor:
        low, high = torch.zeros_like(a), torch.ones_like(a)
        for _ in range(60):
            middle = (low + high) / 2
            early = alpha(middle) * s < a * sigma(middle)
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2

    return Affine(name, alpha, sigma, derivative(alpha), derivative(sigma), inverse, start=start, stop=stop)


@dataclass(frozen=True)
class Product:
    """A path for each key of a dict state: positions on one, charges on another; all share t.

    ``target`` and ``convert`` use one kind of prediction for every leaf, or a dict of them.
    """

    paths: Mapping[str, Affine]

    @property
    def start(self) -> float:
        """The latest start of the parts."""
        return max(path.start for path in self.paths.values())

    @property
    def stop(self) -> float:
        """The earliest stop of the parts."""
        return min(path.stop for path in self.paths.values())

    def draw_source(self, like: State, generator: torch.Generator) -> State:
        """See ``Affine.draw_source``."""
        return {key: path.draw_source(like[key], generator) for key, path in self.paths.items()}

    def initial(self, x0: State) -> State:
        """See ``Affine.initial``."""
        return {key: path.initial(x0[key]) for key, path in self.paths.items()}

    def interpolate(self, x0: State, x1: State, t: float | Tensor, index: Any = None) -> State:
        """See ``Affine.interpolate``."""
        return {key: p.interpolate(x0[key], x1[key], t, branch(index, key)) for key, p in self.paths.items()}

    def target(self, wanted: Any, x0: State, x1: State, t: float | Tensor, index: Any = None) -> State:
        """See ``Affine.target``."""
        return {
            key: p.target(branch(wanted, key), x0[key], x1[key], t, branch(index, key)) for key, p in self.paths.items()
        }

    def convert(self, value: State, x: State, t: float | Tensor, given: Any, wanted: Any, index: Any = None) -> State:
        """See ``Affine.convert``."""
        return {
            key: p.convert(value[key], x[key], t, branch(given, key), branch(wanted, key), branch(index, key))
            for key, p in self.paths.items()
        }


Path = Affine | Product
