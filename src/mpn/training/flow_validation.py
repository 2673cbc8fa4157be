"""Scores of a flow network in training: endpoint error, and J of warping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from mpn.engines.spec import flow_spec
from mpn.evaluation.sequence import SequenceEvaluator
from mpn.networks.flownet2 import SIZE_MULTIPLE, FlowNet2
from mpn.runtime.flow import EngineFlow, FlowEstimator, flow_px
from mpn.runtime.ops.cpu import warp_bilinear
from mpn.runtime.preprocess import one_hot
from mpn.training.datasets import DavisSequence
from mpn.training.flow_pairs import FlowPair
from mpn.training.flow_synthetic import FlowSample
from mpn.training.torch_engine import TorchEngine
from mpn.types import Float32Array


class TorchFlowEngine(TorchEngine):
    """Flow network in training.

    Args:
        network: Switched to eval mode.
        frame_size_hw: Size of the frames; the network's is the next multiple of 64.
    """

    def __init__(self, network: FlowNet2, frame_size_hw: tuple[int, int]) -> None:
        super().__init__(network, flow_spec(frame_size_hw))

    def forward(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """Run the network; see :class:`mpn.training.torch_engine.TorchEngine`."""
        flow_px: Tensor = network(*inputs)
        return flow_px


def mean_epe_px(
    network: FlowNet2, pairs: Sequence[FlowPair], synthetic: Sequence[FlowSample]
) -> float:
    """Compute the mean endpoint error over pairs, in pixels of each pair.

    Each pair has the same weight.

    Args:
        network: The flow network.
        pairs: Pairs with true flow.
        synthetic: Synthetic pairs.

    Returns:
        Pixels; NaN without pairs.
    """
    errors = []
    for pair in pairs:
        estimated = _estimator(network, pair.flow_px().shape[1:])
        errors.append(_epe_px(flow_px(estimated, *pair.frames()), pair.flow_px()))
    for sample in synthetic:
        estimated = _estimator(network, sample.flow_px.shape[1:])
        frames = np.rint(sample.frames).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        first, second = (np.ascontiguousarray(frame) for frame in frames)
        errors.append(_epe_px(flow_px(estimated, first, second), sample.flow_px))
    return float(np.mean(errors)) if errors else float("nan")


def warp_mean_j(
    estimator: FlowEstimator, sequences: Sequence[DavisSequence], max_frames: int
) -> float:
    """Compute the mean J of first masks warped from frame to frame.

    The mean is over all objects of the sequences.

    Args:
        estimator: Flow estimator.
        sequences: Sequences to segment.
        max_frames: Frames per sequence; the first and the last are not scored.

    Returns:
        0..1; NaN without sequences or frames to score.
    """
    scores: list[float] = []
    for sequence in sequences:
        frames = min(len(sequence), max_frames)
        if frames < 3:
            continue
        evaluator = SequenceEvaluator(sequence.name)
        first = sequence.labels(0)
        ids = [int(i) for i in np.unique(first) if i]
        prob = one_hot(first, ids)
        evaluator.feed(first, first)
        previous = estimator.prepare(sequence.rgb(0))
        for index in range(1, frames):
            current = estimator.prepare(sequence.rgb(index))
            prob = warp_bilinear(prob, estimator.between(current, previous))
            background = np.prod(1 - prob, axis=0, keepdims=True)
            best = np.concatenate([background, prob]).argmax(axis=0)
            evaluator.feed(sequence.labels(index), np.array([0, *ids], np.uint8)[best])
            previous = current
        scores.extend(score.region.mean for score in evaluator.conclude().objects)
    return float(np.mean(scores)) if scores else float("nan")


def validation_estimator(network: FlowNet2, size_hw: tuple[int, int]) -> FlowEstimator:
    """Build the runtime's flow estimator around a network.

    The network takes frames of ``size_hw``.
    """
    return EngineFlow(TorchFlowEngine(network, size_hw))


def _estimator(network: FlowNet2, size_hw: tuple[int, ...]) -> FlowEstimator:
    height, width = size_hw
    return validation_estimator(network, (max(height, SIZE_MULTIPLE), max(width, SIZE_MULTIPLE)))


def _epe_px(estimated_px: Float32Array, true_px: Float32Array) -> float:
    error = np.hypot(*(estimated_px - true_px))
    return float(np.nanmean(error))
