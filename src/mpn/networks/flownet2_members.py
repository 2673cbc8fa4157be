"""Member networks of FlowNet 2.0: FlowNetC, FlowNetS, FlowNetSD, FlowNetFusion.

Layers and state-dict keys are those of NVIDIA/flownet2-pytorch at bce69c8 without batch
normalisation, as in the converted public weights. Every layer runs in the dtype of its weights
(see ``run_layer``), so that single layers can stay float32 in half precision.

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
"""Number of displacements: 21 vertical times 21 horizontal, 441."""


def correlation(features0: Tensor, features1: Tensor) -> Tensor:
    """Compute the mean product of feature vectors at 441 displacements.

    ``out[:, 21 (dj + 10) + (di + 10), y, x] = mean_c features0[:, c, y, x] * features1[:, c, y + 2
    dj, x + 2 di]`` for dj, di in -10..10, zero outside the frame.

    One batched matrix product per vertical displacement gives all pairs of columns of two rows; its
    diagonal band has the needed ones. This takes 135 ONNX nodes and 0.4 s. One slice and mean per
    displacement takes 1346 nodes and 6 s (FP32, 64 x 112, onnxruntime, one thread).

    Args:
        features0: (B, C, H, W) of frame 0.
        features1: (B, C, H, W) of frame 1, of the same dtype, which is that of the products.

    Returns:
        (B, 441, H, W); the vertical displacement is the slow index.
    """
    batch, channels, height, width = features0.shape
    limit = MAX_DISPLACEMENT_PX
    padded_width = width + 2 * limit
    # Scale an operand by 1/C: in half precision the sum of C products could overflow.
    rows0 = (features0 * (1.0 / channels)).permute(0, 2, 3, 1)
    rows1 = F.pad(features1, (limit, limit, limit, limit)).permute(0, 2, 1, 3)
    bands = []
    for shift in range(0, 2 * limit + 1, DISPLACEMENT_STEP_PX):
        pairs = rows0 @ rows1[:, shift : shift + height]  # (B, H, W, W + 40)
        # With rows reshaped to one more element, column d is the diagonal x' = x + d.
        flat = F.pad(pairs.reshape(batch, height, width * padded_width), (0, width))
        diagonals = flat.reshape(batch, height, width, padded_width + 1)
        bands.append(diagonals[..., : 2 * limit + 1 : DISPLACEMENT_STEP_PX])
    return torch.cat(bands, dim=-1).permute(0, 3, 1, 2)


def warp_border(image: Tensor, flow_px: Tensor) -> Tensor:
    """Sample an image bilinearly at (x + u, y + v), with repeated borders.

    ``align_corners=True`` with this normalisation has pixel centres at integers. It differs from
    the public Resample2d kernel by 3.6e-5 on images of range 1, both inside and outside.

    Args:
        image: (B, C, H, W) float32.
        flow_px: (B, 2, H, W) float32, (x, y) in pixels. Half precision would move samples by up to
            0.2 px at a width of 896.

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
    """Compute the Euclidean norm over channels: (B, C, H, W) -> (B, 1, H, W).

    There is no epsilon. Float32 only: a flow of 256 px squared overflows half precision.
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
    """Common part of C, S and SD: encoder from conv4 on, decoder to 1/4."""

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
        """Compute flows / 20 from 1/64 to 1/4."""
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
            # Only the prediction reads the inter_conv; the next deconv reads the concatenation.
            source = features
            if self._inter_conv:
                source = run_layer(self.get_submodule(f"inter_conv{level}"), features)
            flow = run_layer(self.get_submodule(f"predict_flow{level}"), source)
            flows.append(flow)
        return tuple(flows)


class FlowNetC(_Member):
    """FlowNet with shared layers for both frames, and their correlation.

    Args:
        width: Multiplier of the channels; the correlation always has 441.
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
        """Map normalised frames (B, 6, H, W) to flow / 20, (B, 2, H/4, W/4)."""
        return self.pyramid(frames)[-1]

    def pyramid(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Compute the flows / 20 of every supervised level, from 1/64 to 1/4."""
        features2 = run_layer(self.conv2, run_layer(self.conv1, frames[:, :3]))
        features3 = run_layer(self.conv3, features2)
        other3 = run_layer(self.conv3, run_layer(self.conv2, run_layer(self.conv1, frames[:, 3:])))
        matches = F.leaky_relu(correlation(features3, other3), _SLOPE)
        redirected = run_layer(self.conv_redir, features3)
        merged = run_layer(self.conv3_1, torch.cat((redirected, matches), dim=1))
        return self._decode(features2, merged)


class FlowNetS(_Member):
    """FlowNet of frames stacked along the channels.

    Inside FlowNet 2.0 its input also has warped frame, flow and error.

    Args:
        inputs: Input channels: 12 inside FlowNet 2.0, 6 as a single network.
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
        """Map (B, 6 or 12, H, W) to flow / 20, (B, 2, H/4, W/4)."""
        return self.pyramid(stacked)[-1]

    def pyramid(self, stacked: Tensor) -> tuple[Tensor, ...]:
        """Compute the flows of every level; see :meth:`FlowNetC.pyramid`."""
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
        """Map (B, 6, H, W) to flow / 20, (B, 2, H/4, W/4)."""
        return self.pyramid(frames)[-1]

    def pyramid(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Compute the flows of every level; see :meth:`FlowNetC.pyramid`."""
        features1 = run_layer(self.conv1_1, run_layer(self.conv1, run_layer(self.conv0, frames)))
        features2 = run_layer(self.conv2_1, run_layer(self.conv2, features1))
        return self._decode(features2, run_layer(self.conv3_1, run_layer(self.conv3, features2)))


class FlowNetFusion(nn.Module):
    """Fusion of the flows for large and small displacements, at full resolution.

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
        """Map (B, 11, H, W) to a flow in pixels, (B, 2, H, W)."""
        return self.pyramid(stacked)[-1]

    def pyramid(self, stacked: Tensor) -> tuple[Tensor, ...]:
        """Compute the supervised flows in pixels, at 1/4, 1/2 and full size."""
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
