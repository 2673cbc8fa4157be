"""Write tiny engine directories with fine-tuning steps, without tracing.

Each network has two layers.

propagation: convolutions ``backbone.conv`` 3x3, 4 -> 6, ReLU, ``decoder.conv`` 1x1, 6 -> 1.
osvos: ``stages.0.0`` 3x3, 3 -> 4, ReLU, ``side_prep.0`` 3x3, 4 -> 2, ``fuse`` 1x1, 2 -> 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from mpn._common.files import sha256_of_file
from mpn.engines.directory.entries import FinetuneEntry, FinetuneOptimizer
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import (
    FlowSource,
    Manifest,
    Preprocessing,
    RoleEntry,
    save_manifest,
)
from mpn.engines.spec import OPSET, EngineSpec, Precision, Role, engine_spec
from mpn.export.finetune.optimizer import optimizer_settings
from mpn.export.finetune.step import adapt_graph, save_graph
from mpn.export.finetune.trace import MARGIN, ForwardGraph
from mpn.export.finetune.write import weight_tensors
from mpn.export.graph import move_weights_out, stored_tensors
from mpn.networks.osvos import rescale_trunk
from mpn.types import Float32Array
from tests.builders.engine_dirs import IR_VERSION, PROVENANCE, SIZE_MULTIPLES

FRAME_SIZE_HW = (64, 96)
ROI_SIZE = 65
ROLES: tuple[Role, ...] = ("propagation", "osvos")

_LAYERS: Mapping[Role, tuple[tuple[str, int, int, int], ...]] = {
    "propagation": (("backbone.conv", 4, 6, 3), ("decoder.conv", 6, 1, 1)),
    "osvos": (("stages.0.0", 3, 4, 3), ("side_prep.0", 4, 2, 3), ("fuse", 2, 1, 1)),
}
"""Name, input and output channels, side of the kernel; a ReLU follows the first layer."""


def make_adapt_dir(
    path: Path,
    *,
    precision: Precision = "fp32",
    optimizers: Mapping[Role, FinetuneOptimizer] | None = None,
) -> Path:
    """Write a directory with both roles and their steps; return ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    entries = {}
    for role in ROLES:
        spec = engine_spec(role, frame_size_hw=FRAME_SIZE_HW, roi_size=ROI_SIZE, max_objects=4)
        optimizer = (optimizers or {}).get(role)
        entries[role] = _write_role(path, spec, precision, optimizer)
    manifest = Manifest(
        name="tiny",
        frame_size_hw=FRAME_SIZE_HW,
        roi_size=ROI_SIZE,
        max_objects=4,
        preprocessing=Preprocessing(),
        flow=FlowSource("opencv-dis", "fast", 1.0),
        roles=entries,
        runtime_defaults={},
        provenance=PROVENANCE,
    )
    save_manifest(path, manifest)
    return path


def tiny_forward(role: Role) -> ForwardGraph:
    """Build the network of a role up to its logits, with seeded weights."""
    rng = np.random.default_rng(7)
    nodes, weights = [], {}
    spec = engine_spec(role, frame_size_hw=FRAME_SIZE_HW, roi_size=ROI_SIZE, max_objects=4)
    name = input_name = spec.inputs[0].name
    shapes: dict[str, tuple[int | None, ...]] = {name: (None, _LAYERS[role][0][1], None, None)}
    last = len(_LAYERS[role]) - 1
    for index, (layer, inputs, outputs, kernel) in enumerate(_LAYERS[role]):
        shape = (outputs, inputs, kernel, kernel)
        noise = rng.standard_normal(shape, np.float32)
        # Exact in half precision: directories of both precisions have the same weights.
        weights[f"{layer}.weight"] = _rounded(noise / np.sqrt(inputs * kernel * kernel))
        weights[f"{layer}.bias"] = _rounded(0.1 * rng.standard_normal(outputs, np.float32))
        result = MARGIN if index == last else f"{layer}.out"
        names = [name, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node("Conv", names, [result], pads=[kernel // 2] * 4))
        shapes[result] = (None, outputs, None, None)
        if index == 0:
            nodes.append(helper.make_node("Relu", [result], [f"{layer}.relu"]))
            result = f"{layer}.relu"
            shapes[result] = (None, outputs, None, None)
        name = result
    shapes |= {key: value.shape for key, value in weights.items()}
    return ForwardGraph(role, input_name, tuple(nodes), shapes, weights, {})


def write_inference_graph(
    forward: ForwardGraph, spec: EngineSpec, precision: Precision, path: Path
) -> str:
    """Write the graph of ``forward``; return the name of its weight file."""
    model = _inference_model(forward, spec, precision)
    data_name = move_weights_out(model, path, forward.weights)
    onnx.save_model(model, path)
    return data_name


def _rounded(values: Float32Array) -> Float32Array:
    return values.astype(np.float16).astype(np.float32)


def _write_role(
    folder: Path, spec: EngineSpec, precision: Precision, optimizer: FinetuneOptimizer | None
) -> RoleEntry:
    role = spec.role
    forward = tiny_forward(role)
    graph_path = folder / f"{role}.onnx"
    data_name = write_inference_graph(forward, spec, precision, graph_path)
    settings = optimizer_settings(role, optimizer)
    graphs, features = {}, {}
    for scope, suffix in (("all", ""), ("head", "_head")):
        graph = adapt_graph(forward, settings, scope)  # type: ignore[arg-type]
        save_graph(graph.model, folder / f"{role}_adapt{suffix}.onnx")
        graphs[scope] = _digest(folder, f"{role}_adapt{suffix}.onnx")
        if graph.features is not None:
            save_graph(graph.features, folder / f"{role}_features.onnx")
            features[scope] = _digest(folder, f"{role}_features.onnx")
    half = len(_LAYERS[role]) if precision == "fp16" else 0
    entry = RoleEntry(
        onnx=graph_path.name,
        sha256=sha256_of_file(graph_path),
        external_data=(_digest(folder, data_name),),
        opset=OPSET,
        precision=precision,
        half_weights=half,
        total_weights=len(_LAYERS[role]),
        inputs=spec.inputs,
        outputs=spec.outputs,
        size_multiple=SIZE_MULTIPLES[role],
        variant="tiny",
        parameters=sum(value.size for value in forward.weights.values()),
    )
    adapt = FinetuneEntry(
        optimizer=settings.name,
        settings=settings.as_json(),
        state=settings.state,
        graphs=graphs,  # type: ignore[arg-type]
        features=features,  # type: ignore[arg-type]
        tensors=weight_tensors(forward, stored_tensors(graph_path), precision),
    )
    return replace(entry, adapt=adapt)


def _inference_model(
    forward: ForwardGraph, spec: EngineSpec, precision: Precision
) -> onnx.ModelProto:
    """Build the network with its sigmoid, and casts in half precision."""
    nodes = []
    first, margin = spec.inputs[0].name, MARGIN
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", [first], [f"{first}.half"], to=TensorProto.FLOAT16))
    kept = {name for node in forward.nodes if node.op_type == "Resize" for name in node.input[1:]}
    initialisers = [
        numpy_helper.from_array(
            value.astype(np.float16)
            if precision == "fp16" and value.dtype == np.float32 and name not in kept
            else value,
            name,
        )
        for name, value in forward.constants.items()
    ]
    ones = {name: torch.ones(1) for name in forward.weights}
    scales = rescale_trunk(ones) if forward.role == "osvos" else ones
    for name, values in forward.weights.items():
        if precision == "fp32":
            initialisers.append(numpy_helper.from_array(values, name))
            continue
        stored = (values * scales[name].numpy()).astype(np.float16)
        initialisers.append(numpy_helper.from_array(stored, name))
    for node in forward.nodes:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        if precision == "fp16":
            for index, name in enumerate(own.input):
                own.input[index] = f"{first}.half" if name == first else name
        nodes.append(own)
    if precision == "fp16":
        margin = f"{MARGIN}.float"
        nodes.append(helper.make_node("Cast", [MARGIN], [margin], to=TensorProto.FLOAT))
    output = spec.outputs[0].name
    nodes.append(helper.make_node("Sigmoid", [margin], [output]))
    graph = helper.make_graph(
        nodes,
        forward.role,
        [_info(tensor.name, tensor.shape) for tensor in spec.inputs],
        [_info(tensor.name, tensor.shape) for tensor in spec.outputs],
        initialisers,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _digest(folder: Path, name: str) -> FileDigest:
    return FileDigest(name, sha256_of_file(folder / name))
