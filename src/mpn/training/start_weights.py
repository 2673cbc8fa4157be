"""Initial weights: own and public checkpoints, and ImageNet trunks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mpn.errors import CheckpointError, TrainingError
from mpn.networks.checkpoint import load_checkpoint
from mpn.networks.deeplab_convert import FourthChannel
from mpn.networks.deeplab_xception import DeepLabConfig, DeepLabXception
from mpn.networks.imagenet import ImageNetTrunk, imagenet_trunk, vgg16_stages, xception_backbone
from mpn.networks.osvos_convert import five_branch_from_four
from mpn.networks.osvos_vgg import OsvosConfig, OsvosVgg
from mpn.networks.recognise import unwrapped_state_dict
from mpn.networks.torch_file import read_torch_file
from mpn.training.osvos_samples import INPUT_SCALE
from mpn.training.osvos_scale import init_weights, weights_for_larger_input


def propagation_start(
    path: Path, config: DeepLabConfig, *, fourth: FourthChannel | None, seed: int
) -> dict[str, Tensor]:
    """Load initial weights of the propagation network from a file.

    Args:
        path: An own checkpoint, a public DeepLab v3+ Xception, or ImageNet's Xception. Of the last,
            the backbone is used; the rest is random.
        config: Shape of the network to train.
        fourth: How to initialise the channel of the warped probability if the file has none.
        seed: Seed of the random weights.

    Raises:
        CheckpointError: If the file cannot be used.
        TrainingError: If ImageNet's backbone does not fit the network.
    """
    state = _imagenet_state(path, "xception")
    if state is None:
        checkpoint = load_checkpoint(path, expected_role="propagation", init_fourth_channel=fourth)
        return dict(checkpoint.roles["propagation"].state_dict)
    if fourth is None:
        raise TrainingError(
            f"{path} has no channel for the warped probability: initialise it with "
            "--set init_fourth_channel=zero (or mean, normal)"
        )
    backbone = xception_backbone(state, fourth)
    return _completed(DeepLabXception, config, backbone, path, seed)


def osvos_start(path: Path, config: OsvosConfig, *, seed: int) -> dict[str, Tensor]:
    """Load initial weights of OSVOS from a file, for images of 0..255 minus mean.

    Args:
        path: An own or public OSVOS checkpoint, or torchvision's VGG16, whose layers become the
            trunk; side branches and fusion are random.
        config: Shape of the network to train.
        seed: Seed of the random weights.

    Raises:
        CheckpointError: If the file cannot be used.
        TrainingError: If ImageNet's trunk does not fit the network.
    """
    state = _imagenet_state(path, "vgg16")
    if state is None:
        weights = load_checkpoint(path, expected_role="osvos").roles["osvos"]
        if weights.config.get("branches") == 4 and config.branches == 5:
            return five_branch_from_four(weights.state_dict, upsample=config.upsample)
        return dict(weights.state_dict)

    def drawn(config: OsvosConfig) -> OsvosVgg:
        network = OsvosVgg(config)
        init_weights(network)  # for inputs of size 1, as in training
        network.load_state_dict(weights_for_larger_input(network.state_dict(), INPUT_SCALE))
        return network

    return _completed(drawn, config, vgg16_stages(state), path, seed)


def _imagenet_state(path: Path, expected: ImageNetTrunk) -> dict[str, Tensor] | None:
    """Load the state dict of an ImageNet network; None for any other file."""
    content = read_torch_file(path)
    try:
        state = unwrapped_state_dict(content, path)
    except CheckpointError:
        return None  # an own checkpoint, or an error that load_checkpoint explains better
    found = imagenet_trunk(state)
    if found is not None and found != expected:
        raise CheckpointError(f"{path} is ImageNet's {found}, but {expected} is needed")
    return state if found else None


def _completed(
    draw: Callable[..., nn.Module],
    config: DeepLabConfig | OsvosConfig,
    trunk: Mapping[str, Tensor],
    path: Path,
    seed: int,
) -> dict[str, Tensor]:
    """Complete the trunk's tensors with random ones to a whole state dict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = draw(config).state_dict()
    unfit = [key for key, value in trunk.items() if key in own and own[key].shape != value.shape]
    if unfit:
        raise TrainingError(
            f"{path} is of width 1, the network to train is not ('{unfit[0]}' must be "
            f"{tuple(own[unfit[0]].shape)}): train it at width 1 (--recipe paper)"
        )
    return own | {key: value for key, value in trunk.items() if key in own}


def load_start(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    may_lack: Collection[str] = (),
    advice: str,
) -> None:
    """Load a state dict strictly, except for named keys.

    Args:
        network: Changed in place.
        state: The weights.
        may_lack: Keys of the network that may be missing, and then keep their values.
        advice: Alternative for the user, as the end of a sentence.

    Raises:
        TrainingError: If the weights do not fit.
    """
    own = network.state_dict()
    unfit = [k for k in state if k not in own or own[k].shape != state[k].shape]
    missing = [k for k in own if k not in state and k not in may_lack]
    if unfit or missing:
        raise TrainingError(
            f"the weights to start from do not fit the network at '{(unfit + missing)[0]}' "
            f"({len(unfit)} surplus or of another shape, {len(missing)} missing): set {advice}"
        )
    network.load_state_dict(state, strict=False)
