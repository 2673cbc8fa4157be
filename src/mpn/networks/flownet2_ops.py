"""Layers of FlowNet 2.0 that torch lacks, in a form that exports to ONNX.

Semantics are those of the CUDA kernels of NVIDIA/flownet2-pytorch at bce69c8
(``correlation_package``, ``resample2d_package``, ``channelnorm_package``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
