"""What a network's output may mean. Light: a config can name it without torch."""

from typing import Literal, get_args

Prediction = Literal["velocity", "x1", "noise", "score", "edm"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
