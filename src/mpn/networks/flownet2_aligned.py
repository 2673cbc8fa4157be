"""FlowNet 2.0 in a form that is faster on CPUs.

The outputs are the same up to rounding.

onnxruntime runs a convolution in its blocked layout only if the input channels are a multiple of 4,
which the concatenations with a flow or with the correlation are not: such a convolution takes twice
as long. So does a transposed convolution (onnxruntime 1.32).
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.flownet2 import FlowNet2
from mpn.networks.flownet2_members import CORRELATION_CHANNELS

CHANNEL_MULTIPLE = 4


class _Interleave(nn.Module):
    """Arrange (B, 4 C, H + 1, W + 1) as (B, C, 2 H, 2 W)."""

    def forward(self, phases: Tensor) -> Tensor:
        return F.pixel_shuffle(phases, 2)[..., 1:-1, 1:-1]


def align_channels(network: FlowNet2) -> None:
    """Replace the slow convolutions of a network in place.

    Concatenations get channels of zeros, and the weights of their readers as many zeros. A
    transposed convolution of 4 x 4 and stride 2 becomes a convolution of 2 x 2 with four times the
    channels, one for each pixel of a 2 x 2 block. Names of layers stay; shapes of weights do not.

    Args:
        network: Any variant, of the original form.
    """
    for name in network.members:
        member = network.get_submodule(name)
        layers = dict(member.named_modules())
        if "conv_redir" in layers:
            redirected = cast(nn.Conv2d, layers["conv_redir.0"])
            kept = redirected.out_channels
            added = -(kept + CORRELATION_CHANNELS) % CHANNEL_MULTIPLE
            _add_outputs(redirected, added)
            _add_inputs(cast(nn.Conv2d, layers["conv3_1.0"]), added, at=kept)
        for key, layer in layers.items():
            if not key.startswith("upsampled_flow"):
                continue
            level = int(key[-1])
            upsampling = cast(nn.ConvTranspose2d, layer)
            added = -upsampling.out_channels % CHANNEL_MULTIPLE
            _add_outputs(upsampling, added)
            reader = layers.get(f"inter_conv{level}.0", layers[f"predict_flow{level}"])
            for other in (reader, layers.get(f"deconv{level - 1}.0")):
                if other is not None:
                    _add_inputs(cast(nn.Conv2d | nn.ConvTranspose2d, other), added)
        for key, layer in layers.items():
            if key.startswith("deconv") and isinstance(layer, nn.Sequential):
                layer[0] = _phases(cast(nn.ConvTranspose2d, layer[0]))
                layer.append(_Interleave())


def _add_outputs(layer: nn.Conv2d | nn.ConvTranspose2d, added: int) -> None:
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    layer.out_channels += added
    layer.weight = _with_zeros(layer.weight, axis, layer.weight.shape[axis], added)
    if layer.bias is not None:
        layer.bias = _with_zeros(layer.bias, 0, len(layer.bias), added)


def _add_inputs(
    layer: nn.Conv2d | nn.ConvTranspose2d, added: int, *, at: int | None = None
) -> None:
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    place = layer.in_channels if at is None else at
    layer.in_channels += added
    layer.weight = _with_zeros(layer.weight, axis, place, added)


def _with_zeros(values: Tensor, axis: int, at: int, added: int) -> nn.Parameter:
    shape = list(values.shape)
    shape[axis] += added
    padded = values.new_zeros(shape)
    after = values.shape[axis] - at
    padded.narrow(axis, 0, at).copy_(values.narrow(axis, 0, at))
    padded.narrow(axis, at + added, after).copy_(values.narrow(axis, at, after))
    return nn.Parameter(padded, requires_grad=False)


def _phases(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """Return the convolution whose outputs are the pixels of 2 x 2 blocks.

    Output pixel 2 i + a of the full transposed convolution is the sum of inputs i - 1 and i times
    taps a + 2 and a.
    """
    inputs, outputs = layer.weight.shape[:2]
    taps = layer.weight.detach().reshape(inputs, outputs, 2, 2, 2, 2).flip((2, 4))
    weight = taps.permute(1, 3, 5, 0, 2, 4).reshape(4 * outputs, inputs, 2, 2)
    result = nn.Conv2d(inputs, 4 * outputs, 2, padding=1, bias=layer.bias is not None)
    result.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if layer.bias is not None:
        result.bias = nn.Parameter(layer.bias.detach().repeat_interleave(4), requires_grad=False)
    return result.eval()
