"""Track masks and polygons in CVAT, as an auto-annotation function.

Run it as an agent of a CVAT server (pip install cvat-cli 'mpn-runtime[cpu]'):

    cvat-cli --server-host HOST function create-native "mpn" --function-file cvat_tracking.py
    cvat-cli --server-host HOST function run-agent ID --function-file cvat_tracking.py

The page of a job then offers it under the tools for tracking. With -p engine_dir=str:DIR it takes
the engines that mpn-export wrote to DIR.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import cv2
import cvat_sdk.auto_annotation as cvataa
import numpy as np
import PIL.Image
from cvat_sdk.masks import decode_mask, encode_mask

from mpn import Pipeline
from mpn.engines.open import default_engine_dir, open_engines

OBJECT_ID = 1


@dataclass(frozen=True)
class TrackingState:
    """The state of one shape: a pipeline that has segmented its frames so far.

    Attributes:
        pipeline: Shares the engines with those of all other shapes.
        shape_type: Type of the shape, which the results have too.
    """

    pipeline: Pipeline
    shape_type: str


class MpnTracking:
    """A tracking function in the sense of :mod:`cvat_sdk.auto_annotation`.

    Args:
        engine_dir: Engine directory of mpn-export; None for the one in the package.
        backend: ``"cpu"``, ``"cuda"``, ... or ``"auto"``.
        threads: Threads of the networks; None for all cores.
    """

    def __init__(
        self, engine_dir: str | None = None, *, backend: str = "auto", threads: int | None = None
    ) -> None:
        self._engines = open_engines(
            engine_dir or default_engine_dir(),
            backend=backend,  # type: ignore[arg-type]
            threads=threads,
            with_osvos=False,
        )
        self._lock = threading.Lock()  # the engines run one network at a time

    @property
    def spec(self) -> cvataa.TrackingFunctionSpec:
        """The types of shapes that can be tracked."""
        return cvataa.TrackingFunctionSpec(supported_shape_types=["mask", "polygon"])

    def preprocess_image(
        self, context: cvataa.TrackingFunctionContext, image: PIL.Image.Image
    ) -> np.ndarray:
        """Return the frame as (H, W, 3) uint8 RGB."""
        return np.asarray(image.convert("RGB"))

    def init_tracking_state(
        self,
        context: cvataa.TrackingFunctionShapeContext,
        pp_image: np.ndarray,
        shape: cvataa.TrackableShape,
    ) -> TrackingState:
        """Start a pipeline with the shape."""
        with self._lock:
            pipeline = Pipeline(self._engines)
            pipeline.start(pp_image, labels_of(shape, pp_image.shape[:2]))
        return TrackingState(pipeline, shape.type)

    def track(
        self,
        context: cvataa.TrackingFunctionShapeContext,
        pp_image: np.ndarray,
        state: TrackingState,
    ) -> cvataa.TrackableShape | None:
        """Segment the next frame; None if the object is lost in it."""
        with self._lock:
            labels = state.pipeline.step(pp_image).labels
        return shape_of(labels == OBJECT_ID, state.shape_type)


def labels_of(shape: cvataa.TrackableShape, size_hw: tuple[int, int]) -> np.ndarray:
    """Return (H, W) uint8 labels of a shape."""
    height, width = size_hw
    if shape.type == "mask":
        mask = decode_mask(shape.points, image_width=width, image_height=height)
        return mask.astype(np.uint8) * OBJECT_ID
    labels = np.zeros(size_hw, np.uint8)
    corners = np.round(np.array(shape.points).reshape(-1, 2)).astype(np.int32)
    cv2.fillPoly(labels, [corners], OBJECT_ID)
    return labels


def shape_of(mask: np.ndarray, shape_type: str) -> cvataa.TrackableShape | None:
    """Return the shape of an (H, W) bool mask; None if it is empty.

    A polygon is its largest part.
    """
    if not mask.any():
        return None
    if shape_type == "mask":
        return cvataa.TrackableShape(type="mask", points=encode_mask(mask))
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    largest = max(contours, key=cv2.contourArea)
    if len(largest) < 3:
        return None
    return cvataa.TrackableShape(type="polygon", points=largest.reshape(-1).astype(float).tolist())


def create(engine_dir: str | None = None, backend: str = "auto") -> MpnTracking:
    """Make the function; called by cvat-cli with the parameters of -p."""
    return MpnTracking(engine_dir, backend=backend)
