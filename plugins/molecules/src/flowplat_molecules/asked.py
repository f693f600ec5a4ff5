"""What a user asks of properties, in words: ``3``, ``mu=3``, ``mu=0.5|1|2``, ``mu=2..4``, ``mu=3,gap=0.2``."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowcore.errors import UsageError
from flowplat_molecules.spec import Property

log = logging.getLogger("flowplat")


def conditions(wanted: str, known: Sequence[Property], count: int) -> Tensor:
    """``count`` conditions (count, K) float32, NaN where a property is not asked for.

    Several values ``a|b`` come in turn; a range ``a..b`` is spread evenly over the samples. Raises ``UsageError`` for a
    property that the model was not trained on and for what is no number; warns of what no training molecule had.
    """
    if not known:
        raise UsageError(
            "this model was told no property; train it with data.properties=[mu], or what the data has, to ask for one"
        )
    names = [one.name for one in known]
    told = torch.full((count, len(known)), math.nan)
    for part in wanted.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            name, value = names[0], name
            if len(names) > 1:
                raise UsageError(f"{part.strip()!r} names no property; write NAME=VALUE with one of {', '.join(names)}")
        if name not in names:
            raise UsageError(f"no property is called {name!r}; this model was told {', '.join(names)}")
        values = _values(value, name, count)
        place = names.index(name)
        if not bool(told[:, place].isnan().all()):
            raise UsageError(f"{name} is asked for twice; several values of it are written {name}=1|2|3")
        _warn(values, known[place])
        told[:, place] = values
    return told


def _values(text: str, name: str, count: int) -> Tensor:
    low, dots, high = text.partition("..")
    if dots:
        return torch.linspace(_number(low, name), _number(high, name), count)
    values = torch.tensor([_number(word, name) for word in text.split("|")])
    return values[torch.arange(count) % len(values)]


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{text.strip()!r} is no value of {name}; write {name}=3, {name}=0.5|1|2 or {name}=2..4")
    return number


def _warn(values: Tensor, known: Property) -> None:
    outside = values[(values < known.low) | (values > known.high)]
    if len(outside):
        log.warning(
            "%s=%.4g is outside of what the model was trained on, %.4g to %.4g %s",
            known.name, outside[0].item(), known.low, known.high, known.unit,
        )  # fmt: skip
