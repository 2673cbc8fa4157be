"""Numbered training samples of the flow network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpn.errors import TrainingError
from mpn.training.datasets import StillPair
from mpn.training.flow_crop import crop_pair, recoloured
from mpn.training.flow_options import FlowTrainingOptions
from mpn.training.flow_pairs import FlowPair
from mpn.training.flow_synthetic import FlowSample, SyntheticPairs


class FlowSamples:
    """Synthetic pairs and true crops, each a pure function of (step, index).

    Args:
        stills: Images for synthetic pairs; may be empty if there are true pairs.
        pairs: Pairs with true flow; may be empty if there are images.
        options: See :class:`FlowTrainingOptions`.

    Raises:
        TrainingError: If there is neither.
    """

    def __init__(
        self, stills: Sequence[StillPair], pairs: Sequence[FlowPair], options: FlowTrainingOptions
    ) -> None:
        if not stills and not pairs:
            raise TrainingError(
                "flow is trained on still images with synthetic motion (--stills), on frames with "
                "true flow (--flow-pairs), or on both: give at least one folder"
            )
        self._pairs, self._options = pairs, options
        self._synthetic = (
            SyntheticPairs(stills, options.size_hw, options.synthetic, options.seed)
            if stills
            else None
        )

    def sample(self, step: int, index: int) -> FlowSample:
        """Make sample ``index`` of the batch of ``step``."""
        options = self._options
        rng = np.random.default_rng([options.seed, step, index, 1])
        if self._synthetic is None or (self._pairs and rng.random() < options.true_share):
            pair = self._pairs[int(rng.integers(len(self._pairs)))]
            cropped = crop_pair(pair.frames(), pair.flow_px(), options.size_hw, options.crop, rng)
        else:
            cropped = self._synthetic.pair(step, index)
        return recoloured(cropped, options.crop, rng)


def joined(samples: Sequence[FlowSample]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples to a batch.

    Returns:
        Frames (B, 2, 3, H, W) float32 RGB in 0..255, flow (B, 2, H, W) float32 in pixels, valid
        (B, H, W) bool.
    """
    return (
        torch.from_numpy(np.stack([s.frames for s in samples])),
        torch.from_numpy(np.stack([s.flow_px for s in samples])),
        torch.from_numpy(np.stack([s.valid for s in samples])),
    )
