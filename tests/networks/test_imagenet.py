"""ImageNet trunks in our layouts: complete, with equivalent first layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mpn.errors import CheckpointError
from mpn.networks.deeplab import DeepLabXception
from mpn.networks.imagenet import imagenet_trunk, vgg16_stages, xception_backbone
from mpn.networks.osvos import STAGE_CHANNELS, OsvosVgg
from tests.tolerances import PARITY_RELATIVE

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
OSVOS_MEAN_BGR = torch.tensor((104.00699, 116.66877, 122.67892))


def vgg16_like() -> dict[str, torch.Tensor]:
    """Make torchvision's keys and shapes."""
    state, inputs, index = {}, 3, 0
    for channels in STAGE_CHANNELS:
        for count in channels:
            state[f"features.{index}.weight"] = torch.randn(count, inputs, 3, 3) * 0.02
            state[f"features.{index}.bias"] = torch.randn(count) * 0.1
            inputs, index = count, index + 2
        index += 1
    state["classifier.0.weight"] = torch.zeros(4, 4)
    return state


def xception_like() -> dict[str, torch.Tensor]:
    """Make Cadene's keys and shapes, with zeros except in the first layer."""
    state: dict[str, torch.Tensor] = {}

    def norm(name: str, channels: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{kind}"] = torch.zeros(channels)

    def sep(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.conv1.weight"] = torch.zeros(inputs, 1, 3, 3)
        state[f"{name}.pointwise.weight"] = torch.zeros(outputs, inputs)

    def block(number: int, seps: list[tuple[int, int]], opening: int, skip: bool) -> None:
        for k, (inputs, outputs) in enumerate(seps):
            sep(f"block{number}.rep.{3 * k + opening}", inputs, outputs)
            norm(f"block{number}.rep.{3 * k + opening + 1}", outputs)
        if skip:
            first, last = seps[0][0], seps[-1][1]
            state[f"block{number}.skip.weight"] = torch.zeros(last, first, 1, 1)
            norm(f"block{number}.skipbn", last)

    state["conv1.weight"] = torch.randn(32, 3, 3, 3)
    norm("bn1", 32)
    state["bn1.running_mean"] = torch.randn(32)
    state["conv2.weight"] = torch.zeros(64, 32, 3, 3)
    norm("bn2", 64)
    block(1, [(64, 128), (128, 128)], 0, True)
    block(2, [(128, 256), (256, 256)], 1, True)
    block(3, [(256, 728), (728, 728)], 1, True)
    for number in range(4, 12):
        block(number, [(728, 728)] * 3, 1, False)
    block(12, [(728, 728), (728, 1024)], 1, True)
    sep("conv3", 1024, 1536)
    norm("bn3", 1536)
    sep("conv4", 1536, 2048)
    norm("bn4", 2048)
    state["fc.weight"] = torch.zeros(10, 2048)
    return state


def test_imagenet_files_are_recognised_by_their_keys() -> None:
    assert imagenet_trunk(vgg16_like()) == "vgg16"
    assert imagenet_trunk(xception_like()) == "xception"
    assert imagenet_trunk({"stages.0.0.weight": torch.zeros(1)}) is None


def test_vgg16_fills_the_trunk_and_keeps_colour_scaling() -> None:
    torch.manual_seed(0)
    state = vgg16_like()
    stages = vgg16_stages(state)
    with torch.device("meta"):
        wanted = {k: v for k, v in OsvosVgg().state_dict().items() if k.startswith("stages.")}
    assert {k: v.shape for k, v in stages.items()} == {k: v.shape for k, v in wanted.items()}
    assert torch.equal(stages["stages.4.5.weight"], state["features.28.weight"])

    rgb = torch.randint(0, 256, (1, 3, 12, 12)).float()
    theirs = (rgb / 255 - MEAN[:, None, None]) / STD[:, None, None]
    ours = rgb.flip(1) - OSVOS_MEAN_BGR[:, None, None]
    there = F.conv2d(theirs, state["features.0.weight"], state["features.0.bias"])
    here = F.conv2d(ours, stages["stages.0.0.weight"], stages["stages.0.0.bias"])
    scale = float(there.abs().max())
    torch.testing.assert_close(here, there, rtol=0, atol=PARITY_RELATIVE * scale)
    # control: in RGB order it is another picture
    wrong = F.conv2d(ours.flip(1), stages["stages.0.0.weight"], stages["stages.0.0.bias"])
    assert float((wrong - there).abs().max()) > 100 * PARITY_RELATIVE * scale


def test_xception_fills_its_layers_and_keeps_colour_scaling() -> None:
    torch.manual_seed(0)
    state = xception_like()
    backbone = xception_backbone(state, "zero")
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in DeepLabXception().state_dict().items()}
    for key, value in backbone.items():
        assert wanted[key] == value.shape, key
    absent = [
        k for k in wanted
        if k.startswith("backbone.") and k not in backbone and "num_batches" not in k
    ]  # fmt: skip
    # Inner normalisations, the third layers of the entry's blocks and of block20, and conv4.
    third = {f"backbone.{b}.rep.{i}" for b in ("block1", "block2") for i in (6, 7)}
    third |= {f"backbone.{b}.rep.{i}" for b in ("block3", "block20") for i in (7, 8)}
    for key in absent:
        inner = key.split(".")[-2] == "bn"
        expected = any(key.startswith(f"{t}.") for t in third) or ".conv4." in key
        assert inner or expected, key

    rgb = torch.rand(1, 3, 12, 12)
    there = F.conv2d(2 * rgb - 1, state["conv1.weight"]) - state["bn1.running_mean"][:, None, None]
    ours = torch.cat(
        [(rgb - MEAN[:, None, None]) / STD[:, None, None], torch.rand(1, 1, 12, 12)], 1
    )
    here = F.conv2d(ours, backbone["backbone.conv1.weight"])
    here = here - backbone["backbone.bn1.running_mean"][:, None, None]
    scale = float(there.abs().max())
    torch.testing.assert_close(here, there, rtol=0, atol=PARITY_RELATIVE * scale)
    # control: without the shift of the mean it is off
    wrong = F.conv2d(ours, backbone["backbone.conv1.weight"])
    wrong = wrong - state["bn1.running_mean"][:, None, None]
    assert float((wrong - there).abs().max()) > 100 * PARITY_RELATIVE * scale


def test_other_networks_of_the_same_names_are_one_line() -> None:
    state = vgg16_like()
    state["features.0.weight"] = torch.zeros(96, 3, 11, 11)
    with pytest.raises(CheckpointError, match=r"'features\.0\.weight' of a VGG16 must have 64"):
        vgg16_stages(state)
    state = xception_like()
    state["conv1.weight"] = torch.zeros(32, 4, 3, 3)
    with pytest.raises(CheckpointError, match=r"must be \(32, 3, 3, 3\), got \(32, 4, 3, 3\)"):
        xception_backbone(state, "zero")
