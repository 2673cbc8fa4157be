"""Signatures and launch geometry of the kernels, read from their CUDA sources.

Host code launches a kernel by the types of its declaration and by the ``// launch:`` line above it.
Nothing is written twice, so host and kernel cannot disagree. This module needs no CUDA.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import CodeType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mpn.errors import EngineError

KERNEL_FILES: Final = (
    "boxes",
    "checks",
    "colour",
    "crf_filter",
    "crf_lattice",
    "crf_meanfield",
    "crop",
    "flip",
    "osvos",
    "pack",
    "paste",
    "resize",
    "target",
    "tracks",
    "warp",
)
"""Kernel families, one file and one cubin each."""

DTYPES: Final[Mapping[str, npt.DTypeLike]] = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "Half": np.float16,
}
"""NumPy dtype of each type of kernel parameters."""

_INCLUDE = re.compile(r'^#include "(?P<file>[a-z_]+\.cuh)"$', re.MULTILINE)
_KERNEL = re.compile(
    r"^// launch: block (?P<block>[0-9 ]+); grid (?P<grid>[^\n]+)\n"
    r'extern "C" __global__ void __launch_bounds__\((?P<bound>\d+)\) '
    r"(?P<name>[a-z][a-z0-9_]*)\(\s*(?P<parameters>[^)]*)\) \{",
    re.MULTILINE,
)
_PARAMETER = re.compile(
    r"^(?P<const>const )?(?P<type>[A-Za-z0-9]+)(?P<pointer>\*)?( __restrict__)? "
    r"(?P<name>[a-z0-9_]+)$"
)
_GEOMETRY_NODES = (ast.Expression, ast.BinOp, ast.Mult, ast.Add, ast.Call, ast.Name, ast.Load)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: As in the source.
        dtype: Of the value, or of the elements that it points to.
        is_pointer: Whether it is an array on the device.
        is_const: Whether the kernel only reads the array.
    """

    name: str
    dtype: np.dtype[Any]
    is_pointer: bool
    is_const: bool


@dataclass(frozen=True)
class KernelSignature:
    """A kernel as its source declares it.

    Attributes:
        name: Name of the function.
        family: File that it stands in, without ``.cu``.
        parameters: In order.
        block: Threads of a block, (x, y, z).
    """

    name: str
    family: str
    parameters: tuple[Parameter, ...]
    block: tuple[int, int, int]
    _grid: tuple[CodeType, ...]

    def grid(self, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
        """Compute the blocks (x, y, z) of a launch from its arguments by parameter name."""
        sizes = [
            int(eval(axis, {"ceil": _ceil_div, "min": min}, dict(arguments))) for axis in self._grid
        ]
        return (sizes[0], sizes[1] if len(sizes) > 1 else 1, sizes[2] if len(sizes) > 2 else 1)


@cache
def kernel_source(family: str) -> str:
    """Return the source of a kernel family with each header inserted once.

    Args:
        family: One of :data:`KERNEL_FILES`.
    """
    included: set[str] = set()

    def expanded(file: str) -> str:
        text = (resources.files(__package__) / "kernels" / file).read_text(encoding="utf-8")

        def header(match: re.Match[str]) -> str:
            name = match["file"]
            if name in included:
                return ""
            included.add(name)
            return expanded(name)

        return _INCLUDE.sub(header, text.replace("#pragma once\n", ""))

    return expanded(f"{family}.cu")


@cache
def kernel_signatures() -> Mapping[str, KernelSignature]:
    """Return every kernel of the package by name."""
    found: dict[str, KernelSignature] = {}
    for family in KERNEL_FILES:
        for signature in signatures_in(kernel_source(family), family):
            if signature.name in found:
                raise EngineError(f"kernel {signature.name} stands in two files")
            found[signature.name] = signature
    return found


def signatures_in(source: str, family: str) -> list[KernelSignature]:
    """Parse the kernels of one source.

    Args:
        source: CUDA C++.
        family: Name of the file, for messages.

    Raises:
        EngineError: If a kernel has no launch line, or a parameter of an unknown type.
    """
    signatures = [_signature(match, family) for match in _KERNEL.finditer(source)]
    declared = source.count("__global__")
    if declared != len(signatures):
        raise EngineError(
            f"{family}.cu declares {declared} kernels, but only {len(signatures)} of them as "
            "'// launch: block ...; grid ...' and 'extern \"C\" __global__ void "
            "__launch_bounds__(n) name(...)'"
        )
    return signatures


def _signature(match: re.Match[str], family: str) -> KernelSignature:
    name = match["name"]
    parameters = tuple(
        _parameter(" ".join(text.split()), name) for text in match["parameters"].split(",")
    )
    sides = [int(side) for side in match["block"].split()]
    block = (sides[0], sides[1] if len(sides) > 1 else 1, sides[2] if len(sides) > 2 else 1)
    if block[0] * block[1] * block[2] != int(match["bound"]):
        raise EngineError(
            f"kernel {name} is launched with blocks of {block}, but bounded to {match['bound']} "
            "threads"
        )
    axes = match["grid"].split()
    names = {parameter.name for parameter in parameters if not parameter.is_pointer}
    return KernelSignature(
        name, family, parameters, block, tuple(_geometry(axis, names, name) for axis in axes)
    )


def _parameter(text: str, kernel: str) -> Parameter:
    match = _PARAMETER.match(text)
    if match is None or match["type"] not in DTYPES:
        raise EngineError(
            f"kernel {kernel} has the parameter '{text}': expected [const] TYPE[*] name with TYPE "
            f"one of {', '.join(DTYPES)}"
        )
    return Parameter(
        match["name"],
        np.dtype(DTYPES[match["type"]]),
        match["pointer"] is not None,
        match["const"] is not None,
    )


def _geometry(axis: str, names: set[str], kernel: str) -> CodeType:
    """Parse one axis of a grid.

    Allowed are whole numbers, parameters, +, *, ceil(a,b) and min(a,b).
    """
    tree = ast.parse(axis, mode="eval")
    for node in ast.walk(tree):
        is_number = isinstance(node, ast.Constant) and isinstance(node.value, int)
        is_name = isinstance(node, ast.Name) and node.id in names | {"ceil", "min"}
        if not (is_number or is_name or isinstance(node, _GEOMETRY_NODES)) or (
            isinstance(node, ast.Name) and not is_name
        ):
            raise EngineError(f"kernel {kernel} is launched with a grid of '{axis}'")
    return compile(tree, f"<grid of {kernel}>", "eval")


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)
