"""Warp, crop, propagate and paste: the stages around the propagation network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpn.engines.base import Engine
from mpn.engines.open import EngineSet
from mpn.errors import EngineError
from mpn.runtime.candidates import Candidates
from mpn.runtime.host.merge import blend, check_finite
from mpn.runtime.host.ops import crop_resize_pack, paste, warp_bilinear
from mpn.runtime.host.reliability import suppress_unreliable
from mpn.runtime.host.roi import reachable_boxes, roi_from_prob
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import ResolvedOptions
from mpn.types import Float32Array, Roi, TrackBranch, UInt8Array


class Stages:
    """Stages as functions of arrays; every method is pure.

    Args:
        engines: Open engines.
        options: Options in force.
        objects: The objects' own engines; None: all use the common ones.
    """

    def __init__(
        self,
        engines: EngineSet,
        options: ResolvedOptions,
        objects: ObjectEngines | None = None,
    ) -> None:
        self._engines = engines
        self._options = options
        self._objects = ObjectEngines() if objects is None else objects

    def warp(
        self,
        rgb: UInt8Array,
        prob: Float32Array,
        bounds: Sequence[Roi | None],
        first_areas_px: Sequence[float],
        flow_to_prev_px: Float32Array,
        flow_from_prev_px: Float32Array | None = None,
        colour_tables: Sequence[Float32Array] | None = None,
    ) -> Candidates:
        """Warp the objects into the current frame and compute their ROIs.

        Args:
            rgb: (h, w, 3) uint8 RGB, the current frame.
            prob: (K, h, w) float32 of the previous frame.
            bounds: Per object a box outside which it is 0, or None.
            first_areas_px: Per object its area when it was given.
            flow_to_prev_px: (2, h, w) float32.
            flow_from_prev_px: (2, h, w) float32 on the previous frame's grid, for the flow check;
                None omits the check.
            colour_tables: Per object its colours; None omits the colour likelihood.

        Raises:
            EngineError: If the flow has another size than the frame.
        """
        if flow_to_prev_px.shape != (2, *prob.shape[1:]):
            raise EngineError(
                f"the flow must be (2, {prob.shape[1]}, {prob.shape[2]}) like the frame, "
                f"got {flow_to_prev_px.shape}"
            )
        warp_bounds = reachable_boxes(bounds, flow_to_prev_px)
        warped = warp_bilinear(prob, flow_to_prev_px, boxes=warp_bounds)
        tables = (None,) * len(warped) if colour_tables is None else colour_tables
        for plane, table, box in zip(warped, tables, warp_bounds, strict=True):
            if box is not None:
                suppress_unreliable(
                    plane,
                    box,
                    flow_to_prev_px=flow_to_prev_px,
                    flow_from_prev_px=flow_from_prev_px,
                    flow_check_px=self._options.flow_check_px,
                    rgb=rgb,
                    colour_table=table,
                    colour_weight=self._options.colour_weight,
                )
        rois = [
            self._roi(plane, box, area)
            for plane, box, area in zip(warped, warp_bounds, first_areas_px, strict=True)
        ]
        for plane, roi, box in zip(warped, rois, warp_bounds, strict=True):
            if roi is None and box is not None:  # the rest of a lost object is no candidate
                plane[box.y0 : box.y1, box.x0 : box.x1] = 0
        branch: TrackBranch = "propagation"
        return Candidates(
            prob=warped,
            bounds=tuple(
                None if roi is None else box for roi, box in zip(rois, warp_bounds, strict=True)
            ),
            rois=tuple(rois),
            branches=(branch,) * len(rois),
        )

    def crop(
        self, rgb: UInt8Array, candidates: Candidates, scores: Float32Array | None = None
    ) -> Float32Array:
        """Make the propagation network's input for every object that is not lost.

        Args:
            rgb: (h, w, 3) uint8, the current frame.
            candidates: Result of the warp.
            scores: (N, S, S) float32 of the target model, for a network that takes them.

        Returns:
            (N, 4, S, S) float32, or (N, 5, S, S) with scores.
        """
        preprocessing = self._engines.manifest.preprocessing.propagation
        return crop_resize_pack(
            rgb,
            candidates.prob,
            candidates.rois,
            size=self._engines.manifest.roi_size,
            mean=preprocessing.mean_rgb,
            std=preprocessing.std_rgb,
            scores=scores,
        )

    def propagate(self, packed: Float32Array, object_ids: Sequence[int]) -> Float32Array:
        """Run the propagation network on all crops.

        An object with a fine-tuned engine runs on that engine, all others in one batch.

        With option ``flip_tta`` every crop is flipped horizontally as well, and both outputs are
        averaged. More crops than an engine takes run in several batches.

        Args:
            packed: (N, 4, S, S) float32.
            object_ids: Per crop the id of its object.

        Returns:
            (N, 1, S, S) float32 foreground probability.

        Raises:
            EngineError: If an engine fails or its output is not finite.
        """
        if not self._options.flip_tta:
            return self._run_all(packed, object_ids)
        both = np.concatenate((packed, packed[..., ::-1]))
        outputs = self._run_all(both, [*object_ids, *object_ids])
        prob, flipped = outputs[: len(packed)], outputs[len(packed) :]
        mean: Float32Array = (prob + flipped[..., ::-1]) * np.float32(0.5)
        return mean

    def _run_all(self, packed: Float32Array, object_ids: Sequence[int]) -> Float32Array:
        """Run each crop on its engine, in batches per engine."""
        own: dict[int, tuple[Engine, list[int]]] = {}
        common: list[int] = []
        for n, object_id in enumerate(object_ids):
            engine = self._objects.get("propagation", object_id)
            if engine is None:
                common.append(n)
            else:
                own.setdefault(object_id, (engine, []))[1].append(n)
        if not own:
            return self._run(self._engines.propagation, packed)
        prob = np.empty((len(packed), 1, *packed.shape[2:]), np.float32)
        if common:
            prob[common] = self._run(self._engines.propagation, packed[common])
        for object_id, (engine, rows) in own.items():
            prob[rows] = self._run(engine, packed[rows], object_id)
        return prob

    def paste(self, crops: Float32Array, candidates: Candidates) -> Float32Array:
        """Paste the network's output: (N, 1, S, S) -> (K, h, w), 0 outside the ROIs.

        With a ``propagation_weight`` under 1 it is averaged with the warped probability.
        """
        size_hw = (candidates.prob.shape[1], candidates.prob.shape[2])
        prob = paste(crops, candidates.rois, size_hw)
        weight = self._options.propagation_weight
        if weight == 1:
            return prob
        return blend(prob, candidates.prob, candidates.rois, other_weight=1 - weight)

    def _run(
        self, engine: Engine, packed: Float32Array, object_id: int | None = None
    ) -> Float32Array:
        if len(packed) == 0:
            return np.zeros((0, 1, *packed.shape[2:]), np.float32)
        most = self._engines.manifest.max_objects
        (name,) = engine.spec.input_names
        if len(packed) <= most:
            prob = engine.run({name: packed})["prob"]
        else:
            prob = np.empty((len(packed), 1, *packed.shape[2:]), np.float32)
            for first in range(0, len(packed), most):
                batch = slice(first, first + most)
                prob[batch] = engine.run({name: packed[batch]})["prob"]
        check_finite(prob, "propagation", object_id)
        return prob

    def _roi(self, warped: Float32Array, within: Roi | None, first_area_px: float) -> Roi | None:
        if within is None:
            return None
        options = self._options
        if options.lost_area_frac > 0:
            inside = warped[within.y0 : within.y1, within.x0 : within.x1]
            area_px = np.count_nonzero(inside > options.threshold)
            if area_px < options.lost_area_frac * first_area_px:
                return None
        return roi_from_prob(
            warped,
            threshold=options.threshold,
            margin_frac=options.roi_margin_frac,
            margin_px_min=options.roi_margin_px_min,
            within=within,
        )
