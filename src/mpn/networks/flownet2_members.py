"""The member networks of FlowNet 2.0: FlowNetC, FlowNetS, FlowNetSD and FlowNetFusion.

Layers and state-dict keys follow NVIDIA/flownet2-pytorch at bce69c8 without batch normalisation, as
the converted public weights have it. Every layer runs in the dtype of its own weights (see
``run_layer``), so that single layers can stay in float32 when the rest is made half.

Source of the architecture: E. Ilg et al., "FlowNet 2.0: Evolution of Optical Flow Estimation with
Deep Networks", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.layers import run_layer, scaled_channels

MAX_DISPLACEMENT_PX = 20
DISPLACEMENT_STEP_PX = 2
DISPLACEMENTS = 2 * MAX_DISPLACEMENT_PX // DISPLACEMENT_STEP_PX + 1
CORRELATION_CHANNELS = DISPLACEMENTS**2
"""21 vertical times 21 horizontal displacements: 441."""


def correlation(features0: Tensor, features1: Tensor) -> Tensor:
    """Mean product of each feature vector with 441 displaced ones of the other frame.

    ``out[:, 21 (dj + 10) + (di + 10), y, x] = mean_c features0[:, c, y, x] *
    features1[:, c, y + 2 dj, x + 2 di]`` for dj, di in -10..10, zero outside the frame.

    One batched matrix product a vertical displacement gives all pairs of columns of two rows; its
    diagonal band holds the wanted ones. That is 135 ONNX nodes and 0.4 s where one slice and mean
    a displacement is 1346 nodes and 6 s (FP32, 64 x 112, onnxruntime, one thread).

    Args:
        features0: (B, C, H, W) of frame 0.
        features1: (B, C, H, W) of frame 1, of the same dtype, which the products keep.

    Returns:
        (B, 441, H, W), the vertical displacement being the slow index.
    """
    batch, channels, height, width = features0.shape
    reach = MAX_DISPLACEMENT_PX
    padded_width = width + 2 * reach
    # 1/C goes into an operand: in half precision the sum of C products could overflow before it.
    rows0 = (features0 * (1.0 / channels)).permute(0, 2, 3, 1)
    rows1 = F.pad(features1, (reach, reach, reach, reach)).permute(0, 2, 1, 3)
    bands = []
    for shift in range(0, 2 * reach + 1, DISPLACEMENT_STEP_PX):
        pairs = rows0 @ rows1[:, shift : shift + height]  # (B, H, W, W + 40)
        # Read with rows one longer than they are, column d holds the diagonal x' = x + d.
        flat = F.pad(pairs.reshape(batch, height, width * padded_width), (0, width))
        diagonals = flat.reshape(batch, height, width, padded_width + 1)
        bands.append(diagonals[..., : 2 * reach + 1 : DISPLACEMENT_STEP_PX])
    return torch.cat(bands, dim=-1).permute(0, 3, 1, 2)


def warp_border(image: Tensor, flow_px: Tensor) -> Tensor:
    """``image`` sampled bilinearly at (x + u, y + v), the border repeated outside.

    ``align_corners=True`` with this normalisation puts pixel centres at integers: 3.6e-5 from the
    public Resample2d kernel on images of range 1, inside and outside alike.

    Args:
        image: (B, C, H, W) float32.
        flow_px: (B, 2, H, W) float32, (x, y) in pixels. Half precision would move samples by up
            to 0.2 px at a width of 896.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = image.shape[2:]
    x = torch.arange(width, dtype=flow_px.dtype, device=flow_px.device)
    y = torch.arange(height, dtype=flow_px.dtype, device=flow_px.device)[:, None]
    grid = torch.stack(
        (
            (flow_px[:, 0] + x) * 2.0 / (width - 1) - 1.0,
            (flow_px[:, 1] + y) * 2.0 / (height - 1) - 1.0,
        ),
        dim=-1,
    )
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def channel_norm(values: Tensor) -> Tensor:
    """Euclidean length over the channels, no epsilon: (B, C, H, W) -> (B, 1, H, W).

    Float32 only: a flow of 256 px squared overflows half precision.
    """
    norm: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)  # gradient 0 at 0
    return norm


_SLOPE = 0.1
_SKIP_CHANNELS = {5: 512, 4: 512, 3: 256, 2: 128}
_DECONV_CHANNELS = {5: 512, 4: 256, 3: 128, 2: 64}


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2), nn.LeakyReLU(_SLOPE)
    )


def _linear_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1))


def _deconv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1), nn.LeakyReLU(_SLOPE))


def _predict_flow(inputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, 2, 3, padding=1)


def _upsample_flow(*, bias: bool = True) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(2, 2, 4, 2, padding=1, bias=bias)


class _Member(nn.Module):
    """What C, S and SD share: the encoder from conv4 on and the decoder down to 1/4."""

    def __init__(self, width: float, *, inter_conv: bool = False, flow_bias: bool = True) -> None:
        super().__init__()
        self._inter_conv = inter_conv

        def ch(channels: int) -> int:
            return scaled_channels(channels, width)

        self.conv4 = _conv(ch(256), ch(512), stride=2)
        self.conv4_1 = _conv(ch(512), ch(512))
        self.conv5 = _conv(ch(512), ch(512), stride=2)
        self.conv5_1 = _conv(ch(512), ch(512))
        self.conv6 = _conv(ch(512), ch(1024), stride=2)
        self.conv6_1 = _conv(ch(1024), ch(1024))
        self.predict_flow6 = _predict_flow(ch(1024))
        below = ch(1024)
        for level, skip in _SKIP_CHANNELS.items():
            up = ch(_DECONV_CHANNELS[level])
            self.add_module(f"deconv{level}", _deconv(below, up))
            below = ch(skip) + up + 2
            self.add_module(f"upsampled_flow{level + 1}_to_{level}", _upsample_flow(bias=flow_bias))
            if inter_conv:
                self.add_module(f"inter_conv{level}", _linear_conv(below, up))
            self.add_module(f"predict_flow{level}", _predict_flow(up if inter_conv else below))

    def _decode(self, features2: Tensor, features3: Tensor) -> tuple[Tensor, ...]:
        """Flows / 20 from 1/64 to 1/4."""
        features4 = run_layer(self.conv4_1, run_layer(self.conv4, features3))
        features5 = run_layer(self.conv5_1, run_layer(self.conv5, features4))
        features6 = run_layer(self.conv6_1, run_layer(self.conv6, features5))
        skips: Mapping[int, Tensor] = {5: features5, 4: features4, 3: features3, 2: features2}
        features, flow = features6, run_layer(self.predict_flow6, features6)
        flows = [flow]
        for level, skip in skips.items():
            up = run_layer(self.get_submodule(f"upsampled_flow{level + 1}_to_{level}"), flow)
            deconv = run_layer(self.get_submodule(f"deconv{level}"), features)
            features = torch.cat((skip, deconv, up), dim=1)
            # The next deconv reads the concatenation itself, only the prediction the inter_conv.
            seen = features
            if self._inter_conv:
                seen = run_layer(self.get_submodule(f"inter_conv{level}"), features)
            flow = run_layer(self.get_submodule(f"predict_flow{level}"), seen)
            flows.append(flow)
        return tuple(flows)


class FlowNetC(_Member):
    """Two frames side by side through the same layers, then correlated.

    Args:
        width: Multiplier of the channels; the correlation keeps its 441.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(width)

        def ch(channels: int) -> int:
            return scaled_channels(channels, width)

        self.conv1 = _conv(3, ch(64), 7, 2)
        self.conv2 = _conv(ch(64), ch(128), 5, 2)
        self.conv3 = _conv(ch(128), ch(256), 5, 2)
        self.conv_redir = _conv(ch(256), ch(32), 1)
        self.conv3_1 = _conv(ch(32) + CORRELATION_CHANNELS, ch(256))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 6, H, W) normalised frames 0 and 1 -> flow / 20, (B, 2, H/4, W/4)."""
        return self.pyramid(frames)[-1]

    def pyramid(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The flows / 20 of every level that training supervises, from 1/64 to 1/4."""
        features2 = run_layer(self.conv2, run_layer(self.conv1, frames[:, :3]))
        features3 = run_layer(self.conv3, features2)
        other3 = run_layer(self.conv3, run_layer(self.conv2, run_layer(self.conv1, frames[:, 3:])))
        matches = F.leaky_relu(correlation(features3, other3), _SLOPE)
        redirected = run_layer(self.conv_redir, features3)
        merged = run_layer(self.conv3_1, torch.cat((redirected, matches), dim=1))
        return self._decode(features2, merged)


class FlowNetS(_Member):
    """Frames stacked along the channels; inside FlowNet 2.0 with warp, flow and error as well.

    Args:
        inputs: Input channels: 12 inside FlowNet 2.0, 6 alone.
        width: Multiplier of the channels.
    """

    def __init__(self, inputs: int, width: float = 1.0) -> None:
        super().__init__(width, flow_bias=False)

        def ch(channels: int) -> int:
            return scaled_channels(channels, width)

        self.conv1 = _conv(inputs, ch(64), 7, 2)
        self.conv2 = _conv(ch(64), ch(128), 5, 2)
        self.conv3 = _conv(ch(128), ch(256), 5, 2)
        self.conv3_1 = _conv(ch(256), ch(256))

    def forward(self, stacked: Tensor) -> Tensor:
        """(B, 6 or 12, H, W) -> flow / 20, (B, 2, H/4, W/4)."""
        return self.pyramid(stacked)[-1]

    def pyramid(self, stacked: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`FlowNetC.pyramid`."""
        features2 = run_layer(self.conv2, run_layer(self.conv1, stacked))
        return self._decode(features2, run_layer(self.conv3_1, run_layer(self.conv3, features2)))


class FlowNetSD(_Member):
    """FlowNetS with small kernels, for small displacements.

    Args:
        width: Multiplier of the channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(width, inter_conv=True)

        def ch(channels: int) -> int:
            return scaled_channels(channels, width)

        self.conv0 = _conv(6, ch(64))
        self.conv1 = _conv(ch(64), ch(64), stride=2)
        self.conv1_1 = _conv(ch(64), ch(128))
        self.conv2 = _conv(ch(128), ch(128), stride=2)
        self.conv2_1 = _conv(ch(128), ch(128))
        self.conv3 = _conv(ch(128), ch(256), stride=2)
        self.conv3_1 = _conv(ch(256), ch(256))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 6, H, W) -> flow / 20, (B, 2, H/4, W/4)."""
        return self.pyramid(frames)[-1]

    def pyramid(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`FlowNetC.pyramid`."""
        features1 = run_layer(self.conv1_1, run_layer(self.conv1, run_layer(self.conv0, frames)))
        features2 = run_layer(self.conv2_1, run_layer(self.conv2, features1))
        return self._decode(features2, run_layer(self.conv3_1, run_layer(self.conv3, features2)))


class FlowNetFusion(nn.Module):
    """Chooses between the flow for large and the one for small displacements, at full resolution.

    Args:
        width: Multiplier of the channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()

        def ch(channels: int) -> int:
            return scaled_channels(channels, width)

        self.conv0 = _conv(11, ch(64))
        self.conv1 = _conv(ch(64), ch(64), stride=2)
        self.conv1_1 = _conv(ch(64), ch(128))
        self.conv2 = _conv(ch(128), ch(128), stride=2)
        self.conv2_1 = _conv(ch(128), ch(128))
        self.predict_flow2 = _predict_flow(ch(128))
        self.deconv1 = _deconv(ch(128), ch(32))
        self.upsampled_flow2_to_1 = _upsample_flow()
        merged1 = ch(128) + ch(32) + 2
        self.inter_conv1 = _linear_conv(merged1, ch(32))
        self.predict_flow1 = _predict_flow(ch(32))
        self.deconv0 = _deconv(merged1, ch(16))
        self.upsampled_flow1_to_0 = _upsample_flow()
        self.inter_conv0 = _linear_conv(ch(64) + ch(16) + 2, ch(16))
        self.predict_flow0 = _predict_flow(ch(16))

    def forward(self, stacked: Tensor) -> Tensor:
        """(B, 11, H, W) -> flow in pixels, (B, 2, H, W)."""
        return self.pyramid(stacked)[-1]

    def pyramid(self, stacked: Tensor) -> tuple[Tensor, ...]:
        """The flows in pixels that training supervises, at 1/4, 1/2 and full size."""
        features0 = run_layer(self.conv0, stacked)
        features1 = run_layer(self.conv1_1, run_layer(self.conv1, features0))
        features2 = run_layer(self.conv2_1, run_layer(self.conv2, features1))
        flow2 = run_layer(self.predict_flow2, features2)
        up1 = run_layer(self.upsampled_flow2_to_1, flow2)
        merged1 = torch.cat((features1, run_layer(self.deconv1, features2), up1), dim=1)
        flow1 = run_layer(self.predict_flow1, run_layer(self.inter_conv1, merged1))
        up0 = run_layer(self.upsampled_flow1_to_0, flow1)
        merged0 = torch.cat((features0, run_layer(self.deconv0, merged1), up0), dim=1)
        flow0 = run_layer(self.predict_flow0, run_layer(self.inter_conv0, merged0))
        return flow2, flow1, flow0
