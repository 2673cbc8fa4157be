"""Quantise the convolutions of a graph (QuantizeLinear, DequantizeLinear).

Weights are int8, symmetric, with a scale per output channel. They use 7 of the 8 bits: a processor
without VNNI adds two products of uint8 and int8 in int16, where 255 * 127 * 2 saturates and
255 * 64 * 2 does not. Processors then differ by the rounding of float32 layers only.

Activations are uint8 with a scale and a zero point per tensor, from the smallest and the largest
value of the calibration inputs: with int8 activations onnxruntime is no faster than in float32
(1.32, CPU with VNNI).

Rounded weights shift the mean of each output channel. The biases are corrected by it (Nagel et al.,
"Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.2), with
the mean inputs of the calibration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpn._common.cores import limited_cores
from mpn.engines.onnxruntime.engine import import_onnxruntime
from mpn.errors import ExportError
from mpn.types import Float32Array

_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu")
_BETWEEN = (*_ACTIVATIONS, "Add", "Concat", "Resize", "AveragePool", "MaxPool")
"""Operators that are quantised between convolutions."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

_LEAST_NORM = 1e-12
"""Of outputs that are 0."""

Float64Array = npt.NDArray[np.float64]
Inputs = Mapping[str, Float32Array]


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantised copy of a graph.

    Attributes:
        model: The graph.
        operators: Its convolutions with int8 weights.
        total_operators: All its convolutions.
        float_layers: Names of the convolutions in float32, the most sensitive first.
        relative_error: Mean over inputs of the distance of the outputs from those of the float32
            graph, over their norm (both Euclidean).
    """

    model: onnx.ModelProto
    operators: int
    total_operators: int
    float_layers: tuple[str, ...]
    relative_error: float


@dataclass
class GraphQuantizer:
    """Quantise a graph with more or fewer of its layers.

    Args:
        path: The graph, float32 or half.
        inputs: Calibration inputs: of the ranges, and a few of them of the errors.
        work_dir: Folder for temporary files.

    Raises:
        ExportError: If the graph has no convolution.
    """

    path: Path
    inputs: Sequence[Inputs]
    work_dir: Path
    _sensitive: tuple[str, ...] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.float_model = float32_graph(self.path)
        self.layers = tuple(n.name for n in self.float_model.graph.node if n.op_type == "Conv")
        if not self.layers:
            raise ExportError(f"{self.path.name} has no convolution that could be quantised")
        self._probes = self.inputs[:: -(-len(self.inputs) // 4)]
        self._expected = [_run(_session(self.float_model), probe) for probe in self._probes]
        self._ranges = self._calibrated()
        self._means = self._mean_inputs()

    def quantize(self, largest_error: float) -> QuantizedGraph:
        """Quantise all layers except the most sensitive ones.

        The sensitivity of a layer is the error of the outputs if no other layer is quantised. The
        most sensitive layers go back to float32, one by one, until the error is small enough or
        half of the layers are in float32.

        Args:
            largest_error: Largest relative error of the outputs.
        """
        kept: tuple[str, ...] = ()
        while True:
            graph = self._without(kept)
            if graph.relative_error <= largest_error or 2 * (len(kept) + 1) > len(self.layers):
                return graph
            kept = self._ranked()[: len(kept) + 1]

    def _ranked(self) -> tuple[str, ...]:
        if self._sensitive is None:
            errors = {name: self._error(self._quantized([name])) for name in self.layers}
            self._sensitive = tuple(sorted(errors, key=lambda name: -errors[name]))
        return self._sensitive

    def _without(self, kept: tuple[str, ...]) -> QuantizedGraph:
        wanted = [name for name in self.layers if name not in kept]
        model = self._quantized([*wanted, *_nodes_between(self.float_model, set(wanted))])
        return QuantizedGraph(
            model, quantized_convolutions(model), len(self.layers), kept, self._error(model)
        )

    def _error(self, model: onnx.ModelProto) -> float:
        session = _session(model)
        errors = [
            _norm(_run(session, probe) - expected) / max(_norm(expected), _LEAST_NORM)
            for probe, expected in zip(self._probes, self._expected, strict=True)
        ]
        return float(np.mean(errors))

    def _calibrated(self) -> Any:
        tools = _tools()
        source = self.work_dir / f"{self.path.stem}-float.onnx"
        onnx.save(self.float_model, source)
        with _quiet():
            calibrator = tools.create_calibrator(
                source,
                ["Conv", *_BETWEEN],
                augmented_model_path=str(self.work_dir / f"{self.path.stem}-ranges.onnx"),
                calibrate_method=tools.CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Reader(self.inputs))
            return calibrator.compute_data()

    def _quantized(self, nodes: Sequence[str]) -> onnx.ModelProto:
        tools = _tools()
        model = onnx.ModelProto()
        model.CopyFrom(self.float_model)
        with _quiet():
            quantizer = tools.QDQQuantizer(
                model,
                True,  # a scale per channel
                True,  # 7 of 8 bits
                tools.QuantType.QInt8,
                tools.QuantType.QUInt8,
                self._ranges,
                list(nodes),
                [],
                ["Conv", *_BETWEEN],
                {"WeightSymmetric": True},
            )
            quantizer.quantize_model()
        result: onnx.ModelProto = quantizer.model.model
        self._correct_biases(result)
        return result

    def _mean_inputs(self) -> dict[str, Float64Array]:
        """Return the mean input of each convolution, (channels,)."""
        model = onnx.ModelProto()
        model.CopyFrom(self.float_model)
        names = sorted({n.input[0] for n in model.graph.node if n.op_type == "Conv"})
        means = [f"{name}_mean" for name in names]
        del model.graph.output[:]
        for name, mean in zip(names, means, strict=True):
            model.graph.node.append(helper.make_node("GlobalAveragePool", [name], [mean]))
            model.graph.output.append(helper.make_empty_tensor_value_info(mean))
        session = _session(model)
        runs = [session.run(means, dict(given)) for given in self.inputs]
        return {
            name: np.mean([pooled.mean(axis=(0, 2, 3)) for pooled in values], axis=0, dtype=float)
            for name, values in zip(names, zip(*runs, strict=True), strict=True)
        }

    def _correct_biases(self, model: onnx.ModelProto) -> None:
        """Subtract the mean effect of the rounded weights from the int32 biases."""
        exact = {n.name: n for n in self.float_model.graph.node if n.op_type == "Conv"}
        values = {
            t.name: t for t in (*self.float_model.graph.initializer, *model.graph.initializer)
        }
        quantized = {
            node.output[0]: node
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in values
        }
        for node in model.graph.node:
            if node.op_type != "Conv" or len(quantized.keys() & node.input[1:]) < 2:
                continue  # in float32, or without a bias
            weights = numpy_helper.to_array(values[exact[node.name].input[1]])
            rounded, scale = _array_and_scale(quantized[node.input[1]], values)
            scale = scale.reshape(-1, *[1] * (weights.ndim - 1))
            change = (rounded * scale - weights).sum(axis=tuple(range(2, weights.ndim)))
            mean = self._means[exact[node.name].input[0]].reshape(-1, change.shape[1])
            groups = np.repeat(mean, len(change) // len(mean), axis=0)
            bias, scale = _array_and_scale(quantized[node.input[2]], values)
            shift = np.rint((change * groups).sum(axis=1) / scale)
            name = quantized[node.input[2]].input[0]
            values[name].CopyFrom(numpy_helper.from_array((bias - shift).astype(np.int32), name))


def float32_graph(path: Path) -> onnx.ModelProto:
    """Load a graph in float32, without casts; each node has a name."""
    model = onnx.load(path)
    graph = model.graph
    for tensor in graph.initializer:
        _widen(tensor)
    source: dict[str, str] = {}
    kept = []
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{index}"
        if node.op_type == "Cast" and node.attribute[0].i in _FLOATS:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
            continue
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
        kept.append(node)
    # An output of the graph keeps its name although the cast that made it is gone.
    renamed = {source[o.name]: o.name for o in graph.output if o.name in source}
    for node in kept:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                found = source.get(name, name)
                names[index] = renamed.get(found, found)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    return onnx.shape_inference.infer_shapes(model)


def quantized_convolutions(model: onnx.ModelProto) -> int:
    """Count the convolutions whose weights are int8 in a graph."""
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    from_int8 = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and weights.get(node.input[0]) == TensorProto.INT8
    }
    return sum(n.op_type == "Conv" and n.input[1] in from_int8 for n in model.graph.node)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _array_and_scale(
    node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]
) -> tuple[Float64Array, Float64Array]:
    """Return the integers and the scale of a DequantizeLinear."""
    integers, scale = (numpy_helper.to_array(values[name]) for name in node.input[:2])
    return integers.astype(np.float64), scale.astype(np.float64)


def _nodes_between(model: onnx.ModelProto, convolutions: set[str]) -> list[str]:
    """Return the nodes between convolutions that are quantised with them.

    All their values come from quantised convolutions, through such nodes only, and one
    is read by a quantised convolution, likewise. Nodes after the last convolutions and before the
    first ones compute in float32; activations belong to their convolution.
    """
    nodes = list(model.graph.node)
    after = {n.output[0] for n in nodes if n.name in convolutions}
    candidates = []
    for node in nodes:
        values = node.input if node.op_type in ("Add", "Concat") else node.input[:1]
        if node.op_type in _BETWEEN and all(name in after for name in values):
            after.add(node.output[0])
            candidates.append(node)
    read = {n.input[0] for n in nodes if n.name in convolutions}
    between = []
    for node in reversed(candidates):
        is_read = node.output[0] in read
        if is_read:
            read.update(node.input)
        if is_read or node.op_type in _ACTIVATIONS:
            between.append(node.name)
    return between


class _Reader:
    """Calibration inputs in the form that onnxruntime takes."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, Float32Array] | None:
        found = next(self._left, None)
        return None if found is None else dict(found)

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError


def _tools() -> Any:
    import_onnxruntime("cpu")
    import onnxruntime.quantization as tools

    return tools


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the advice that onnxruntime's tools log."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _session(model: onnx.ModelProto) -> Any:
    ort = import_onnxruntime("cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = limited_cores() or 0
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _norm(values: Float32Array) -> float:
    return float(np.linalg.norm(values))


def _run(session: Any, inputs: Inputs) -> Float32Array:
    output: Float32Array = session.run(None, dict(inputs))[0]
    return output
