"""Graphs of propagation networks with other backbones and heads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mpn.engines.directory.manifest import Preprocessing
from mpn.engines.spec import propagation_spec
from mpn.export.graph import export_graph
from mpn.export.parity import verify_graph
from mpn.export.parity_inputs import ParityPictures
from mpn.networks.propagation import PropagationConfig, PropagationNet
from tests.export.conftest import MAX_OBJECTS, ROI_SIZE
from tests.networks.seeded import DEEPLAB_GAIN, seeded

SPEC = propagation_spec(ROI_SIZE, MAX_OBJECTS, 5)


def _network() -> nn.Module:
    config = PropagationConfig(
        backbone="efficientnet-lite0",
        head="pspnet",
        in_channels=5,
        width=0.125,
        head_width=0.125,
        prior_skip=True,
    )
    network = seeded(PropagationNet(config), DEEPLAB_GAIN)
    network.prior_gain.data.copy_(torch.tensor([3.0, 1.0]))
    return network


def test_lite0_pspnet_with_score_passes_parity_in_half(tmp_path: Path) -> None:
    network = _network()
    graph = export_graph(network, SPEC, tmp_path / "propagation.onnx", precision="fp16")
    report = graph.precision_report
    assert report.half_weights == report.total_weights - 1  # the last layer
    parity = verify_graph(
        graph.path,
        SPEC,
        network,
        precision="fp16",
        pictures=ParityPictures(),
        preprocessing=Preprocessing(),
    )
    for case in parity.cases:
        assert case.reference_range[0] < 0.1
        assert case.reference_range[1] > 0.9


def test_score_of_parity_inputs_is_a_soft_probability() -> None:
    (case, *_) = ParityPictures().cases(SPEC, Preprocessing())
    crop = case.inputs["rgb_prob_score"]
    prob, score = crop[0, 3], crop[0, 4]
    assert crop.shape == (1, 5, ROI_SIZE, ROI_SIZE)
    assert 0.0 <= score.min() < 0.05
    assert 0.95 < score.max() <= 1.0
    assert abs(score - prob).max() > 0.2
