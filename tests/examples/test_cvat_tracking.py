"""The example for CVAT against the types of CVAT's own package."""

from __future__ import annotations

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import PIL.Image
import pytest
from cvat_sdk.masks import decode_mask, encode_mask

from examples import cvat_tracking
from mpn.synthetic import render_clip
from tests.tolerances import TRACKED_IOU_MIN

FRAMES = 3


class Context(cvataa.TrackingFunctionShapeContext):
    """Has the type only, as the one of an agent."""

    def __init__(self, shape_type: str) -> None:
        self._type = shape_type

    @property
    def original_shape_type(self) -> str:
        return self._type


@pytest.fixture(scope="module")
def function() -> cvataa.TrackingFunction:
    return cvat_tracking.create(backend="cpu")


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_spec_is_one_of_cvat(function: cvataa.TrackingFunction) -> None:
    assert isinstance(function.spec, cvataa.TrackingFunctionSpec)
    assert function.spec.supported_shape_types == {"mask", "polygon"}


def test_shapes_are_tracked_with_states_of_their_own(function: cvataa.TrackingFunction) -> None:
    """CVAT tracks all shapes of a frame before the next frame."""
    frames = list(render_clip(frames=FRAMES, size_hw=(240, 427)))
    masks = [frames[0].labels == object_id for object_id in (1, 2)]
    shapes = [
        cvataa.TrackableShape(type="mask", points=encode_mask(masks[0])),
        cvat_tracking.shape_of(masks[1], "polygon"),
    ]
    images = [
        function.preprocess_image(Context("mask"), PIL.Image.fromarray(frame.rgb))
        for frame in frames
    ]
    states = [function.init_tracking_state(Context(s.type), images[0], s) for s in shapes]
    for frame, image in zip(frames[1:], images[1:], strict=True):
        found = [function.track(Context(state.shape_type), image, state) for state in states]
        assert [shape.type for shape in found] == ["mask", "polygon"]
        assert all(isinstance(shape, cvataa.TrackableShape) for shape in found)
        height, width = frame.labels.shape
        mask = decode_mask(found[0].points, image_width=width, image_height=height)
        drawn = cvat_tracking.labels_of(found[1], (height, width)) > 0
        for got, object_id in ((mask, 1), (drawn, 2)):
            assert iou(got, frame.labels == object_id) >= TRACKED_IOU_MIN


def test_lost_object_and_empty_polygon_are_none() -> None:
    mask = np.zeros((8, 9), bool)
    assert cvat_tracking.shape_of(mask, "mask") is None
    mask[2, 3] = True
    assert cvat_tracking.shape_of(mask, "polygon") is None
    shape = cvat_tracking.shape_of(mask, "mask")
    assert shape is not None
    np.testing.assert_array_equal(cvat_tracking.labels_of(shape, (8, 9)) > 0, mask)
