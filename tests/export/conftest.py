"""Tiny networks with seeded weights, and their graphs, exported once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from mpn.engines.spec import EngineSpec, Precision, Role, engine_spec, features_spec
from mpn.export.finetune.trace import ForwardGraph, trace_forward
from mpn.export.graph import ExportedGraph, export_graph, probe_inputs
from mpn.export.precision import folded_network
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.features import FeaturesConfig, FeaturesNet
from mpn.networks.flownet2 import FlowNet2, FlowNet2Config
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationConfig, PropagationNet
from tests.networks.seeded import DEEPLAB_GAIN, FLOWNET2_GAIN, OSVOS_GAIN, seeded

FRAME_SIZE_HW = (64, 128)
ROI_SIZE = 65
MAX_OBJECTS = 4
FEATURES_SIZE_HW = (65, 97)
TINY_FEATURES = FeaturesConfig("vgg16", width=0.125)
"""VGG16 has the fewest layers to trace."""

Graphs = Callable[[Role, Precision], ExportedGraph]


def tiny_spec(role: Role) -> EngineSpec:
    if role == "features":
        return features_spec(FEATURES_SIZE_HW, FeaturesNet(TINY_FEATURES).channels)
    return engine_spec(
        role, frame_size_hw=FRAME_SIZE_HW, roi_size=ROI_SIZE, max_objects=MAX_OBJECTS
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny layers lose more by handing work to threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def networks() -> Mapping[Role, nn.Module]:
    # CS has all there is to get wrong in tracing: the correlation and a warp.
    return {
        "flow": seeded(FlowNet2(FlowNet2Config("FlowNet2CS", width=0.125)), FLOWNET2_GAIN),
        "propagation": seeded(
            PropagationNet(PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1)),
            DEEPLAB_GAIN,
        ),
        "osvos": seeded(OsvosVgg(OsvosConfig(width=0.125)), OSVOS_GAIN),
        "features": seeded(FeaturesNet(TINY_FEATURES), OSVOS_GAIN),
    }


@pytest.fixture(scope="session")
def graphs(networks: Mapping[Role, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Role and precision -> its graph, not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def get(role: Role, precision: Precision) -> ExportedGraph:
        path = folder / precision / f"{role}.onnx"
        path.parent.mkdir(exist_ok=True)
        return export_graph(networks[role], tiny_spec(role), path, precision=precision)

    return get


@pytest.fixture(scope="session")
def adapt_networks() -> Mapping[Role, nn.Module]:
    """Folded networks of the fine-tuning step; propagation with prior skip."""
    config = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1, prior_skip=True)
    networks: dict[Role, nn.Module] = {
        "propagation": seeded(PropagationNet(config), DEEPLAB_GAIN),
        "osvos": seeded(OsvosVgg(OsvosConfig(width=0.125)), OSVOS_GAIN),
    }
    return {
        role: folded_network(role, network, probe_inputs(role))
        for role, network in networks.items()
    }


@pytest.fixture(scope="session")
def forwards(adapt_networks: Mapping[Role, nn.Module]) -> Callable[[Role], ForwardGraph]:
    """Traced forward pass per role, shared because tracing takes seconds."""

    @cache
    def get(role: Role) -> ForwardGraph:
        return trace_forward(role, adapt_networks[role])

    return get


@pytest.fixture(scope="session")
def checkpoint_dir(
    networks: Mapping[Role, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of ``flow.pth``, ``propagation.pth``, ``osvos.pth``, ``both.pth``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    licence = {"licence": "CC0-1.0"}
    for role, network in networks.items():
        save_checkpoint(folder / f"{role}.pth", {role: network}, licence)
    both: dict[Role, nn.Module] = {
        role: network for role, network in networks.items() if role in ("propagation", "osvos")
    }
    save_checkpoint(folder / "both.pth", both, licence)
    return folder
