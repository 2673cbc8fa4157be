"""Trace a network up to its logits, for any size and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mpn.engines.spec import PROPAGATION_INPUTS, Role
from mpn.errors import ExportError
from mpn.export.autodiff.builder import Shape
from mpn.export.graph import (
    input_channels,
    restore_biases,
    strip_metadata,
)
from mpn.export.tracing import traced_program
from mpn.types import Float32Array

MARGIN = "margin"
"""(N, 1, H, W) logits of the foreground against the background; its sigmoid is the probability."""

_EXAMPLE_SHAPE = (2, 81, 97)
"""Batch, height and width for tracing: different, and none is 1, which would become fixed."""

_LARGEST_BATCH = 1024

_SIDES = (33, 16384)


@dataclass(frozen=True)
class ForwardGraph:
    """Traced network.

    Attributes:
        role: Role of the network.
        input_name: Name of the network's input.
        nodes: In topological order, from the network's input to :data:`MARGIN`.
        shapes: Known shape of every tensor.
        weights: Name -> values of every parameter, as in the inference graph.
        constants: Name -> values of the other initialisers: bounds, axes, scales.
    """

    role: Role
    input_name: str
    nodes: tuple[onnx.NodeProto, ...]
    shapes: Mapping[str, Shape]
    weights: Mapping[str, Float32Array]
    constants: Mapping[str, npt.NDArray[Any]]


class _HasLogits(nn.Module):
    def logits(self, image: Tensor) -> Tensor: ...  # type: ignore[empty-body]


class _HasMargin(nn.Module):
    def margin(self, rgb_prob: Tensor) -> Tensor: ...  # type: ignore[empty-body]


class MarginGraph(nn.Module):
    """Module from a network's input to its foreground margin (N, 1, H, W).

    The margin is the foreground logit minus the background logit.

    Args:
        role: ``"propagation"`` or ``"osvos"``.
        network: The role's network.
    """

    def __init__(self, role: Role, network: nn.Module) -> None:
        super().__init__()
        self.role = role
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the margin, float32."""
        if self.role == "osvos":
            return cast(_HasLogits, self.network).logits(inputs)
        return cast(_HasMargin, self.network).margin(inputs)


def trace_forward(role: Role, network: nn.Module) -> ForwardGraph:
    """Trace the forward pass of a folded float32 network.

    Args:
        role: ``"propagation"`` or ``"osvos"``.
        network: Network of :func:`mpn.export.precision.folded_network`, without BatchNorm.

    Raises:
        ExportError: If it cannot be traced, or the role has no fine-tuning.
    """
    if role == "flow":
        raise ExportError(f"the {role} network is not fine-tuned on the given frame")
    batch, height, width = _EXAMPLE_SHAPE
    channels = input_channels(role, network)
    input_name = PROPAGATION_INPUTS[channels] if role == "propagation" else "image"
    dim = torch.export.Dim
    program = traced_program(
        MarginGraph(role, network).eval(),
        (torch.zeros(batch, channels, height, width),),
        what=f"the {role} network",
        input_names=(input_name,),
        output_names=(MARGIN,),
        dynamic_shapes=(
            {
                0: dim("batch", min=1, max=_LARGEST_BATCH),
                2: dim("height", min=_SIDES[0], max=_SIDES[1]),
                3: dim("width", min=_SIDES[0], max=_SIDES[1]),
            },
        ),
    )
    model = program.model_proto
    strip_metadata(model)
    restore_biases(model, network)
    graph = model.graph
    parameters = dict(network.named_parameters())
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    shapes |= {
        value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return ForwardGraph(
        role=role,
        input_name=input_name,
        nodes=tuple(graph.node),
        shapes=shapes,
        weights={
            name: np.ascontiguousarray(value, np.float32)
            for name, value in values.items()
            if name in parameters
        },
        constants={name: value for name, value in values.items() if name not in parameters},
    )


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        size.dim_value if size.HasField("dim_value") else None
        for size in value.type.tensor_type.shape.dim
    )
