"""Exported graphs of the paper-size networks against the public references."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.spec import EngineSpec, TensorSpec
from mpn.export.graph import ExportedGraph, export_graph
from mpn.networks.flownet2 import FlowNet2
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationNet
from mpn.types import Float32Array
from tests.networks.seeded import DEEPLAB_GAIN, FLOWNET2_GAIN, OSVOS_GAIN, seeded
from tests.tolerances import PARITY_RELATIVE

pytestmark = pytest.mark.fullsize

OSVOS_MEAN_BGR = np.array((104.00699, 116.66877, 122.67892), np.float32)
MEAN_RGB = np.array((0.485, 0.456, 0.406), np.float32)
STD_RGB = np.array((0.229, 0.224, 0.225), np.float32)


@dataclass(frozen=True)
class Case:
    """Golden case: inputs, output of the public network, expected output.

    ``golden`` holds a flow in pixels or log-odds of the foreground; ``expected`` the same flow, or
    the probability.
    """

    spec: EngineSpec
    inputs: dict[str, Float32Array]
    golden: Float32Array
    expected: Float32Array


def _nchw(image: Float32Array) -> Float32Array:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def _spec(role: str, inputs: dict[str, Float32Array], output: str, shape: object) -> EngineSpec:
    return EngineSpec(
        role=role,  # type: ignore[arg-type]
        inputs=tuple(
            TensorSpec(
                name,
                ("objects", *array.shape[1:]) if role == "propagation" else tuple(array.shape),
            )
            for name, array in inputs.items()
        ),
        outputs=(TensorSpec(output, tuple(shape)),),  # type: ignore[arg-type]
        max_objects=2 if role == "propagation" else None,
    )


def _flow(golden: Path) -> Case:
    data = np.load(golden / "networks" / "flownet2.npz")
    inputs = {name: _nchw(data[f"{name}_rgb"]) for name in ("frame0", "frame1")}
    expected = data["flow"][None]
    return Case(_spec("flow", inputs, "flow_px", expected.shape), inputs, expected, expected)


def _propagation(golden: Path) -> Case:
    data = np.load(golden / "networks" / "deeplab_xception.npz")
    rgb_prob = data["rgb_prob"].copy()
    rgb_prob[..., :3] = (rgb_prob[..., :3] - MEAN_RGB) / STD_RGB
    logits = torch.from_numpy(data["logits"])[None]
    expected = torch.softmax(logits, dim=1)[:, 1:].numpy()
    shape = ("objects", *expected.shape[1:])
    inputs = {"rgb_prob": _nchw(rgb_prob)}
    log_odds = (logits[:, 1:] - logits[:, :1]).numpy()
    return Case(_spec("propagation", inputs, "prob", shape), inputs, log_odds, expected)


def _osvos(golden: Path) -> Case:
    data = np.load(golden / "networks" / "osvos_public.npz")
    inputs = {"image": _nchw(data["rgb"][..., ::-1] - OSVOS_MEAN_BGR)}
    expected = torch.sigmoid(torch.from_numpy(data["fused"]))[None].numpy()
    return Case(
        _spec("osvos", inputs, "prob", expected.shape), inputs, data["fused"][None], expected
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)  # FlowNet 2.0 is 620 MB


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float, Callable[[Path], Case]]] = {
    "flow": (FlowNet2, FLOWNET2_GAIN, _flow),
    "propagation": (PropagationNet, DEEPLAB_GAIN, _propagation),
    "osvos": (
        lambda: OsvosVgg(OsvosConfig(branches=4, upsample="deconv_center_crop")),
        OSVOS_GAIN,
        _osvos,
    ),
}
# A deconvolution of FlowNet 2.0 is three nodes: convolution, DepthToSpace and crop.
NODES = {"flow": 500, "propagation": 280, "osvos": 60}


@pytest.mark.parametrize("role", ["flow", "propagation", "osvos"])
def test_the_exported_graph_matches_the_public_network(
    golden: Path, folder: Path, role: str
) -> None:
    build, gain, load = NETWORKS[role]
    case = load(golden)
    graph: ExportedGraph = export_graph(
        seeded(build(), gain), case.spec, folder / f"{role}.onnx", precision="fp32"
    )
    assert graph.nodes <= NODES[role]
    assert graph.external_data == (f"{role}.onnx.data",)
    name = case.spec.output_names[0]
    largest = np.abs(case.expected).max()
    with OrtEngine(graph.path, case.spec, threads=2) as engine:
        got = engine.run(case.inputs)[name]
        first = next(iter(case.inputs))
        brighter = {**case.inputs, first: case.inputs[first] * np.float32(1.01)}
        other = engine.run(brighter)[name]
    assert np.abs(got - case.expected).max() <= PARITY_RELATIVE * largest
    if name == "prob":
        # Log-odds keep the bound too, unless the probability is saturated.
        steep = (case.expected > 0.001) & (case.expected < 0.999)
        assert steep.mean() > 0.01
        odds = np.log(got[steep] / (1 - got[steep]))
        error = np.abs(odds - case.golden[steep]).max()
        assert error <= PARITY_RELATIVE * np.abs(case.golden).max()
    # Control: of an input 1 % brighter the result is another.
    assert np.abs(other - case.expected).max() > 10 * PARITY_RELATIVE * largest
