"""Run the target model on the host: features, scores, and their warp and crop."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np

from mpn.engines.base import Engine
from mpn.engines.spec import FEATURES_STRIDE
from mpn.runtime.backend import FrameMemory, OsvosMaps
from mpn.runtime.host.merge import check_finite
from mpn.runtime.host.ops import warp_bilinear
from mpn.runtime.host.preprocess import flow_input
from mpn.runtime.options import ResolvedTarget
from mpn.runtime.state import VideoState
from mpn.runtime.target import (
    Targets,
    cell_shares,
    target_scores,
    with_confident_frame,
    with_given_frame,
)
from mpn.types import Float32Array, Roi, UInt8Array

_OBJECT_SCORE = 0.5


class TargetStage:
    """The target model of all objects; every method is pure.

    Args:
        engine: The features engine.
        options: Options in force.
    """

    def __init__(self, engine: Engine, options: ResolvedTarget) -> None:
        self._engine, self._options = engine, options
        height, width = engine.spec.inputs[0].shape[2:]
        assert isinstance(height, int)
        assert isinstance(width, int)
        self.size_hw = (height, width)

    def features(self, rgb: UInt8Array) -> Float32Array:
        """Compute the features of a frame.

        Args:
            rgb: (h, w, 3) uint8 RGB.

        Returns:
            (C, gh, gw) float32.

        Raises:
            EngineError: If the engine fails or its output is not finite.
        """
        image = flow_input(rgb, self.size_hw)  # RGB in 0..255, like the input of the flow network
        features: Float32Array = self._engine.run({"image": image})["features"][0]
        check_finite(features, "features")
        return features

    def maps(self, rgb: UInt8Array, scores: Float32Array, wanted: Sequence[bool]) -> OsvosMaps:
        """Return scores at the size of the frame, in the place of OSVOS.

        Args:
            rgb: (h, w, 3) uint8 RGB, the frame at working size.
            scores: (K, gh, gw) float32.
            wanted: Per object whether its map is needed.
        """
        frame_hw = (rgb.shape[0], rgb.shape[1])
        planes = iter(scores_at_frame(scores[list(wanted)], frame_hw, self.size_hw))
        return OsvosMaps(rgb, tuple(next(planes) if is_wanted else None for is_wanted in wanted))

    def given(
        self, memory: FrameMemory, state: VideoState, given_ids: Collection[int]
    ) -> FrameMemory:
        """Solve the classifiers of objects that the user gave in the current frame.

        Args:
            memory: Arrays of the frame, with the given masks in ``prob``.
            state: Of the frame.
            given_ids: The objects that the user gave.

        Raises:
            EngineError: See :meth:`features`.
        """
        features = self.features(memory.frame) if memory.features is None else memory.features
        shares = self._shares(memory.prob, state.object_ids, given_ids)
        targets = with_given_frame(memory.targets, features, shares, options=self._options)
        scores = target_scores(targets, features, state.object_ids)
        return replace(memory, targets=targets, features=features, scores=scores)

    def learned(
        self,
        targets: Targets,
        features: Float32Array,
        prob: Float32Array,
        object_ids: Sequence[int],
        weights: Mapping[int, float],
    ) -> Targets:
        """Update the classifiers of objects from their masks in a frame.

        Args:
            targets: Classifiers so far.
            features: (C, gh, gw) float32 of the frame.
            prob: (K, h, w) float32 of the frame, merged.
            object_ids: The K ids.
            weights: Object id -> weight of the frame, above 0, for the objects to update.
        """
        shares = self._shares(prob, object_ids, weights)
        return with_confident_frame(targets, features, shares, weights, options=self._options)

    def found(self, memory: FrameMemory, state: VideoState) -> FrameMemory:
        """Update the classifiers from the masks of an earlier run, and score the frame.

        Args:
            memory: Arrays of the frame, without features.
            state: Of the frame.

        Raises:
            EngineError: See :meth:`features`.
        """
        targets, features = memory.targets, self.features(memory.frame)
        assert targets is not None
        object_ids = state.object_ids
        present = {
            object_id: 1.0
            for object_id, bounds in zip(object_ids, state.bounds, strict=True)
            if bounds is not None
        }
        if self._options.update_every and present:
            targets = self.learned(targets, features, memory.prob, object_ids, present)
        scores = target_scores(targets, features, object_ids)
        return replace(memory, targets=targets, features=features, scores=scores)

    def _shares(
        self, prob: Float32Array, object_ids: Sequence[int], wanted: Collection[int]
    ) -> dict[int, Float32Array]:
        rows = [k for k, object_id in enumerate(object_ids) if object_id in wanted]
        shares = cell_shares(prob[rows], self.size_hw)
        return {object_ids[k]: share for k, share in zip(rows, shares, strict=True)}


def warp_scores(
    scores: Float32Array, flow_to_prev_px: Float32Array, size_hw: tuple[int, int]
) -> Float32Array:
    """Warp the scores of the previous frame onto the current one.

    Args:
        scores: (K, gh, gw) float32 of the previous frame.
        flow_to_prev_px: (2, h, w) float32 on the current frame's grid.
        size_hw: (height, width) of the features engine's input.

    Returns:
        (K, gh, gw) float32; 0 if a point was outside of the previous frame.
    """
    frame_hw = (flow_to_prev_px.shape[1], flow_to_prev_px.shape[2])
    axes = _grid_points(scores, frame_hw, size_hw)
    on_grid = np.empty((2, *scores.shape[1:]), np.float32)
    for axis, sampled in enumerate(_all_sampled(flow_to_prev_px, axes[0], axes[1])):
        step = size_hw[1 - axis] / frame_hw[1 - axis] / FEATURES_STRIDE
        np.multiply(sampled, np.float32(step), out=on_grid[axis])
    return warp_bilinear(scores, on_grid)


def exclusive_scores(
    scores: Float32Array, prob: Float32Array, size_hw: tuple[int, int]
) -> Float32Array:
    """Lower the scores of each object at the expected places of the other objects.

    The classifiers of objects that look alike do not separate them; the warped probability does.

    Args:
        scores: (K, gh, gw) float32.
        prob: (K, h, w) float32 of the candidates.
        size_hw: (height, width) of the features engine's input.

    Returns:
        (K, gh, gw) float32: score_k * (1 - max prob_j), over all j != k, at the grid points.
    """
    if len(scores) == 1:
        return scores
    axes = _grid_points(scores, (prob.shape[1], prob.shape[2]), size_hw)
    at_points = np.stack(_all_sampled(prob, axes[0], axes[1]))
    exclusive = np.empty_like(scores)
    for k, score in enumerate(scores):
        others = np.delete(at_points, k, axis=0).max(axis=0)
        np.multiply(score, np.float32(1) - others, out=exclusive[k])
    return exclusive


def grown_rois(
    scores: Float32Array,
    rois: Sequence[Roi | None],
    *,
    frame_hw: tuple[int, int],
    size_hw: tuple[int, int],
    growth: float,
) -> tuple[Roi | None, ...]:
    """Extend each ROI to points near it that belong to its object by their score.

    A part of the object that was hidden or missed lies outside the box of the warped probability.
    The propagation network can only find it again inside the ROI.

    Args:
        scores: (K, gh, gw) float32; a point belongs to the object above 0.5.
        rois: Per object its ROI, or None if it is lost.
        frame_hw: (h, w) of the working frame.
        size_hw: (height, width) of the features engine's input.
        growth: Largest distance of a point from the ROI, as a share of the ROI's width or height.

    Returns:
        Per object the smallest box around its ROI and one cell around each of these points.
    """
    points = _grid_points(scores, frame_hw, size_hw)
    cell = [FEATURES_STRIDE * frame_hw[axis] / size_hw[axis] for axis in range(2)]
    grown: list[Roi | None] = []
    for score, roi in zip(scores, rois, strict=True):
        if roi is None:
            grown.append(None)
            continue
        near = [
            np.flatnonzero((at >= first - reach) & (at < end + reach))
            for at, first, end, reach in (
                (points[0], roi.y0, roi.y1, math.floor(growth * roi.size_hw[0])),
                (points[1], roi.x0, roi.x1, math.floor(growth * roi.size_hw[1])),
            )
        ]
        rows, columns = np.nonzero(score[np.ix_(near[0], near[1])] > _OBJECT_SCORE)
        if rows.size == 0:
            grown.append(roi)
            continue
        (y0, y1), (x0, x1) = (
            (
                max(math.floor(at[of[chosen.min()]] - reach), 0),
                min(math.ceil(at[of[chosen.max()]] + reach), side),
            )
            for at, of, chosen, reach, side in zip(
                points, near, (rows, columns), cell, frame_hw, strict=True
            )
        )
        grown.append(Roi(min(x0, roi.x0), min(y0, roi.y0), max(x1, roi.x1), max(y1, roi.y1)))
    return tuple(grown)


def crop_scores(
    scores: Float32Array,
    rois: Sequence[Roi | None],
    *,
    frame_hw: tuple[int, int],
    size_hw: tuple[int, int],
    side: int,
) -> Float32Array:
    """Sample the scores at the pixels of the propagation network's crops.

    Args:
        scores: (K, gh, gw) float32.
        rois: Per object its ROI, or None to omit the object.
        frame_hw: (h, w) of the working frame.
        size_hw: (height, width) of the features engine's input.
        side: Side S of the crop.

    Returns:
        (N, S, S) float32 for N ROIs, bilinear; the border is repeated.
    """
    present = [(k, roi) for k, roi in enumerate(rois) if roi is not None]
    crops = np.empty((len(present), side, side), np.float32)
    centres = np.arange(side, dtype=np.float32) + np.float32(0.5)
    for crop, (k, roi) in zip(crops, present, strict=True):
        axes = []
        for axis, first in enumerate((roi.y0, roi.x0)):
            step = np.float32(roi.size_hw[axis] / side)
            pixels = np.float32(first - 0.5) + centres * step
            axes.append(_grid_from_frame(pixels, frame_hw[axis], size_hw[axis]))
        crop[:] = _sampled(scores[k], axes[0], axes[1])
    return crops


def scores_at_frame(
    scores: Float32Array, frame_hw: tuple[int, int], size_hw: tuple[int, int]
) -> list[Float32Array]:
    """Resample (K, gh, gw) scores to K times (h, w) of the working frame."""
    axes = [
        _grid_from_frame(np.arange(frame_hw[axis], dtype=np.float32), frame_hw[axis], size_hw[axis])
        for axis in range(2)
    ]
    return _all_sampled(scores, axes[0], axes[1])


def _grid_from_frame(pixels: Float32Array, frame_side: int, input_side: int) -> Float32Array:
    """Convert pixel positions in the frame to positions on the grid, along one axis."""
    scale = np.float32(input_side / frame_side)
    half = np.float32(0.5)
    positions: Float32Array = ((pixels + half) * scale - half) / np.float32(FEATURES_STRIDE)
    return positions


def _frame_from_grid(points: Float32Array, frame_side: int, input_side: int) -> Float32Array:
    """Convert positions on the grid to pixel positions in the frame, along one axis."""
    scale = np.float32(frame_side / input_side)
    half = np.float32(0.5)
    positions: Float32Array = (points * np.float32(FEATURES_STRIDE) + half) * scale - half
    return positions


def _grid_points(
    scores: Float32Array, frame_hw: tuple[int, int], size_hw: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Return rows and columns of the grid points of scores, in pixels of the frame."""
    rows, columns = (
        _frame_from_grid(np.arange(count, dtype=np.float32), frame_side, input_side)
        for count, frame_side, input_side in zip(scores.shape[1:], frame_hw, size_hw, strict=True)
    )
    return rows, columns


def _sampled(plane: Float32Array, rows: Float32Array, columns: Float32Array) -> Float32Array:
    """Sample a plane bilinearly at all pairs of a row and a column."""
    (sampled,) = _all_sampled([plane], rows, columns)
    return sampled


def _all_sampled(
    planes: Iterable[Float32Array], rows: Float32Array, columns: Float32Array
) -> list[Float32Array]:
    map_x, map_y = np.meshgrid(columns, rows)
    return [
        cv2.remap(plane, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in planes
    ]
