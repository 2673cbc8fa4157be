from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.errors import InputError
from mpn.networks.flownet2 import FLOW_VARIANTS, FlowNet2, FlowNet2Config, FlowVariant
from tests.networks.seeded import FLOWNET2_GAIN, seeded
from tests.tolerances import HALF_FLOW_RELATIVE, PARITY_RELATIVE

TINY = 0.125
PARAMETERS = {
    "FlowNet2": 162_518_834,
    "FlowNet2CSS": 39_175_298 + 2 * 38_695_322,
    "FlowNet2CS": 39_175_298 + 38_695_322,
    "FlowNet2C": 39_175_298,
    "FlowNet2S": 38_695_322 - 64 * 6 * 49,  # 6 input channels instead of 12
    "FlowNet2SD": 45_371_666,
}
ENTRIES = {
    "FlowNet2": 220,
    "FlowNet2CSS": 132,
    "FlowNet2CS": 90,
    "FlowNet2C": 48,
    "FlowNet2S": 42,
    "FlowNet2SD": 60,
}
PUBLIC_SHAPES = {
    "flownetc.conv1.0.weight": (64, 3, 7, 7),
    "flownetc.conv_redir.0.bias": (32,),
    "flownetc.conv3_1.0.weight": (256, 473, 3, 3),
    "flownetc.predict_flow6.weight": (2, 1024, 3, 3),
    "flownetc.upsampled_flow6_to_5.weight": (2, 2, 4, 4),
    "flownetc.upsampled_flow6_to_5.bias": (2,),
    "flownets_1.conv1.0.weight": (64, 12, 7, 7),
    "flownets_1.deconv5.0.weight": (1024, 512, 4, 4),
    "flownets_2.predict_flow2.weight": (2, 194, 3, 3),
    "flownets_d.inter_conv5.0.weight": (512, 1026, 3, 3),
    "flownets_d.conv0.0.weight": (64, 6, 3, 3),
    "flownetfusion.conv0.0.weight": (64, 11, 3, 3),
    "flownetfusion.upsampled_flow1_to_0.bias": (2,),
}


def _largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest expected magnitude."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def golden_case(golden: Path) -> tuple[Tensor, Tensor, Tensor]:
    data = np.load(golden / "networks" / "flownet2.npz")
    frames = [
        torch.from_numpy(data[name]).permute(2, 0, 1)[None] for name in ("frame0_rgb", "frame1_rgb")
    ]
    return frames[0], frames[1], torch.from_numpy(data["flow"])[None]


@pytest.fixture(scope="module")
def paper_size() -> nn.Module:
    with torch.device("meta"):  # 162 M default values are not needed
        net = FlowNet2()
    return seeded(net, FLOWNET2_GAIN)


def _tiny(variant: FlowVariant) -> nn.Module:
    return seeded(FlowNet2(FlowNet2Config(variant, width=TINY)), FLOWNET2_GAIN)


@torch.inference_mode()
def test_paper_size_network_matches_the_public_one(
    paper_size: nn.Module, golden_case: tuple[Tensor, Tensor, Tensor]
) -> None:
    frame0, frame1, expected = golden_case
    flow_px = paper_size(frame0, frame1)
    assert flow_px.shape == expected.shape
    assert _largest_difference(flow_px, expected) <= PARITY_RELATIVE
    # Control: flow from frame 1 to frame 0 is another one.
    assert _largest_difference(paper_size(frame1, frame0), expected) > 100 * PARITY_RELATIVE


def _multiply_small_displacements(net: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """Scale SD as in the single network (times 20), not over 20."""
    member = net.get_submodule("flownets_d")
    return member.register_forward_hook(lambda _module, _inputs, flow: flow * 400.0)


def _fusion_inputs_in_order(net: nn.Module, order: list[int]) -> torch.utils.hooks.RemovableHandle:
    member = net.get_submodule("flownetfusion")
    return member.register_forward_pre_hook(lambda _module, inputs: (inputs[0][:, order],))


S2_BEFORE_SD = [0, 1, 2, 5, 6, 3, 4, 8, 7, 10, 9]
NORMS_OF_SD_TOGETHER = [0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 10]


@pytest.mark.parametrize("breakage", ["scaling", "order of flows", "order of norms", "bias"])
@torch.inference_mode()
def test_golden_comparison_detects_wrong_wiring(
    paper_size: nn.Module, golden_case: tuple[Tensor, Tensor, Tensor], breakage: str
) -> None:
    frame0, frame1, expected = golden_case
    if breakage == "scaling":
        handle = _multiply_small_displacements(paper_size)
    elif breakage == "order of flows":
        handle = _fusion_inputs_in_order(paper_size, S2_BEFORE_SD)
    elif breakage == "order of norms":
        handle = _fusion_inputs_in_order(paper_size, NORMS_OF_SD_TOGETHER)
    else:
        layer = paper_size.get_submodule("flownets_1.upsampled_flow3_to_2")
        handle = layer.register_forward_hook(lambda _module, _inputs, flow: flow + 0.05)
    try:
        broken = paper_size(frame0, frame1)
    finally:
        handle.remove()
    assert _largest_difference(broken, expected) > 2 * PARITY_RELATIVE


@pytest.mark.parametrize("variant", FLOW_VARIANTS)
def test_parameters_and_entries_are_the_public_ones(variant: FlowVariant) -> None:
    with torch.device("meta"):
        net = FlowNet2(FlowNet2Config(variant))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[variant]
    assert len(net.state_dict()) == ENTRIES[variant]


def test_keys_and_shapes_are_the_public_ones() -> None:
    with torch.device("meta"):
        state = FlowNet2().state_dict()
    assert {key: tuple(state[key].shape) for key in PUBLIC_SHAPES} == PUBLIC_SHAPES
    # FlowNetS, alone of all, upsamples its flow without a bias.
    assert "flownets_1.upsampled_flow6_to_5.bias" not in state
    assert "flownets_d.upsampled_flow6_to_5.bias" in state


@pytest.mark.parametrize("variant", ["FlowNet2C", "FlowNet2S", "FlowNet2SD"])
@torch.inference_mode()
def test_a_member_alone_has_no_prefix_and_multiplies_by_twenty(variant: FlowVariant) -> None:
    net = _tiny(variant)
    assert "conv6_1.0.weight" in net.state_dict()
    seen: list[Tensor] = []
    layer = net.get_submodule("predict_flow2")
    layer.register_forward_hook(lambda _module, _inputs, flow: seen.append(flow))
    frame0, frame1 = torch.rand((2, 1, 3, 64, 128)).mul(255).unbind()
    flow_px = net(frame0, frame1)
    expected = F.interpolate(20 * seen[0], scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(flow_px, expected)


@pytest.mark.parametrize("variant", FLOW_VARIANTS)
@torch.inference_mode()
def test_every_variant_gives_a_flow_of_the_frames_size(variant: FlowVariant) -> None:
    net = _tiny(variant)
    flow_px = net(torch.rand((2, 3, 64, 64)) * 255, torch.rand((2, 3, 64, 64)) * 255)
    assert flow_px.shape == (2, 2, 64, 64)
    assert flow_px.dtype == torch.float32
    assert torch.isfinite(flow_px).all()


@torch.inference_mode()
def test_css_ends_with_nearest_and_cs_with_bilinear_upsampling() -> None:
    frame0, frame1 = torch.rand((2, 1, 3, 64, 64)).mul(255).unbind()

    def is_blocky(variant: FlowVariant) -> bool:
        flow_px = _tiny(variant)(frame0, frame1)
        corners = flow_px[..., ::4, ::4].repeat_interleave(4, -1).repeat_interleave(4, -2)
        return torch.equal(flow_px, corners)

    assert is_blocky("FlowNet2CSS")
    assert not is_blocky("FlowNet2CS")


@torch.inference_mode()
def test_the_colour_added_to_both_frames_does_not_matter() -> None:
    net = _tiny("FlowNet2S")
    frame0, frame1 = torch.rand((2, 1, 3, 64, 64)).mul(100).unbind()
    plain = net(frame0, frame1)
    colour = torch.tensor([5.0, 50.0, 100.0])[:, None, None]
    assert _largest_difference(net(frame0 + colour, frame1 + colour), plain) <= PARITY_RELATIVE
    # Control: added to one frame only, it does.
    assert _largest_difference(net(frame0 + colour, frame1), plain) > 100 * PARITY_RELATIVE


@pytest.mark.parametrize(
    ("shape0", "shape1", "message"),
    [
        ((1, 3, 480, 854), (1, 3, 480, 854), "480x854: resize the frames to 512x896"),
        ((1, 3, 64, 65), (1, 3, 64, 65), "64x65: resize the frames to 64x128"),
        ((1, 3, 0, 64), (1, 3, 0, 64), "0x64: resize the frames to 64x64"),
        ((1, 3, 64, 64), (1, 3, 64, 128), "of one shape"),
        ((1, 4, 64, 64), (1, 4, 64, 64), r"\(B, 3, H, W\)"),
        ((3, 64, 64), (3, 64, 64), r"\(B, 3, H, W\)"),
    ],
)
def test_unusable_frames_are_refused(
    shape0: tuple[int, ...], shape1: tuple[int, ...], message: str
) -> None:
    with torch.device("meta"):
        net = FlowNet2(FlowNet2Config("FlowNet2S", width=TINY))
        with pytest.raises(InputError, match=message):
            net(torch.zeros(shape0), torch.zeros(shape1))


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(InputError, match="the variants are FlowNet2, FlowNet2CSS"):
        FlowNet2Config("FlowNet3")  # type: ignore[arg-type]


@torch.inference_mode()
def test_copy_uses_separate_weights() -> None:
    net = _tiny("FlowNet2S")
    clone = copy.deepcopy(net)
    frame0, frame1 = torch.rand((2, 1, 3, 64, 64)).mul(255).unbind()
    assert torch.equal(clone(frame0, frame1), net(frame0, frame1))
    for parameter in clone.parameters():
        parameter.zero_()
    assert clone(frame0, frame1).abs().max() == 0
    assert net(frame0, frame1).abs().max() > 0


def _halved(net: FlowNet2) -> FlowNet2:
    half = copy.deepcopy(net).half()
    for name in half.float32_layers:
        half.get_submodule(name).float()
    return half


@pytest.mark.parametrize("variant", ["FlowNet2", "FlowNet2SD"])
@torch.inference_mode()
def test_half_layers_keep_a_float32_flow(
    variant: FlowVariant, golden_case: tuple[Tensor, Tensor, Tensor]
) -> None:
    net = _tiny(variant)
    assert isinstance(net, FlowNet2)
    frame0, frame1 = (frame[..., :64, :128] for frame in golden_case[:2])
    half = _halved(net)
    assert len(net.float32_layers) == (5 if variant == "FlowNet2" else 1)  # one a member
    flow_px = half(frame0, frame1)
    assert flow_px.dtype == torch.float32
    difference = _largest_difference(flow_px, net(frame0, frame1))
    assert 0 < difference <= HALF_FLOW_RELATIVE  # 0 would mean that nothing ran in half


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flownet2") / "flow.onnx"
    frames = (torch.zeros((1, 3, 64, 128)), torch.zeros((1, 3, 64, 128)))
    names = {"input_names": ["frame0", "frame1"], "output_names": ["flow_px"]}
    program = torch.onnx.export(
        _tiny("FlowNet2"), frames, dynamo=True, opset_version=18, verbose=False, **names
    )
    assert program is not None
    program.save(path)
    return path


def test_exported_graph_agrees_in_onnxruntime(
    tiny_onnx: Path, golden_case: tuple[Tensor, Tensor, Tensor]
) -> None:
    frame0, frame1 = (frame[..., :64, :128].contiguous() for frame in golden_case[:2])
    session = ort.InferenceSession(tiny_onnx, providers=["CPUExecutionProvider"])
    (flow_px,) = session.run(None, {"frame0": frame0.numpy(), "frame1": frame1.numpy()})
    with torch.inference_mode():
        expected = _tiny("FlowNet2")(frame0, frame1)
    assert _largest_difference(torch.from_numpy(flow_px), expected) <= PARITY_RELATIVE
    # Control: the other direction is another flow.
    (swapped,) = session.run(None, {"frame0": frame1.numpy(), "frame1": frame0.numpy()})
    assert _largest_difference(torch.from_numpy(swapped), expected) > 100 * PARITY_RELATIVE


def test_flownet2_graph_has_banded_correlation(tiny_onnx: Path) -> None:
    graph = onnx.load(tiny_onnx)
    counts = Counter(node.op_type for node in graph.graph.node)
    assert graph.opset_import[0].version == 18
    assert counts["MatMul"] == 21
    assert counts["Conv"] == 81
    assert counts["ConvTranspose"] == 36
    assert counts["Cast"] == 0  # one dtype throughout
    assert sum(counts.values()) < 450  # 441 slices would be 1346 nodes and more
    samplings = [node for node in graph.graph.node if node.op_type == "GridSample"]
    attributes = [
        {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        for node in samplings
    ]
    assert attributes == [{"mode": b"bilinear", "padding_mode": b"border", "align_corners": 1}] * 4
