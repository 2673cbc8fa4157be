"""Compare the outputs of a kernel, run by the shim, with its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.emulation.cuda_shim.memory import Guard
from tests.emulation.cuda_shim.shim import Shim
from tests.reference.kernels import kernel_references

Outputs = dict[str, npt.NDArray[Any]]

RUNS: tuple[tuple[int, Guard], ...] = ((0, "end"), (1, "start"))
"""Threads in order and shuffled; guard pages after and before each array."""


def kernel_outputs(shim: Shim, name: str, **arguments: Any) -> Outputs:
    """Run a kernel and return its outputs, which must be the same in each run.

    Args:
        shim: Runs the kernels.
        name: Name of the kernel.
        **arguments: Values by parameter name. Arrays are copied and do not change.
    """
    runs = []
    for seed, guard in RUNS:
        given = _copied(arguments)
        shim.launch(name, seed=seed, guard=guard, **given)
        runs.append(_written(shim, name, given))
    for other in runs[1:]:
        for parameter, array in runs[0].items():
            assert array.tobytes() == other[parameter].tobytes(), (
                f"{parameter} of {name} depends on the order of its threads"
            )
    return runs[0]


def reference_outputs(shim: Shim, name: str, **arguments: Any) -> Outputs:
    """Run the reference of a kernel and return its outputs."""
    given = _copied(arguments)
    kernel_references()[name](**given)
    return _written(shim, name, given)


def kernel_and_reference(shim: Shim, name: str, **arguments: Any) -> tuple[Outputs, Outputs]:
    """Return the outputs of a kernel and of its reference for the same arguments."""
    return kernel_outputs(shim, name, **arguments), reference_outputs(shim, name, **arguments)


def largest_difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the largest difference; infinite if either array has a NaN.

    Shapes and dtypes must be equal.
    """
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0))


def _copied(arguments: dict[str, Any]) -> dict[str, Any]:
    """Copy the arrays; an array that is passed twice stays one array."""
    copies: dict[int, npt.NDArray[Any]] = {}
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            value = copies.setdefault(id(value), value.copy())
        given[name] = value
    return given


def _written(shim: Shim, name: str, given: dict[str, Any]) -> Outputs:
    return {
        parameter.name: given[parameter.name]
        for parameter in shim.signatures[name].parameters
        if parameter.is_pointer and not parameter.is_const and given[parameter.name] is not None
    }
