"""Derivatives of small graphs, by the exporter's rules and by finite differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mpn.export.autodiff import GraphBuilder, differentiate
from mpn.types import Float32Array

OUTPUT = "z"
SEED = "seed"
STEP = 2.0**-6
"""Every operator is piecewise linear: a large step is exact if no piece ends within it. A power of
two adds no rounding."""


@dataclass(frozen=True)
class Case:
    """Graph that ends in ``z``, tensors that need gradients, and constants."""

    nodes: Sequence[onnx.NodeProto]
    inputs: Mapping[str, Float32Array]
    constants: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)


def op(kind: str, inputs: str, outputs: str = OUTPUT, **attributes: object) -> onnx.NodeProto:
    """Make a node; names are separated by spaces, ``_`` is an omitted input."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def away_from_zero(rng: np.random.Generator, *shape: int) -> Float32Array:
    """Draw magnitudes of 0.2 to 1, so that no step crosses zero."""
    sign = rng.choice([-1.0, 1.0], shape)
    return (sign * rng.uniform(0.2, 1.0, shape)).astype(np.float32)


def analytic(case: Case) -> tuple[dict[str, Float32Array], Float32Array]:
    """Compute the gradients of ``sum(seed * z)`` by the rules; return the seed."""
    seed = np.random.default_rng(1).standard_normal(_run(case, case.inputs).shape, np.float32)
    shapes = _shapes(case)
    builder = GraphBuilder(shapes)
    backward = differentiate(
        case.nodes,
        OUTPUT,
        SEED,
        list(case.inputs),
        builder=builder,
        constants=case.constants,
    )
    names = list(backward.gradients.values())
    model = _model([*backward.forward, *builder.nodes], case, builder.constants, names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {node.name for node in session.get_inputs()}
    feeds = {**case.inputs, SEED: seed}
    values = session.run(names, {key: feeds[key] for key in wanted})
    return dict(zip(backward.gradients, values, strict=True)), seed


def numeric(case: Case, seed: Float32Array) -> dict[str, Float32Array]:
    """Compute the gradients by central differences, one element at a time."""
    found = {}
    for name, values in case.inputs.items():
        gradient = np.zeros(values.size, np.float64)
        for index in range(values.size):
            ends = []
            for sign in (1.0, -1.0):
                moved = values.copy()
                moved.flat[index] += np.float32(sign * STEP)
                result = _run(case, {**case.inputs, name: moved}).astype(np.float64)
                ends.append(float((result * seed).sum()))
            gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
        found[name] = gradient.reshape(values.shape).astype(np.float32)
    return found


def _run(case: Case, inputs: Mapping[str, Float32Array]) -> Float32Array:
    model = _model(case.nodes, case, [], [OUTPUT], with_seed=False)
    result: Float32Array = _session(model.SerializeToString()).run([OUTPUT], dict(inputs))[0]
    return result


@lru_cache(maxsize=1)
def _session(content: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _model(
    nodes: Sequence[onnx.NodeProto],
    case: Case,
    more: Sequence[onnx.TensorProto],
    outputs: Sequence[str],
    *,
    with_seed: bool = True,
) -> onnx.ModelProto:
    """Build a model whose input sizes are unknown, so that nothing is folded."""
    values = [(name, array.ndim) for name, array in case.inputs.items()]
    if with_seed:
        values.append((SEED, _run(case, case.inputs).ndim))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
        for name, rank in values
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(value, name) for name, value in case.constants.items()]
    graph = helper.make_graph(nodes, "case", inputs, results, [*constants, *more])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _shapes(case: Case) -> dict[str, tuple[int | None, ...]]:
    """Return ranks, channels and weight shapes, as of a traced network."""
    graph = helper.make_graph(
        case.nodes,
        "shapes",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
            for name, array in case.inputs.items()
        ],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in case.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {
        value.name: tuple(
            size.dim_value if size.HasField("dim_value") else None
            for size in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    return {
        name: shape if name in ("w", "b") else tuple(map(_free, range(len(shape)), shape))
        for name, shape in known.items()
    } | {name: value.shape for name, value in case.constants.items()}


def _free(axis: int, size: int | None) -> int | None:
    """Replace sizes by None, except channels and sizes of 1."""
    return size if axis == 1 or size == 1 else None
