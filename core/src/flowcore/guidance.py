"""Guidance changes a sample on its way, in one of two places, and tokens in a third:

    velocity(field, x, t, dt) -> v      in place of field(x, t), at every stage of the solver
    state(field, x, t, dt) -> x         after every step, and at the end with dt = 0
    logits(posterior, x, t) -> logits   of tokens, in place of posterior.logits(x, t), whenever some are drawn

A guidance object overrides what it can. A list composes: the first is innermost for velocities and logits, and first in
order for states. ``dt`` is the length of the step under way (velocity) or to come (state). ``field`` is a ``Field``:
its x1, noise and score at the point of the last velocity cost no further network call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowcore.field import Field
from flowcore.masked import Network, Posterior
from flowcore.state import State, add, expand, first_leaf, tree_map

Loss = Callable[[Tensor], Tensor]
"""A loss of predicted data, (B, ...) -> (B,), differentiable."""

ROUNDING = 1e-6
"""How far a time on a grid may be from the number a user wrote, in single precision."""

EARLY = 1e-3
"""Times below this count as this where a factor divides by alpha(t): the data say nothing about x there yet."""


class Guidance:
    """No guidance: the identity in both places."""

    needs_steps = False
    """Whether ``velocity`` uses ``dt``, which an adaptive solver does not have."""

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        """The guided velocity at (x, t), shaped like x."""
        return field.velocity(x, t)

    def state(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        """The corrected state after a step that arrived at t."""
        return x

    def logits(self, posterior: Posterior, x: Tensor, t: Tensor) -> Tensor:
        """The guided logits of p(x1^i | x) of tokens x (B, ...) at times (B,): (B, ..., V)."""
        return posterior.logits(x, t)


class Guided(Field):
    """A field seen through a guidance: its velocity is the guided one, and x1, noise and score follow from that.

    ``dt`` is set by the solver before each step.
    """

    def __init__(self, field: Field, guidance: Guidance) -> None:
        super().__init__(field.network, field.path, "velocity", field.condition, field.null, field.index, field.samples)
        self._calls = field._calls
        self.draws = field.draws
        self.inner = field
        self.guidance = guidance
        self._dt = 0.0

    @property
    def dt(self) -> float:
        """Length of the step under way."""
        return self._dt

    @dt.setter
    def dt(self, value: float) -> None:
        self._dt = value
        if isinstance(self.inner, Guided):
            self.inner.dt = value

    def with_condition(self, condition: Any, index: Any = None, samples: int | None = None) -> "Guided":
        other = Guided(self.inner.with_condition(condition, index, samples), self.guidance)
        other.dt = self.dt
        return other

    def predict(self, x: State, t: float | Tensor) -> State:
        leaf = first_leaf(x)
        return self.guidance.velocity(self.inner, x, torch.as_tensor(t, dtype=leaf.dtype, device=leaf.device), self.dt)


def compose(field: Field, guidance: Sequence[Guidance], draws: torch.Generator | None = None) -> Field:
    """``field`` under each guidance in turn; ``draws`` is the generator for guidance that draws noise."""
    field.draws = draws
    for one in guidance:
        field = Guided(field, one)
    return field


def steered(network: Network, mask: int, guidance: Sequence[Guidance], null: State | None = None) -> Network:
    """A network of tokens under each guidance in turn. Raises ``ValueError`` for one that says nothing of tokens."""
    for one in guidance:
        if type(one).logits is Guidance.logits:
            raise ValueError(f"{type(one).__name__} guides no tokens: it says nothing of their logits")
        network = _under(one, network, mask, null)
    return network


def _under(guidance: Guidance, network: Network, mask: int, null: State | None) -> Network:
    def guided(x: Tensor, t: Tensor, condition: State | None) -> Tensor:
        return guidance.logits(Posterior(network, mask, condition, null), x, t)

    return guided


class ClassifierFree(Guidance):
    """See ``classifier_free``."""

    def __init__(self, scale: float, interval: tuple[float, float]) -> None:
        self.scale = scale
        self.interval = interval

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        if field.condition is None or field.null is None:
            raise ValueError("classifier-free guidance needs a conditional field with a null condition")
        if self.scale == 1.0 or not self._within(field, t):
            return field.velocity(x, t)
        null = field.null_condition()
        if self.scale == 0.0:
            return field.with_condition(null).velocity(x, t)
        conditional, empty = _both(field, x, t, null)
        return add(empty, tree_map(torch.sub, conditional, empty), self.scale)

    def _within(self, field: Field, t: Tensor) -> bool:
        first, last = self.interval
        if first <= field.path.start and last >= field.path.stop:
            return True  # at any time: a GPU need not be asked, and waited for, which it is
        return first - ROUNDING <= float(t.reshape(-1)[0]) <= last + ROUNDING

    def logits(self, posterior: Posterior, x: Tensor, t: Tensor) -> Tensor:
        if posterior.condition is None or posterior.null is None:
            raise ValueError("classifier-free guidance needs conditional data with a null condition")
        first, last = self.interval
        own = posterior.logits(x, t)
        if self.scale == 1.0:
            return own
        empty = posterior.with_condition(posterior.null_condition(len(x))).logits(x, t).log_softmax(-1)
        moved = empty + self.scale * (own.log_softmax(-1) - empty)
        moved = torch.where(own.isneginf(), own, moved)  # of the mask, where -inf - (-inf) is no number
        now = expand(t, own)
        return torch.where((now >= first - ROUNDING) & (now <= last + ROUNDING), moved, own)


def _both(field: Field, x: State, t: Tensor, null: Any) -> tuple[State, State]:
    """v under the condition and under the null condition, from one evaluation of a doubled batch."""
    index, samples = field.index, field.samples
    if index is not None and samples is not None:  # of a ragged batch: the same samples once more, behind the others
        index, samples = tree_map(lambda rows, n=samples: torch.cat([rows, rows + n]), index), 2 * samples
    twice = tree_map(lambda leaf: torch.cat([leaf, leaf]), x)
    condition = tree_map(lambda c, n: torch.cat([c, n]), field.condition, null)
    time = t if t.ndim == 0 else torch.cat([t, t])
    v = field.with_condition(condition, index, samples).velocity(twice, time)
    return tree_map(lambda leaf: leaf.chunk(2)[0], v), tree_map(lambda leaf: leaf.chunk(2)[1], v)


def classifier_free(scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)) -> Guidance:
    """v(null) + w (v(c) - v(null)): w = 1 follows the condition, w = 0 ignores it, w > 1 exaggerates it.

    One evaluation of a doubled batch. The identity at w = 1 and outside ``interval``, where t is early or late (Ho and
    Salimans 2022, arXiv 2207.12598; the interval is Kynkaanniemi et al. 2024, arXiv 2404.07724). Of tokens it is log p
    in place of v, by two evaluations (Schiff et al. 2024, arXiv 2412.10193).
    """
    return ClassifierFree(scale, interval)


def _pull(field: Field, t: Tensor, x: Tensor) -> Tensor:
    """W sigma / alpha, the factor that turns a gradient of log p(y | x, t) into a velocity (paths, score -> v)."""
    a, s, da, ds = field.path.coefficients(expand(_late(t, x), x))  # type: ignore[union-attr]
    return (da * s - ds * a) * s / a


def _late(t: Tensor, x: Tensor) -> Tensor:
    return torch.clamp(torch.as_tensor(t, dtype=x.dtype, device=x.device), min=EARLY)


def _gradient(loss: Loss, x: Tensor) -> Tensor:
    """grad_x of the sum of loss(x), under no_grad and in inference mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


class Classifier(Guidance):
    """See ``classifier``."""

    def __init__(self, log_likelihood: Callable[[Tensor, Tensor], Tensor], scale: float) -> None:
        self.log_likelihood = log_likelihood
        self.scale = scale

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        v = field.velocity(x, t)
        if self.scale == 0:
            return v
        late = _late(t, x)
        gradient = _gradient(lambda leaf: self.log_likelihood(leaf, late), x)
        return v + self.scale * _pull(field, t, x) * gradient


def classifier(log_likelihood: Callable[[Tensor, Tensor], Tensor], scale: float = 1.0) -> Guidance:
    """v + w (W sigma / alpha) grad_x log p(y | x, t), W = alpha' sigma - sigma' alpha.

    ``log_likelihood(x, t) -> (B,)`` is that of noisy x. The factor is what makes w = 1 the exact posterior flow for a
    Gaussian source, and depends on t (Dhariwal and Nichol 2021, arXiv 2105.05233, for any affine path).
    """
    return Classifier(log_likelihood, scale)


class Reward(Guidance):
    """See ``reward``."""

    def __init__(self, value: Loss, scale: float) -> None:
        self.value, self.scale = value, scale

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        raise ValueError("a reward of tokens guides no field; take classifier or observation")

    def logits(self, posterior: Posterior, x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            own = posterior.logits(x, t)
        if self.scale == 0:
            return own
        p = own.to(torch.promote_types(own.dtype, torch.float32)).softmax(-1)
        known = torch.nn.functional.one_hot(x.clamp(max=p.shape[-1] - 1), p.shape[-1])
        p = torch.where((x == posterior.mask)[..., None], p, known.to(p.dtype))
        return own + self.scale * _gradient(self.value, p).to(own.dtype)


def reward(value: Loss, scale: float = 1.0) -> Guidance:
    """log p(x1^i = j | x) + w dR / dp_ij of masked tokens: tokens that raise a reward are likelier.

    ``value(p) -> (B,)`` is R of probabilities p (B, ..., V), which are one-hot of what is known and the model's own of
    what is masked. It is log p(y | x1) for a classifier, and differentiable. For one that adds up over tokens, w = 1
    draws from p(x1) exp(R) where tokens are independent; of any other this is its first order (Vignac et al. 2022,
    arXiv 2209.14734; Schiff et al. 2024, arXiv 2412.10193).
    """
    return Reward(value, scale)


class GradientSkipping(Guidance):
    """See ``gradient_skipping``."""

    needs_steps = True

    def __init__(self, loss: Loss, rate: float, repeats: int) -> None:
        self.loss, self.rate, self.repeats = loss, rate, repeats

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        with torch.no_grad():
            v = field.velocity(x, t)
        x = x.detach()  # skipped for guidance around this one too
        if self.rate == 0 or dt == 0 or float(t) + dt >= field.path.stop - ROUNDING:
            return v
        moved = x
        for _ in range(self.repeats):
            moved = moved - self.rate * _gradient(self.loss, field.path.convert(v, moved, t, "velocity", "x1"))
        return v + (moved - x) / dt


def gradient_skipping(loss: Loss, rate: float, repeats: int = 1) -> Guidance:
    """v - (eta / dt) grad_x1 L(x1): the state is moved by the gradient of the predicted data, not through the network.

    An Euler step then gives x - eta g + dt v with the old v: one network call a step and no backward through it.
    ``repeats`` forms x1 again from the moved state and the same v. The last step is left alone. (Patel et al. 2024,
    arXiv 2412.00100, FlowChef.)
    """
    return GradientSkipping(loss, rate, repeats)


class Observation(Guidance):
    """See ``observation``."""

    def __init__(self, loss: Loss, scale: float, place: str, weight: str, clip: float | None) -> None:
        self.loss, self.scale, self.place, self.weight, self.clip = loss, scale, place, weight, clip

    def _gradient(self, field: Field, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """v and grad_x L(E[x1 | x]), through the network, from one evaluation."""
        seen: list[State] = []

        def loss(leaf: Tensor) -> Tensor:
            seen.append(field.velocity(leaf, time).detach())
            x1 = field.x1(leaf, time)
            return self.loss(x1, time) if getattr(self.loss, "timed", False) else self.loss(x1)  # type: ignore[call-arg]

        with torch.inference_mode(False):
            time = t.clone()
        gradient = _gradient(loss, x)
        if self.clip is not None:
            norm = expand(gradient.flatten(1).norm(dim=1), gradient)
            gradient = gradient * (self.clip / norm.clamp(min=self.clip))
        return seen[0], gradient

    def _shift(self, field: Field, x: Tensor, t: Tensor, gradient: Tensor) -> Tensor:
        """What the velocity loses for a gradient of L."""
        if self.weight == "score":
            return _pull(field, t, x) * field.path._coloured(gradient)  # type: ignore[union-attr]
        if self.weight == "constant":
            return gradient
        path = field.path
        now = expand(t.clamp(path.start, path.stop), x)
        _, s, _, ds = path.coefficients(now)  # type: ignore[union-attr]
        return s * ds.abs() * gradient

    def velocity(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        if self.place != "velocity" or self.scale == 0:
            return field.velocity(x, t)
        v, gradient = self._gradient(field, x, t)
        return v - self.scale * self._shift(field, x, t, gradient)

    def state(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        if self.place != "state" or self.scale == 0 or dt == 0:
            return x
        return x - self.scale * dt * self._shift(field, x, t, self._gradient(field, x, t)[1])


def observation(
    loss: Loss,
    scale: float = 1.0,
    place: Literal["velocity", "state"] = "velocity",
    weight: Literal["score", "tsflow", "constant"] = "score",
    clip: float | None = None,
) -> Guidance:
    """v - w c(t) grad_x L(E[x1 | x]), differentiated through the network.

    The loss is a negative log-likelihood of what was observed given the data: ``squared_error`` or ``quantile``. In the
    place "velocity" this is diffusion posterior sampling (Chung et al. 2022, arXiv 2209.14687); in the place "state"
    the same shift, times dt, is made once after each step (Kollovieh et al. 2023, arXiv 2307.11494). ``weight`` is c:

        score     W sigma / alpha K   what a score of x_t is worth, so that w = 1 is Bayes' rule where L is
                                      -log p(y | x_t); K is the covariance of the source, I unless it states another
        tsflow    sigma |sigma'|      1 - t on straight lines, bounded at both ends (Kollovieh et al. 2024, arXiv
                                      2410.03024, whose own sigma is constant for white noise, and this weight 0)
        constant  1

    ``clip`` bounds the norm of a sample's gradient. A loss with the attribute ``timed`` is called with t, too.
    """
    if place not in ("velocity", "state"):
        raise ValueError(f"place must be 'velocity' or 'state', not {place!r}")
    if weight not in ("score", "tsflow", "constant"):
        raise ValueError(f"weight must be 'score', 'tsflow' or 'constant', not {weight!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, not {clip}")
    return Observation(loss, scale, place, weight, clip)


def squared_error(observed: Tensor, mask: Tensor, variance: float | Callable[[Tensor], Tensor] = 1.0) -> Loss:
    """|mask (observed - x1)|^2 / (2 variance) summed: -log N(observed; x1, variance) up to a constant.

    ``variance`` may be a function of t: that of y given x_t is the noise of y and, besides, Var[x1 | x_t]
    (Song et al. 2023, PiGDM).
    """

    def squares(x1: Tensor) -> Tensor:
        return ((observed - x1) * mask).square().flatten(1).sum(1)

    if not callable(variance):
        return lambda x1: squares(x1) / (2 * variance)

    def loss(x1: Tensor, t: Tensor) -> Tensor:
        return squares(x1) / (2 * variance(t))

    loss.timed = True  # type: ignore[attr-defined]
    return loss  # type: ignore[return-value]


def quantile(observed: Tensor, mask: Tensor, levels: Tensor | None = None) -> Loss:
    """sum over observed entries of max(q e, (q - 1) e), e = observed - x1, one level q a sample.

    Sample k of S takes q = (k + 1) / (S + 1) by default, so that a batch of samples spreads over the quantiles of the
    predictive distribution (Kollovieh et al. 2023, arXiv 2307.11494).
    """

    def loss(x1: Tensor) -> Tensor:
        count = len(x1)
        q = torch.arange(1, count + 1, dtype=x1.dtype, device=x1.device) / (count + 1) if levels is None else levels
        e, q = (observed - x1) * mask, expand(q, x1)
        return torch.maximum(q * e, (q - 1) * e).flatten(1).sum(1)

    return loss


class LinearConstraint(Guidance):
    """See ``linear_constraint``."""

    def __init__(self, A: Tensor, b: Tensor, covariance: Tensor | None, noise: float, last_only: bool) -> None:
        self.A, self.b, self.last_only = A.double(), b.double(), last_only
        spread = self.A.T if covariance is None else covariance.double() @ self.A.T  # S A^T, (d, m)
        gram = self.A @ spread + noise * torch.eye(len(A), dtype=torch.float64, device=A.device)
        self.gain = torch.linalg.solve(gram, spread.T).T if noise > 0 else spread @ torch.linalg.pinv(gram)

    def state(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        if self.last_only and dt != 0:
            return x
        flat = x.flatten(1).double()  # what a single-precision state misses is lost in its own rounding
        miss = flat @ self.A.T - self.b
        return (flat - miss @ self.gain.T).to(x.dtype).view_as(x)


def linear_constraint(
    A: Tensor, b: Tensor, covariance: Tensor | None = None, noise: float = 0.0, last_only: bool = False
) -> Guidance:
    """x - S A^T (A S A^T + r I)^-1 (A x - b): the nearest state, in the metric S^-1, that obeys A x = b.

    ``A`` (m, d) acts on flattened samples, ``b`` is (m,) or (B, m), ``covariance`` S (d, d) is I if not given.
    Redundant rows of A are allowed. ``noise`` r > 0 makes the constraint soft: the posterior mean of N(x, S) given
    A x = b seen with variance r. ``last_only`` acts on the final state alone. (Hansen et al. 2023, arXiv 2302.11002,
    ProbConserv.)
    """
    return LinearConstraint(A, b, covariance, noise, last_only)


class Replacement(Guidance):
    """See ``replacement``."""

    def __init__(self, known: Tensor, mask: Tensor) -> None:
        self.known, self.mask = known, mask.bool()

    def state(self, field: Field, x: State, t: Tensor, dt: float) -> State:
        if dt == 0:  # the end of the path, whatever time that is: what is known is put in exactly
            return torch.where(self.mask, self.known.to(x), x)
        if field.draws is None:
            raise ValueError("replacement draws noise: pass solve(..., generator=...)")
        known = self.known.to(x).expand_as(x)
        source = field.path.draw_source(known, field.draws)
        return torch.where(self.mask, field.path.interpolate(source, known, t), x)


def replacement(known: Tensor, mask: Tensor) -> Guidance:
    """x[mask] <- alpha known + sigma z with fresh z after each step, and known itself at the end.

    Inpainting by replacement (Song et al. 2021, arXiv 2011.13456, appendix I): exact where known, consistent around it
    only as far as the field can mend.
    """
    return Replacement(known, mask)
