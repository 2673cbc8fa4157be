"""Writing the fine-tuning step of one role next to its inference graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mpn._common.files import sha256_of_file
from mpn.engines.directory.entries import (
    FINETUNE_SCOPES,
    FinetuneEntry,
    FinetuneScope,
    WeightTensor,
)
from mpn.engines.directory.files import FileDigest
from mpn.engines.spec import Precision, Role
from mpn.errors import ExportError
from mpn.export.autodiff.builder import Shape
from mpn.export.finetune.optimizer import BALANCED_ROLES, OptimizerSettings, optimizer_settings
from mpn.export.finetune.step import FinetuneGraph, adapt_graph, save_graph, trained_names
from mpn.export.graph import (
    StoredTensor,
    probe_inputs,
    restore_biases,
    stored_tensors,
    strip_metadata,
)
from mpn.export.precision import folded_network
from mpn.export.tracing import FOREGROUND, traced_program
from mpn.networks.osvos import rescale_trunk
from mpn.types import Float32Array

INPUT_NAMES: Mapping[Role, str] = {"propagation": "rgb_prob", "osvos": "image"}
INPUT_CHANNELS: Mapping[Role, int] = {"propagation": 4, "osvos": 3}
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
        nodes: In topological order, from the network's input to :data:`MARGIN`.
        shapes: Known shape of every tensor.
        weights: Name -> values of every parameter, as in the inference graph.
        constants: Name -> values of the other initialisers: bounds, axes, scales.
    """

    role: Role
    nodes: tuple[onnx.NodeProto, ...]
    shapes: Mapping[str, Shape]
    weights: Mapping[str, Float32Array]
    constants: Mapping[str, npt.NDArray[Any]]

    @property
    def input_name(self) -> str:
        """Name of the network's input."""
        return INPUT_NAMES[self.role]


class _HasLogits(nn.Module):
    def logits(self, image: Tensor) -> Tensor: ...  # type: ignore[empty-body]


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
        logits: Tensor = self.network(inputs)
        # The softmax of two logits is the sigmoid of their difference.
        other = 1 - FOREGROUND
        return logits[:, FOREGROUND : FOREGROUND + 1] - logits[:, other : other + 1]


def trace_forward(role: Role, network: nn.Module) -> ForwardGraph:
    """Trace the forward pass of a folded float32 network.

    Args:
        role: ``"propagation"`` or ``"osvos"``.
        network: Network of :func:`mpn.export.precision.folded_network`, without BatchNorm.

    Raises:
        ExportError: If it cannot be traced, or the role has no fine-tuning.
    """
    if role not in INPUT_NAMES:
        raise ExportError(f"the {role} network is not fine-tuned on the given frame")
    batch, height, width = _EXAMPLE_SHAPE
    dim = torch.export.Dim
    program = traced_program(
        MarginGraph(role, network).eval(),
        (torch.zeros(batch, INPUT_CHANNELS[role], height, width),),
        what=f"the {role} network",
        input_names=(INPUT_NAMES[role],),
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


FINETUNABLE_ROLES: tuple[Role, ...] = tuple(INPUT_NAMES)
"""Roles with a fine-tuning step."""


@dataclass(frozen=True)
class WrittenFinetune:
    """Result of :func:`write_adapt`.

    Attributes:
        entry: Entry of the manifest.
        network: The folded float32 network of the graphs.
        settings: The optimiser.
    """

    entry: FinetuneEntry
    network: nn.Module
    settings: OptimizerSettings


def write_adapt(
    role: Role,
    network: nn.Module,
    folder: Path,
    *,
    precision: Precision,
    optimizer: str | None = None,
) -> WrittenFinetune:
    """Write ``<role>_adapt.onnx``, ``_adapt_head.onnx`` and ``_features.onnx``.

    The graphs hold no weights. Weights are inputs, with the names and shapes of ``<role>.onnx``,
    which must exist already and have its weights in a separate file.

    Args:
        role: One of :data:`FINETUNABLE_ROLES`.
        network: The network as loaded.
        folder: Folder of the inference graph.
        precision: Precision of the inference graph; fine-tuning is float32.
        optimizer: ``"sgd"`` or ``"adamw"``; None for the role's default.

    Raises:
        ExportError: If the step cannot be derived, or its weights are not those of the inference
            graph.
        InputError: If there is no such optimiser.
        OutputError: If the files cannot be written.
    """
    settings = optimizer_settings(role, optimizer)
    folded = folded_network(role, network, probe_inputs(role))
    forward = trace_forward(role, folded)
    graphs: dict[FinetuneScope, FileDigest] = {}
    features: dict[FinetuneScope, FileDigest] = {}
    for scope in FINETUNE_SCOPES:
        graph = adapt_graph(forward, settings, scope)
        graphs[scope] = _saved(graph, role, folder)
        if graph.features is not None:
            path = folder / f"{role}_features.onnx"
            save_graph(graph.features, path)
            features[scope] = FileDigest(path.name, sha256_of_file(path))
    entry = FinetuneEntry(
        optimizer=settings.name,
        settings={
            **settings.as_json(),
            "loss": f"{'balanced' if role in BALANCED_ROLES else 'plain'} cross-entropy",
        },
        state=settings.state,
        graphs=graphs,
        features=features,
        tensors=weight_tensors(forward, stored_tensors(folder / f"{role}.onnx"), precision),
    )
    return WrittenFinetune(entry, folded, settings)


def _saved(graph: FinetuneGraph, role: Role, folder: Path) -> FileDigest:
    suffix = "" if graph.scope == "all" else f"_{graph.scope}"
    path = folder / f"{role}_adapt{suffix}.onnx"
    save_graph(graph.model, path)
    return FileDigest(path.name, sha256_of_file(path))


def weight_tensors(
    forward: ForwardGraph, stored: tuple[StoredTensor, ...], precision: Precision
) -> tuple[WeightTensor, ...]:
    """Describe the weights for the manifest.

    Args:
        forward: The network to train.
        stored: The weights of its inference graph.
        precision: Precision of that graph.

    Raises:
        ExportError: If the two have different weights.
    """
    found = {tensor.name: tensor.shape for tensor in stored}
    expected = {name: tuple(values.shape) for name, values in forward.weights.items()}
    if found != expected:
        odd = sorted(found.items() ^ expected.items())
        raise ExportError(
            f"the {forward.role} step does not have the weights of its inference graph "
            f"({odd[0][0]}): this is a fault of the exporter, use --no-finetune"
        )
    scopes = {scope: set(trained_names(forward, scope)) for scope in FINETUNE_SCOPES}
    rescaled = forward.role == "osvos" and precision == "fp16"
    ones = {tensor.name: torch.ones(1) for tensor in stored}
    scales = rescale_trunk(ones) if rescaled else ones
    return tuple(
        WeightTensor(
            name=tensor.name,
            shape=tensor.shape,
            file=tensor.file,
            offset=tensor.offset,
            nbytes=tensor.nbytes,
            dtype="float16" if tensor.dtype == "float16" else "float32",
            scale=float(scales[tensor.name]),
            scopes=tuple(scope for scope in FINETUNE_SCOPES if tensor.name in scopes[scope]),
        )
        for tensor in stored
    )
