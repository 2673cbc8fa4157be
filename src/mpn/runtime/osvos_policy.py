"""Decide for which objects OSVOS runs, and re-detect lost objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mpn.runtime.backend import FramePlan, OsvosMaps, Readback
from mpn.runtime.candidates import Candidates
from mpn.runtime.host.reliability import mean_ratio
from mpn.runtime.host.roi import with_margin
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.one_shot import OneShotModels
from mpn.runtime.options import ResolvedOptions
from mpn.runtime.state import VideoState
from mpn.runtime.target import NO_SCORE
from mpn.runtime.tracks import TrackMemory
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

_LOST_BELOW = 1 / 3
"""Mean score in units of ``target.agreement_min``."""
_BETTER_BY = 0.25
"""Least difference of the means."""
_LEAST_SHARE = 0.005
"""Share of the frame below which an object is too small for the grid of the target model."""
_ROUNDING = 1e-6
"""Of the mean score of an object without a classifier."""
IOU_MAX = 0.3
"""Largest overlap of a component with another object. Source: VS-ReID."""


class OsvosPolicy:
    """Decide what OSVOS does in a frame; every method is pure.

    The engine directory's OSVOS is one network for "any object". An engine that was fine-tuned on
    an object counts for this object alone.

    Args:
        options: Options in force.
        objects: The objects' own engines.
        models: OSVOS, the target model, or both. If only the target model is in use, its scores
            take the place of OSVOS.
        takes_score: Whether the propagation network takes the score of the target model: then the
            score is not blended as well.
    """

    def __init__(
        self,
        options: ResolvedOptions,
        objects: ObjectEngines,
        models: OneShotModels,
        *,
        takes_score: bool = False,
    ) -> None:
        self._options = options
        self._objects = objects
        self._models = models
        self._takes_score = takes_score
        self._redetects = models.osvos or models.target
        self._every = models.every(options)
        self.stage_name = "osvos" if models.osvos else "target"
        """Stage that the time of the maps and of the search counts for."""

    def plan(self, state: VideoState) -> FramePlan:
        """Plan the next frame under the assumption that no object gets lost in it.

        Args:
            state: Of the frame before.
        """
        object_ids = state.object_ids
        osvos_for = self.osvos_for(
            state.index + 1, (False,) * len(object_ids), object_ids, state.track_memory
        )
        return self._plan(osvos_for, state, scores_agreement=self._may_move_any(object_ids))

    def plan_for(self, candidates: Candidates, state: VideoState) -> FramePlan:
        """Plan the rest of a frame whose candidates are on the host.

        Args:
            candidates: Result of the warp.
            state: Of the frame before.
        """
        is_lost = [roi is None for roi in candidates.rois]
        osvos_for = self.osvos_for(state.index + 1, is_lost, state.object_ids, state.track_memory)
        return self._plan(osvos_for, state, scores_agreement=False)

    def every_frame(self, object_ids: Sequence[int]) -> tuple[bool, ...]:
        """Return for which objects OSVOS runs in every frame; empty if for none.

        Args:
            object_ids: The K ids.
        """
        if not self._models.osvos or self._every != 1:
            return ()
        blends = self._blends(object_ids)
        needed = tuple(blends or self._may_move(object_id) for object_id in object_ids)
        return needed if any(needed) else ()

    def osvos_for(
        self,
        index: int,
        is_lost: Sequence[bool],
        object_ids: Sequence[int],
        track_memory: Mapping[int, TrackMemory],
    ) -> tuple[bool, ...]:
        """Return for which objects OSVOS runs in a frame.

        Always for a lost object. For a tracked one in every ``osvos.every``-th frame and whenever
        it is uncertain, if the output is blended or may move it elsewhere.

        Args:
            index: Number of the frame.
            is_lost: Per object whether the warp has lost it.
            object_ids: The K ids.
            track_memory: Memory of each object by id.
        """
        if not self._redetects:
            return (False,) * len(object_ids)
        is_due = index % self._every == 0
        blends = self._blends(object_ids)
        return tuple(
            lost
            or (
                (is_due or track_memory[object_id].is_uncertain)
                and (blends or self._may_move(object_id))
            )
            for object_id, lost in zip(object_ids, is_lost, strict=True)
        )

    def must_redetect_lost(self, boxes: Sequence[Roi | None]) -> bool:
        """Return whether OSVOS must re-detect an object without bounds or an ROI."""
        return self._redetects and any(box is None for box in boxes)

    def must_redetect(self, readback: Readback, plan: FramePlan, state: VideoState) -> bool:
        """Return whether a frame must be repeated with :meth:`redetect`.

        Args:
            readback: Results of the frame on the device.
            plan: How it ran.
            state: Of the frame before.
        """
        if self.must_redetect_lost(readback.rois):
            return True
        return plan.scores_agreement and any(
            has_map and self._is_contradicted(object_id, agreement)
            for object_id, has_map, agreement in zip(
                state.object_ids, plan.osvos_for, readback.agreement, strict=True
            )
        )

    def redetect(self, candidates: Candidates, maps: OsvosMaps, state: VideoState) -> Candidates:
        """Re-detect lost objects, and tracked ones that OSVOS contradicts.

        Objects are processed by ascending id.

        Args:
            candidates: Result of the warp.
            maps: OSVOS of the frame.
            state: Of the frame before.

        Returns:
            The candidates with the re-detected objects in them, and with the rejected ones marked.
        """
        masks: dict[int, BoolArray] = {}  # of objects whose pixels the others must not take
        found, options, rgb = candidates, self._options, maps.rgb
        for k, (plane, roi) in enumerate(zip(maps.planes, candidates.rois, strict=True)):
            is_tracked = roi is not None
            if plane is None or (is_tracked and not self._contradicts(k, rgb, found, plane, state)):
                continue
            if not masks:
                masks = {j: self._mask(found, j) for j, r in enumerate(found.rois) if r}
            others = [mask for j, mask in masks.items() if j != k]
            proposed = list(self._components(rgb, plane, others, k, state))
            if is_tracked and not self._models.osvos:
                proposed = _clearly_better(proposed, plane, masks[k])
            elif is_tracked and any(iou(c.mask, masks[k]) > IOU_MAX for c in proposed):
                continue  # OSVOS finds it at its candidate, too
            if proposed:
                component = proposed[0]
                masks[k] = component.mask
                roi = with_margin(
                    component.box,
                    options.roi_margin_frac,
                    options.roi_margin_px_min,
                    plane.shape,
                )
                found = found.with_redetected(k, component.prob, component.box, roi)
            elif is_tracked:
                found = self._unconfirmed(found, k, plane, masks[k])
                if found.rois[k] is None:
                    del masks[k]
        return found

    def _unconfirmed(
        self, found: Candidates, k: int, plane: Float32Array, mask: BoolArray
    ) -> Candidates:
        """Mark a contradicted object that is found nowhere else as rejected or lost."""
        if self._models.osvos:
            return found.with_rejected(k)
        if mask.mean() < _LEAST_SHARE:
            return found
        agreement = _mean(plane, mask) / self._options.target.agreement_min
        if agreement < _LOST_BELOW:
            return found.with_lost(k)
        return found.with_rejected(k)

    def _plan(
        self, osvos_for: tuple[bool, ...], state: VideoState, *, scores_agreement: bool
    ) -> FramePlan:
        has_maps = any(osvos_for)
        return FramePlan(
            osvos_for=osvos_for,
            runs_features=self._runs_features(state.index + 1, osvos_for),
            use_propagation=self._options.use_propagation,
            scores_agreement=has_maps and scores_agreement,
            blends=has_maps and self._blends(state.object_ids),
            use_crf=self._options.crf is not None,
        )

    def _runs_features(self, index: int, osvos_for: Sequence[bool]) -> bool:
        serves_maps = self._models.target and not self._models.osvos
        return self.are_features_due(index) or (serves_maps and any(osvos_for))

    def are_features_due(self, index: int) -> bool:
        """Return whether the features engine runs in a frame, whatever happens in it."""
        is_due = index % self._options.target.every == 0 or self.is_update_due(index)
        return self._models.target and is_due

    def is_update_due(self, index: int) -> bool:
        """Return whether the target model is updated after a frame."""
        every = self._options.target.update_every
        return self._models.target and every > 0 and index % every == 0

    def _blends(self, object_ids: Sequence[int]) -> bool:
        """Return whether OSVOS is averaged with the propagation."""
        if not self._models.osvos:
            return self._models.target and not self._takes_score
        mode = self._options.osvos.mode
        return mode == "blend" or (mode == "auto" and self._objects.all_have("osvos", object_ids))

    def _may_move_any(self, object_ids: Sequence[int]) -> bool:
        return any(map(self._may_move, object_ids))

    def _may_move(self, object_id: int) -> bool:
        """Return whether the maps may move a tracked object elsewhere."""
        if not self._models.osvos:
            return self._models.target and self._options.target.agreement_min > 0
        return (
            self._options.redetect.agreement_min > 0
            and self._objects.get("osvos", object_id) is not None
        )

    def _is_too_low(self, mean: float, colour_ratio: Callable[[], float]) -> bool:
        """Return whether a tracked object must be searched elsewhere.

        Args:
            mean: Of its map over its pixels.
            colour_ratio: Computes the mean log ratio of its colours. OSVOS finds any object, so its
                colours count too; the classifier of the target model is its own.
        """
        if not self._models.osvos:
            has_score = abs(mean - NO_SCORE) > _ROUNDING
            return has_score and mean < self._options.target.agreement_min
        options = self._options.redetect
        return mean < options.agreement_min or colour_ratio() < options.colour_min

    def _is_contradicted(self, object_id: int, agreement: tuple[float, float] | None) -> bool:
        """Return whether a measured agreement is too low; see :meth:`_contradicts`."""
        if not self._may_move(object_id):
            return False
        if agreement is None:
            return True
        mean, colour_ratio = agreement
        return self._is_too_low(mean, lambda: colour_ratio)

    def _contradicts(
        self,
        k: int,
        rgb: UInt8Array,
        candidates: Candidates,
        plane: Float32Array,
        state: VideoState,
    ) -> bool:
        """Return whether a tracked object fails the rules for a re-detection."""
        box = candidates.bounds[k]
        if box is None or not self._may_move(state.object_ids[k]):
            return False
        mask, table = self._mask(candidates, k), state.colour_tables[k]
        return self._is_too_low(_mean(plane, mask), lambda: mean_ratio(rgb, table, mask, box=box))

    def _components(
        self,
        rgb: UInt8Array,
        plane: Float32Array,
        others: Sequence[BoolArray],
        k: int,
        state: VideoState,
    ) -> Iterable[Redetection]:
        """Find components for object ``k``: large, free, and of its colours."""
        options, table = self._options, state.colour_tables[k]

        def has_its_colours(mask: BoolArray, box: Roi) -> bool:
            return mean_ratio(rgb, table, mask, box=box) >= options.redetect.colour_min

        return candidate_components(
            plane,
            others,
            threshold=options.threshold,
            min_area_px=options.redetect.area_frac_min * state.first_areas_px[k],
            iou_max=IOU_MAX,
            is_like=has_its_colours,
        )

    def _mask(self, candidates: Candidates, k: int) -> BoolArray:
        mask: BoolArray = candidates.prob[k] > self._options.threshold
        return mask


def _mean(plane: Float32Array, mask: BoolArray) -> float:
    """Return the mean over the pixels of a mask; 0 if it is empty."""
    return float(plane[mask].mean()) if mask.any() else 0.0


def _clearly_better(
    proposed: Sequence[Redetection], plane: Float32Array, mask: BoolArray
) -> list[Redetection]:
    """Return the components whose scores have a higher sum and a clearly higher mean.

    Args:
        proposed: Components of the scores.
        plane: (h, w) float32, the scores of the object.
        mask: (h, w) bool, the pixels of its candidate.
    """
    least_mean, least_sum = _mean(plane, mask) + _BETTER_BY, float(plane[mask].sum())
    return [
        component
        for component in proposed
        if _mean(plane, component.mask) >= least_mean
        and float(plane[component.mask].sum()) >= least_sum
        and not (component.mask & mask).any()
    ]


@dataclass(frozen=True)
class Redetection:
    """A component of the foreground that may be the object.

    Attributes:
        prob: (H, W) float32, OSVOS inside the box without the other components, 0 outside.
        box: Its bounding box.
        mask: (H, W) bool, its pixels.
    """

    prob: Float32Array
    box: Roi
    mask: BoolArray


def candidate_components(
    foreground: Float32Array,
    others: Sequence[BoolArray],
    *,
    threshold: float,
    min_area_px: float,
    iou_max: float,
    is_like: Callable[[BoolArray, Roi], bool] | None = None,
) -> Iterator[Redetection]:
    """Find components of the foreground that may be an object, the largest first.

    A candidate is an 8-connected component above the threshold that is large enough, is not covered
    by another object, and resembles the object. The rule and its numbers follow VS-ReID's
    re-identification, which compares appearances by a network.

    Args:
        foreground: (H, W) float32, 0..1, from OSVOS.
        others: (H, W) bool masks of the objects that are not lost.
        threshold: 0..1; strict.
        min_area_px: Smallest component, in pixels.
        iou_max: Largest intersection over union with any of ``others``.
        is_like: Whether pixels, given with their box, resemble the object; None: all do.
    """
    count, components, stats, _ = cv2.connectedComponentsWithStats(
        (foreground > threshold).view(np.uint8), connectivity=8
    )
    by_area = sorted(range(1, count), key=lambda c: -int(stats[c, cv2.CC_STAT_AREA]))
    for component in by_area:
        x, y, width, height, area = (int(value) for value in stats[component])
        if area < max(min_area_px, 1):
            return
        mask: BoolArray = components == component
        box = Roi(x, y, x + width, y + height)
        if any(iou(mask, other) > iou_max for other in others):
            continue
        if is_like is not None and not is_like(mask, box):
            continue
        rows, columns = slice(y, y + height), slice(x, x + width)
        inside = components[rows, columns]
        prob = np.zeros_like(foreground)
        prob[rows, columns] = np.where(
            (inside == 0) | (inside == component), foreground[rows, columns], 0
        )
        yield Redetection(prob, box, mask)


def iou(a: BoolArray, b: BoolArray) -> float:
    """Compute the intersection over union of two masks; 0 if both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
