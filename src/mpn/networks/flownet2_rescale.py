"""Change of the flow unit inside FlowNetSD, with the same function.

Inside FlowNet 2.0 the public SD predicts 20 times the flow, as a single network a twentieth of it:
400 times less. Predictions enter the next level through linear layers only (the upsampling of the
flow, and the layers that read the concatenation with it). So multiplying every prediction by a
factor and dividing the weights that read it by the same factor gives the same function.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mpn.errors import InputError

_LEVELS = (5, 4, 3, 2)


def sd_weights_with_larger_flow(
    state: Mapping[str, Tensor], factor: float, prefix: str = "flownets_d."
) -> dict[str, Tensor]:
    """Scale the flows of a FlowNetSD by a factor.

    Args:
        state: A state dict with such a network.
        factor: Above 0; ``1 / factor`` is the inverse.
        prefix: Prefix of its keys.

    Returns:
        A new state dict; unchanged tensors are shared with ``state``.

    Raises:
        InputError: If the factor is not above 0.
    """
    if factor <= 0:
        raise InputError(f"flows can be made larger by a factor above 0 only, got {factor}")
    out = dict(state)
    for level in (6, *_LEVELS):
        for kind in ("weight", "bias"):
            key = f"{prefix}predict_flow{level}.{kind}"
            out[key] = out[key] * factor
    for level in _LEVELS:
        # The upsampling is linear, and its bias is a flow too.
        key = f"{prefix}upsampled_flow{level + 1}_to_{level}.bias"
        out[key] = out[key] * factor
        # The last two channels of the concatenation are the flow. Weights are (out, in, ...) in a
        # convolution, (in, out, ...) in a transposed one.
        key = f"{prefix}inter_conv{level}.0.weight"
        out[key] = _divided(out[key], factor, axis=1)
        if level > _LEVELS[-1]:
            key = f"{prefix}deconv{level - 1}.0.weight"
            out[key] = _divided(out[key], factor, axis=0)
    return out


def _divided(weight: Tensor, factor: float, *, axis: int) -> Tensor:
    changed = weight.clone()
    changed.narrow(axis, weight.shape[axis] - 2, 2).div_(factor)
    return changed
