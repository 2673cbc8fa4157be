"""Every CUDA kernel again in NumPy, under the same name and with the same parameters.

A reference says in a few plain lines what its kernel computes, on arrays in the host's memory; what the
kernel writes, it writes. The tests hold the references against the CPU operations and the kernels
against the references; on a GPU the same comparison needs no other reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from mpn.cuda.registry import kernel_signatures


@cache
def kernel_references() -> Mapping[str, Callable[..., None]]:
    """Every reference by the name of its kernel."""
    return {
        name: _reference(signature.family, name) for name, signature in kernel_signatures().items()
    }


def _reference(family: str, name: str) -> Callable[..., None]:
    module: Any = import_module(f"{__name__}.{family}")
    found: Callable[..., None] = getattr(module, name)
    return found
