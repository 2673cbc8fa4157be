"""Every backbone with every head, at half of their widths and a small crop."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mpn.engines.directory.manifest import Preprocessing, load_manifest
from mpn.engines.spec import propagation_spec
from mpn.engines.tensorrt.plans.builder import build_plan
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.errors import ExportError
from mpn.export.bundle import export_bundle
from mpn.export.graph import export_graph
from mpn.export.options import ExportOptions
from mpn.export.parity import verify_graph
from mpn.export.parity_inputs import ParityPictures
from mpn.networks.backbones import BACKBONES, BackboneName
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.propagation import HEADS, HeadName, PropagationConfig, PropagationNet
from mpn.training.losses import segmentation_loss
from tests.engines.tensorrt.plans.test_builder_rtx import rtx_or_skip
from tests.networks.seeded import DEEPLAB_GAIN, seeded

pytestmark = pytest.mark.fullsize

SIZE = 65
RESNET_GAIN = 0.7
"""Random residuals without a normalisation that fits them double the signal in every block."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def _network(backbone: BackboneName, head: HeadName, channels: int = 4) -> PropagationNet:
    """Build with weights by name, except that the mask skips the network."""
    torch.manual_seed(0)
    config = PropagationConfig(
        backbone=backbone,
        head=head,
        in_channels=channels,
        width=0.5,
        head_width=0.5,
        middle_blocks=2,
        prior_skip=True,
    )
    network = PropagationNet(config)
    gains = network.prior_gain.detach().clone()
    seeded(network, RESNET_GAIN if backbone.startswith("resnet") else DEEPLAB_GAIN)
    network.prior_gain.data.copy_(gains)
    return network


def _check_trains(network: nn.Module) -> None:
    """Check that every parameter has a gradient, and that a step has a finite result."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    crops = torch.rand(2, 4, SIZE, SIZE)
    loss = segmentation_loss(network.train()(crops), (crops[:, 3] > 0.5).float(), dice_weight=0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    frozen = [
        name
        for name, value in network.named_parameters()
        if value.grad is None or not value.grad.any()
    ]
    assert not frozen
    optimiser.step()
    assert torch.isfinite(network(crops)).all()


@pytest.mark.parametrize(("backbone", "head"), list(itertools.product(BACKBONES, HEADS)))
def test_combination_trains_exports_and_builds(
    folder: Path, backbone: BackboneName, head: HeadName
) -> None:
    api = rtx_or_skip()
    network, spec = _network(backbone, head), propagation_spec(SIZE, 4)
    _check_trains(copy.deepcopy(network))
    pictures = ParityPictures()
    for precision in ("fp32", "fp16"):
        graph = export_graph(
            network,
            spec,
            folder / f"{precision}.onnx",
            precision=precision,  # type: ignore[arg-type]
        )
        parity = verify_graph(
            graph.path,
            spec,
            network,
            precision=precision,  # type: ignore[arg-type]
            pictures=pictures,
            preprocessing=Preprocessing(),
        )
        for case in parity.cases:
            assert case.reference_range[0] < 0.1
            assert case.reference_range[1] > 0.9
    plan = build_plan(
        api, graph.path, spec, precision="fp16", options=BuildOptions(half_inputs=True)
    )
    count = plan.precision.network
    assert count.half_arithmetic >= graph.precision_report.half_weights > 0
    assert plan.half_inputs == ("rgb_prob",)


def test_lite0_with_score_exports_a_whole_directory(folder: Path) -> None:
    """Export with the fine-tuning step, whose parity is part of it."""
    network = _network("efficientnet-lite0", "pspnet", 5)
    path = save_checkpoint(folder / "p.pth", {"propagation": network}, {})
    options = ExportOptions(roi_size=SIZE, max_objects=4, precision="fp16")
    bundle = export_bundle([path], folder / "engines", options)
    manifest = load_manifest(bundle.directory)
    entry = manifest.roles["propagation"]
    assert manifest.propagation_channels == 5
    assert entry.variant == "pspnet-efficientnet-lite0-os16-width-0.5"
    assert entry.adapt is not None
    assert {tensor.name for tensor in entry.adapt.tensors} >= {"prior_gain", "head.last.weight"}


def test_resnet_has_no_finetuning_step(folder: Path) -> None:
    path = save_checkpoint(
        folder / "p.pth", {"propagation": _network("resnet50", "deeplab-v2")}, {}
    )
    options = ExportOptions(roi_size=SIZE, verify=False)
    bundle = export_bundle([path], folder / "engines", options)
    assert bundle.manifest.roles["propagation"].adapt is None
    (warning,) = bundle.warnings
    assert warning.endswith("no derivative rule")
    with pytest.raises(ExportError, match=r"no derivative rule: leave out --finetune"):
        export_bundle([path], folder / "other", replace(options, finetune=True))
