"""Conversions of OSVOS weights: rescaled trunk, five branches from four."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor

from mpn.errors import CheckpointError, InputError
from mpn.networks.osvos_vgg import OsvosVgg, Upsample

TRUNK_FACTOR = 1 / 64
"""Factor that keeps activations of 0..255 images far below 65504 in 13 unnormalised layers."""

_NEW_BRANCH_STD = 0.01
_PUBLIC_BRANCHES = 4
_FIXED_KERNELS = ("upscale.", "upscale_.")


@overload
def rescale_trunk(weights: OsvosVgg, factor: float = TRUNK_FACTOR) -> OsvosVgg: ...


@overload
def rescale_trunk(
    weights: Mapping[str, Tensor], factor: float = TRUNK_FACTOR
) -> dict[str, Tensor]: ...


def rescale_trunk(
    weights: OsvosVgg | Mapping[str, Tensor], factor: float = TRUNK_FACTOR
) -> OsvosVgg | dict[str, Tensor]:
    """Multiply every trunk activation by ``factor`` without changing the output.

    Convolution, ReLU and max pooling are positively homogeneous: the first convolution's weights
    and all trunk biases times ``factor`` scale every map by it, and the side branches' weights over
    ``factor`` undo that. A power of two does not change any rounding, so the outputs are
    bit-identical in float32.

    Args:
        weights: A network, or its state dict; not changed.
        factor: A power of two.

    Returns:
        A new network, or a new state dict, as given.

    Raises:
        InputError: If ``factor`` is not a positive power of two.
    """
    if not (0 < factor < math.inf and math.frexp(factor)[0] == 0.5):
        raise InputError(f"the trunk's factor must be a power of two such as 1/64, got {factor}")
    if isinstance(weights, OsvosVgg):
        network = copy.deepcopy(weights)
        network.load_state_dict(rescale_trunk(weights.state_dict(), factor), strict=True)
        return network
    rescaled = {}
    for key, value in weights.items():
        if key == "stages.0.0.weight" or (key.startswith("stages.") and key.endswith(".bias")):
            rescaled[key] = value * factor
        elif key.startswith("side_prep.") and key.endswith(".weight"):
            rescaled[key] = value / factor
        else:
            rescaled[key] = value.clone()
    return rescaled


def five_branch_from_four(
    state_dict: Mapping[str, Tensor], *, upsample: Upsample = "resize"
) -> dict[str, Tensor]:
    """Convert the public four-branch weights to the five-branch form.

    Branch k becomes branch k + 1. The new branch 0 reads conv1_2 with small seeded random weights
    and enters the fusion with zero weight. So the fused logits do not change (except by the kind of
    upsampling), and the branch can be trained.

    Args:
        state_dict: State dict of a network with four branches.
        upsample: Upsampling of the new network; ``"resize"`` has no kernels.

    Returns:
        A state dict for ``OsvosVgg(OsvosConfig(branches=5, upsample=upsample))`` of that width.

    Raises:
        CheckpointError: If ``state_dict`` is not of a network with four branches.
    """
    last, surplus = f"side_prep.{_PUBLIC_BRANCHES - 1}.weight", f"side_prep.{_PUBLIC_BRANCHES}"
    if last not in state_dict or f"{surplus}.weight" in state_dict:
        raise CheckpointError(
            f"expected the weights of an OSVOS with {_PUBLIC_BRANCHES} side branches "
            f"('{last}' and no '{surplus}.weight'): give the public parent network"
        )
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name, _, rest = key.partition(".")
        if key.startswith(_FIXED_KERNELS):
            if upsample == "resize":
                continue
        elif name not in ("side_prep", "score_dsn"):
            converted[key] = value.clone()
            continue
        index, _, leaf = rest.partition(".")
        converted[f"{name}.{int(index) + 1}.{leaf}"] = value.clone()
    side = state_dict["side_prep.0.weight"].shape[0]
    features = state_dict["stages.0.2.weight"].shape[0]
    generator = torch.Generator().manual_seed(0)

    def small(*shape: int) -> Tensor:
        return _NEW_BRANCH_STD * torch.randn(shape, generator=generator)

    converted["side_prep.0.weight"] = small(side, features, 3, 3)
    converted["side_prep.0.bias"] = torch.zeros(side)
    converted["score_dsn.0.weight"] = small(1, side, 1, 1)
    converted["score_dsn.0.bias"] = torch.zeros(1)
    fuse = state_dict["fuse.weight"]
    converted["fuse.weight"] = torch.cat((fuse.new_zeros((1, side, 1, 1)), fuse), dim=1)
    return converted
