"""Compute in NumPy the results of the CUDA kernels.

A reference has the name and the parameters of its kernel. It takes arrays in host memory and writes
the same outputs. Tests compare references with the CPU operations and kernels with references, on
the CPU and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from mpn.cuda.registry import kernel_signatures


@cache
def kernel_references() -> Mapping[str, Callable[..., None]]:
    """Return each reference by the name of its kernel."""
    return {
        name: _reference(signature.family, name) for name, signature in kernel_signatures().items()
    }


def _reference(family: str, name: str) -> Callable[..., None]:
    module: Any = import_module(f"{__name__}.{family}")
    found: Callable[..., None] = getattr(module, name)
    return found
