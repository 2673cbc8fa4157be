"""Batch normalisation for training OSVOS from random weights, folded afterwards.

OSVOS has none: it starts from ImageNet weights. From random ones, its thirteen layers train many
times faster with it. In evaluation it is one factor and one offset per channel, which are folded
exactly into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpn.networks.osvos_vgg import OsvosConfig, OsvosVgg


def normalised_network(config: OsvosConfig) -> OsvosVgg:
    """Create OSVOS with batch normalisation after each trunk convolution.

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
    """Return whether a network has any batch normalisation."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def folded_weights(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold batch normalisation into the weights of the plain network.

    Its output is that of the normalised network in eval mode.

    Args:
        network: Plain, or from :func:`normalised_network`; only its order of layers is used.
        state: Weights of this network.

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
