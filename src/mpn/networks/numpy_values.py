"""Read pickled NumPy values without NumPy's functions, which trust the file.

Training programs write their best score with the weights, often as a NumPy scalar. The unpickler
of torch gets stand-ins for the names that NumPy pickles. NumPy's own functions are not used: the
state of a dtype in the file decides how they read memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[fiu][1248]|b1")


class IgnoredNumpy:
    """A NumPy value of a checkpoint that is not a number; it is not read."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Dtype:
    """The type of a scalar.

    Args:
        code: Kind and size, for example ``"f8"``.
    """

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def _scalar(dtype: object = None, data: object = None) -> object:
    """Return the Python number of a pickled scalar; ignore other types."""
    code = getattr(dtype, "code", None)
    if isinstance(code, str) and isinstance(data, bytes) and _NUMBER.fullmatch(code):
        assert isinstance(dtype, _Dtype)
        kind = np.dtype(dtype.order + code)
        if len(data) == kind.itemsize:
            return np.frombuffer(data, kind)[0].item()
    return IgnoredNumpy()


def _array(*_: object) -> IgnoredNumpy:
    return IgnoredNumpy()


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dtype, "numpy.dtype"),
    (IgnoredNumpy, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""For :func:`torch.serialization.safe_globals`: stand-ins and the names in a file, of NumPy 1 and
2."""
