"""The stages of a frame that need engines or options. Their order is the pipeline's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpn.engines.load import EngineSet
from mpn.errors import EngineError
from mpn.runtime.ensemble import blend
from mpn.runtime.evidence import weigh_in_box
from mpn.runtime.ops.base import Ops
from mpn.runtime.options import PipelineOptions
from mpn.runtime.preprocess import osvos_input, resize_prob
from mpn.runtime.retrieval import retrieve
from mpn.runtime.roi import reachable_boxes, roi_from_prob, with_margin
from mpn.types import Float32Array, Roi, TrackBranch, UInt8Array


@dataclass(frozen=True)
class Candidates:
    """Where each object is expected in the current frame.

    Attributes:
        prob: (K, h, w) float32: warped from the previous frame, or from OSVOS if retrieved.
        supports: For each object a box outside which ``prob`` is exactly 0; None if it is lost.
        rois: For each object what the propagation network looks at; None if it is lost.
        branches: What ``prob`` comes from.
    """

    prob: Float32Array
    supports: tuple[Roi | None, ...]
    rois: tuple[Roi | None, ...]
    branches: tuple[TrackBranch, ...]

    @property
    def has_lost(self) -> bool:
        """Whether an object is expected nowhere."""
        return None in self.rois


class Stages:
    """The stages with what they need bound to them; every method is pure.

    Args:
        engines: Open engines.
        options: Options in force.
        ops: Array operations.
    """

    def __init__(self, engines: EngineSet, options: PipelineOptions, ops: Ops) -> None:
        self._engines = engines
        self._options = options
        self._ops = ops

    def warp(
        self,
        rgb: UInt8Array,
        prob: Float32Array,
        supports: Sequence[Roi | None],
        first_areas_px: Sequence[float],
        flow_to_prev_px: Float32Array,
        flow_from_prev_px: Float32Array | None = None,
        colour_tables: Sequence[Float32Array] | None = None,
    ) -> Candidates:
        """Carry the objects into the current frame and find their ROIs.

        Args:
            rgb: (h, w, 3) uint8 RGB, the current frame.
            prob: (K, h, w) float32 of the previous frame.
            supports: Boxes outside which it is 0.
            first_areas_px: Area of each object when it was given.
            flow_to_prev_px: (2, h, w) float32.
            flow_from_prev_px: (2, h, w) float32 on the previous frame's grid, to check it with;
                None to believe it.
            colour_tables: Colours of each object; None to leave them out.

        Raises:
            EngineError: If the flow has another size than the frame.
        """
        if flow_to_prev_px.shape != (2, *prob.shape[1:]):
            raise EngineError(
                f"the flow must be (2, {prob.shape[1]}, {prob.shape[2]}) like the frame, "
                f"got {flow_to_prev_px.shape}"
            )
        reach = reachable_boxes(supports, flow_to_prev_px)
        warped = self._ops.warp_bilinear(prob, flow_to_prev_px, boxes=reach)
        tables = (None,) * len(warped) if colour_tables is None else colour_tables
        for plane, table, box in zip(warped, tables, reach, strict=True):
            if box is not None:
                weigh_in_box(
                    plane,
                    box,
                    flow_to_prev_px=flow_to_prev_px,
                    flow_from_prev_px=flow_from_prev_px,
                    flow_check_px=self._options.flow_check_px,
                    rgb=rgb,
                    colour_table=table,
                    colour_weight=self._options.colour_weight,
                    ops=self._ops,
                )
        rois = [
            self._roi(plane, box, area)
            for plane, box, area in zip(warped, reach, first_areas_px, strict=True)
        ]
        for plane, roi, box in zip(warped, rois, reach, strict=True):
            if roi is None and box is not None:  # what is left of a lost object is no candidate
                plane[box.y0 : box.y1, box.x0 : box.x1] = 0
        branch: TrackBranch = "propagation"
        return Candidates(
            prob=warped,
            supports=tuple(
                None if roi is None else box for roi, box in zip(rois, reach, strict=True)
            ),
            rois=tuple(rois),
            branches=(branch,) * len(rois),
        )

    def is_osvos_needed(self, candidates: Candidates) -> bool:
        """Whether OSVOS has anything to say about this frame."""
        if self._engines.osvos is None or self._options.osvos == "off":
            return False
        return candidates.has_lost or self.blends(len(candidates.rois))

    def blends(self, objects: int) -> bool:
        """Whether OSVOS is averaged with the propagation when there are so many objects."""
        mode = self._options.osvos
        return mode == "blend" or (mode == "auto" and objects == 1)

    def foreground(self, rgb: UInt8Array) -> Float32Array:
        """Run OSVOS: (h, w, 3) uint8 RGB -> (h, w) float32 probability of any object.

        Raises:
            EngineError: If there is no OSVOS engine, it fails, or its answer is not finite.
        """
        engine = self._engines.osvos
        if engine is None:
            raise EngineError("no OSVOS engine is open")
        height, width = engine.spec.inputs[0].shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            raise EngineError(f"an OSVOS engine has a fixed size, this one takes {height}x{width}")
        preprocessing = self._engines.manifest.preprocessing.osvos
        image = osvos_input(
            rgb,
            (height, width),
            channel_order=preprocessing.channel_order,
            mean=preprocessing.mean,
        )
        prob = engine.run({"image": image})["prob"]
        _check_finite(prob, "OSVOS")
        foreground: Float32Array = resize_prob(prob[0], (rgb.shape[0], rgb.shape[1]))[0]
        return foreground

    def retrieve_lost(
        self, candidates: Candidates, foreground: Float32Array, first_areas_px: Sequence[float]
    ) -> Candidates:
        """Look for the lost objects in the foreground, by ascending id.

        Args:
            candidates: What :meth:`warp` found.
            foreground: (h, w) float32 from :meth:`foreground`.
            first_areas_px: Area of each object when it was given.

        Returns:
            The candidates with those found in them.
        """
        options = self._options
        prob = candidates.prob.copy()
        supports, rois = list(candidates.supports), list(candidates.rois)
        branches = list(candidates.branches)
        taken = [prob[k] > options.threshold for k, roi in enumerate(rois) if roi is not None]
        for k, roi in enumerate(rois):
            if roi is not None:
                continue
            found = retrieve(
                foreground,
                taken,
                threshold=options.threshold,
                min_area_px=options.retrieve_area_frac * first_areas_px[k],
                iou_max=options.retrieve_iou_max,
            )
            if found is None:
                continue
            prob[k], supports[k], branches[k] = found.prob, found.box, "osvos"
            rois[k] = with_margin(
                found.box, options.roi_margin_frac, options.roi_margin_px_min, foreground.shape
            )
            taken.append(found.mask)
        return Candidates(prob, tuple(supports), tuple(rois), tuple(branches))

    def crop(self, rgb: UInt8Array, candidates: Candidates) -> Float32Array:
        """The propagation network's input for every object that is not lost.

        Args:
            rgb: (h, w, 3) uint8, the current frame.
            candidates: Where the objects are expected.

        Returns:
            (N, 4, S, S) float32.
        """
        preprocessing = self._engines.manifest.preprocessing.propagation
        return self._ops.crop_resize_pack(
            rgb,
            candidates.prob,
            candidates.rois,
            size=self._engines.manifest.roi_size,
            mean=preprocessing.mean_rgb,
            std=preprocessing.std_rgb,
        )

    def propagate(self, packed: Float32Array) -> Float32Array:
        """Run the propagation network on all objects at once.

        More objects than the engine takes go through in several batches.

        Args:
            packed: (N, 4, S, S) float32.

        Returns:
            (N, 1, S, S) float32 foreground probability.

        Raises:
            EngineError: If the engine fails or its answer is not finite.
        """
        if len(packed) == 0:
            return np.zeros((0, 1, *packed.shape[2:]), np.float32)
        most = self._engines.manifest.max_objects
        run = self._engines.propagation.run
        if len(packed) <= most:
            prob = run({"rgb_prob": packed})["prob"]
        else:
            prob = np.empty((len(packed), 1, *packed.shape[2:]), np.float32)
            for first in range(0, len(packed), most):
                batch = slice(first, first + most)
                prob[batch] = run({"rgb_prob": packed[batch]})["prob"]
        _check_finite(prob, "propagation")
        return prob

    def paste(self, crops: Float32Array, candidates: Candidates) -> Float32Array:
        """Put the network's answer into the frame: (N, 1, S, S) -> (K, h, w), 0 outside the ROIs.

        With a ``propagation_weight`` under 1 the rest comes from what the network was given.
        """
        size_hw = (candidates.prob.shape[1], candidates.prob.shape[2])
        prob = self._ops.paste(crops, candidates.rois, size_hw)
        weight = self._options.propagation_weight
        if weight == 1:
            return prob
        return blend(prob, candidates.prob, candidates.rois, other_weight=1 - weight)

    def ensemble(
        self, prob: Float32Array, foreground: Float32Array, candidates: Candidates
    ) -> tuple[Float32Array, tuple[TrackBranch, ...]]:
        """Average each object with OSVOS inside its ROI.

        Args:
            prob: (K, h, w) float32 from the propagation.
            foreground: (h, w) float32 from :meth:`foreground`.
            candidates: Where the objects are expected.

        Returns:
            The blended probabilities, 0 outside the ROIs, and the branches they come from.
        """
        blended = blend(
            prob, foreground[None], candidates.rois, other_weight=self._options.ensemble_weight
        )
        branches: tuple[TrackBranch, ...] = tuple(
            "blended" if branch == "propagation" else branch for branch in candidates.branches
        )
        return blended, branches

    def _roi(self, warped: Float32Array, reach: Roi | None, first_area_px: float) -> Roi | None:
        if reach is None:
            return None
        options = self._options
        if options.lost_area_frac > 0:
            inside = warped[reach.y0 : reach.y1, reach.x0 : reach.x1]
            area_px = np.count_nonzero(inside > options.threshold)
            if area_px < options.lost_area_frac * first_area_px:
                return None
        return roi_from_prob(
            warped,
            threshold=options.threshold,
            margin_frac=options.roi_margin_frac,
            margin_px_min=options.roi_margin_px_min,
            within=reach,
        )


def _check_finite(prob: Float32Array, role: str) -> None:
    # The sum is finite only if every term is: one pass without a temporary.
    if not np.isfinite(prob.sum(dtype=np.float64)):
        raise EngineError(
            f"the {role} engine answered with values that are not finite: its weights or its "
            "precision are broken, export it again in fp32"
        )
