"""Run OSVOS on the host, and average it with the propagation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpn.engines.base import Engine
from mpn.engines.open import EngineSet
from mpn.errors import EngineError
from mpn.runtime.backend import OsvosMaps
from mpn.runtime.host.merge import check_finite
from mpn.runtime.host.preprocess import osvos_input, resize_prob
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.options import ResolvedOptions
from mpn.types import Float32Array, Roi, UInt8Array


class OsvosRunner:
    """Run OSVOS for the objects of a frame.

    Args:
        engines: Open engines.
        options: Options in force.
        objects: The objects' own engines.
    """

    def __init__(
        self, engines: EngineSet, options: ResolvedOptions, objects: ObjectEngines
    ) -> None:
        self._engines = engines
        self._options = options
        self._objects = objects

    def maps(
        self, rgb: UInt8Array, object_ids: Sequence[int], osvos_for: Sequence[bool]
    ) -> OsvosMaps:
        """Run OSVOS; the common engine at most once.

        Args:
            rgb: (h, w, 3) uint8 RGB, the current frame.
            object_ids: The K ids.
            osvos_for: Per object whether OSVOS runs for it.

        Raises:
            EngineError: If there is no OSVOS engine, one fails, or its output is not finite.
        """
        common = self._engines.osvos
        if common is None:
            raise EngineError("no OSVOS engine is open")
        image = self._image(rgb, common)
        shared: Float32Array | None = None
        planes: list[Float32Array | None] = []
        for object_id, is_needed in zip(object_ids, osvos_for, strict=True):
            own = self._objects.get("osvos", object_id)
            if not is_needed:
                planes.append(None)
            elif own is not None:
                planes.append(self._run(own, image, rgb, object_id))
            else:
                shared = self._run(common, image, rgb) if shared is None else shared
                planes.append(shared)
        return OsvosMaps(rgb, tuple(planes))

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
        return recalibrate(plane, threshold=self._options.osvos.threshold)

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


def blend_osvos(
    prob: Float32Array,
    planes: Sequence[Float32Array | None],
    rois: Sequence[Roi | None],
    *,
    osvos_weight: float,
) -> Float32Array:
    """Average each object that OSVOS ran for with its plane, inside its ROI.

    At each pixel the probability of OSVOS is multiplied by 1 - p of each other object there: OSVOS
    may confuse similar objects, and the common network does not separate objects.

    Args:
        prob: (K, h, w) float32 from the propagation, or warped; outside the ROIs it is dropped.
        planes: Per object (h, w) float32 of OSVOS, or None.
        rois: Per object its ROI, or None.
        osvos_weight: 0..1.

    Returns:
        (K, h, w) float32, 0 outside the ROIs.
    """
    weight = np.float32(osvos_weight)
    blended = np.zeros_like(prob)
    for k, (plane, roi) in enumerate(zip(planes, rois, strict=True)):
        if roi is None:
            continue
        window = (slice(roi.y0, roi.y1), slice(roi.x0, roi.x1))
        blended[k][window] = prob[k][window]
        if plane is None:
            continue
        theirs = plane[window]
        for j, other in enumerate(rois):
            if j != k and other is not None and _overlap(roi, other):
                theirs = theirs * (1 - prob[j][window])
        blended[k][window] = (1 - weight) * prob[k][window] + weight * theirs
    return blended


def recalibrate(prob: Float32Array, *, threshold: float) -> Float32Array:
    """Multiply the odds of probabilities so that ``threshold`` becomes 0.5.

    Args:
        prob: Any shape, float32, 0..1.
        threshold: Between 0 and 1; 0.5 changes nothing.
    """
    if threshold == 0.5:
        return prob
    less = np.float32((1 - threshold) / threshold)
    shifted: Float32Array = less * prob / (less * prob + (1 - prob))
    return shifted


def _overlap(a: Roi, b: Roi) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1
