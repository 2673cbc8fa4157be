"""OSVOS in a frame: for which objects it runs, where it finds a lost one, how it is averaged.

The engine directory's OSVOS is one network for "any object". Where it was fine-tuned on an object,
that object has its own, which answers for this object alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mpn.engines.base import Engine
from mpn.engines.open import EngineSet
from mpn.errors import EngineError
from mpn.runtime.candidates import Candidates
from mpn.runtime.host.merge import check_finite
from mpn.runtime.host.preprocess import osvos_input, resize_prob
from mpn.runtime.host.reliability import mean_ratio
from mpn.runtime.host.roi import with_margin
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import PipelineOptions
from mpn.runtime.osvos_policy import Retrieved, iou, places
from mpn.runtime.state import State
from mpn.runtime.tracks import Trust
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

Planes = Sequence[Float32Array | None]
"""For each object (h, w) float32 probability of OSVOS; None: it did not run for this one."""


class OsvosStage:
    """OSVOS with what it needs bound to it; every method is pure.

    Args:
        engines: Open engines.
        options: Options in force.
        objects: The objects' own engines.
    """

    def __init__(
        self, engines: EngineSet, options: PipelineOptions, objects: ObjectEngines
    ) -> None:
        self._engines = engines
        self._options = options
        self._objects = objects

    def blends(self, object_ids: Sequence[int]) -> bool:
        """Whether OSVOS is averaged with the propagation."""
        mode = self._options.osvos
        return mode == "blend" or (mode == "auto" and self._objects.all_have("osvos", object_ids))

    @property
    def seeks_lost(self) -> bool:
        """Whether lost objects are looked for: there is an OSVOS, and it may run."""
        return self._engines.osvos is not None and self._options.osvos != "off"

    def may_move_any(self, object_ids: Sequence[int]) -> bool:
        """Whether OSVOS may find that one of these tracked objects is really elsewhere."""
        return any(map(self._may_move, object_ids))

    def is_mistaken_by(self, object_id: int, agreement: tuple[float, float] | None) -> bool:
        """Whether the place of a tracked object fails what a new place for it must pass.

        Args:
            object_id: Of an object that OSVOS ran for.
            agreement: Means of OSVOS and of the colours' log ratio where it is expected; None if
                it is expected nowhere.
        """
        if not self._may_move(object_id):
            return False
        if agreement is None:
            return True
        seen, ratio = agreement
        return seen < self._options.retrieve_agreement or ratio < self._options.retrieve_colour

    def is_in_every_frame(self, object_ids: Sequence[int]) -> bool:
        """Whether no frame goes without OSVOS, however well the objects are followed."""
        return self._options.osvos_every == 1 and (
            self.blends(object_ids) or any(map(self._may_move, object_ids))
        )

    def wanted(
        self,
        index: int,
        candidates: Candidates,
        object_ids: Sequence[int],
        trust: Mapping[int, Trust],
    ) -> tuple[bool, ...]:
        """For which objects OSVOS has something to say in this frame.

        For a lost object always. For a tracked one in every ``osvos_every``-th frame and whenever
        it is doubtful, if the answer is blended, or may move it elsewhere.

        Args:
            index: Number of the frame.
            candidates: What the warp found.
            object_ids: The K ids.
            trust: What is remembered of each.
        """
        if not self.seeks_lost:
            return (False,) * len(object_ids)
        is_due = index % self._options.osvos_every == 0
        blends = self.blends(object_ids)
        return tuple(
            roi is None
            or ((is_due or trust[object_id].is_doubtful) and (blends or self._may_move(object_id)))
            for object_id, roi in zip(object_ids, candidates.rois, strict=True)
        )

    def planes(
        self, rgb: UInt8Array, object_ids: Sequence[int], wanted: Sequence[bool]
    ) -> tuple[Float32Array | None, ...]:
        """Run OSVOS for the objects that want it; the common engine at most once.

        Args:
            rgb: (h, w, 3) uint8 RGB, the current frame.
            object_ids: The K ids.
            wanted: From :meth:`wanted`.

        Raises:
            EngineError: If there is no OSVOS engine, one fails, or its answer is not finite.
        """
        common = self._engines.osvos
        if common is None:
            raise EngineError("no OSVOS engine is open")
        image = self._image(rgb, common)
        shared: Float32Array | None = None
        planes: list[Float32Array | None] = []
        for object_id, is_wanted in zip(object_ids, wanted, strict=True):
            own = self._objects.get("osvos", object_id)
            if not is_wanted:
                planes.append(None)
            elif own is not None:
                planes.append(self._run(own, image, rgb, object_id))
            else:
                shared = self._run(common, image, rgb) if shared is None else shared
                planes.append(shared)
        return tuple(planes)

    def retrieve_lost(
        self, rgb: UInt8Array, candidates: Candidates, planes: Planes, state: State
    ) -> Candidates:
        """Look for the lost objects, and for those that propagation has mistaken, by ascending id.

        Args:
            rgb: (h, w, 3) uint8 RGB, the current frame.
            candidates: What the warp found.
            planes: From :meth:`planes`.
            state: Of the frame before.

        Returns:
            The candidates with those found in them, and with those that are denied.
        """
        masks: dict[int, BoolArray] = {}  # of the objects that the others must not be found on
        found, options = candidates, self._options
        for k, (plane, roi) in enumerate(zip(planes, candidates.rois, strict=True)):
            is_tracked = roi is not None
            if plane is None or (is_tracked and not self._is_mistaken(k, rgb, found, plane, state)):
                continue
            if not masks:
                masks = {j: self._mask(found, j) for j, r in enumerate(found.rois) if r}
            others = [mask for j, mask in masks.items() if j != k]
            proposed = list(self._places(rgb, plane, others, k, state))
            if is_tracked and any(
                iou(place.mask, masks[k]) > options.retrieve_iou_max for place in proposed
            ):
                continue  # OSVOS sees it where it is, too
            if proposed:
                place = proposed[0]
                masks[k] = place.mask
                found = found.with_retrieved(
                    k, place.prob, place.box, self._roi(place.box, plane.shape)
                )
            elif is_tracked:
                found = found.with_denied(k)
        return found

    def ensemble(
        self, prob: Float32Array, planes: Planes, candidates: Candidates
    ) -> tuple[Float32Array, Candidates]:
        """Average each object that OSVOS ran for with its answer, inside its ROI.

        Where other objects are, OSVOS counts for as much as they leave: it may take a like object
        for this one, and the one network for all takes every object for every other.

        Args:
            prob: (K, h, w) float32 from the propagation, or warped; outside the ROIs it is dropped.
            planes: From :meth:`planes`.
            candidates: Where the objects are expected.

        Returns:
            The blended probabilities, 0 outside the ROIs, and the candidates that say so.
        """
        weight = np.float32(self._options.ensemble_weight)
        blended = np.zeros_like(prob)
        said = candidates
        for k, (plane, roi) in enumerate(zip(planes, candidates.rois, strict=True)):
            if roi is None:
                continue
            window = (slice(roi.y0, roi.y1), slice(roi.x0, roi.x1))
            blended[k][window] = prob[k][window]
            if plane is None:
                continue
            theirs = plane[window]
            for j, other in enumerate(candidates.rois):
                if j != k and other is not None and _overlap(roi, other):
                    theirs = theirs * (1 - prob[j][window])
            blended[k][window] = (1 - weight) * prob[k][window] + weight * theirs
            said = said.with_blended(k)
        return blended, said

    def _run(
        self,
        engine: Engine,
        image: Float32Array,
        rgb: UInt8Array,
        object_id: int | None = None,
    ) -> Float32Array:
        prob = engine.run({"image": image})["prob"]
        check_finite(prob, "OSVOS", object_id)
        plane: Float32Array = resize_prob(prob[0], (rgb.shape[0], rgb.shape[1]))[0]
        return shifted_odds(plane, even_at=self._options.osvos_threshold)

    def _places(
        self,
        rgb: UInt8Array,
        plane: Float32Array,
        others: Sequence[BoolArray],
        k: int,
        state: State,
    ) -> Iterable[Retrieved]:
        """Where OSVOS sees object ``k``: large, free and of its colours."""
        options, table = self._options, state.colour_tables[k]

        def is_like(mask: BoolArray, box: Roi) -> bool:
            return mean_ratio(rgb, table, mask, box=box) >= options.retrieve_colour

        return places(
            plane,
            others,
            threshold=options.threshold,
            min_area_px=options.retrieve_area_frac * state.first_areas_px[k],
            iou_max=options.retrieve_iou_max,
            is_like=is_like,
        )

    def _mask(self, candidates: Candidates, k: int) -> BoolArray:
        mask: BoolArray = candidates.prob[k] > self._options.threshold
        return mask

    def _roi(self, box: Roi, size_hw: tuple[int, ...]) -> Roi:
        options = self._options
        return with_margin(box, options.roi_margin_frac, options.roi_margin_px_min, size_hw)

    def _may_move(self, object_id: int) -> bool:
        """Whether OSVOS may find that a tracked object is really elsewhere."""
        return (
            self._options.retrieve_agreement > 0
            and self._objects.get("osvos", object_id) is not None
        )

    def _is_mistaken(
        self, k: int, rgb: UInt8Array, candidates: Candidates, plane: Float32Array, state: State
    ) -> bool:
        """Whether the place of a tracked object fails what a new place for it must pass."""
        box = candidates.supports[k]
        if box is None or not self._may_move(state.object_ids[k]):
            return False
        options, mask = self._options, self._mask(candidates, k)
        if not mask.any() or plane[mask].mean() < options.retrieve_agreement:
            return True
        return mean_ratio(rgb, state.colour_tables[k], mask, box=box) < options.retrieve_colour

    def _image(self, rgb: UInt8Array, engine: Engine) -> Float32Array:
        height, width = engine.spec.inputs[0].shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            raise EngineError(f"an OSVOS engine has a fixed size, this one takes {height}x{width}")
        preprocessing = self._engines.manifest.preprocessing.osvos
        return osvos_input(
            rgb,
            (height, width),
            channel_order=preprocessing.channel_order,
            mean=preprocessing.mean,
        )


def shifted_odds(prob: Float32Array, *, even_at: float) -> Float32Array:
    """Probabilities with their odds multiplied, so that ``even_at`` becomes 0.5.

    Args:
        prob: Any shape, float32, 0..1.
        even_at: Between 0 and 1; 0.5 changes nothing.
    """
    if even_at == 0.5:
        return prob
    less = np.float32((1 - even_at) / even_at)
    shifted: Float32Array = less * prob / (less * prob + (1 - prob))
    return shifted


def _overlap(a: Roi, b: Roi) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1
