"""Pickles of pixels, read without running anything that they ask for.

A pickle is a program: it names functions and has them called. This reader knows five names, those by which numpy's
arrays of bytes are written, and puts functions of its own in their places; any other is refused. Numbers, text, bytes,
lists and dicts need no name.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from flowcore.errors import FlowError, InputError, IntegrityError

BYTES = {"u1", "|u1", "uint8", "B"}


class _Kind:
    """What stands for a dtype. It is always that of bytes, so its state says nothing more."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """What stands for an array until its state comes."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        self.array = _array(content, kind, shape, "F" if by_columns else "C")


def _array(content: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(kind, _Kind):
        raise TypeError("an array without a dtype")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if order == "F" else "C")


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        # made anew for each pickle, which could set their attributes
        def dtype(kind: Any, *more: Any) -> _Kind:
            text = kind.decode("latin-1") if isinstance(kind, bytes) else kind
            if text not in BYTES:
                raise InputError(f"{self.where} holds an array of {text!r}; pixels are unsigned bytes")
            return _Kind()

        def reconstruct(*given: Any) -> _Array:
            return _Array()

        def frombuffer(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
            return _array(content, kind, shape, order)

        def encode(text: str, codec: Any) -> bytes:
            return text.encode("latin-1")  # how bytes are written where the format has none

        known: dict[str, Callable[..., Any] | str] = {
            "numpy.ndarray": "ndarray",
            "numpy.dtype": dtype,
            "numpy.core.multiarray._reconstruct": reconstruct,
            "numpy.core.numeric._frombuffer": frombuffer,
            "_codecs.encode": encode,
        }
        found = known.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if found is None:
            raise IntegrityError(
                f"{self.where} is not safe to read: it asks for {module}.{name}, and pictures need nothing but arrays, "
                "lists and text; nothing of it was run. Fetch it again from where it was published"
            )
        return found


def load(content: bytes, where: str) -> dict[str, Any]:
    """The dict that a pickle holds, its keys as text and its arrays as uint8 arrays; ``where`` names it in messages.

    Raises ``IntegrityError`` when it names anything else, which is not looked up, and ``InputError`` when it is damaged
    or no dict.
    """
    try:
        found = _Reader(content, where).load()
    except FlowError:
        raise
    except Exception as error:  # a damaged one raises whatever comes first
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where} cannot be read as a pickle: {reason}; fetch it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{where} holds a {type(found).__name__}; the published files hold a dict")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): getattr(value, "array", None)
        if isinstance(value, _Array)
        else value
        for key, value in found.items()
    }
