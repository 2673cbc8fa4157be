"""TensorRT engines with other weights: refitted, and compared with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpn.engines.base import Engine
from mpn.engines.directory.entries import WeightTensor
from mpn.engines.directory.files import resolve_inside
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.onnxruntime.finetune import finetune_entry
from mpn.engines.onnxruntime.reweight import graph_with_weights
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.engines.tensorrt.engine import TrtEngine
from mpn.engines.tensorrt.open import PlanPolicy, open_trt_engine, refittable
from mpn.engines.tensorrt.plans.store import PlanStore
from mpn.engines.weights import check_weights, read_weights, stored_bytes
from mpn.errors import EngineError
from mpn.types import Float32Array

_PROBE_SEED = 0

_OSVOS_RANGE = 120.0
"""Inputs of OSVOS are colours of 0..255 less their mean."""

MIN_PROJECTION = 0.5
"""Smallest projection coefficient at which new weights count as applied."""

MAX_STD_ERROR = 0.1
"""Largest standard error at which a projection coefficient is used."""


@dataclass(frozen=True)
class ProbLimits:
    """Largest allowed differences between two engines with the same weights.

    Attributes:
        max_abs: Largest difference of a probability.
        mean_abs: Mean difference.
    """

    max_abs: float
    mean_abs: float


LIMITS: Mapping[Precision, ProbLimits] = {
    # Sums in another order, over thousands of products.
    "fp32": ProbLimits(max_abs=5e-3, mean_abs=5e-4),
    # The limits of parity at export: half against float32 activations.
    "fp16": ProbLimits(max_abs=0.1, mean_abs=2e-3),
}


def open_refitted_engine(
    store: PlanStore,
    role: Role,
    weights: Mapping[str, Float32Array],
    policy: PlanPolicy,
    *,
    threads: int | None = None,
) -> TrtEngine:
    """Open an engine with other weights, from the role's refittable plan.

    Args:
        store: The plans of the directory.
        role: ``"propagation"`` or ``"osvos"``.
        weights: New weights by name; the others stay.
        policy: Build or load the plan, which is built for the first object.
        threads: Threads of onnxruntime, for the comparison.

    Returns:
        The engine, once it agrees with onnxruntime.

    Raises:
        BackendError: If there is no plan and none may be built.
        EngineError: If a weight does not fit, refitting fails, or the outputs differ.
        OutputError: If files cannot be written.
    """
    entry = finetune_entry(store.manifest, role)
    check_weights(entry.tensors, weights, complete=False)
    trained = [tensor for tensor in entry.tensors if tensor.scopes]
    own = read_weights(store.directory, entry.tensors)
    _check_fixed(entry.tensors, own, weights)
    # All trained weights: fused layers may need the weights of each other.
    stored = {tensor.name: stored_array(tensor, {**own, **weights}) for tensor in trained}
    engine, _ = open_trt_engine(
        store, role, policy, options=refittable(policy.options), weights=stored
    )
    try:
        check_against_onnxruntime(engine, store, role, weights, threads=threads)
    except BaseException:
        engine.close()
        raise
    return engine


def check_against_onnxruntime(
    engine: Engine,
    store: PlanStore,
    role: Role,
    weights: Mapping[str, Float32Array],
    *,
    threads: int | None = None,
) -> None:
    """Compare a refitted engine with onnxruntime on the CPU, on one input.

    Raises:
        EngineError: If they differ by more than :data:`LIMITS`, or if the output is still that of
            the directory's weights.
    """
    precision = store.manifest.roles[role].precision
    limits, probe = LIMITS[precision], probe_for(engine.spec)
    own_graph = resolve_inside(store.directory, store.manifest.roles[role].onnx)
    with OrtEngine(own_graph, engine.spec, threads=threads) as own:
        before = own.run(probe)["prob"]
    with (
        graph_with_weights(store.directory, store.manifest, role, weights) as graph,
        OrtEngine(graph, engine.spec, threads=threads) as reference,
    ):
        expected = reference.run(probe)["prob"]
    got = engine.run(probe)["prob"]
    found = differences(got, expected)
    if found.max_abs > limits.max_abs or found.mean_abs > limits.mean_abs:
        raise EngineError(
            f"the {role} engine on {engine.backend} with new weights differs from "
            f"onnxruntime by {found.max_abs:.2g} at most and {found.mean_abs:.2g} on average "
            f"({limits.max_abs:g} and {limits.mean_abs:g} are allowed): this version cannot "
            "refit the weights, use backend cuda, or --no-finetune"
        )
    arrived = projection_coefficient(got, before, expected)
    if arrived is not None and arrived < MIN_PROJECTION:
        raise EngineError(
            f"the {role} engine on {engine.backend} has the same outputs although its weights were "
            "refitted: use backend cuda, or --no-finetune"
        )


def projection_coefficient(
    got: Float32Array, before: Float32Array, expected: Float32Array
) -> float | None:
    """Project the change of ``got`` onto the expected change.

    The sum runs over all pixels, so rounding averages out even if it is larger than the change.

    Returns:
        1 if ``got`` has the whole change from ``before`` to ``expected``, 0 if it has none; None
        if the change is too small for the noise.
    """
    change = (expected - before).astype(np.float64).ravel()
    moved = (got - before).astype(np.float64).ravel()
    norm2 = float(change @ change)
    if norm2 == 0:
        return None
    coefficient = float(moved @ change) / norm2
    noise = min(float(np.std(moved)), float(np.std(moved - change)))
    return coefficient if noise < MAX_STD_ERROR * np.sqrt(norm2) else None


def differences(left: Float32Array, right: Float32Array) -> ProbLimits:
    """Return largest and mean difference of two probabilities; infinity for NaN."""
    errors = np.abs(left - right)
    if not np.isfinite(errors).all():
        return ProbLimits(float("inf"), float("inf"))
    return ProbLimits(float(errors.max()), float(errors.mean()))


def probe_for(spec: EngineSpec) -> dict[str, Float32Array]:
    """Return reproducible inputs of one object in the network's usual range."""
    rng = np.random.default_rng(_PROBE_SEED)
    probe: dict[str, Float32Array] = {}
    for tensor in spec.inputs:
        shape = tuple(1 if isinstance(size, str) else size for size in tensor.shape)
        if spec.role == "osvos":
            probe[tensor.name] = rng.uniform(-_OSVOS_RANGE, _OSVOS_RANGE, shape).astype(np.float32)
        else:
            values = rng.standard_normal(shape, np.float32)
            values[:, 3:] = rng.random(values[:, 3:].shape, np.float32)  # the warped probability
            probe[tensor.name] = values
    return probe


def stored_array(tensor: WeightTensor, weights: Mapping[str, Float32Array]) -> np.ndarray[Any, Any]:
    """Convert and scale a weight to the form that the graph stores.

    Raises:
        EngineError: If the graph stores half precision and a value is out of its range.
    """
    dtype = np.dtype("<f4" if tensor.dtype == "float32" else "<f2")
    return np.frombuffer(stored_bytes(tensor, weights[tensor.name]), dtype).reshape(tensor.shape)


def _check_fixed(
    tensors: tuple[WeightTensor, ...],
    own: Mapping[str, Float32Array],
    weights: Mapping[str, Float32Array],
) -> None:
    for tensor in tensors:
        given = weights.get(tensor.name)
        if not tensor.scopes and given is not None and not np.array_equal(given, own[tensor.name]):
            raise EngineError(f"weight '{tensor.name}' is never trained, so a plan cannot refit it")
