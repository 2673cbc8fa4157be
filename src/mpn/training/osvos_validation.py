"""J of OSVOS on whole frames, during its training."""

from __future__ import annotations

import numpy as np
import torch

from mpn.evaluation.region import region_similarity
from mpn.networks.osvos_vgg import OsvosVgg
from mpn.runtime.preprocess import resize_prob, resize_rgb
from mpn.training.osvos_samples import MaskedImages, network_input
from mpn.types import Float32Array, UInt8Array


def frame_prob(
    network: OsvosVgg, rgb: UInt8Array, *, short_side_px: int, scale: float = 1.0
) -> Float32Array:
    """Segment a whole frame, at the frame's own size.

    Args:
        network: In eval or training mode, which are the same for it.
        rgb: (H, W, 3) uint8.
        short_side_px: Short side of the network's input; sides are multiples of 16.
        scale: Divisor of the input for these weights, see
            :func:`mpn.training.osvos_samples.network_input`.

    Returns:
        (H, W) float32 in 0..1.
    """
    height, width = rgb.shape[:2]
    ratio = short_side_px / min(height, width)
    size_hw = (max(16, round(height * ratio / 16) * 16), max(16, round(width * ratio / 16) * 16))
    planes = resize_rgb(rgb, size_hw).transpose(2, 0, 1).astype(np.float32)
    inputs = network_input([planes], scale).to(next(network.parameters()).device)
    with torch.inference_mode():
        prob = network.logits(inputs).float().sigmoid()
    full: Float32Array = resize_prob(prob.cpu().numpy()[0], (height, width))[0]
    return full


def mean_j(
    network: OsvosVgg,
    images: MaskedImages,
    *,
    short_side_px: int,
    scale: float = 1.0,
    threshold: float = 0.5,
) -> float:
    """Compute the mean J over images.

    Args:
        network: See :func:`frame_prob`.
        images: Images to segment.
        short_side_px: See :func:`frame_prob`.
        scale: See :func:`frame_prob`.
        threshold: A pixel belongs to the object above this probability.

    Returns:
        0..1; NaN without images.
    """
    scores = []
    for index in range(len(images)):
        rgb, truth = images[index]
        prob = frame_prob(network, rgb, short_side_px=short_side_px, scale=scale)
        scores.append(region_similarity(truth, prob > threshold))
    return float(np.mean(scores)) if scores else float("nan")
