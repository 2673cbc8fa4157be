"""One fine-tuning step of the paper-size networks, in onnxruntime and in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from mpn.engines.spec import Role
from mpn.export.finetune.graph_step import GraphStep
from mpn.export.finetune.optimizer import optimizer_settings
from mpn.export.finetune.parity import GRADIENT_LIMIT, step_measures
from mpn.export.finetune.pattern import GivenPattern
from mpn.export.finetune.step import adapt_graph, save_graph
from mpn.export.finetune.torch_step import TorchStep, step_example
from mpn.export.finetune.trace import trace_forward
from mpn.export.graph import probe_inputs
from mpn.export.precision import folded_network
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationNet
from tests.networks.seeded import DEEPLAB_GAIN, OSVOS_GAIN, seeded

pytestmark = pytest.mark.fullsize

MAX_BYTES = 600_000


def _public_osvos() -> nn.Module:
    return OsvosVgg(OsvosConfig(branches=4, upsample="deconv_center_crop"))


@pytest.mark.parametrize(
    ("role", "network", "gain"),
    [
        ("propagation", PropagationNet, DEEPLAB_GAIN),
        ("osvos", OsvosVgg, OSVOS_GAIN),
        ("osvos", _public_osvos, OSVOS_GAIN),
    ],
    ids=["propagation", "osvos", "public osvos"],
)
def test_a_paper_size_step_is_that_of_torch(
    tmp_path: Path, role: Role, network: object, gain: float
) -> None:
    module = seeded(network(), gain)  # type: ignore[operator]
    folded = folded_network(role, module, probe_inputs(role))
    forward = trace_forward(role, folded)
    settings = optimizer_settings(role)
    built = adapt_graph(forward, settings)
    path = tmp_path / "step.onnx"
    save_graph(built.model, path)
    assert path.stat().st_size < MAX_BYTES
    weights = forward.weights
    graph = GraphStep(built, weights)
    reference = TorchStep(role, folded, settings, weights, trained=built.trained)
    measures, _ = step_measures(role, graph, reference, settings)
    assert max(measure.used for measure in measures) < 0.2, measures
    if role == "propagation":
        # Control: version 0.2 compared at PyTorch's own pattern, and refused these weights.
        example, pattern = step_example(role, seed=1), GivenPattern(graph.pattern)
        _, given = reference.gradients(example, pattern)
        _, own = reference.gradients(example)
        changes = [np.abs(own[n] - g).max() / np.abs(g).max() for n, g in given.items()]
        assert max(changes) > GRADIENT_LIMIT.value
