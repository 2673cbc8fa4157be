"""Writing the fine-tuning step of one role next to its inference graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

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
from mpn.export.finetune.optimizer import BALANCED_ROLES, OptimizerSettings, optimizer_settings
from mpn.export.finetune.step import FinetuneGraph, adapt_graph, save_graph, trained_names
from mpn.export.finetune.trace import ForwardGraph, trace_forward
from mpn.export.graph import (
    StoredTensor,
    probe_inputs,
    stored_tensors,
)
from mpn.export.precision import folded_network
from mpn.networks.osvos import rescale_trunk

FINETUNABLE_ROLES: tuple[Role, ...] = ("propagation", "osvos")
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
    folded = folded_network(role, network, probe_inputs(role, network))
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
            f"({odd[0][0]}), a fault of the exporter"
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
