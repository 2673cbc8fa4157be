"""Files with the keys and shapes of public checkpoints, but almost no bytes.

Every tensor is one stored number expanded to its full shape, so that a file of 162 M parameters is
written and read in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpn.networks.flownet2 import FlowNet2, FlowNet2Config, FlowVariant
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationConfig, PropagationNet


def hollow_state_dict(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Make keys and shapes of ``build()``, each tensor one repeated number."""
    with torch.device("meta"):
        shapes = build().state_dict()
    return {key: torch.zeros((), dtype=v.dtype).expand(v.shape) for key, v in shapes.items()}


def flow_state(variant: FlowVariant) -> dict[str, Tensor]:
    return hollow_state_dict(lambda: FlowNet2(FlowNet2Config(variant)))


def deeplab_state(**config: Any) -> dict[str, Tensor]:
    return hollow_state_dict(lambda: PropagationNet(PropagationConfig(**config)))


def osvos_state() -> dict[str, Tensor]:
    return hollow_state_dict(lambda: OsvosVgg(OsvosConfig(4, "deconv_center_crop")))
