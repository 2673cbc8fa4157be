"""Rollouts: the propagation network's run-time inputs with their ground truth.

A :class:`Rollout` plays one clip. Each step warps the rollout's own probability by the flow of the
new frame, crops the object's ROI, and returns crop and target. The network's output becomes the
probability of the next step. So the network is trained on the drift that it causes itself, and
every forward pass is a training pass. Warp, crop and paste are the runtime's own functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from mpn.engines.directory.manifest import DIS_SOURCE, FlowSource
from mpn.runtime.host.flow import DisFlow, PreparedFrame
from mpn.runtime.host.ops import crop_resize_pack, paste, warp_bilinear
from mpn.runtime.host.reliability import colour_table, suppress_unreliable
from mpn.runtime.host.roi import box_from_prob, with_margin
from mpn.training.propagation.augment import (
    ColourShift,
    MotionBlur,
    deform_mask,
    degrade_prob,
    disturbed_flow,
    misplaced_mask,
)
from mpn.training.propagation.clips import Clip, ClipMix, ClipSources, sample_clip
from mpn.training.propagation.scores import RolloutScore, ScoreSource
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

_MIN_OBJECT_PX = 150
_TRIES = 50

# crop_resize_pack normalises; with these it leaves colours at 0..255, where they are augmented.
_RAW_MEAN = (0.0, 0.0, 0.0)
_RAW_STD = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class RolloutOptions:
    """Options for cropping and disturbing rollouts.

    Attributes:
        roi_size: Side S of the network's input crop.
        flow: Flow source of the warp, as at run time.
        flow_check_px: See :class:`mpn.runtime.options.PipelineOptions`.
        colour_weight: The same, in most rollouts.
        colour_share: Share of rollouts that use colours at all. Some objects have no distinctive
            colours, so the network must also work without them.
        threshold: A pixel belongs to the object above this probability.
        roi_margin_frac: Margin a side as a share of the box.
        roi_margin_px_min: Smallest margin a side.
        roi_growth: See :class:`mpn.runtime.options.TargetOptions`; for samples with a score.
        roi_jitter_frac: Random shift of each side of the ROI, as a share of the box.
        max_steps: Longest rollout.
        deform_share: Share of rollouts that start from a deformed mask.
        reset_iou: A rollout ends when its last two outputs both overlap the ground truth less than
            this: the prior no longer identifies the object, and training on it adds noise.
        damage_share: Share of crops whose warped probability may be damaged further, see
            :func:`mpn.training.propagation.augment.degrade_prob`.
        blur_share: Share of rollouts with motion blur.
        blur_px: Longest blur line, in pixels of the frame.
        flow_error_share: Share of steps with additional flow errors.
        flow_error_px: Bound of these errors.
        misplaced_share: Share of rollouts that start from a mask outside the object. Their target
            is an empty mask.
    """

    roi_size: int = 225
    flow: FlowSource = field(default_factory=lambda: FlowSource(DIS_SOURCE, "ultrafast", 1.0))
    flow_check_px: float = 10.0
    colour_weight: float = 0.5
    colour_share: float = 0.8
    threshold: float = 0.5
    roi_margin_frac: float = 0.15
    roi_margin_px_min: int = 16
    roi_growth: float = 0.25
    roi_jitter_frac: float = 0.08
    max_steps: int = 20
    deform_share: float = 0.5
    reset_iou: float = 0.5
    damage_share: float = 0.3
    blur_share: float = 0.0
    blur_px: float = 14.0
    flow_error_share: float = 0.0
    flow_error_px: float = 5.0
    misplaced_share: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One crop with its ground truth.

    Attributes:
        rgb: (3, S, S) float32 RGB in 0..255.
        prob: (S, S) float32, the warped probability.
        target: (S, S) float32, foreground share of each pixel.
        score: (S, S) float32, 0..1, of the target model; None for networks of four channels.
    """

    rgb: Float32Array
    prob: Float32Array
    target: Float32Array
    score: Float32Array | None = None


class Rollout:
    """One clip played through the network; a new clip starts when one ends.

    Args:
        material: Sources that clips are sampled from.
        mix: Share of each kind of clip.
        options: See :class:`RolloutOptions`.
        seed: Seed of all random choices.
        scores: Source of the scores of the target model; None: samples have no score.
    """

    def __init__(
        self,
        material: ClipSources,
        mix: ClipMix,
        options: RolloutOptions,
        seed: int,
        scores: ScoreSource | None = None,
    ) -> None:
        self._material, self._mix, self._options = material, mix, options
        self._scores = scores
        self._score: RolloutScore | None = None
        self._rng = np.random.default_rng(seed)
        self._flow = DisFlow(options.flow)
        self._max_steps = 1
        self._clip_seed: int = -1
        self._clip: Clip | None = None
        self._t = self._last_t = 0
        self._low_overlaps = 0
        self._prob: Float32Array = np.zeros((1, 1), np.float32)
        self._previous: PreparedFrame | None = None
        self._colour_shift: ColourShift | None = None
        self._blur: MotionBlur | None = None
        self._colours: Float32Array | None = None
        self._mirror = False
        self._roi: Roi | None = None
        self._target: BoolArray = np.zeros((1, 1), np.bool_)

    def set_max_steps(self, steps: int) -> None:
        """Cap the length of rollouts that start from now on (the curriculum)."""
        self._max_steps = min(steps, self._options.max_steps)

    def next_sample(self) -> Sample:
        """Advance by one frame and return the network's next input."""
        for _ in range(_TRIES):
            if self._clip is None or self._t >= self._last_t:
                self._start()
            sample = self._advance()
            if sample is not None:
                return sample
            self._clip = None
        raise RuntimeError("no usable rollout found in the training material")

    def update(self, prob_crop: Float32Array) -> None:
        """Take the network's output, (S, S) float32, as probability of this frame."""
        roi = self._roi
        if roi is None:
            raise RuntimeError("call next_sample() before update()")
        if self._mirror:
            prob_crop = prob_crop[:, ::-1]
        crops = np.ascontiguousarray(prob_crop)[None, None]
        full = paste(crops, [roi], self._target.shape)[0]
        self._prob, self._roi = full, None
        mask = full > self._options.threshold
        union = np.count_nonzero(mask | self._target)
        overlap = np.count_nonzero(mask & self._target) / union if union else 1.0
        self._low_overlaps = self._low_overlaps + 1 if overlap < self._options.reset_iou else 0
        if self._low_overlaps >= 2 or not mask.any():
            self._clip = None

    def state(self) -> dict[str, Any]:
        """Return the primitives and arrays that resume the rollout bit for bit."""
        return {
            "rng": self._rng.bit_generator.state,
            "clip_seed": self._clip_seed if self._clip is not None else -1,
            "t": self._t,
            "last_t": self._last_t,
            "low_overlaps": self._low_overlaps,
            "max_steps": self._max_steps,
            "prob": self._prob,
            "colours": self._colours,
            "score": None if self._score is None else self._score.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of :meth:`state`."""
        self._rng.bit_generator.state = state["rng"]
        self._t, self._last_t = int(state["t"]), int(state["last_t"])
        self._low_overlaps, self._max_steps = int(state["low_overlaps"]), int(state["max_steps"])
        self._prob, self._colours = state["prob"], state["colours"]
        self._clip = self._score = None
        if self._scores is not None and state["score"] is not None:
            self._score = RolloutScore.from_state(state["score"])
        if int(state["clip_seed"]) >= 0:
            clip = self._open(int(state["clip_seed"]))
            self._previous = self._flow.prepare(self._frame(clip)[0])

    def _open(self, seed: int) -> Clip:
        self._clip_seed = seed
        self._clip = clip = sample_clip(self._material, self._mix, seed)
        rng = np.random.default_rng([seed, 1])
        self._colour_shift = ColourShift(rng)
        self._mirror = bool(rng.integers(2))
        share = self._options.blur_share
        blurred = share > 0 and rng.random() < share
        self._blur = MotionBlur(seed, self._options.blur_px) if blurred else None
        return clip

    def _frame(self, clip: Clip) -> tuple[UInt8Array, BoolArray]:
        """Return image and mask of the current frame, blurred if the clip is."""
        rgb, mask = clip.frame(self._t)
        return (self._blur(rgb, mask, self._t) if self._blur else rgb), mask

    def _start(self) -> None:
        for _ in range(_TRIES):
            clip = self._open(int(self._rng.integers(2**31)))
            if len(clip) < 2:
                continue
            first = 0 if len(clip) < 4 else int(self._rng.integers(0, len(clip) - 2))
            self._t = first
            rgb, mask = self._frame(clip)
            if np.count_nonzero(mask) < _MIN_OBJECT_PX:
                continue
            steps = int(self._rng.integers(1, self._max_steps + 1))
            self._last_t = min(first + steps, len(clip) - 1)
            options = self._options
            has_colours = options.colour_weight > 0 and self._rng.random() < options.colour_share
            self._colours = colour_table(rgb, mask) if has_colours else None
            if self._scores is not None:  # by the true mask: the user's masks are good
                self._score = self._scores.start(clip, first, rgb, mask, self._rng)
            if self._rng.random() < options.deform_share:
                mask = deform_mask(mask, self._rng)
            if options.misplaced_share and self._rng.random() < options.misplaced_share:
                mask = misplaced_mask(
                    mask,
                    self._rng,
                    margin_frac=options.roi_margin_frac + options.roi_jitter_frac,
                    margin_px=options.roi_margin_px_min,
                )
            self._prob = mask.astype(np.float32)
            self._previous, self._low_overlaps = self._flow.prepare(rgb), 0
            return
        raise RuntimeError("no object of a usable size found in the training material")

    def _advance(self) -> Sample | None:
        clip, options, previous = self._clip, self._options, self._previous
        if clip is None or self._colour_shift is None or previous is None:
            return None
        self._t += 1
        rgb, target = self._frame(clip)
        self._previous = self._flow.prepare(rgb)
        flow_to_prev_px = self._flow.estimate(self._previous, previous)
        if options.flow_error_share and self._rng.random() < options.flow_error_share:
            flow_to_prev_px = disturbed_flow(flow_to_prev_px, options.flow_error_px, self._rng)
        warped = warp_bilinear(self._prob[None], flow_to_prev_px)
        support = box_from_prob(warped[0], 0.0)
        if support is not None:
            suppress_unreliable(
                warped[0],
                support,
                flow_to_prev_px=flow_to_prev_px,
                flow_from_prev_px=(
                    self._flow.estimate(previous, self._previous) if options.flow_check_px else None
                ),
                flow_check_px=options.flow_check_px,
                rgb=rgb,
                colour_table=self._colours,
                colour_weight=options.colour_weight,
            )
        if self._scores is not None and self._score is not None:
            self._score = self._scores.advanced(self._score, clip, self._t, rgb, flow_to_prev_px)
        roi = self._jittered_roi(warped[0], clip, rgb)
        if roi is None:
            return None
        self._roi, self._target = roi, target
        side = options.roi_size
        crop = crop_resize_pack(rgb, warped, [roi], size=side, mean=_RAW_MEAN, std=_RAW_STD)[0]
        crop_target = cv2.resize(
            target[roi.y0 : roi.y1, roi.x0 : roi.x1].astype(np.float32),
            (side, side),
            interpolation=cv2.INTER_LINEAR,
        )
        score = None
        if self._scores is not None and self._score is not None:
            score = self._scores.crop(self._score, clip, rgb, roi, side)
        if self._mirror:
            crop, crop_target = crop[..., ::-1], crop_target[..., ::-1]
            score = None if score is None else np.ascontiguousarray(score[:, ::-1])
        return Sample(
            self._colour_shift(np.ascontiguousarray(crop[:3])),
            degrade_prob(np.ascontiguousarray(crop[3]), self._rng, share=options.damage_share),
            np.ascontiguousarray(crop_target),
            score,
        )

    def _jittered_roi(self, prob: Float32Array, clip: Clip, rgb: UInt8Array) -> Roi | None:
        """Return the runtime's ROI with jittered sides; None if it is empty."""
        options = self._options
        box = box_from_prob(prob, options.threshold)
        if box is None:
            return None
        roi = with_margin(box, options.roi_margin_frac, options.roi_margin_px_min, prob.shape)
        if self._scores is not None and self._score is not None:
            roi = self._scores.grown(self._score, clip, rgb, roi, options.roi_growth)
        box_hw = np.array(box.size_hw)
        jitter = self._rng.uniform(-1, 1, 4) * options.roi_jitter_frac * np.tile(box_hw[::-1], 2)
        x0, y0, x1, y1 = np.rint(np.array(roi.box_xyxy) + jitter).astype(int)
        height, width = prob.shape
        x0, y0 = int(np.clip(x0, 0, width - 1)), int(np.clip(y0, 0, height - 1))
        return Roi(x0, y0, int(np.clip(x1, x0 + 1, width)), int(np.clip(y1, y0 + 1, height)))
