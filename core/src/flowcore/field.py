"""A Field is a network read as a velocity field: what is trained, sampled, guided and measured is this one object.

    v(x, t),  x1(x, t) = E[x1 | x_t = x],  noise(x, t) = E[x0 | x_t = x],  score(x, t)

all from the one thing the network predicts, through ``path.convert``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowcore.paths import Affine, Path, Product
from flowcore.prediction import Prediction
from flowcore.state import State, expand, first_leaf, leaves, tree_map

Network = Callable[..., State]


class Field:
    """``Field(network, path, predicts)``; the network is called as ``network(x, t, condition)`` with t of shape (B,),
    or, where it predicts ``edm``, with what ``Affine.shown`` makes of x and t. In a ragged batch it is told the index
    too, as ``network(x, t, condition, index)``: nothing else says where a sample ends.

    ``condition`` is what the network is told (labels, a prompt, a mask) for this batch; ``null`` is the value of one
    sample's condition that tells it nothing, for classifier-free guidance. ``index`` is the ragged index, ``samples``
    the number of samples in a ragged batch. ``calls`` counts network evaluations over this field and every field made
    from it.
    """

    def __init__(
        self,
        network: Network,
        path: Path,
        predicts: Prediction = "velocity",
        condition: Any = None,
        null: Any = None,
        index: Any = None,
        samples: int | None = None,
    ) -> None:
        kinds = predicts.values() if isinstance(predicts, Mapping) else (predicts,)
        if isinstance(path, Product) and "edm" in kinds:
            raise ValueError(
                "predicts=edm tells the network one noise ratio, and a product of paths has one for each part"
            )
        self.network = network
        self.path = path
        self.predicts: Prediction = predicts
        self.condition = condition
        self.null = null
        self.index = index
        self.samples = samples
        self.draws: torch.Generator | None = None  # for guidance that draws noise; set by the solver
        self._calls = [0]
        self._last: tuple[Any, State, State, Any] | None = None  # key, output, and the x and t it belongs to

    @property
    def calls(self) -> int:
        """Network evaluations so far (NFE); a doubled batch counts once."""
        return self._calls[0]

    def with_condition(self, condition: Any, index: Any = None, samples: int | None = None) -> "Field":
        """The same field told something else; a ragged ``index`` may come with it. The call count is shared."""
        index = self.index if index is None else index
        samples = self.samples if samples is None else samples
        other = Field(self.network, self.path, self.predicts, condition, self.null, index, samples)
        other._calls = self._calls
        other.draws = self.draws
        return other

    def null_condition(self) -> Any:
        """The null condition, repeated to the shape of this batch's condition."""
        return tree_map(lambda c, n: torch.as_tensor(n).to(c).expand_as(c), self.condition, self.null)

    def predict(self, x: State, t: float | Tensor) -> State:
        """The network's own output at (x, t), evaluated afresh."""
        self._calls[0] += 1
        leaf = first_leaf(x)
        floats = (one.dtype for one in leaves(x) if one.is_floating_point())
        time = torch.as_tensor(t, dtype=next(floats, torch.get_default_dtype()), device=leaf.device)
        if time.ndim == 0:
            time = time.expand(leaf.shape[0] if self.samples is None else self.samples)
        if self.predicts == "edm":
            x, time = self.path.shown(x, time, self.index)  # type: ignore[union-attr]  # not a product, see __init__
        if self.index is not None:
            return self.network(x, time, self.condition, self.index)
        return self.network(x, time, self.condition)

    def velocity(self, x: State, t: float | Tensor) -> State:
        """v(x, t) = E[d x_t / dt | x_t = x], shaped like x."""
        return self._as("velocity", x, t)

    __call__ = velocity

    def velocity_once(self, x: State, t: float | Tensor) -> State:
        """v(x, t), evaluated afresh and not kept: for a solver, which comes to no point twice."""
        return self.path.convert(self.predict(x, t), x, t, self.predicts, "velocity", self.index)

    def x1(self, x: State, t: float | Tensor) -> State:
        """E[x1 | x_t = x], shaped like x."""
        return self._as("x1", x, t)

    def noise(self, x: State, t: float | Tensor) -> State:
        """E[x0 | x_t = x], shaped like x."""
        return self._as("noise", x, t)

    def score(self, x: State, t: float | Tensor) -> State:
        """grad log p_t(x), for a Gaussian source; infinite at t = 1."""
        return self._as("score", x, t)

    def _as(self, wanted: Prediction, x: State, t: float | Tensor) -> State:
        # Guidance asks for x1 and then the velocity at the same point: the last evaluation is kept.
        key = evaluation(self.network, x, t)
        if key is None or self._last is None or self._last[0] != key:
            self._last = (key, self.predict(x, t), x, t)  # x and t too: an id is unique only while its object lives
        return self.path.convert(self._last[1], x, t, self.predicts, wanted, self.index)


def evaluation(network: Any, x: State, t: float | Tensor) -> Any:
    """A key that is equal for two evaluations only if they are the same: same tensors, unchanged, same grad mode.

    The version of a weight that learns tells an optimiser's step. None for inference tensors, which count no versions.
    """
    parameters = network.parameters() if hasattr(network, "parameters") else ()
    weight = next((one for one in parameters if one.requires_grad), None)
    tensors = [one for one in (*leaves(x), t, weight) if isinstance(one, Tensor)]
    if any(one.is_inference() for one in tensors):
        return None
    marks = [(id(one), one._version, one.requires_grad) for one in tensors]
    return marks, None if isinstance(t, Tensor) else t, torch.is_grad_enabled()


def change_path(field: Field, path: Affine) -> Field:
    """The same model sampled along another path with the same source and coupling, without training.

    E[x1 | x] and E[x0 | x] belong to the ratio alpha : sigma and not to the path. With t the time at which the old path
    has the new one's ratio at r, and S = (alpha_new + sigma_new)(r) / (alpha + sigma)(t),

        v_new(x, r) = alpha_new'(r) x1(x / S, t) + sigma_new'(r) noise(x / S, t),

    which divides by no coefficient: both ends are reached where the network predicts the velocity. For tensor states on
    affine paths; raises ``ValueError`` for others. (The change of schedule of Lipman et al. 2024, arXiv 2412.06264.)
    """
    old = field.path
    if not isinstance(old, Affine):
        raise ValueError("change_path takes a field on an affine path")

    def network(x: Tensor, r: Tensor, condition: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise ValueError("change_path takes tensor states; a dict has a path for each key")
        a, s, da, ds = path.coefficients(r)
        t = old.inverse(a, s).clamp(old.start, old.stop)
        scale = (a + s) / (old.alpha(t) + old.sigma(t))
        told = field.with_condition(condition)
        there = x / expand(scale, x)
        return expand(da, x) * told.x1(there, t) + expand(ds, x) * told.noise(there, t)

    return Field(network, path, "velocity", field.condition, field.null)
