"""Batch normalisation that helps a random network to learn, and is folded away afterwards.

OSVOS has none: it starts from ImageNet weights. From random ones, thirteen layers in a row learn
many times faster with it, and in evaluation it is one factor and one offset a channel, which the
convolution before it takes over exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpn.networks.osvos_vgg import OsvosConfig, OsvosVgg


def normalised_network(config: OsvosConfig) -> OsvosVgg:
    """A network with batch normalisation after every convolution of the trunk.

    Args:
        config: Shape of the network.

    Returns:
        Same inputs and outputs; other keys in ``stages``, see :func:`folded_weights`.
    """
    network = OsvosVgg(config)
    for number, stage in enumerate(network.stages):
        layers: list[nn.Module] = []
        for layer in stage.children():
            layers.append(layer)
            if isinstance(layer, nn.Conv2d):
                layers.append(nn.BatchNorm2d(layer.out_channels))
        network.stages[number] = nn.Sequential(*layers)
    return network


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there is any batch normalisation in a network."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def folded_weights(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the plain network that answers as the normalised one does in eval mode.

    Args:
        network: Plain, or from :func:`normalised_network`; gives the order of the layers only.
        state: Weights for it.

    Returns:
        A state dict of :class:`OsvosVgg` with the same configuration.
    """
    folded = {k: v for k, v in state.items() if not k.startswith("stages.")}
    for number, stage in enumerate(network.get_submodule("stages").children()):
        plain_index = 0
        layers = list(stage.children())
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                conv, norm = f"stages.{number}.{index - 1}", f"stages.{number}.{index}"
                spread = torch.sqrt(state[f"{norm}.running_var"] + layer.eps)
                factor = state[f"{norm}.weight"] / spread
                key = f"stages.{number}.{plain_index - 1}"
                folded[f"{key}.weight"] = state[f"{conv}.weight"] * factor[:, None, None, None]
                offset = state[f"{conv}.bias"] - state[f"{norm}.running_mean"]
                folded[f"{key}.bias"] = state[f"{norm}.bias"] + offset * factor
            else:
                for name in layer.state_dict():
                    folded[f"stages.{number}.{plain_index}.{name}"] = state[
                        f"stages.{number}.{index}.{name}"
                    ]
                plain_index += 1
    return folded
