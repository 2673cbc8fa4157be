"""Builder of ONNX nodes with new names, shared constants and tensor shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mpn.errors import ExportError

Shape = tuple[int | None, ...]
"""Static sizes; None if a size is known only at run time."""

PREFIX = "bw/"
"""Prefix of all new names, so that they differ from those of a network."""


class GraphBuilder:
    """Growing list of nodes, and the constants they need.

    Args:
        shapes: Known shapes of the tensors that nodes will read.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._shapes = dict(shapes)
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._memo: dict[tuple[Any, ...], str] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """The initialisers that the nodes read."""
        return list(self._constants.values())

    def shape(self, name: str) -> Shape:
        """Return the static sizes of a tensor.

        Raises:
            ExportError: If its rank is not known.
        """
        if name not in self._shapes:
            raise ExportError(
                f"the rank of tensor '{name}' is unknown: it cannot be differentiated"
            )
        return self._shapes[name]

    def channels(self, name: str) -> int:
        """Return the static size of axis 1.

        Raises:
            ExportError: If it is not static.
        """
        shape = self.shape(name)
        if len(shape) < 2 or shape[1] is None:
            raise ExportError(f"the channels of tensor '{name}' are not static: {shape}")
        return shape[1]

    def op(
        self,
        op_type: str,
        *inputs: str,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node with one output.

        Args:
            op_type: ONNX operator.
            *inputs: Names of tensors; ``""`` for an omitted one.
            output: Its name, for an output of the graph; otherwise a new one.
            **attributes: Attributes of the node.

        Returns:
            The name of its output.
        """
        name = self._fresh() if output is None else output
        # Nodes get no names: they would be a third of a large graph's bytes.
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def once(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node as :meth:`op` does, but not twice."""
        key = (op_type, inputs, tuple(sorted((k, repr(v)) for k, v in attributes.items())))
        if key not in self._memo:
            self._memo[key] = self.op(op_type, *inputs, **attributes)
        return self._memo[key]

    def split(
        self, name: str, sizes: Sequence[int], axis: int, outputs: Sequence[str] | None = None
    ) -> list[str]:
        """Add a Split into parts of fixed sizes.

        Args:
            name: Tensor to split.
            sizes: Sizes of the parts.
            axis: Axis to split.
            outputs: Names of the parts, for outputs of the graph; otherwise new ones.

        Returns:
            The names of the parts.
        """
        parts = [self._fresh() for _ in sizes] if outputs is None else list(outputs)
        self.nodes.append(helper.make_node("Split", [name, self.ints(*sizes)], parts, axis=axis))
        return parts

    def ints(self, *values: int) -> str:
        """Add a constant vector of int64."""
        return self._constant(np.asarray(values, np.int64))

    def integer(self, value: int) -> str:
        """Add a constant int64 without axes."""
        return self._constant(np.asarray(value, np.int64))

    def scalar(self, value: float, rank: int = 0) -> str:
        """Add a constant float32 with ``rank`` axes of size 1."""
        return self._constant(np.full((1,) * rank, value, np.float32))

    def size(self, name: str, axis: int) -> str:
        """Add the size of an axis at run time, int64 of shape (1,)."""
        return self.once("Shape", name, start=axis, end=axis + 1)

    def _fresh(self) -> str:
        self._count += 1
        return f"{PREFIX}{self._count}"

    def _constant(self, value: npt.NDArray[Any]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"{PREFIX}const{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(value, name)
        return self._constants[key].name


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as Python values."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


@dataclass(frozen=True)
class Tape:
    """Builder of the backward pass, and the tensors that need a gradient.

    Attributes:
        builder: Builder of the backward pass.
        active: Tensors that depend on trained ones.
        constants: Values of small constants of the forward pass.
    """

    builder: GraphBuilder
    active: frozenset[str]
    constants: Mapping[str, npt.NDArray[np.generic]]

    def needs_gradient(self, name: str) -> bool:
        """Return whether a tensor needs a gradient."""
        return name in self.active

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a constant vector of integers.

        Raises:
            ExportError: If it is computed at run time.
        """
        if name not in self.constants:
            raise ExportError(f"'{name}' is computed at run time, but must be a constant")
        return tuple(int(value) for value in np.ravel(self.constants[name]))
