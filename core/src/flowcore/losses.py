"""What is minimised: the regression of a field on the velocity (or data, noise, score) of coupled pairs.

    loss = E_t E_(x0, x1) [ weight * metric(network(x_t, t), target) ]

Its minimiser is the conditional expectation the sampler integrates (Lipman et al. 2023, arXiv 2210.02747).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowcore.couplings import Pairs
from flowcore.field import Field
from flowcore.prediction import Prediction
from flowcore.state import State, branch, tree_map

Metric = Callable[[Tensor, Tensor], Tensor]
Perceptual = Callable[[State, State, Tensor], Tensor]


def l2() -> Metric:
    """|prediction - target|^2 averaged over all but the first dimension: (B, ...) -> (B,)."""

    def metric(prediction: Tensor, target: Tensor) -> Tensor:
        return _rows((prediction - target).square()).mean(1)

    return metric


def pseudo_huber(c: float = 0.00054, elementwise: bool = False) -> Metric:
    """(sqrt(|d|^2 + (c n)^2) - c n) / n for a difference d of n numbers: (B, ...) -> (B,).

    Like |d|^2 / (2 c n^2) near zero, like |d| / n far from it (Lee et al. 2024, arXiv 2405.20320). ``elementwise`` is
    the mean of sqrt(d_i^2 + c^2) - c instead (Wang et al. 2024, arXiv 2410.07303).
    """

    def metric(prediction: Tensor, target: Tensor) -> Tensor:
        difference = _rows(prediction - target)
        if elementwise:
            squares = difference.square()
            return (squares / ((squares + c * c).sqrt() + c)).mean(1)
        n = difference.shape[1]
        squared = difference.square().sum(1)
        return squared / ((squared + (c * n) ** 2).sqrt() + c * n) / n  # the difference of roots, without cancellation

    return metric


def _rows(x: Tensor) -> Tensor:
    """(B, ...) as (B, n), which costs nothing, forward or backward, where it is that already."""
    return x if x.ndim == 2 else x.reshape(len(x), -1)


def matching_loss(
    field: Field,
    pairs: Pairs,
    t: Tensor,
    metric: Metric | None = None,
    index: Any = None,
    weight: Tensor | None = None,
    perceptual: Perceptual | None = None,
    compares: Prediction | None = None,
    mask: State | None = None,
) -> Tensor:
    """The matching loss per sample, shape (B,), multiplied by the pairs' weights over their mean.

    ``t`` has shape (B,). A dict state adds up the losses of its leaves; in a ragged leaf the rows of a sample are
    averaged first, so a large molecule weighs as much as a small one. ``compares`` names the kind of prediction that
    ``metric`` is of, where it is not the network's own: both are converted into it.
    ``perceptual(x1_prediction, x1, t) -> (B,)`` is added: a distance between the data and what the field makes of x_t.
    ``weight`` (B,) multiplies the sum (importance of t, ``times.weights(t)``). ``mask``, shaped like x1, is 1 where the
    data are known: elsewhere nothing is missed, and what a leaf misses is averaged over its known entries, 0 where
    there are none. Raises ``ValueError`` where the network's output, or the mask, has another shape than its input.
    """
    x = field.path.interpolate(pairs.x0, pairs.x1, t, index)
    prediction = field.predict(x, t)
    tree_map(_agree, prediction, x)  # before anything is broadcast in silence
    said, kind = prediction, field.predicts
    if compares is not None:
        said, kind = field.path.convert(prediction, x, t, field.predicts, compares, index), compares
    target = field.path.target(kind, pairs.x0, pairs.x1, t, index)
    if mask is not None:
        tree_map(_covers, mask, x)
        said = tree_map(lambda s, wanted, known: torch.where(known.bool(), s, wanted), said, target, mask)
    loss = _compare(said, target, metric or l2(), index, t.shape[0], mask)
    if perceptual is not None:
        loss = loss + perceptual(field.path.convert(prediction, x, t, field.predicts, "x1", index), pairs.x1, t)
    if weight is not None:
        loss = loss * weight.to(loss.dtype)
    if pairs.weight is not None:
        loss = loss * (pairs.weight / pairs.weight.mean()).to(loss.dtype)
    return loss


def _agree(prediction: Tensor, x: Tensor) -> None:
    if prediction.shape != x.shape:
        raise ValueError(f"the network returned {tuple(prediction.shape)} for a state of {tuple(x.shape)}")


def _covers(mask: Tensor, x: Tensor) -> None:
    if mask.shape != x.shape:
        raise ValueError(f"the mask has the shape {tuple(mask.shape)}, the state {tuple(x.shape)}")


def _compare(
    prediction: State, target: State, metric: Metric, index: Any, samples: int, mask: State | None = None
) -> Tensor:
    if not isinstance(target, Tensor):
        parts = [
            _compare(
                prediction[key], target[key], metric, branch(index, key), samples, None if mask is None else mask[key]
            )
            for key in target
        ]
        return torch.stack(parts).sum(0)
    rows = metric(prediction, target)
    if mask is not None:  # the metric is a mean over all entries
        known = _rows(mask)
        rows = rows * (known.shape[1] / known.sum(1).clamp(min=1)).to(rows.dtype)
    if index is None:
        return rows
    total = rows.new_zeros(samples).index_add(0, index, rows)
    return total / torch.bincount(index, minlength=samples).clamp(min=1)
