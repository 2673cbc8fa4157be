"""One fine-tuning step of the paper-size networks, in onnxruntime and in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from mpn.engines.spec import Role
from mpn.export.finetune.optimizer import optimizer_settings
from mpn.export.finetune.parity import TorchStep, step_example
from mpn.export.finetune.step import adapt_graph, save_graph
from mpn.export.finetune.trace import trace_forward
from mpn.export.graph import probe_inputs
from mpn.export.precision import folded_network
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationNet
from tests.export.finetune.test_step import GraphStep
from tests.networks.seeded import DEEPLAB_GAIN, OSVOS_GAIN, seeded
from tests.tolerances import ADAPT_GRADIENT_RELATIVE

pytestmark = pytest.mark.fullsize

MAX_BYTES = 600_000
RATE = 1e-3


def _public_osvos() -> nn.Module:
    return OsvosVgg(OsvosConfig(branches=4, upsample="deconv_center_crop"))


@pytest.mark.parametrize(
    ("role", "network", "gain", "shape"),
    [
        ("propagation", PropagationNet, DEEPLAB_GAIN, (1, 65, 81)),
        ("osvos", OsvosVgg, OSVOS_GAIN, (1, 70, 53)),
        ("osvos", _public_osvos, OSVOS_GAIN, (2, 54, 86)),
    ],
    ids=["propagation", "osvos", "public osvos"],
)
def test_a_paper_size_step_is_that_of_torch(
    tmp_path: Path, role: Role, network: object, gain: float, shape: object
) -> None:
    module = seeded(network(), gain)  # type: ignore[operator]
    folded = folded_network(role, module, probe_inputs(role))
    forward = trace_forward(role, folded)
    settings = optimizer_settings(role, "sgd")
    built = adapt_graph(forward, settings)
    path = tmp_path / "step.onnx"
    save_graph(built.model, path)
    assert path.stat().st_size < MAX_BYTES
    graph = GraphStep(built, forward)
    reference = TorchStep(role, folded, settings, forward.weights, trained=built.trained)
    example = step_example(role, shape)  # type: ignore[arg-type]
    loss = graph.step(example, RATE)
    assert loss == pytest.approx(reference.step(example, RATE), rel=ADAPT_GRADIENT_RELATIVE)
    differences = {}
    for name in built.trained:
        expected = reference.state(name, "momentum")
        difference = np.abs(graph.state[f"{name}::momentum"] - expected).max()
        differences[name] = float(difference / np.abs(expected).max())
    worst = max(differences, key=differences.__getitem__)
    assert differences[worst] < ADAPT_GRADIENT_RELATIVE, worst
