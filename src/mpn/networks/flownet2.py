"""FlowNet 2.0 and its smaller public variants: optical flow of two frames.

Wiring, state-dict keys and constants are those of NVIDIA/flownet2-pytorch at bce69c8, so that its
converted checkpoints load without conversion. Computations in full-resolution pixels
(normalisation, scaling, upsampling, warping, channel norms) are float32 for any dtype of the
layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.errors import InputError
from mpn.networks.flownet2_members import (
    FlowNetC,
    FlowNetFusion,
    FlowNetS,
    FlowNetSD,
    channel_norm,
    warp_border,
)
from mpn.networks.layers import check_width

FlowVariant = Literal[
    "FlowNet2", "FlowNet2CSS", "FlowNet2CS", "FlowNet2C", "FlowNet2S", "FlowNet2SD"
]
FLOW_VARIANTS: tuple[FlowVariant, ...] = get_args(FlowVariant)

SIZE_MULTIPLE = 64
"""Sides must be multiples of this: the encoders halve six times."""
RGB_MAX = 255.0
FLOW_SCALE = 20.0
"""``div_flow`` of the public code: the members predict flow / 20."""


@dataclass(frozen=True)
class FlowNet2Config:
    """Shape of the network; the defaults are the paper's size.

    Attributes:
        variant: ``"FlowNet2"`` is the whole network; the others have the members in their name (C:
            correlation, S: simple, SD: small displacements).
        width: Multiplier of the channels, rounded to multiples of 8; flows and correlation are not
            scaled.
    """

    variant: FlowVariant = "FlowNet2"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.variant not in FLOW_VARIANTS:
            raise InputError(
                f"unknown flow network '{self.variant}': the variants are "
                f"{', '.join(FLOW_VARIANTS)}"
            )
        check_width(self.width)


class FlowNet2(nn.Module):
    """Optical flow from frame 0 to frame 1.

    State-dict keys are the public ones: ``flownetc.``, ``flownets_1.``, ``flownets_2.``,
    ``flownets_d.`` and ``flownetfusion.`` if the variant has them, and no prefix for the single
    networks C, S and SD.

    Args:
        config: Shape of the network.
        small_flow_scale: Factor of SD's output inside FlowNet 2.0. The public weights need 1/20.
            Training from random weights works better with the 20 of the other members, see
            :mod:`mpn.networks.flownet2`.
    """

    def __init__(
        self, config: FlowNet2Config | None = None, *, small_flow_scale: float = 1 / FLOW_SCALE
    ) -> None:
        super().__init__()
        self.config = config = FlowNet2Config() if config is None else config
        self.small_flow_scale = small_flow_scale
        variant, width = config.variant, config.width
        self._alone: Callable[[Tensor], Tensor] | None = None
        self._alone_pyramid: Callable[[Tensor], tuple[Tensor, ...]] | None = None
        if variant == "FlowNet2C":
            self._adopt(FlowNetC(width))
        elif variant == "FlowNet2S":
            self._adopt(FlowNetS(6, width))
        elif variant == "FlowNet2SD":
            self._adopt(FlowNetSD(width))
        else:
            self.flownetc = FlowNetC(width)
            self.flownets_1 = FlowNetS(12, width)
            if variant != "FlowNet2CS":
                self.flownets_2 = FlowNetS(12, width)
            if variant == "FlowNet2":
                self.flownets_d = FlowNetSD(width)
                self.flownetfusion = FlowNetFusion(width)

    def _adopt(self, member: FlowNetC | FlowNetS | FlowNetSD) -> None:
        """Add a member's layers to this module: their public keys have no prefix."""
        for name, layer in member.named_children():
            self.add_module(name, layer)
        self._alone, self._alone_pyramid = member.forward, member.pyramid

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members in training order; ``("",)`` for C, S and SD."""
        return ("",) if self._alone else tuple(name for name, _ in self.named_children())

    @property
    def float32_layers(self) -> tuple[str, ...]:
        """Names of the layers that stay float32 in half precision.

        They are the last of each member, whose output is a flow: half has steps of 0.5 px above 512
        px.
        """
        if self._alone is not None:
            return ("predict_flow2",)
        return tuple(
            f"{name}.predict_flow{0 if name == 'flownetfusion' else 2}"
            for name, _ in self.named_children()
        )

    def forward(self, frame0: Tensor, frame1: Tensor) -> Tensor:
        """Compute the flow in pixels: frame0(x) is like frame1(x + flow).

        Args:
            frame0: (B, 3, H, W) RGB 0..255; H and W multiples of 64.
            frame1: The other frame, likewise.

        Returns:
            (B, 2, H, W) float32, (x, y) in pixels of H x W, x to the right and y down.

        Raises:
            InputError: If the shapes differ or are not (B, 3, 64 m, 64 n).
        """
        _check_frames(frame0, frame1)
        image0, image1 = _normalised(frame0.float(), frame1.float())
        frames = torch.cat((image0, image1), dim=1)
        if self._alone is not None:
            return _upsampled(self._alone(frames).float() * FLOW_SCALE, "bilinear")
        flow_px = _upsampled(_flow(self.flownetc, frames) * FLOW_SCALE, "bilinear")
        stacked = _refinement_input(frames, flow_px)
        flow_px = _upsampled(_flow(self.flownets_1, stacked) * FLOW_SCALE, "bilinear")
        if self.config.variant == "FlowNet2CS":
            return flow_px
        stacked = _refinement_input(frames, flow_px)
        flow_px = _upsampled(_flow(self.flownets_2, stacked) * FLOW_SCALE, "nearest")
        if self.config.variant == "FlowNet2CSS":
            return flow_px
        # Divide by 20, unlike in the single SD: the Caffe graph of the weights' training does so
        # (NVIDIA/flownet2-pytorch#37).
        small_px = _upsampled(_flow(self.flownets_d, frames) * self.small_flow_scale, "nearest")
        return _flow(self.flownetfusion, _fusion_input(frames, small_px, flow_px))

    def pyramid(self, frame0: Tensor, frame1: Tensor, member: str) -> tuple[Tensor, ...]:
        """Compute the flows of one member at every scale, to train it.

        The members before it run without gradients: they are trained first (E. Ilg et al., section
        4).

        Args:
            frame0: See :meth:`forward`.
            frame1: See :meth:`forward`.
            member: One of :attr:`members`.

        Returns:
            From coarse to fine (B, 2, h, w) float32 each, in pixels of the frames.

        Raises:
            InputError: If the frames do not fit, or the network has no such member.
        """
        _check_frames(frame0, frame1)
        if member not in self.members:
            raise InputError(f"{self.config.variant} has no member '{member}': {self.members}")
        image0, image1 = _normalised(frame0.float(), frame1.float())
        frames = torch.cat((image0, image1), dim=1)
        if self._alone_pyramid is not None:
            return _in_pixels(self._alone_pyramid(frames), FLOW_SCALE)
        if member == "flownetc":
            return _in_pixels(self.flownetc.pyramid(frames), FLOW_SCALE)
        if member == "flownets_d":
            return _in_pixels(self.flownets_d.pyramid(frames), self.small_flow_scale)
        with torch.no_grad():
            flow_px = _upsampled(_flow(self.flownetc, frames) * FLOW_SCALE, "bilinear")
            stacked = _refinement_input(frames, flow_px)
        if member == "flownets_1":
            return _in_pixels(self.flownets_1.pyramid(stacked), FLOW_SCALE)
        with torch.no_grad():
            flow_px = _upsampled(_flow(self.flownets_1, stacked) * FLOW_SCALE, "bilinear")
            stacked = _refinement_input(frames, flow_px)
        if member == "flownets_2":
            return _in_pixels(self.flownets_2.pyramid(stacked), FLOW_SCALE)
        with torch.no_grad():
            flow_px = _upsampled(_flow(self.flownets_2, stacked) * FLOW_SCALE, "nearest")
            small_px = _upsampled(_flow(self.flownets_d, frames) * self.small_flow_scale, "nearest")
            stacked = _fusion_input(frames, small_px, flow_px)
        return _in_pixels(self.flownetfusion.pyramid(stacked), 1.0)


def _check_frames(frame0: Tensor, frame1: Tensor) -> None:
    shape = tuple(frame0.shape)
    if shape != tuple(frame1.shape) or len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"the two frames must be (B, 3, H, W) of one shape, got {shape} and "
            f"{tuple(frame1.shape)}"
        )
    height, width = shape[2:]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or not height or not width:
        valid = tuple(max(1, -(-size // SIZE_MULTIPLE)) * SIZE_MULTIPLE for size in shape[2:])
        raise InputError(
            f"FlowNet 2.0 takes heights and widths that are multiples of {SIZE_MULTIPLE}, got "
            f"{height}x{width}: resize the frames to {valid[0]}x{valid[1]} and scale the flow "
            "back"
        )


def _normalised(frame0: Tensor, frame1: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean colour of the pair from both frames, and divide by 255."""
    mean = torch.stack((frame0, frame1), dim=2).mean(dim=(2, 3, 4))[:, :, None, None]
    return (frame0 - mean) / RGB_MAX, (frame1 - mean) / RGB_MAX


def _flow(member: nn.Module, stacked: Tensor) -> Tensor:
    flow: Tensor = member(stacked)
    return flow.float()


def _in_pixels(flows: tuple[Tensor, ...], scale: float) -> tuple[Tensor, ...]:
    return tuple(flow.float() * scale for flow in flows)


def _upsampled(quarter_flow: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    corners = False if mode == "bilinear" else None
    return F.interpolate(quarter_flow, scale_factor=4.0, mode=mode, align_corners=corners)


def _refinement_input(frames: Tensor, flow_px: Tensor) -> Tensor:
    """Stack frames, warped frame 1, flow / 20 and error norm: (B, 12, H, W)."""
    warped = warp_border(frames[:, 3:], flow_px)
    error = channel_norm(frames[:, :3] - warped)
    return torch.cat((frames, warped, flow_px / FLOW_SCALE, error), dim=1)


def _fusion_input(frames: Tensor, small_px: Tensor, flow_px: Tensor) -> Tensor:
    """Stack frame 0, both flows, their norms and error norms: (B, 11, H, W)."""
    image0, image1 = frames[:, :3], frames[:, 3:]
    parts = (
        image0,
        small_px,
        flow_px,
        channel_norm(small_px),
        channel_norm(flow_px),
        channel_norm(image0 - warp_border(image1, small_px)),
        channel_norm(image0 - warp_border(image1, flow_px)),
    )
    return torch.cat(parts, dim=1)


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
