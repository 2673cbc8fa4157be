from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from mpn.engines.spec import ROLES, Role
from mpn.errors import ExportError
from mpn.export.graph import probe_inputs
from mpn.export.precision import (
    HALF_MAX,
    PrecisionReport,
    check_half_range,
    check_precision,
    fold_batch_norms,
    folded_network,
    precision_report,
    prepare_network,
)
from mpn.networks.osvos import OsvosVgg
from tests.export.conftest import Graphs
from tests.tolerances import BATCH_NORM_FOLDING_RELATIVE

KEPT_FLOAT32: Mapping[Role, tuple[str, ...]] = {
    "flow": ("flownetc.predict_flow2.weight", "flownets_1.predict_flow2.weight"),
    "propagation": ("decoder.last_conv.8.weight",),
    "osvos": (),
    "features": (),
}


def _difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def test_folding_changes_nothing_but_rounding(networks: Mapping[Role, nn.Module]) -> None:
    network = networks["propagation"]
    probe = probe_inputs("propagation")
    folded = copy.deepcopy(network)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert fold_batch_norms(folded, probe) == norms > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    crops = torch.randn((2, 4, 97, 97), generator=torch.Generator().manual_seed(1))
    assert _difference(folded(crops), network(crops)) <= BATCH_NORM_FOLDING_RELATIVE
    # Control: without the running means it is another network.
    wrong = copy.deepcopy(network)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()  # type: ignore[union-attr]
    fold_batch_norms(wrong, probe)
    assert _difference(wrong(crops), network(crops)) > 100 * BATCH_NORM_FOLDING_RELATIVE


def test_preparing_leaves_the_network_as_it_was(networks: Mapping[Role, nn.Module]) -> None:
    for role, network in networks.items():
        before = {name: value.clone() for name, value in network.state_dict().items()}
        prepare_network(role, network, "fp16", probe_inputs(role))
        after = network.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())


class _NormFirst(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_a_norm_without_a_convolution_before_it_is_refused() -> None:
    with pytest.raises(ExportError, match="BatchNorm '0' does not follow a convolution"):
        fold_batch_norms(_NormFirst().eval(), probe_inputs("propagation"))


def _with(network: nn.Module, name: str, value: float) -> nn.Module:
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter(name).view(-1)[0] = value
    return changed


def test_a_weight_beyond_half_precision_is_named(networks: Mapping[Role, nn.Module]) -> None:
    name = "backbone.conv2.weight"
    network = networks["propagation"]
    prepare_network("propagation", network, "fp16", probe_inputs("propagation"))  # unchanged: fits
    overflowing = _with(network, name, 2 * HALF_MAX)
    with pytest.raises(ExportError, match=rf"beyond 65504 .*\({name} up to 1.*--precision fp32"):
        prepare_network("propagation", overflowing, "fp16", probe_inputs("propagation"))
    prepare_network("propagation", overflowing, "fp32", probe_inputs("propagation"))


def test_a_weight_that_folding_makes_too_large_is_named(
    networks: Mapping[Role, nn.Module],
) -> None:
    network = copy.deepcopy(networks["propagation"])
    norm = network.get_submodule("backbone.block1.rep.1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        # A channel that was hardly ever active in training: 1e6 / sqrt(1e-5) = 3e8.
        norm.running_var[0] = 0.0  # type: ignore[index]
        norm.weight[0] = 1e6
    with pytest.raises(ExportError, match=r"backbone\.block1\.rep\.0\.pointwise\.weight up to"):
        prepare_network("propagation", network, "fp16", probe_inputs("propagation"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ROLES)
def test_weights_that_are_not_finite_are_refused(
    networks: Mapping[Role, nn.Module], role: Role, value: float
) -> None:
    name = next(name for name, tensor in networks[role].named_parameters() if tensor.ndim == 4)
    with pytest.raises(ExportError, match=f"NaN or infinity .*{name}.*earlier checkpoint"):
        prepare_network(role, _with(networks[role], name, value), "fp32", probe_inputs(role))


def test_weights_lost_to_zero_are_counted() -> None:
    layer = nn.Conv2d(4, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([0.0, 1e-8, -2e-8, 1e-7, 1.0, 1.0, 1.0, 1.0]).view(2, 4, 1, 1)
        )
    assert check_half_range("propagation", nn.Sequential(layer)) == 2


@torch.inference_mode()
def test_osvos_trunk_rescaling_keeps_output(
    networks: Mapping[Role, nn.Module],
) -> None:
    network = networks["osvos"]
    probe = (torch.randn((1, 3, 48, 64), generator=torch.Generator().manual_seed(1)) * 70,)
    rescaled = folded_network("osvos", network, probe, for_half=True)
    assert isinstance(network, OsvosVgg)
    assert isinstance(rescaled, OsvosVgg)
    largest = {"as it is": 0.0, "rescaled": 0.0}
    for name, net in (("as it is", network), ("rescaled", rescaled)):
        with_hook = net.get_submodule("stages.4")
        handle = with_hook.register_forward_hook(
            lambda _module, _inputs, output, name=name: largest.update(
                {name: output.abs().max().item()}
            )
        )
        net.logits(probe[0])
        handle.remove()
    assert largest["rescaled"] == pytest.approx(largest["as it is"] / 64, rel=1e-6)
    assert torch.equal(rescaled.logits(probe[0]), network.logits(probe[0]))


@pytest.mark.parametrize("role", ROLES)
def test_precision_report_matches_the_graph(graphs: Graphs, role: Role) -> None:
    full, half = graphs(role, "fp32").precision_report, graphs(role, "fp16").precision_report
    assert full.half_weights == 0
    assert half.total_weights == full.total_weights
    assert half.float32_names == KEPT_FLOAT32[role]
    assert half.half_weights == half.total_weights - len(KEPT_FLOAT32[role])
    assert str(half) == f"{half.half_weights}/{half.total_weights}"
    assert graphs(role, "fp16").size_bytes < 0.6 * graphs(role, "fp32").size_bytes


def test_edges_and_pixels_stay_float32_in_a_half_graph(graphs: Graphs) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs("flow", "fp16").path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("GridSample", "ReduceMean", "ReduceL2", "Resize"):
            names = (*node.input[:2], *node.output) if node.op_type == "GridSample" else node.output
            assert {types[name] for name in names} == {onnx.TensorProto.FLOAT}, node.name
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    half = [node for node in convolutions if types[node.output[0]] == onnx.TensorProto.FLOAT16]
    assert len(convolutions) - len(half) == len(KEPT_FLOAT32["flow"])


def test_the_pool_and_the_sigmoid_of_a_half_graph_stay_float32(graphs: Graphs) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs("propagation", "fp16").path))
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.output)
    }
    seen = {
        node.op_type: types[node.output[0]]
        for node in model.graph.node
        if node.op_type in ("ReduceMean", "Sub", "Sigmoid")
    }
    assert seen == dict.fromkeys(("ReduceMean", "Sub", "Sigmoid"), onnx.TensorProto.FLOAT)


def test_fp16_that_yields_fp32_is_an_error(graphs: Graphs, tmp_path: Path) -> None:
    report = precision_report(graphs("osvos", "fp32").path)
    with pytest.raises(ExportError, match="fp16 was requested, but only 0/19"):
        check_precision("osvos", report, "fp16", ())
    check_precision("osvos", report, "fp32", ())


@pytest.mark.parametrize(
    ("report", "precision", "says"),
    [
        (PrecisionReport(1, 2, ("a.weight",)), "fp16", r"only 1/2 .*\(float32: a\.weight\)"),
        (PrecisionReport(1, 2, ("a.weight",)), "fp32", "fp32 was requested, but 1/2"),
        (PrecisionReport(0, 1, ("kept.weight",)), "fp16", "only 0/1"),
    ],
)
def test_a_layer_of_the_wrong_precision_is_an_error(
    report: PrecisionReport, precision: str, says: str
) -> None:
    with pytest.raises(ExportError, match=says):
        check_precision("osvos", report, precision, ("kept",))  # type: ignore[arg-type]
    check_precision("osvos", PrecisionReport(1, 2, ("kept.weight",)), "fp16", ("kept",))
