from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.spec import Role
from mpn.export.graph import export_graph, restore_biases
from tests.export.conftest import Graphs, tiny_spec
from tests.tolerances import PARITY_RELATIVE

ZERO = ("side_prep.0.bias", "stages.0.0.bias")
EQUAL = ("side_prep.1.bias", "side_prep.2.bias")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_biases_that_are_zero_or_equal_keep_their_own_tensors(
    networks: Mapping[Role, nn.Module], tmp_path: Path, precision: str
) -> None:
    network = copy.deepcopy(networks["osvos"])
    with torch.no_grad():
        for name in ZERO:
            network.get_parameter(name).zero_()
        for name in EQUAL:
            network.get_parameter(name).fill_(0.25)
    spec = tiny_spec("osvos")
    path = tmp_path / "osvos.onnx"
    export_graph(network, spec, path, precision=precision)  # type: ignore[arg-type]
    model = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ZERO:
        assert not tensors[name].any()
    for name in EQUAL:
        assert (tensors[name] == 0.25).all()
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert node.input[2] == node.input[1].replace(".weight", ".bias")
    # The purpose: the replaced bias has an effect.
    if precision == "fp32":
        bias = np.full_like(tensors[ZERO[0]], 3.0)
        for tensor in model.graph.initializer:
            if tensor.name == ZERO[0]:
                tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
        onnx.save_model(model, path)
        with torch.no_grad():
            network.get_parameter(ZERO[0]).fill_(3.0)
        image = np.random.default_rng(0).normal(0, 60, spec.inputs[0].shape).astype(np.float32)
        with OrtEngine(path, spec, threads=1) as engine, torch.inference_mode():
            got = engine.run({"image": image})["prob"]
            logits = network.logits(torch.from_numpy(image))  # type: ignore[operator]
        expected = torch.sigmoid(logits).numpy()
        assert np.abs(got - expected).max() <= PARITY_RELATIVE * np.abs(expected).max()


def test_a_graph_with_all_its_biases_stays_as_it_is(
    graphs: Graphs, networks: Mapping[Role, nn.Module]
) -> None:
    model = onnx.load(graphs("osvos", "fp32").path)
    before = model.SerializeToString()
    assert restore_biases(model, networks["osvos"]) == 0
    assert model.SerializeToString() == before
