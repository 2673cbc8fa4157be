"""Engines with the weights of one object, whatever runs the others."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mpn.engines.base import Engine
from mpn.engines.load import EngineSet
from mpn.engines.ort import OrtBackend, why_no_cuda
from mpn.engines.spec import Role
from mpn.engines.swap import open_adapted_engine
from mpn.engines.trt_swap import open_refitted_engine
from mpn.types import Float32Array


def open_object_engine(
    directory: str | os.PathLike[str],
    engines: EngineSet,
    role: Role,
    weights: Mapping[str, Float32Array],
    *,
    threads: int | None = None,
) -> Engine:
    """Open an engine with other weights on the backend that runs the directory's own.

    Args:
        directory: What mpn-export wrote.
        engines: Its open engines.
        role: ``"propagation"`` or ``"osvos"``.
        weights: By name; those that are not given stay.
        threads: Threads within an operator on the CPU; None leaves it to onnxruntime.

    Returns:
        The engine; on a GPU a :class:`mpn.engines.base.DeviceEngine`.

    Raises:
        BackendError: If a plan is missing and none may be built.
        EngineError: If a weight does not fit, or the check of the exchange fails.
        OutputError: If files cannot be written.
    """
    if engines.plans is not None:
        return open_refitted_engine(engines.plans, role, weights, engines.policy, threads=threads)
    return open_adapted_engine(
        directory,
        engines.manifest,
        role,
        weights,
        backend="cuda" if engines.backend == "cuda" else "cpu",
        threads=threads,
        base=engines.engines[role],
        device=engines.device,
    )


def step_backend(engines: EngineSet) -> OrtBackend:
    """What runs the fine-tuning step, a graph that is onnxruntime's whatever runs the networks.

    CUDA where the networks run on a GPU and the installed onnxruntime has it, else the CPU.
    """
    if engines.backend == "cpu":
        return "cpu"
    return "cuda" if why_no_cuda() is None else "cpu"
