"""Sample crops of augmented clips to fine-tune the propagation network on.

At run time the input of the network is its last prediction, not the given mask. It is warped by an
estimated flow, suppressed by the flow check and the colours, and cropped by its box. Therefore the
stages of the pipeline compute each crop, from a clip that is rendered from the first frame. The
next frame of a clip starts from the prediction of the exported network, because fine-tuning has to
correct these errors.

If the network takes the score of the target model, the classifier is solved on the first frame. The
features network runs on the first crop of a clip; the flow warps the score to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from mpn.engines.open import EngineSet
from mpn.errors import EngineError, MaskError
from mpn.runtime.finetune.augment.clip import LucidClip, LucidRange
from mpn.runtime.finetune.augment.mask import corrupt_mask
from mpn.runtime.finetune.augment.scene import LucidScene
from mpn.runtime.host.flow import FlowEstimator, PreparedFrame
from mpn.runtime.host.ops import crop_resize_pack, paste
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.host.stages import Stages
from mpn.runtime.host.target import TargetStage, crop_scores, grown_rois, warp_scores
from mpn.runtime.one_shot import one_shot_models, takes_score
from mpn.runtime.options import ResolvedOptions
from mpn.runtime.target import NO_SCORE, Targets, cell_shares, target_scores, with_given_frame
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

OBJECT_FRAC = 0.93
"""Largest side of the object, as a share of the crop's side. With the margin of the ROI this is
about the resolution of the crop."""

_TRIES = 50
_VISIBLE_FRAC = 0.15
"""Least visible share of the object in the first frame of a clip."""


@dataclass(frozen=True)
class SamplerOptions:
    """Options of the clips and rollouts.

    Attributes:
        clips: See :class:`mpn.runtime.finetune.augment.clip.LucidRange`.
        longest: Largest number of frames after the first frame of a clip.
        feedback_share: Share of frames that start from the network's prediction, not from the
            ground truth.
        damage_share: Share of clips that start with a corrupted mask.
        half_share: Share of corrupted masks that lose about half of the object.
        roi_jitter_frac: Range of the outward shift of each side of the ROI, as a share of the box.
        stop_iou: Least IoU of prediction and ground truth. Below it the clip ends, because the
            input no longer identifies the object.
    """

    clips: LucidRange = field(default_factory=LucidRange)
    longest: int = 4
    feedback_share: float = 1.0
    damage_share: float = 0.7
    half_share: float = 0.3
    roi_jitter_frac: tuple[float, float] = (-0.04, 0.10)
    stop_iou: float = 0.3


class PropagationSampler:
    """Sample batches of crops; each row of a batch is from another clip.

    Args:
        rgb: (h, w, 3) uint8 RGB, the first frame at working size.
        labels: (h, w) uint8, ids of all objects.
        object_id: The object to fine-tune on.
        engines: Open engines, with the propagation network and its preprocessing.
        flow: The flow estimator of the pipeline.
        options: Options of the pipeline, with all defaults filled in.
        size_px: Side of the crops.
        batch: Crops per batch.
        seed: Entropy; the same seed gives the same crops.
        sampler_options: See :class:`SamplerOptions`.

    Raises:
        MaskError: If the object is too small to fine-tune on.
    """

    def __init__(
        self,
        rgb: UInt8Array,
        labels: UInt8Array,
        object_id: int,
        *,
        engines: EngineSet,
        flow: FlowEstimator,
        options: ResolvedOptions,
        size_px: int,
        batch: int,
        seed: Sequence[int],
        sampler_options: SamplerOptions | None = None,
    ) -> None:
        scene = LucidScene.from_frame(rgb, labels, object_id, side_px=OBJECT_FRAC * size_px)
        score = _ScoreChannel.from_frame(rgb, labels, object_id, engines, options)
        self._pipeline = pipeline = _ScaledPipeline(scene, engines, flow, options, size_px, score)
        sampler_options = SamplerOptions() if sampler_options is None else sampler_options
        self._rollouts = [
            _Rollout(pipeline, sampler_options, np.random.default_rng([*seed, row]))
            for row in range(batch)
        ]

    def batch(self) -> tuple[Float32Array, Float32Array]:
        """Return the next crops.

        Returns:
            (N, 4 or 5, S, S) float32, the network's input, and (N, 1, S, S) float32, the share of
            the object in each pixel.

        Raises:
            EngineError: If an engine fails.
            MaskError: If the object is lost in each clip.
        """
        self._feed_back()
        crops = [rollout.next_sample() for rollout in self._rollouts]
        return np.stack([inputs for inputs, _ in crops]), np.stack([target for _, target in crops])

    def _feed_back(self) -> None:
        """Run the network on the last crops of the clips that continue from a prediction."""
        pending = [
            (rollout, crop)
            for rollout in self._rollouts
            if (crop := rollout.network_input()) is not None
        ]
        if not pending:
            return
        predictions = self._pipeline.propagate(np.stack([crop for _, crop in pending]))
        for (rollout, _), prediction in zip(pending, predictions, strict=True):
            rollout.update(prediction)


class _ScoreChannel:
    """The target model of one object, for a network that takes its score.

    Args:
        target: Runs the features engine; None: the target model is not in use, and each score is
            :data:`mpn.runtime.target.NO_SCORE`.
        targets: The classifier of the object; None likewise.
        object_id: The object.
        growth: Option ``target.roi_growth``.
    """

    def __init__(
        self, target: TargetStage | None, targets: Targets | None, object_id: int, growth: float
    ) -> None:
        self._target, self._targets = target, targets
        self._object_id, self._growth = object_id, growth

    @classmethod
    def from_frame(
        cls,
        rgb: UInt8Array,
        labels: UInt8Array,
        object_id: int,
        engines: EngineSet,
        options: ResolvedOptions,
    ) -> _ScoreChannel | None:
        """Solve the classifier of an object; None if the network takes no score."""
        if not takes_score(engines.propagation.spec):
            return None
        is_in_use = one_shot_models(options, engines.manifest.roles.keys()).target
        if not is_in_use or engines.features is None:
            return cls(None, None, object_id, 0.0)
        target = TargetStage(engines.features, options.target)
        (share,) = cell_shares((labels == object_id).astype(np.float32)[None], target.size_hw)
        features = target.features(rgb)
        targets = with_given_frame(None, features, {object_id: share}, options=options.target)
        return cls(target, targets, object_id, options.target.roi_growth)

    def scores(
        self, rgb: UInt8Array, before: Float32Array | None, flow_to_prev_px: Float32Array
    ) -> Float32Array | None:
        """Return the scores of a frame, (1, gh, gw), given those of the frame before."""
        if self._target is None or self._targets is None:
            return None
        if before is not None:
            return warp_scores(before, flow_to_prev_px, self._target.size_hw)
        return target_scores(self._targets, self._target.features(rgb), (self._object_id,))

    def grown(self, scores: Float32Array | None, roi: Roi, frame_hw: tuple[int, int]) -> Roi:
        """Return the ROI as the pipeline extends it."""
        if scores is None or self._target is None or not self._growth:
            return roi
        (grown,) = grown_rois(
            scores, [roi], frame_hw=frame_hw, size_hw=self._target.size_hw, growth=self._growth
        )
        assert grown is not None
        return grown

    def crop(
        self, scores: Float32Array | None, roi: Roi, frame_hw: tuple[int, int], side: int
    ) -> Float32Array:
        """Return the score channel of a crop: (1, S, S)."""
        if scores is None or self._target is None:
            return np.full((1, side, side), NO_SCORE, np.float32)
        return crop_scores(
            scores, [roi], frame_hw=frame_hw, size_hw=self._target.size_hw, side=side
        )


class _ScaledPipeline:
    """The stages of the pipeline, at the scale of the augmented clip."""

    def __init__(
        self,
        scene: LucidScene,
        engines: EngineSet,
        flow: FlowEstimator,
        options: ResolvedOptions,
        size_px: int,
        score: _ScoreChannel | None,
    ) -> None:
        self.scene, self.flow, self.size_px = scene, flow, size_px
        # These options are in pixels of the frame.
        self.options = replace(
            options,
            flow_check_px=options.flow_check_px * scene.scale,
            roi_margin_px_min=round(options.roi_margin_px_min * scene.scale),
        )
        self._stages, self._score = Stages(engines, self.options), score
        self._preprocessing = engines.manifest.preprocessing.propagation
        self._roi_size = engines.manifest.roi_size
        self._tables = [scene.colour_table] if options.colour_weight else None

    def warp(
        self,
        rgb: UInt8Array,
        prob: Float32Array,
        area_px: float,
        frame: PreparedFrame,
        previous: PreparedFrame,
        scores: Float32Array | None,
    ) -> tuple[Float32Array, Roi | None, Float32Array | None]:
        """Warp the previous probability: (1, h, w), its ROI, and the scores."""
        flow_to_prev_px = self.flow.estimate(frame, previous)
        flow_from_prev_px = (
            self.flow.estimate(previous, frame) if self.options.flow_check_px else None
        )
        found = self._stages.warp(
            rgb,
            prob[None],
            [box_from_prob(prob, 0.0)],
            [area_px],
            flow_to_prev_px,
            flow_from_prev_px,
            self._tables,
        )
        roi = found.rois[0]
        if self._score is not None and roi is not None:
            scores = self._score.scores(rgb, scores, flow_to_prev_px)
            roi = self._score.grown(scores, roi, self.scene.size_hw)
        return found.prob, roi, scores

    def crop(self, last: _LastFrame) -> Float32Array:
        """Crop the input of the fine-tuning step: (C, S, S)."""
        return self._packed(last, self.size_px)

    def network_input(self, last: _LastFrame) -> Float32Array:
        """Crop the input of the exported network: (C, R, R)."""
        return self._packed(last, self._roi_size)

    def propagate(self, crops: Float32Array) -> Float32Array:
        """Run the exported network: (N, C, R, R) -> (N, 1, R, R)."""
        return self._stages.propagate(crops, [self.scene.object_id] * len(crops))

    def _packed(self, last: _LastFrame, size: int) -> Float32Array:
        crop: Float32Array = crop_resize_pack(
            last.rgb,
            last.prob,
            [last.roi],
            size=size,
            mean=self._preprocessing.mean_rgb,
            std=self._preprocessing.std_rgb,
            scores=None
            if self._score is None
            else self._score.crop(last.scores, last.roi, self.scene.size_hw, size),
        )[0]
        return crop


@dataclass(frozen=True)
class _LastFrame:
    """The last frame of a clip with the input of the network."""

    rgb: UInt8Array
    prob: Float32Array
    roi: Roi
    target: BoolArray
    scores: Float32Array | None


class _Rollout:
    """A sequence of clips, run frame by frame."""

    def __init__(
        self, pipeline: _ScaledPipeline, options: SamplerOptions, rng: np.random.Generator
    ) -> None:
        self._pipeline, self._options, self._rng = pipeline, options, rng
        self._clip: LucidClip | None = None
        self._t = self._last_t = 0
        self._area_px = 0.0
        self._mirror = False
        self._prob: Float32Array = np.zeros(pipeline.scene.size_hw, np.float32)
        self._previous: PreparedFrame | None = None
        self._scores: Float32Array | None = None
        self._last: _LastFrame | None = None

    def network_input(self) -> Float32Array | None:
        """Return the input whose prediction the next frame needs; None if it needs none."""
        last = self._last
        if self._clip is None or last is None or self._t >= self._last_t:
            return None
        if self._rng.random() >= self._options.feedback_share:
            return None
        return self._pipeline.network_input(last)

    def update(self, prediction: Float32Array) -> None:
        """Set the probability of the last frame to a prediction, (1, R, R)."""
        last = self._last
        if last is None:
            raise EngineError("there is no frame that this prediction belongs to")
        self._prob = paste(prediction[None], [last.roi], last.target.shape)[0]
        found = self._prob > self._pipeline.options.threshold
        union = np.count_nonzero(found | last.target)
        overlap = np.count_nonzero(found & last.target)
        if not union or overlap < self._options.stop_iou * union:
            self._clip = None

    def next_sample(self) -> tuple[Float32Array, Float32Array]:
        """Advance one frame; return (C, S, S) input and (1, S, S) target."""
        for _ in range(_TRIES):
            if self._clip is None or self._t >= self._last_t:
                self._start()
            crop = self._advance()
            if crop is not None:
                return crop
            self._clip = None
        raise self._unusable()

    def _start(self) -> None:
        scene, rng, options = self._pipeline.scene, self._rng, self._options
        known_area_px = np.count_nonzero(scene.target.alpha)
        for _ in range(_TRIES):
            self._clip = LucidClip(scene, options.clips, rng)
            self._t, self._last_t = 0, int(rng.integers(1, options.longest + 1))
            self._mirror = bool(rng.integers(2))
            rgb, target = self._clip.frame(0)
            self._area_px = float(np.count_nonzero(target))
            if self._area_px < _VISIBLE_FRAC * known_area_px:
                continue
            self._prob = target.astype(np.float32)
            if rng.random() < options.damage_share:
                self._prob = corrupt_mask(self._prob, rng, half_share=options.half_share)
            self._previous, self._scores = self._pipeline.flow.prepare(rgb), None
            return
        raise self._unusable()

    def _advance(self) -> tuple[Float32Array, Float32Array] | None:
        clip, previous, pipeline = self._clip, self._previous, self._pipeline
        if clip is None or previous is None:
            return None
        self._t += 1
        rgb, target = clip.frame(self._t)
        self._previous = pipeline.flow.prepare(rgb)
        prob, roi, self._scores = pipeline.warp(
            rgb, self._prob, self._area_px, self._previous, previous, self._scores
        )
        if roi is None:
            return None
        roi = self._jittered(roi)
        self._last = _LastFrame(rgb, prob, roi, target, self._scores)
        self._prob = target.astype(np.float32)  # used if no prediction replaces it
        crop = pipeline.crop(self._last)
        share = cv2.resize(
            target[roi.y0 : roi.y1, roi.x0 : roi.x1].astype(np.float32),
            (pipeline.size_px, pipeline.size_px),
            interpolation=cv2.INTER_LINEAR,
        )[None]
        if self._mirror:
            crop, share = crop[..., ::-1], share[..., ::-1]
        return np.ascontiguousarray(crop), np.ascontiguousarray(share)

    def _jittered(self, roi: Roi) -> Roi:
        """Move each side of the ROI, mostly outward: drifting masks have loose boxes."""
        height, width = roi.size_hw
        frame_h, frame_w = self._pipeline.scene.size_hw
        left, top, right, bottom = self._rng.uniform(*self._options.roi_jitter_frac, 4) * np.array(
            [width, height, width, height]
        )
        x0 = int(np.clip(round(roi.x0 - left), 0, roi.x1 - 2))
        y0 = int(np.clip(round(roi.y0 - top), 0, roi.y1 - 2))
        x1 = int(np.clip(round(roi.x1 + right), x0 + 1, frame_w))
        y1 = int(np.clip(round(roi.y1 + bottom), y0 + 1, frame_h))
        return Roi(x0, y0, x1, y1)

    def _unusable(self) -> MaskError:
        return MaskError(
            f"object {self._pipeline.scene.object_id} cannot be fine-tuned on: it is lost in every "
            "clip made of the given frame"
        )
