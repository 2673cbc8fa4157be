"""Weights for inputs of another size: the same function, exactly.

A network of random weights learns best where inputs are of size 1; the published OSVOS takes
colours of 0..255 minus their mean. The trunk is positively homogeneous (convolutions, ReLU,
maximum, bilinear resize), so dividing its input by a factor is the same as multiplying its biases
by it and dividing what reads the side branches' features.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mpn.errors import InputError
from mpn.networks.osvos_vgg import OsvosVgg


def weights_for_larger_input(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Weights of an :class:`OsvosVgg` that answer ``x`` as ``state`` answers ``x / factor``.

    Args:
        state: A state dict.
        factor: Above 0; ``1 / factor`` is the way back.

    Returns:
        A new state dict; what does not change is shared with ``state``.

    Raises:
        InputError: If the factor is not above 0.
    """
    if factor <= 0:
        raise InputError(f"inputs can be made larger by a factor above 0 only, got {factor}")
    out = {}
    for key, value in state.items():
        part, kind = key.split(".")[0], key.rsplit(".", 1)[-1]
        if part in ("stages", "side_prep") and kind == "bias":
            value = value * factor
        elif part in ("fuse", "score_dsn") and kind == "weight":
            value = value / factor
        out[key] = value
    return out


def init_weights(network: OsvosVgg) -> None:
    """Random weights that keep the size of the features from layer to layer, zero biases.

    K. He et al., "Delving Deep into Rectifiers", ICCV 2015, for layers followed by a ReLU; half
    that variance for the linear ones. The fixed upsampling is left alone. Draws from torch's
    global generator.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        linear = name.split(".")[0] in ("side_prep", "score_dsn", "fuse")
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if linear else "relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
