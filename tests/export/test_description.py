from __future__ import annotations

from typing import Any

import pytest

from mpn.engines.spec import Role
from mpn.export.description import spec_of, variant_name
from mpn.export.options import ExportOptions
from mpn.networks.checkpoint import RoleWeights


@pytest.mark.parametrize(
    ("role", "variant", "config", "name"),
    [
        ("flow", "FlowNet2", {"variant": "FlowNet2", "width": 1.0}, "flownet2"),
        ("flow", "FlowNet2CSS", {"variant": "FlowNet2CSS"}, "flownet2-css"),
        ("flow", "FlowNet2S", {"width": 0.25}, "flownet2-s-width-0.25"),
        ("propagation", "DeepLabXception", {"output_stride": 8}, "deeplab-xception-os8"),
        ("propagation", "DeepLabXception", {}, "deeplab-xception-os16"),
        (
            "propagation",
            "EfficientNetLite0-PspNet",
            {"backbone": "efficientnet-lite0", "head": "pspnet"},
            "pspnet-efficientnet-lite0-os16",
        ),
        ("osvos", "OsvosVgg", {"branches": 4}, "osvos-vgg-4-branches"),
        ("osvos", "OsvosVgg", {"width": 0.5}, "osvos-vgg-5-branches-width-0.5"),
    ],
)
def test_a_network_has_one_word(
    role: Role, variant: str, config: dict[str, Any], name: str
) -> None:
    assert variant_name(RoleWeights(role, variant, config, {})) == name


def test_specs_follow_the_options() -> None:
    options = ExportOptions(frame_size_hw=(480, 854), roi_size=321, max_objects=3)
    assert spec_of("flow", options).inputs[0].shape == (1, 3, 512, 896)
    assert spec_of("osvos", options).inputs[0].shape == (1, 3, 480, 854)
    assert spec_of("propagation", options).inputs[0].shape == ("objects", 4, 321, 321)
    assert spec_of("propagation", options).max_objects == 3
    with_score = spec_of("propagation", options, {"in_channels": 5})
    assert with_score.inputs[0].describe() == "rgb_prob_score float32[objects,5,321,321]"
