"""Writing nodes: fresh names, shared constants, and what is known of the shapes of tensors."""

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
"""Static sizes; None where a size is known at run time only."""


class GraphBuilder:
    """A list of nodes that grows, and the constants they need.

    Args:
        shapes: What is known of the tensors that nodes will read.
        prefix: Of the names of everything it makes, so that they cannot meet those of a network.
    """

    def __init__(self, shapes: Mapping[str, Shape], prefix: str = "bw/") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._shapes = dict(shapes)
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._memo: dict[tuple[Any, ...], str] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """The initialisers that the nodes read."""
        return list(self._constants.values())

    def shape(self, name: str) -> Shape:
        """Static sizes of a tensor.

        Raises:
            ExportError: If its rank is not known.
        """
        if name not in self._shapes:
            raise ExportError(
                f"the rank of tensor '{name}' is unknown: it cannot be differentiated"
            )
        return self._shapes[name]

    def channels(self, name: str) -> int:
        """Static size of axis 1.

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
            *inputs: Names of tensors; ``""`` for one that is left out.
            output: Its name, for a tensor at the graph's edge; fresh otherwise.
            **attributes: Of the node.

        Returns:
            The name of its output.
        """
        name = self._fresh() if output is None else output
        # Nodes go without names of their own, which would be a third of a large graph's bytes.
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def once(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """As :meth:`op`, but the same node is not added twice."""
        key = (op_type, inputs, tuple(sorted((k, repr(v)) for k, v in attributes.items())))
        if key not in self._memo:
            self._memo[key] = self.op(op_type, *inputs, **attributes)
        return self._memo[key]

    def split(
        self, name: str, sizes: Sequence[int], axis: int, outputs: Sequence[str] | None = None
    ) -> list[str]:
        """Add a Split into parts of fixed sizes.

        Args:
            name: What to split.
            sizes: Of the parts.
            axis: Along which.
            outputs: Names of the parts, for tensors at the graph's edge; fresh otherwise.

        Returns:
            The names of the parts.
        """
        parts = [self._fresh() for _ in sizes] if outputs is None else list(outputs)
        self.nodes.append(helper.make_node("Split", [name, self.ints(*sizes)], parts, axis=axis))
        return parts

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self._constant(np.asarray(values, np.int64))

    def integer(self, value: int) -> str:
        """A constant int64 without axes."""
        return self._constant(np.asarray(value, np.int64))

    def scalar(self, value: float, rank: int = 0) -> str:
        """A constant float32 with ``rank`` axes of size 1."""
        return self._constant(np.full((1,) * rank, value, np.float32))

    def size(self, name: str, axis: int) -> str:
        """The size of an axis at run time, int64 of shape (1,)."""
        return self.once("Shape", name, start=axis, end=axis + 1)

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def _constant(self, value: npt.NDArray[Any]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"{self._prefix}const{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(value, name)
        return self._constants[key].name


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


@dataclass(frozen=True)
class Tape:
    """The builder of the backward pass, and what a gradient is wanted for.

    Attributes:
        builder: Takes the nodes of the backward pass.
        active: Tensors that depend on what is trained.
        constants: Values of small constants of the forward pass.
    """

    builder: GraphBuilder
    active: frozenset[str]
    constants: Mapping[str, npt.NDArray[np.generic]]

    def wants(self, name: str) -> bool:
        """Whether the gradient of this tensor is needed."""
        return name in self.active

    def integers(self, name: str) -> tuple[int, ...]:
        """A constant vector of integers.

        Raises:
            ExportError: If it is computed at run time.
        """
        if name not in self.constants:
            raise ExportError(f"'{name}' is computed at run time where a constant is needed")
        return tuple(int(value) for value in np.ravel(self.constants[name]))
