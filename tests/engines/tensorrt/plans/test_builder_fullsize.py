"""Build the three paper-size networks in half precision, without a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from mpn.engines.spec import Role, engine_spec
from mpn.engines.tensorrt.plans.builder import build_plan
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.export.graph import export_graph
from mpn.networks.flownet2 import FlowNet2
from mpn.networks.osvos import OsvosVgg
from mpn.networks.propagation import PropagationNet
from tests.engines.tensorrt.plans.test_builder_rtx import rtx_or_skip
from tests.networks.seeded import DEEPLAB_GAIN, FLOWNET2_GAIN, OSVOS_GAIN, seeded

pytestmark = pytest.mark.fullsize

NETWORKS: dict[Role, tuple[Callable[[], nn.Module], float]] = {
    "flow": (FlowNet2, FLOWNET2_GAIN),
    "propagation": (PropagationNet, DEEPLAB_GAIN),
    "osvos": (OsvosVgg, OSVOS_GAIN),
}
HALF_INPUTS: dict[Role, tuple[str, ...]] = {
    # Flow takes the mean of its frames in float32.
    "flow": (),
    "propagation": ("rgb_prob",),
    "osvos": ("image",),
}
LEAST_HALF_SHARE = 0.65
"""Of all layers: flow keeps coordinates, norms and grids in float32 (0.69), the others next to
nothing (0.97)."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)  # half a gigabyte


@pytest.mark.parametrize("role", ["propagation", "osvos", "flow"])
def test_a_paper_size_network_parses_and_builds_in_half(folder: Path, role: Role) -> None:
    api = rtx_or_skip()
    build, gain = NETWORKS[role]
    spec = engine_spec(role, frame_size_hw=(480, 854), roi_size=513, max_objects=8)
    graph = export_graph(seeded(build(), gain), spec, folder / f"{role}.onnx", precision="fp16")
    plan = build_plan(
        api, graph.path, spec, precision="fp16", options=BuildOptions(half_inputs=True)
    )
    count = plan.precision.network
    assert count.half_arithmetic >= graph.precision_report.half_weights > 0
    assert count.half_share >= LEAST_HALF_SHARE
    assert plan.half_inputs == HALF_INPUTS[role]
    # Every weight is in it: half of the parameters' float32 bytes, and little besides.
    parameters = sum(value.numel() for value in build().parameters())
    assert len(plan.data) > 2 * parameters * 0.9
