"""Crops that the propagation network is fine-tuned on: rollouts through dreamt clips.

What the network will see at run time is not the given mask but its own last answer, warped by an
estimated flow, doubted by the flow check and the colours, and cropped by its own box. So each crop
is made by the stages of the run-time pipeline from a clip dreamt from the given frame. A clip goes
on from what the network as it was exported answers to the last crop: its mistakes are those to be
unlearned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from mpn.engines.open import EngineSet
from mpn.errors import EngineError, MaskError
from mpn.runtime.finetune.augment.clip import DreamClip, DreamRange
from mpn.runtime.finetune.augment.mask import damaged
from mpn.runtime.finetune.augment.scene import DreamScene
from mpn.runtime.host.flow import FlowEstimator, FlowFrame
from mpn.runtime.host.ops import Ops
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.host.stages import Stages
from mpn.runtime.options import ResolvedOptions
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

OBJECT_FRAC = 0.93
"""Side of the object, as a share of the crop's, that the frame is averaged down to: with the margin
of the ROI that is about the crop's own resolution."""

_TRIES = 50
_VISIBLE_FRAC = 0.15
"""A clip begins with at least this share of the object in view."""


@dataclass(frozen=True)
class DreamOptions:
    """What crops are dreamt.

    Attributes:
        clips: See :class:`DreamRange`.
        longest: Frames that a clip goes on after its first, at most.
        answer_share: How often a clip goes on from the network's answer, not from the truth.
        damage_share: How often a clip begins with a damaged mask.
        half_share: How often a damaged mask lacks about half of the object.
        roi_jitter_frac: Each side of the ROI is moved outward by a share of the box between these.
        stop_iou: A clip ends when the network's answer overlaps the truth by less: which object is
            meant can no longer be told.
    """

    clips: DreamRange = field(default_factory=DreamRange)
    longest: int = 4
    answer_share: float = 1.0
    damage_share: float = 0.7
    half_share: float = 0.3
    roi_jitter_frac: tuple[float, float] = (-0.04, 0.10)
    stop_iou: float = 0.3


class PropagationDreams:
    """An endless supply of batches, each row a clip of its own.

    Args:
        rgb: (h, w, 3) uint8 RGB, the given frame at working size.
        labels: (h, w) uint8, ids of all objects.
        object_id: The object to learn.
        engines: Open engines: the propagation network, and how it is fed.
        flow: Where the flow comes from at run time.
        options: Of the pipeline, in force.
        ops: Array operations.
        size_px: Side of the crops.
        batch: Crops a batch.
        seed: Entropy; the same gives the same crops.
        dream_options: See :class:`DreamOptions`.

    Raises:
        MaskError: If the object is too small to learn from.
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
        ops: Ops,
        size_px: int,
        batch: int,
        seed: Sequence[int],
        dream_options: DreamOptions | None = None,
    ) -> None:
        scene = DreamScene.from_frame(rgb, labels, object_id, side_px=OBJECT_FRAC * size_px)
        self._view = view = _View(scene, engines, flow, options, ops, size_px)
        dreams = DreamOptions() if dream_options is None else dream_options
        self._rollouts = [
            _Rollout(view, dreams, np.random.default_rng([*seed, row])) for row in range(batch)
        ]

    def batch(self) -> tuple[Float32Array, Float32Array]:
        """The next crops.

        Returns:
            (N, 4, S, S) float32, the network's input, and (N, 1, S, S) float32, the share of each
            pixel that is the object's.

        Raises:
            EngineError: If an engine fails.
            MaskError: If no usable clip can be made of the frame.
        """
        self._answer()
        crops = [rollout.observe() for rollout in self._rollouts]
        return np.stack([inputs for inputs, _ in crops]), np.stack([target for _, target in crops])

    def _answer(self) -> None:
        """Let the network answer the last crops of the clips that go on from there."""
        asked = [
            (rollout, crop)
            for rollout in self._rollouts
            if (crop := rollout.question()) is not None
        ]
        if not asked:
            return
        answers = self._view.propagate(np.stack([crop for _, crop in asked]))
        for (rollout, _), answer in zip(asked, answers, strict=True):
            rollout.absorb(answer)


class _View:
    """How a dreamt frame is looked at: the stages of the pipeline, at the scale of the dream."""

    def __init__(
        self,
        scene: DreamScene,
        engines: EngineSet,
        flow: FlowEstimator,
        options: ResolvedOptions,
        ops: Ops,
        size_px: int,
    ) -> None:
        self.scene, self.flow, self.ops, self.size_px = scene, flow, ops, size_px
        # What is meant in pixels of the frame shrinks with it.
        self.options = replace(
            options,
            flow_check_px=options.flow_check_px * scene.scale,
            roi_margin_px_min=round(options.roi_margin_px_min * scene.scale),
        )
        self._stages = Stages(engines, self.options, ops)
        self._preprocessing = engines.manifest.preprocessing.propagation
        self._roi_size = engines.manifest.roi_size
        self._tables = [scene.colour_table] if options.colour_weight else None

    def warp(
        self,
        rgb: UInt8Array,
        prob: Float32Array,
        area_px: float,
        frame: FlowFrame,
        previous: FlowFrame,
    ) -> tuple[Float32Array, Roi | None]:
        """The probability of the previous frame carried into this one, (1, h, w), and its ROI."""
        flow_to_prev_px = self.flow.between(frame, previous)
        flow_from_prev_px = (
            self.flow.between(previous, frame) if self.options.flow_check_px else None
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
        return found.prob, found.rois[0]

    def crop(self, rgb: UInt8Array, prob: Float32Array, roi: Roi) -> Float32Array:
        """What the network learns from, (4, S, S)."""
        return self._packed(rgb, prob, roi, self.size_px)

    def question(self, rgb: UInt8Array, prob: Float32Array, roi: Roi) -> Float32Array:
        """What the exported network takes, (4, R, R)."""
        return self._packed(rgb, prob, roi, self._roi_size)

    def propagate(self, questions: Float32Array) -> Float32Array:
        """Answers of the exported network: (N, 4, R, R) -> (N, 1, R, R)."""
        return self._stages.propagate(questions, [self.scene.object_id] * len(questions))

    def _packed(self, rgb: UInt8Array, prob: Float32Array, roi: Roi, size: int) -> Float32Array:
        packed = self.ops.crop_resize_pack(
            rgb,
            prob,
            [roi],
            size=size,
            mean=self._preprocessing.mean_rgb,
            std=self._preprocessing.std_rgb,
        )
        crop: Float32Array = packed[0]
        return crop


@dataclass(frozen=True)
class _Seen:
    """The last frame of a clip, as the network saw it."""

    rgb: UInt8Array
    prob: Float32Array
    roi: Roi
    target: BoolArray


class _Rollout:
    """One clip after the other, played through the network."""

    def __init__(self, view: _View, options: DreamOptions, rng: np.random.Generator) -> None:
        self._view, self._options, self._rng = view, options, rng
        self._clip: DreamClip | None = None
        self._t = self._last_t = 0
        self._area_px = 0.0
        self._mirror = False
        self._prob: Float32Array = np.zeros(view.scene.size_hw, np.float32)
        self._previous: FlowFrame | None = None
        self._seen: _Seen | None = None

    def question(self) -> Float32Array | None:
        """What the network has to answer before the clip goes on; None if it does not ask."""
        seen = self._seen
        if self._clip is None or seen is None or self._t >= self._last_t:
            return None
        if self._rng.random() >= self._options.answer_share:
            return None
        return self._view.question(seen.rgb, seen.prob, seen.roi)

    def absorb(self, answer: Float32Array) -> None:
        """Take the network's answer, (1, R, R), as the probability of the last frame."""
        seen = self._seen
        if seen is None:
            raise EngineError("an answer was given although nothing was asked")
        self._prob = self._view.ops.paste(answer[None], [seen.roi], seen.target.shape)[0]
        found = self._prob > self._view.options.threshold
        union = np.count_nonzero(found | seen.target)
        overlap = np.count_nonzero(found & seen.target)
        if not union or overlap < self._options.stop_iou * union:
            self._clip = None

    def observe(self) -> tuple[Float32Array, Float32Array]:
        """Move one frame on: (4, S, S) input and (1, S, S) target."""
        for _ in range(_TRIES):
            if self._clip is None or self._t >= self._last_t:
                self._start()
            crop = self._advance()
            if crop is not None:
                return crop
            self._clip = None
        raise self._unusable()

    def _start(self) -> None:
        scene, rng, options = self._view.scene, self._rng, self._options
        known_area_px = np.count_nonzero(scene.target.alpha)
        for _ in range(_TRIES):
            self._clip = DreamClip(scene, options.clips, rng)
            self._t, self._last_t = 0, int(rng.integers(1, options.longest + 1))
            self._mirror = bool(rng.integers(2))
            rgb, target = self._clip.frame(0)
            self._area_px = float(np.count_nonzero(target))
            if self._area_px < _VISIBLE_FRAC * known_area_px:
                continue
            self._prob = target.astype(np.float32)
            if rng.random() < options.damage_share:
                self._prob = damaged(self._prob, rng, half_share=options.half_share)
            self._previous = self._view.flow.prepare(rgb)
            return
        raise self._unusable()

    def _advance(self) -> tuple[Float32Array, Float32Array] | None:
        clip, previous, view = self._clip, self._previous, self._view
        if clip is None or previous is None:
            return None
        self._t += 1
        rgb, target = clip.frame(self._t)
        self._previous = view.flow.prepare(rgb)
        prob, roi = view.warp(rgb, self._prob, self._area_px, self._previous, previous)
        if roi is None:
            return None
        roi = self._jittered(roi)
        self._seen = _Seen(rgb, prob, roi, target)
        self._prob = target.astype(np.float32)  # where the clip goes on from, if nobody answers
        crop = view.crop(rgb, prob, roi)
        share = cv2.resize(
            target[roi.y0 : roi.y1, roi.x0 : roi.x1].astype(np.float32),
            (view.size_px, view.size_px),
            interpolation=cv2.INTER_LINEAR,
        )[None]
        if self._mirror:
            crop, share = crop[..., ::-1], share[..., ::-1]
        return np.ascontiguousarray(crop), np.ascontiguousarray(share)

    def _jittered(self, roi: Roi) -> Roi:
        """The ROI with every side moved, mostly outward: drifting masks have loose boxes."""
        height, width = roi.size_hw
        frame_h, frame_w = self._view.scene.size_hw
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
            f"object {self._view.scene.object_id} cannot be fine-tuned on: it is lost in every "
            "clip made of the given frame"
        )
