"""Scores of the target model in a rollout, the fifth channel of the input.

At run time a classifier is solved on frames with known masks, and its score comes from a run of the
features network or from the flow. Both errors are part of the training: old classifiers, warped
scores, no score at all, and the score of another object. Solve, score, warp and crop are the
runtime's own functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpn._common.validation import check_int, check_number
from mpn.engines.spec import features_spec
from mpn.errors import TrainingError
from mpn.runtime.host.target import crop_scores, grown_rois, warp_scores
from mpn.runtime.options import ResolvedTarget
from mpn.runtime.target import NO_SCORE, Targets, cell_shares, target_scores, with_given_frame
from mpn.training.data import DavisSequence
from mpn.training.propagation.clips import Clip, DavisClip
from mpn.training.propagation.features import ClipFeatures
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

_MIN_OBJECT_PX = 150
_TRIES = 20
_ID = 1
"""Object id of the one object of a rollout."""


@dataclass(frozen=True)
class ScoreOptions:
    """Options of the scores; only for networks of five input channels.

    Attributes:
        size_hw: (height, width) of the features network's input for sequences, each 32 n + 1, as
            the engine is exported. The validation uses it too.
        short_side_px: Short side of that input for other clips, 32 n + 1. Their features are
            computed in each rollout, so a smaller size saves time.
        interval_max: Longest interval in frames between two runs of the features network. Each
            rollout draws an interval; in the frames between, the score is warped by the flow.
        absent_share: Share of rollouts without a score: 0.5 everywhere.
        foreign_share: Share of rollouts with the classifier of another object.
        stale_share: Share of rollouts whose classifier is solved on another frame than the first.
        stale_frames: Bound of the distance of that frame, in frames of the clip.
    """

    size_hw: tuple[int, int] = (385, 673)
    short_side_px: int = 289
    interval_max: int = 3
    absent_share: float = 0.1
    foreign_share: float = 0.06
    stale_share: float = 0.5
    stale_frames: int = 36

    def __post_init__(self) -> None:
        features_spec(self.size_hw, channels=1)
        features_spec((self.short_side_px, self.short_side_px), channels=1)
        check_int("interval_max", self.interval_max, least=1, error=TrainingError)
        check_int("stale_frames", self.stale_frames, least=0, error=TrainingError)
        for name in ("absent_share", "foreign_share", "stale_share"):
            check_number(name, getattr(self, name), least=0, most=1, error=TrainingError)
        if self.absent_share + self.foreign_share > 1:
            raise TrainingError(
                "absent_share and foreign_share must sum to at most 1, got "
                f"{self.absent_share} and {self.foreign_share}"
            )


@dataclass(frozen=True)
class RolloutScore:
    """Score of one rollout. Replaced in each frame, never changed.

    Attributes:
        interval: Frames from one run of the features network to the next.
        first_t: Frame that the rollout starts from.
        targets: The classifier; None: the rollout has no score.
        scores: (1, gh, gw) float32 of the current frame; None at the first frame.
    """

    interval: int
    first_t: int
    targets: Targets | None
    scores: Float32Array | None = None

    def state(self) -> dict[str, Any]:
        """Return primitives and arrays."""
        targets = self.targets
        return {
            "interval": self.interval,
            "first_t": self.first_t,
            "scores": self.scores,
            "targets": None
            if targets is None
            else {
                "mean": targets.mean,
                "std": targets.std,
                "weights": targets.weights[_ID],
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RolloutScore:
        """Restore a state of :meth:`state`."""
        saved, targets = state["targets"], None
        if saved is not None:
            weights = {_ID: saved["weights"]}
            targets = Targets(saved["mean"], saved["std"], weights)
        return cls(int(state["interval"]), int(state["first_t"]), targets, state["scores"])


class ScoreSource:
    """Source of the scores of all rollouts; every method is pure.

    Args:
        features: Features of the frames.
        sequences: Sequences in its cache, for the classifiers of other objects.
        options: See :class:`ScoreOptions`.
    """

    def __init__(
        self, features: ClipFeatures, sequences: Sequence[DavisSequence], options: ScoreOptions
    ) -> None:
        self._features, self._sequences, self._options = features, tuple(sequences), options
        self._solver = ResolvedTarget()

    def start(
        self,
        clip: Clip,
        t: int,
        rgb: UInt8Array,
        mask: BoolArray,
        rng: np.random.Generator,
    ) -> RolloutScore:
        """Solve the classifier of a rollout.

        Args:
            clip: The clip.
            t: First frame of the rollout.
            rgb: (H, W, 3) uint8 RGB of that frame.
            mask: (H, W) bool, the object in that frame.
            rng: Source of randomness.
        """
        options = self._options
        interval = int(rng.integers(1, options.interval_max + 1))
        kind, is_stale = rng.random(), rng.random() < options.stale_share
        if kind < options.absent_share:
            return RolloutScore(interval, t, None)
        if kind < options.absent_share + options.foreign_share:
            targets = self._foreign(clip, rng)
        else:
            reference = t
            if is_stale:
                first = max(0, t - options.stale_frames)
                reference = int(rng.integers(first, min(len(clip), t + options.stale_frames + 1)))
                other_rgb, other_mask = clip.frame(reference)
                if np.count_nonzero(other_mask) >= _MIN_OBJECT_PX:
                    rgb, mask = other_rgb, other_mask
                else:
                    reference = t
            features = self._of_clip(clip, reference, rgb)
            targets = self._solved(features, mask, self._size_hw(clip, rgb))
        return RolloutScore(interval, t, targets)

    def advanced(
        self,
        score: RolloutScore,
        clip: Clip,
        t: int,
        rgb: UInt8Array,
        flow_to_prev_px: Float32Array,
    ) -> RolloutScore:
        """Return the score of the next frame: computed if it is due, else warped.

        A rollout is a part of a video, so its first score is always computed.

        Args:
            score: Score of the previous frame.
            clip: The clip.
            t: Index of the frame.
            rgb: (H, W, 3) uint8 RGB of the frame.
            flow_to_prev_px: (2, H, W) float32.
        """
        if score.targets is None:
            return score
        if score.scores is None or (t - score.first_t - 1) % score.interval == 0:
            features = self._of_clip(clip, t, rgb)
            scores = target_scores(score.targets, features, (_ID,))
        else:
            scores = warp_scores(score.scores, flow_to_prev_px, self._size_hw(clip, rgb))
        return replace(score, scores=scores)

    def grown(
        self, score: RolloutScore, clip: Clip, rgb: UInt8Array, roi: Roi, growth: float
    ) -> Roi:
        """Extend a ROI by the score, see :func:`mpn.runtime.host.target.grown_rois`."""
        if score.scores is None:
            return roi
        (grown,) = grown_rois(
            score.scores,
            [roi],
            frame_hw=(rgb.shape[0], rgb.shape[1]),
            size_hw=self._size_hw(clip, rgb),
            growth=growth,
        )
        assert grown is not None
        return grown

    def crop(
        self, score: RolloutScore, clip: Clip, rgb: UInt8Array, roi: Roi, side: int
    ) -> Float32Array:
        """Return the score of a ROI: (S, S) float32, 0..1."""
        if score.scores is None:
            return np.full((side, side), NO_SCORE, np.float32)
        crops = crop_scores(
            score.scores,
            [roi],
            frame_hw=(rgb.shape[0], rgb.shape[1]),
            size_hw=self._size_hw(clip, rgb),
            side=side,
        )
        crop: Float32Array = crops[0]
        return crop

    def _size_hw(self, clip: Clip, rgb: UInt8Array) -> tuple[int, int]:
        if isinstance(clip, DavisClip):
            return self._features.size_hw
        return self._features.frame_size_hw((rgb.shape[0], rgb.shape[1]))

    def _of_clip(self, clip: Clip, t: int, rgb: UInt8Array) -> Float32Array:
        if isinstance(clip, DavisClip):
            return self._features.of_sequence(clip.sequence, clip.indices[t])
        return self._features.of_frame(rgb)

    def _solved(self, features: Float32Array, mask: BoolArray, size_hw: tuple[int, int]) -> Targets:
        (share,) = cell_shares(mask[None].astype(np.float32), size_hw)
        targets = with_given_frame(None, features, {_ID: share}, options=self._solver)
        return replace(targets, given=())  # no update follows, and the frame is large

    def _foreign(self, clip: Clip, rng: np.random.Generator) -> Targets | None:
        """Solve the classifier of an object of another sequence; None if there is none."""
        own = clip.sequence if isinstance(clip, DavisClip) else None
        others = [sequence for sequence in self._sequences if sequence is not own]
        for _ in range(_TRIES if others else 0):
            sequence = others[rng.integers(len(others))]
            index = int(rng.integers(len(sequence)))
            labels = sequence.labels(index)
            counts = np.bincount(labels.ravel())
            ids = [k for k in range(1, len(counts)) if counts[k] >= _MIN_OBJECT_PX]
            if ids:
                mask = labels == ids[rng.integers(len(ids))]
                features = self._features.of_sequence(sequence, index)
                return self._solved(features, mask, self._features.size_hw)
        return None
