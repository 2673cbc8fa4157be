from __future__ import annotations

import math

import numpy as np
import torch

from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.training.osvos.samples import MergedFrames
from mpn.training.osvos.trainer import frame_prob, mean_j
from mpn.training.propagation.clips import ClipSources

WIDTH = OsvosConfig(width=0.0625)


def _constant(logit: float) -> OsvosVgg:
    network = OsvosVgg(WIDTH)
    torch.nn.init.zeros_(network.fuse.weight)
    torch.nn.init.constant_(network.fuse.bias, logit)
    return network


def test_frame_prob_has_size_of_frame_and_weights(
    material: ClipSources,
) -> None:
    rgb = material.sequences[0].rgb(0)
    prob = frame_prob(_constant(math.log(3)), rgb, short_side_px=48)
    assert prob.shape == rgb.shape[:2]
    np.testing.assert_allclose(prob, 0.75, atol=1e-6)


def test_j_is_the_mean_over_the_images(material: ClipSources) -> None:
    frames = MergedFrames(material.sequences[:1], every=3)
    shares = [frames[k][1].mean() for k in range(len(frames))]
    everything = mean_j(_constant(5.0), frames, short_side_px=48)
    assert everything == np.mean(shares)
    assert mean_j(_constant(5.0), frames, short_side_px=48, threshold=0.999) == 0
    assert math.isnan(mean_j(_constant(5.0), MergedFrames([]), short_side_px=48))
