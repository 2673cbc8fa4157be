from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpn.errors import InputError
from mpn.networks.osvos import OsvosConfig, OsvosVgg, Upsample
from tests.networks.seeded import OSVOS_GAIN, seeded_state_dict
from tests.tolerances import PARITY_RELATIVE

PUBLIC = OsvosConfig(branches=4, upsample="deconv_center_crop")
BGR_MEAN = np.array([104.00699, 116.66877, 122.67892], np.float32)
OUTPUTS = ("side1", "side2", "side3", "side4", "fused")
TINY = 0.125


def _seeded(config: OsvosConfig) -> OsvosVgg:
    net = OsvosVgg(config)
    net.load_state_dict(seeded_state_dict(net, OSVOS_GAIN), strict=True)
    return net.eval()


def _largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest expected magnitude."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def golden_case(golden: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The image as the network takes it, and every output."""
    data = np.load(golden / "networks" / "osvos_public.npz")
    image = torch.from_numpy(data["rgb"][..., ::-1] - BGR_MEAN).permute(2, 0, 1)[None]
    return image.contiguous(), {name: torch.from_numpy(data[name])[None] for name in OUTPUTS}


@pytest.fixture(scope="module")
def public_net() -> OsvosVgg:
    return _seeded(PUBLIC)


@torch.inference_mode()
def test_public_form_matches_the_public_network(
    public_net: OsvosVgg, golden_case: tuple[Tensor, dict[str, Tensor]]
) -> None:
    image, expected = golden_case
    outputs = public_net(image)
    assert len(outputs) == len(OUTPUTS)
    for name, logits in zip(OUTPUTS, outputs, strict=True):
        assert _largest_difference(logits, expected[name]) <= PARITY_RELATIVE, name
    assert torch.equal(public_net.logits(image), outputs[-1])
    # Control: the other channel order is another picture.
    assert _largest_difference(public_net.logits(image.flip(1)), expected["fused"]) > 0.01


def _crop_top_left(net: OsvosVgg, image: Tensor) -> Tensor:
    """Compute the coarsest logits, cropped at the top left, not the centre."""
    side = net.score_dsn[3](net._sides(image)[3])
    return net.upscale_[3](side)[..., 8 : 8 + image.shape[2], 8 : 8 + image.shape[3]]


@torch.inference_mode()
def test_golden_comparison_detects_other_crop(
    public_net: OsvosVgg, golden_case: tuple[Tensor, dict[str, Tensor]]
) -> None:
    image, expected = golden_case
    assert _largest_difference(_crop_top_left(public_net, image), expected["side4"]) > 0.01


@pytest.mark.parametrize(
    ("config", "parameters", "entries"),
    [
        (PUBLIC, 15_267_157, 52),
        (OsvosConfig(), 14_926_902, 48),
        (OsvosConfig(branches=5, upsample="deconv_center_crop"), 14_926_902 + 349_520, 56),
        (OsvosConfig(branches=4, upsample="resize"), 15_267_157 - 349_520, 44),
    ],
)
def test_parameters_and_entries(config: OsvosConfig, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        net = OsvosVgg(config)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert len(net.state_dict()) == entries


def test_keys_of_the_public_form() -> None:
    with torch.device("meta"):
        state = OsvosVgg(PUBLIC).state_dict()
    convolutions = ["0.0", "0.2", "1.1", "1.3"]
    convolutions += [f"{stage}.{index}" for stage in (2, 3, 4) for index in (1, 3, 5)]
    names = [f"stages.{name}" for name in convolutions]
    names += [f"{name}.{k}" for name in ("side_prep", "score_dsn") for k in range(4)] + ["fuse"]
    keys = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    keys |= {f"{name}.{k}.weight" for name in ("upscale", "upscale_") for k in range(4)}
    assert set(state) == keys


def test_upsampling_kernels_are_bilinear_and_never_trained() -> None:
    net = OsvosVgg(OsvosConfig(4, "deconv_center_crop", TINY))
    kernel = net.upscale_[0].weight
    assert kernel[0, 0, 0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    assert all(not p.requires_grad for p in (*net.upscale.parameters(), *net.upscale_.parameters()))
    wide = net.upscale[0].weight
    assert torch.equal(wide, torch.eye(wide.shape[0])[:, :, None, None] * kernel)


@pytest.mark.parametrize("branches", [4, 5])
@pytest.mark.parametrize("upsample", ["deconv_center_crop", "resize"])
@pytest.mark.parametrize("size_hw", [(1, 1), (17, 33), (32, 48), (31, 15)])
@torch.inference_mode()
def test_every_size_gives_logits_of_the_images_size(
    branches: int, upsample: Upsample, size_hw: tuple[int, int]
) -> None:
    net = OsvosVgg(OsvosConfig(branches, upsample, TINY)).eval()
    outputs = net(torch.randn((2, 3, *size_hw)))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 1, *size_hw)] * (branches + 1)


@pytest.mark.parametrize("size_hw", [(64, 96), (61, 85)])
@torch.inference_mode()
def test_resize_keeps_coarse_maps_in_place_at_any_size(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    net = OsvosVgg(OsvosConfig(branches=5, width=TINY))
    ramp = torch.arange(width, dtype=torch.float32).expand(1, 1, height, width)
    for branch in range(5):
        step = 2**branch
        padded = F.pad(ramp, (0, -width % step, 0, -height % step), mode="replicate")
        centres = torch.arange(padded.shape[-1] // step) * step + (step - 1) / 2
        coarse = centres.expand(1, 1, padded.shape[-2] // step, -1).contiguous()
        restored = net._upsampled(branch, coarse, size_hw)
        inner = restored[..., step : width - 2 * step] - ramp[..., step : width - 2 * step]
        assert inner.abs().max() <= PARITY_RELATIVE * width
    # Control: resized straight to an odd size, the coarsest map is stretched.
    straight = F.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)
    if width % step:
        assert (straight - ramp)[..., step : width - 2 * step].abs().max() > 1


@torch.inference_mode()
def test_osvos_upsamplings_agree_inside() -> None:
    deconv = _seeded(OsvosConfig(4, "deconv_center_crop", TINY))
    resize = OsvosVgg(OsvosConfig(4, "resize", TINY)).eval()
    kept = {k: v for k, v in deconv.state_dict().items() if not k.startswith("upscale")}
    resize.load_state_dict(kept, strict=True)
    inside = (..., slice(16, -16), slice(16, -16))

    def difference(width: int) -> float:
        image = torch.randn((1, 3, 64, width), generator=torch.Generator().manual_seed(5))
        return _largest_difference(deconv.logits(image)[inside], resize.logits(image)[inside])

    assert difference(96) <= PARITY_RELATIVE
    assert difference(86) > 100 * PARITY_RELATIVE  # the centred crop is off there


def test_only_the_fixed_kernels_do_not_learn() -> None:
    net = _seeded(OsvosConfig(5, "deconv_center_crop", TINY))
    torch.stack([logits.mean() for logits in net(torch.randn((1, 3, 20, 28)))]).sum().backward()
    without = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {
        f"{name}.{k}.weight" for name in ("upscale", "upscale_") for k in range(1, 5)
    }


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OsvosConfig(branches=3), "4 or 5 side branches, got 3"),
        (lambda: OsvosConfig(upsample="nearest"), "unknown upsampling 'nearest'"),  # type: ignore[arg-type]
        (lambda: OsvosConfig(width=0), "width must be a finite number above 0"),
    ],
)
def test_unknown_shapes_are_refused(build: Callable[[], OsvosConfig], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    "config",
    [OsvosConfig(4, "deconv_center_crop", TINY), OsvosConfig(5, "resize", TINY)],
    ids=["public", "modified"],
)
def test_exported_graph_agrees_in_onnxruntime(config: OsvosConfig, tmp_path: Path) -> None:
    net = _seeded(config)
    image = torch.randn((1, 3, 45, 70), generator=torch.Generator().manual_seed(6))
    program = torch.onnx.export(
        net, (image,), dynamo=True, opset_version=18, input_names=["image"], verbose=False
    )
    assert program is not None
    program.save(tmp_path / "osvos.onnx")
    graph = onnx.load(tmp_path / "osvos.onnx").graph
    assert not [node.name for node in graph.node if node.op_type in ("Pad", "Cast")]
    session = ort.InferenceSession(tmp_path / "osvos.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = net(image)
    for ran, logits in zip(session.run(None, {"image": image.numpy()}), expected, strict=True):
        assert _largest_difference(torch.from_numpy(ran), logits) <= PARITY_RELATIVE
    other = session.run(None, {"image": image.flip(1).numpy()})[-1]  # control: another picture
    assert _largest_difference(torch.from_numpy(other), expected[-1]) > 100 * PARITY_RELATIVE
