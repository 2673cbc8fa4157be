"""Rescaling of OSVOS weights to inputs of another size, with the same outputs.

A network of random weights trains best with inputs of size 1; the published OSVOS takes colours of
0..255 minus their mean. The trunk is positively homogeneous (convolutions, ReLU, maximum, bilinear
resize). So dividing its input by a factor is the same as multiplying its biases by it and dividing
the weights of the layers after the side branches.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mpn.errors import InputError
from mpn.networks.osvos_vgg import OsvosVgg


def weights_for_larger_input(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Rescale weights to an input that is larger by a factor.

    The new weights give for ``x`` the output of ``state`` for ``x / factor``.

    Args:
        state: A state dict.
        factor: Above 0; ``1 / factor`` is the inverse.

    Returns:
        A new state dict; unchanged tensors are shared with ``state``.

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
    """Draw random weights that keep the size of features over the layers.

    Biases are zero. K. He et al., "Delving Deep into Rectifiers", ICCV 2015, for layers followed by
    a ReLU; half that variance for the linear ones. The fixed upsampling does not change. Uses
    torch's global generator.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        linear = name.split(".")[0] in ("side_prep", "score_dsn", "fuse")
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if linear else "relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
