"""Write tiny engine directories with graphs of known results.

propagation: ``prob`` is the 4th channel of ``rgb_prob`` (a 1x1 convolution, weights 0, 0, 0, 1);
with five channels the mean of probability and score.
flow: ``flow_px`` is a constant vector for all frames and pixels.
osvos: ``prob`` = sigmoid(sum of the channels / 10): pixels brighter than the mean are foreground.
features: the mean colour around each grid point, 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpn._common.files import sha256_of_file
from mpn.engines.directory.files import FileDigest
from mpn.engines.directory.manifest import (
    FlowSource,
    Manifest,
    Preprocessing,
    Provenance,
    RoleEntry,
    save_manifest,
)
from mpn.engines.spec import (
    FEATURES_SIZE_STEP,
    FEATURES_STRIDE,
    FLOW_SIZE_MULTIPLE,
    OPSET,
    OSVOS_SIZE_MULTIPLE,
    ROI_SIZE_STEP,
    EngineSpec,
    Role,
    TensorSpec,
    engine_spec,
    features_spec,
)

IR_VERSION = 10
MANIFEST_0_1 = Path(__file__).parents[1] / "engines" / "directory" / "data" / "manifest-0.1.0.json"
"""Manifest that version 0.1.0 wrote, with shortened lists of tensors."""
SIZE_MULTIPLES: dict[Role, int] = {
    "flow": FLOW_SIZE_MULTIPLE,
    "propagation": ROI_SIZE_STEP,
    "osvos": OSVOS_SIZE_MULTIPLE,
    "features": FEATURES_SIZE_STEP,
}
PROVENANCE = Provenance(
    checkpoints=(FileDigest("tiny.pth", "0" * 64),),
    tool_version="0.1.0",
    command="tests",
    licence="CC0-1.0",
    created="2026-01-01T00:00:00+00:00",
)


def make_engine_dir(
    path: Path,
    *,
    with_flow: bool = False,
    with_osvos: bool = False,
    with_target: bool = False,
    frame_size_hw: tuple[int, int] = (64, 96),
    roi_size: int = 65,
    max_objects: int = 4,
    flow_px: tuple[float, float] = (0.0, 0.0),
    dis_scale: float = 1.0,
    external_data: bool = False,
    runtime_defaults: Mapping[str, Any] | None = None,
) -> Path:
    """Write a valid engine directory and return ``path``.

    Args:
        path: The directory; created if absent.
        with_flow: Add a flow engine and use it as the source of the flow; default: OpenCV DIS.
        with_osvos: Add an OSVOS engine.
        with_target: Add a features engine, and its score to the input of the propagation engine.
        frame_size_hw: (height, width) of the working frame.
        roi_size: Side of the crop.
        max_objects: Field of the manifest.
        flow_px: (x, y), output of the flow engine at each pixel.
        dis_scale: Scale of DIS if it is the source.
        external_data: Store the propagation weights in ``propagation.onnx.data``.
        runtime_defaults: Field of the manifest.
    """
    path.mkdir(parents=True, exist_ok=True)
    roles: list[Role] = ["propagation"]
    roles += ["flow"] if with_flow else []
    roles += ["osvos"] if with_osvos else []
    roles += ["features"] if with_target else []
    entries: dict[Role, RoleEntry] = {}
    for role in roles:
        spec = (
            features_spec((65, 97), channels=3)
            if role == "features"
            else engine_spec(
                role,
                frame_size_hw=frame_size_hw,
                roi_size=roi_size,
                max_objects=max_objects,
                propagation_channels=5 if with_target else 4,
            )
        )
        model = model_for(spec, flow_px=flow_px)
        outside = external_data and role == "propagation"
        save_model(model, path / f"{role}.onnx", external_data=outside)
        entries[role] = role_entry(spec, path, f"{role}.onnx")
    manifest = Manifest(
        name="tiny",
        frame_size_hw=frame_size_hw,
        roi_size=roi_size,
        max_objects=max_objects,
        preprocessing=Preprocessing(),
        flow=FlowSource("engine") if with_flow else FlowSource("opencv-dis", "fast", dis_scale),
        roles=entries,
        runtime_defaults=dict(runtime_defaults or {}),
        provenance=PROVENANCE,
    )
    save_manifest(path, manifest)
    return path


def role_entry(spec: EngineSpec, directory: Path, onnx_name: str) -> RoleEntry:
    """Build the manifest's entry of a graph written by :func:`save_model`."""
    data_name = f"{onnx_name}.data"
    external = (
        (FileDigest(data_name, sha256_of_file(directory / data_name)),)
        if (directory / data_name).exists()
        else ()
    )
    return RoleEntry(
        onnx=onnx_name,
        sha256=sha256_of_file(directory / onnx_name),
        external_data=external,
        opset=OPSET,
        precision="fp32",
        half_weights=0,
        total_weights=0 if spec.role == "flow" else 1,
        inputs=spec.inputs,
        outputs=spec.outputs,
        size_multiple=SIZE_MULTIPLES[spec.role],
        variant="tiny",
        parameters=0 if spec.role == "flow" else 4,
    )


def model_for(spec: EngineSpec, *, flow_px: tuple[float, float] = (0.0, 0.0)) -> onnx.ModelProto:
    """Build the graph of a role at the sizes of ``spec``; see the module."""
    if spec.role == "flow":
        nodes, weights = _flow_nodes(flow_px)
    elif spec.role == "propagation":
        nodes, weights = _propagation_nodes(spec.inputs[0])
    elif spec.role == "features":
        nodes, weights = _features_nodes()
    else:
        nodes, weights = _osvos_nodes()
    graph = helper.make_graph(
        nodes,
        spec.role,
        [_value_info(tensor) for tensor in spec.inputs],
        [_value_info(tensor) for tensor in spec.outputs],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def save_model(model: onnx.ModelProto, path: Path, *, external_data: bool = False) -> None:
    """Write a graph, with its weights in ``<path>.data`` if requested."""
    if external_data:
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=0,
        )
    else:
        onnx.save_model(model, path)


def parity_document() -> dict[str, Any]:
    """Build a ``parity.json`` of the exporter; the worst values are 1.5e-6 and 0.993."""

    def case(name: str, max_relative: float, mask_iou: float) -> dict[str, Any]:
        return {
            "case": name,
            "reference_range": [0.0, 1.0],
            "measures": [
                {"measure": "max_relative", "value": max_relative, "limit": 1e-4, "reason": "r"},
                {"measure": "mask_iou", "value": mask_iou, "limit": 0.99, "reason": "r"},
            ],
        }

    return {
        "schema_version": 1,
        "verified": True,
        "reference": "PyTorch 2.13, float32, CPU",
        "onnxruntime": "1.32.0",
        "inputs": "two rendered scenes",
        "roles": {
            "propagation": {
                "precision": "fp32",
                "compared": ["names", "axes", "shapes", "values"],
                "cases": [case("a", 2e-7, 0.993), case("b", 1.5e-6, 1.0)],
            }
        },
    }


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.shape))


def _constant(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def _propagation_nodes(
    packed: TensorSpec,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    channels = int(packed.shape[1])
    weight = np.zeros((1, channels, 1, 1))
    weight[0, 3:] = 1 / (channels - 3)
    return [helper.make_node("Conv", [packed.name, "weight"], ["prob"])], [
        _constant("weight", weight)
    ]


def _features_nodes() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    stride = FEATURES_STRIDE
    side = stride + 1
    weight = np.zeros((3, 3, side, side))
    weight[range(3), range(3)] = 1 / (255 * side**2)
    node = helper.make_node(
        "Conv", ["image", "weight"], ["features"], strides=[stride] * 2, pads=[stride // 2] * 4
    )
    return [node], [_constant("weight", weight)]


def _flow_nodes(
    flow_px: tuple[float, float],
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("Sub", ["frame0", "frame1"], ["difference"]),
        helper.make_node("Slice", ["difference", "starts", "ends", "axes"], ["two_channels"]),
        helper.make_node("Mul", ["two_channels", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "vector"], ["flow_px"]),
    ]
    weights = [
        _constant("starts", [0], np.int64),
        _constant("ends", [2], np.int64),
        _constant("axes", [1], np.int64),
        _constant("zero", 0.0),
        _constant("vector", np.reshape(flow_px, (1, 2, 1, 1))),
    ]
    return nodes, weights


def _osvos_nodes() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["prob"]),
    ]
    return nodes, [_constant("weight", np.full((1, 3, 1, 1), 0.1))]
