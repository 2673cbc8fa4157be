"""Fine-tuning step in onnxruntime, with its state and its activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mpn._common.cores import limited_cores
from mpn._common.text import one_line
from mpn.engines.onnxruntime.engine import import_onnxruntime
from mpn.errors import ExportError
from mpn.export.finetune.optimizer import NEXT, STEP
from mpn.export.finetune.pattern import pattern_tensors
from mpn.export.finetune.step import LEARNING_RATE, LOSS, TARGET, FinetuneGraph
from mpn.export.finetune.torch_step import StepExample
from mpn.types import Float32Array


class GraphStep:
    """Graph of a step in onnxruntime on the CPU.

    Args:
        graph: The graph; its own model is not changed.
        weights: Every weight of the network by name.
        threads: Threads per operator; None for onnxruntime's default.

    Attributes:
        trained: Names of the trained tensors.
        state: The trained tensors, their states and the count of steps by name, as after the last
            step. States are initially 0.
        pattern: Values of :func:`mpn.export.finetune.pattern.pattern_tensors` in the last step.

    Raises:
        ExportError: If onnxruntime cannot load the graph.
    """

    def __init__(
        self,
        graph: FinetuneGraph,
        weights: Mapping[str, Float32Array],
        *,
        threads: int | None = None,
    ) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        tensors = pattern_tensors(model, graph.trained)
        known = {value.name for value in model.graph.output}
        for name in dict.fromkeys(tensors):
            if name not in known:
                value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)
                model.graph.output.append(value)
        self._session = _session(model, threads)
        self._features = None if graph.features is None else _session(graph.features, threads)
        self._weights = weights
        self._pattern_names = tensors
        self.trained = graph.trained
        self.pattern: list[Float32Array] = []
        self.state: dict[str, Float32Array] = {
            node.name: weights[node.name]
            if node.name in graph.trained
            else np.zeros(node.shape, np.float32)
            for node in self._session.get_inputs()
            if node.name in graph.trained or "::" in node.name or node.name == STEP
        }

    def step(self, example: StepExample, learning_rate: float) -> float:
        """Run one step and return the loss before it."""
        feeds = self._data(self._features or self._session, example.inputs)
        if self._features is not None:
            feeds = _run(self._features, feeds) | self._frozen(self._session)
        feeds |= {TARGET: example.target, LEARNING_RATE: np.asarray(learning_rate, np.float32)}
        values = _run(self._session, feeds | self.state)
        self.pattern = [values[name] for name in self._pattern_names]
        suffix = f"::{NEXT}"
        self.state = {
            name.removesuffix(suffix): value
            for name, value in values.items()
            if name.endswith(suffix)
        }
        return float(values[LOSS])

    def _data(self, session: Any, inputs: Float32Array) -> dict[str, Float32Array]:
        """Return the frozen weights of a graph and the network's input under its name."""
        feeds = self._frozen(session)
        known = {TARGET, LEARNING_RATE, *self.state, *feeds}
        (name,) = (node.name for node in session.get_inputs() if node.name not in known)
        return feeds | {name: inputs}

    def _frozen(self, session: Any) -> dict[str, Float32Array]:
        return {
            node.name: self._weights[node.name]
            for node in session.get_inputs()
            if node.name in self._weights and node.name not in self.state
        }


def _run(session: Any, feeds: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Return all outputs of a graph by name."""
    names = [node.name for node in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"onnxruntime cannot run the step: {one_line(error)}") from error


def _session(model: onnx.ModelProto, threads: int | None) -> Any:
    ort = import_onnxruntime("cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or limited_cores() or 0
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"onnxruntime cannot load the step: {one_line(error)}") from error
