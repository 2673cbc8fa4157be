"""Recognition of public checkpoints by their keys.

Layouts: NVIDIA/flownet2-pytorch at bce69c8, jfzhang95/pytorch-deeplab-xception at 9135e10,
kmaninis/OSVOS-PyTorch at 36562ef.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from mpn.engines.spec import Role
from mpn.errors import CheckpointError
from mpn.networks.backbones import BACKBONES, BackboneName
from mpn.networks.build import shortened
from mpn.networks.features import FeaturesConfig, features_variant
from mpn.networks.flownet2 import FlowNet2Config, FlowVariant
from mpn.networks.imagenet import imagenet_trunk
from mpn.networks.osvos import OsvosConfig
from mpn.networks.propagation import HEAD_LAYER, PropagationConfig, first_layer

FLOWNET2_KIND = "NVIDIA/flownet2-pytorch"
DEEPLAB_KIND = "jfzhang95/pytorch-deeplab-xception"
OSVOS_KIND = "kmaninis/OSVOS-PyTorch"
IMAGENET_KIND = "ImageNet"

FLOW_MEMBERS: Mapping[FlowVariant, tuple[str, ...]] = {
    "FlowNet2": ("flownetc", "flownets_1", "flownets_2", "flownets_d", "flownetfusion"),
    "FlowNet2CSS": ("flownetc", "flownets_1", "flownets_2"),
    "FlowNet2CS": ("flownetc", "flownets_1"),
}
"""Prefixes of the keys; the single networks C, S and SD have none."""

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""Prefixes of DataParallel, of torch.compile and of a network in a Lightning module."""
_LOSSES = re.compile(r"(?:\w*_)?(?:criterion|loss|metrics?)(?:_\w*)?\.")
"""Start of the names of what a Lightning module holds in addition to its network."""
_SUPPORTED = (
    "NVIDIA FlowNet2 (and CSS, CS, C, S, SD), jfzhang95 DeepLab Xception, OSVOS-PyTorch, and "
    "this project's own checkpoints"
)


@dataclass(frozen=True)
class Recognised:
    """Network of a state dict.

    Attributes:
        role: Role of the network.
        variant: Name of the network.
        config: Fields of its config class.
        kind: The repository with this layout.
    """

    role: Role
    variant: str
    config: Mapping[str, Any]
    kind: str


def unwrapped_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Find the state dict of a public file, without wrappers and prefixes.

    Args:
        content: Result of ``torch.load``.
        path: Path for error messages.

    Raises:
        CheckpointError: If there is none.
    """
    found = content
    seen: set[int] = set()  # a pickle can hold a dict that holds itself
    while isinstance(found, Mapping) and not is_state_dict(found):
        seen.add(id(found))
        wrapper = next((key for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if wrapper is None or id(found[wrapper]) in seen:
            raise CheckpointError(_no_state_dict(found, path))
        found = found[wrapper]
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(found).__name__}, not a state dict: save model.state_dict() "
            "alone, as in torch.save(model.state_dict(), FILE)"
        )
    # Weights of classes in a loss, for example.
    state_dict = {key: value for key, value in found.items() if not _LOSSES.match(key)}
    while prefix := next((p for p in _PREFIXES if _all_start_with(p, state_dict)), None):
        state_dict = {key[len(prefix) :]: value for key, value in state_dict.items()}
    return state_dict


def _all_start_with(prefix: str, state_dict: Mapping[str, Tensor]) -> bool:
    return bool(state_dict) and all(key.startswith(prefix) for key in state_dict)


def _no_state_dict(found: Mapping[Any, Any], path: Path) -> str:
    keys = [
        key if isinstance(key, str) else f"a {type(key).__name__}"
        for key, value in found.items()
        if not isinstance(value, Tensor)
    ]
    other = " and tensors" if 0 < len(keys) < len(found) else ""
    return (
        f"{path} holds no state dict: it has {shortened(keys) or 'nothing'}{other}, but tensors "
        "by name are expected, alone or under 'state_dict': save model.state_dict() alone"
    )


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Return whether this is a non-empty mapping of names to tensors."""
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def recognise(state_dict: Mapping[str, Tensor], path: Path) -> Recognised:
    """Recognise the public network of a state dict.

    Raises:
        CheckpointError: If it is no usable network; the message names it if known.
    """
    if any(key.split(".")[0] in FLOW_MEMBERS["FlowNet2"] for key in state_dict):
        return _flow(_composed_variant(state_dict, path), state_dict, path)
    if "predict_flow6.weight" in state_dict:
        if "conv_redir.0.weight" in state_dict:
            return _flow("FlowNet2C", state_dict, path)
        alone: FlowVariant = "FlowNet2SD" if "conv0.0.weight" in state_dict else "FlowNet2S"
        return _flow(alone, state_dict, path)
    if any(key.startswith(("backbone.", "aspp.", "decoder.")) for key in state_dict):
        return _deeplab(state_dict, path)
    if "stages.0.0.weight" in state_dict and "side_prep.0.weight" in state_dict:
        config = OsvosConfig(branches=4, upsample="deconv_center_crop")
        return Recognised("osvos", "OsvosVgg", asdict(config), OSVOS_KIND)
    trunk = imagenet_trunk(state_dict)
    if trunk in BACKBONES and trunk != "xception":  # whose public file lacks layers
        features = FeaturesConfig(cast(BackboneName, trunk))
        return Recognised(
            "features", features_variant(asdict(features)), asdict(features), IMAGENET_KIND
        )
    if trunk is not None:
        raise CheckpointError(
            f"{path} holds ImageNet's {trunk}, not a segmentation network: train one from it, with "
            "mpn train --start-from"
        )
    raise CheckpointError(
        f"{path} is of no known layout: its first keys are {shortened(list(state_dict))}; known "
        f"are {_SUPPORTED}"
    )


def members_present(state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """List the prefixes of FlowNet 2.0's members among the keys, in order."""
    prefixes = {key.split(".")[0] for key in state_dict}
    return tuple(member for member in FLOW_MEMBERS["FlowNet2"] if member in prefixes)


def _composed_variant(state_dict: Mapping[str, Tensor], path: Path) -> FlowVariant:
    present = members_present(state_dict)
    for variant, members in FLOW_MEMBERS.items():
        if present == members:
            return variant
    absent = [member for member in FLOW_MEMBERS["FlowNet2"] if member not in present]
    raise CheckpointError(
        f"{path} holds {', '.join(present)} of FlowNet 2.0 but no key starts with "
        f"{shortened([f'{member}.' for member in absent])}: take a whole file of the family, "
        "FlowNet2, CSS or CS"
    )


def _flow(variant: FlowVariant, state_dict: Mapping[str, Tensor], path: Path) -> Recognised:
    normalised = [key for key in state_dict if key.endswith("running_mean")]
    if normalised:
        raise CheckpointError(
            f"{path} is a {variant} with batch normalisation ('{normalised[0]}'), which the "
            "public FlowNet2 weights do not have: use those of NVIDIA/flownet2-pytorch"
        )
    if variant in FLOW_MEMBERS:
        return Recognised("flow", variant, asdict(FlowNet2Config(variant)), FLOWNET2_KIND)
    if "predict_flow6.bias" not in state_dict:
        raise CheckpointError(
            f"{path} is a FlowNet of ClementPinard/FlowNetPytorch (no 'predict_flow6.bias'), "
            "trained with other inputs and scales: use the files of NVIDIA/flownet2-pytorch"
        )
    return Recognised("flow", variant, asdict(FlowNet2Config(variant)), FLOWNET2_KIND)


def _deeplab(state_dict: Mapping[str, Tensor], path: Path) -> Recognised:
    if any(key.startswith("classifier.") for key in state_dict):
        raise CheckpointError(
            f"{path} has the layout of VainF/DeepLabV3Plus-Pytorch ("
            f"{shortened([key for key in state_dict if key.startswith('classifier.')][:1])}), "
            f"whose Xception is not the aligned one: use weights trained with {DEEPLAB_KIND}"
        )
    backbones = {
        "ResNet": "backbone.layer1.0.",
        "MobileNet": "backbone.low_level_features.",
        "MobileNet v2": "backbone.features.",
        "DRN": "backbone.layer0.",
    }
    for name, prefix in backbones.items():
        keys = [key for key in state_dict if key.startswith(prefix)]
        if keys:
            raise CheckpointError(
                f"{path} is a DeepLab with a {name} backbone ('{keys[0]}'), but Xception is "
                f"needed: train {DEEPLAB_KIND} with --backbone xception"
            )
    first, head = state_dict.get(first_layer("xception")), state_dict.get(HEAD_LAYER)
    config = PropagationConfig(
        in_channels=first.shape[1] if first is not None and first.ndim == 4 else 4,
        classes=head.shape[0] if head is not None and head.ndim == 4 else 2,
        residual_relu=True,  # its blocks start with a ReLU in place, which changes the shortcut too
    )
    return Recognised("propagation", "DeepLabXception", asdict(config), DEEPLAB_KIND)
