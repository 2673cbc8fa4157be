"""Split the first frame into object layers and an inpainted background.

Fine-tuning needs images of the object in other places and poses. They are composed from these
layers, as in LucidTracker (A. Khoreva et al., "Lucid Data Dreaming for Video Object Segmentation",
IJCV 2019) and MaskTrack (F. Perazzi et al., "Learning Video Object Segmentation from Static
Images", CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from mpn.errors import MaskError
from mpn.runtime.host.merge import labels_from_merged
from mpn.runtime.host.preprocess import one_hot, resize_prob, resize_rgb
from mpn.runtime.host.reliability import colour_table
from mpn.runtime.host.roi import box_from_prob
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array, check_labels, check_rgb

MIN_AREA_PX = 64
"""Least number of pixels of an object to fine-tune on."""

_SURROUNDINGS_FRAC = 0.8
"""Margin of the window around the object, as a share of the box's longer side. Motions are
smaller."""
_SURROUNDINGS_PX_MIN = 40
_DAVIS_SHORT_SIDE_PX = 480
_INPAINT_SHORT_SIDE_PX = 160
"""Size of the frame for inpainting: the time grows with the area."""
_INPAINT_RADIUS_PX = 3
_RIM_PX = 3
"""Pixels around an object that contain some of its colour and are inpainted too."""
_CONTINUE_SIGMA_PX = 3.0
_SEAM_SIGMA_PX = 1.5


@dataclass(frozen=True)
class Layer:
    """The pixels of one object.

    Attributes:
        rgb: (h, w, 3) uint8 RGB. The object's colours extend beyond its outline, so that no
            background is blended in at the outline.
        alpha: (h, w) uint8, 255 on the object.
        box: Bounding box of the object.
    """

    rgb: UInt8Array
    alpha: UInt8Array
    box: Roi

    @property
    def side_px(self) -> float:
        """Side of the square with the box's area."""
        height, width = self.box.size_hw
        return float(np.sqrt(height * width))


@dataclass(frozen=True)
class LucidScene:
    """The layers of the first frame, and the window around one object.

    Attributes:
        background: (H, W, 3) uint8 RGB, the whole frame without objects.
        window: The part of the frame around the object that clips show.
        layers: The objects in the window by id, each (h, w) as the window.
        object_id: The object to fine-tune on.
        colour_table: Colours of the object in the first frame, before scaling.
        scale: Pixels of the window per pixel of the first frame, at most 1.
        px_per_px: Pixels of the window per pixel of a frame with a short side of 480, the unit of
            speeds.
    """

    background: UInt8Array
    window: Roi
    layers: Mapping[int, Layer]
    object_id: int
    colour_table: Float32Array
    scale: float
    px_per_px: float

    @classmethod
    def from_frame(
        cls, rgb: UInt8Array, labels: UInt8Array, object_id: int, *, side_px: float
    ) -> Self:
        """Split a frame into layers.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            labels: (H, W) uint8, ids of all objects.
            object_id: The object to fine-tune on.
            side_px: Largest side of the object. A larger frame is scaled down: the crops do not
                show finer detail.

        Raises:
            InputError: If the arrays do not fit each other.
            MaskError: If the object has fewer than 64 pixels, before or after scaling.
        """
        check_rgb(rgb)
        check_labels(labels, (rgb.shape[0], rgb.shape[1]))
        mask = labels == object_id
        check_area(mask, object_id)
        table = colour_table(rgb, mask)
        short_side = min(mask.shape)
        scale = min(side_px / _layer_side_px(mask), 1.0)
        if scale < 1:
            height, width = (max(round(side * scale), 1) for side in mask.shape)
            rgb, labels = resize_rgb(rgb, (height, width)), _resize_labels(labels, (height, width))
            mask = labels == object_id
            check_area(mask, object_id)
        window = _window(mask)
        rows, columns = slice(window.y0, window.y1), slice(window.x0, window.x1)
        inside = labels[rows, columns]
        picture = np.ascontiguousarray(rgb[rows, columns])
        layers = {int(i): _cut_layer(picture, inside == i) for i in np.unique(inside) if i}
        return cls(
            background=_remove_objects(rgb, labels > 0),
            window=window,
            layers=layers,
            object_id=object_id,
            colour_table=table,
            scale=scale,
            px_per_px=scale * short_side / _DAVIS_SHORT_SIDE_PX,
        )

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the window."""
        return self.window.size_hw

    @property
    def target(self) -> Layer:
        """The layer of the object to fine-tune on."""
        return self.layers[self.object_id]


def check_area(mask: BoolArray, object_id: int) -> None:
    """Raise MaskError if the object has too few pixels to fine-tune on."""
    area_px = int(np.count_nonzero(mask))
    if area_px < MIN_AREA_PX:
        raise MaskError(
            f"object {object_id} has {area_px} pixels, at least {MIN_AREA_PX} are needed to "
            "fine-tune on it"
        )


def _layer_side_px(mask: BoolArray) -> float:
    box = _box(mask)
    return float(np.sqrt(box.size_hw[0] * box.size_hw[1]))


def _box(mask: BoolArray) -> Roi:
    box = box_from_prob(mask.astype(np.float32), 0.5)
    if box is None:
        raise MaskError("an object without pixels cannot be cut out")
    return box


def _window(mask: BoolArray) -> Roi:
    box = _box(mask)
    pad = max(round(_SURROUNDINGS_FRAC * max(box.size_hw)), _SURROUNDINGS_PX_MIN)
    height, width = mask.shape
    return Roi(
        max(box.x0 - pad, 0),
        max(box.y0 - pad, 0),
        min(box.x1 + pad, width),
        min(box.y1 + pad, height),
    )


def _resize_labels(labels: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    ids = [int(i) for i in np.unique(labels) if i]
    return labels_from_merged(resize_prob(one_hot(labels, ids), size_hw), ids)


def _cut_layer(rgb: UInt8Array, mask: BoolArray) -> Layer:
    alpha = mask.astype(np.uint8) * np.uint8(255)
    # Pixels at the outline contain background: extend the colours of the inner pixels.
    core = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    if not core.any():
        core = alpha
    known = (core > 0).astype(np.float32)
    continued = _blurred_known(rgb, known, _CONTINUE_SIGMA_PX)
    share = np.where(core > 0, 1.0, np.where(mask, 0.5, 0.0)).astype(np.float32)[..., None]
    colours = share * rgb + (1 - share) * continued
    return Layer(np.rint(colours).astype(np.uint8), alpha, _box(mask))


def _remove_objects(rgb: UInt8Array, objects: BoolArray) -> UInt8Array:
    """Return the frame with the objects inpainted.

    Coarse colours are inpainted on a small copy. Detail is copied from the frame, shifted by the
    size of the hole: the network would recognise a smooth patch as the former place of the object.
    """
    hole = cv2.dilate(
        objects.astype(np.uint8) * np.uint8(255), np.ones((2 * _RIM_PX + 1,) * 2, np.uint8)
    )
    height, width = objects.shape
    shrink = min(_INPAINT_SHORT_SIDE_PX / min(height, width), 1.0)
    small = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    small_hole = cv2.resize(hole, small, interpolation=cv2.INTER_AREA)
    coarse = cv2.inpaint(
        cv2.resize(rgb, small, interpolation=cv2.INTER_AREA),
        (small_hole > 0).astype(np.uint8),
        _INPAINT_RADIUS_PX,
        cv2.INPAINT_TELEA,
    )
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    known = (hole == 0).astype(np.float32)
    detail = (rgb - _blurred_known(rgb, known, _SEAM_SIGMA_PX / shrink)) * known[..., None]
    painted = smooth + _borrow_detail(detail, known, _box(objects))
    share = cv2.GaussianBlur(hole, (0, 0), _SEAM_SIGMA_PX).astype(np.float32)[..., None] / 255
    mixed = rgb * (1 - share) + painted * share
    rounded: UInt8Array = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return rounded


def _borrow_detail(detail: Float32Array, known: Float32Array, box: Roi) -> Float32Array:
    """Copy detail into the hole from pixels one hole width or height away."""
    height, width = known.shape
    box_h, box_w = box.size_hw
    found = known > 0
    borrowed = np.zeros_like(detail)
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.5, 0), (-0.5, 0), (2, 0), (-2, 0), (1, 1))
    for x, y in steps:
        shift = np.array([[1, 0, round(x * box_w)], [0, 1, round(y * box_h)]], np.float32)
        is_known = cv2.warpAffine(known, shift, (width, height), flags=cv2.INTER_NEAREST) > 0
        take = is_known & ~found
        if take.any():
            moved = cv2.warpAffine(detail, shift, (width, height), flags=cv2.INTER_NEAREST)
            borrowed[take] = moved[take]
            found |= take
    return borrowed


def _blurred_known(rgb: UInt8Array, known: Float32Array, sigma_px: float) -> Float32Array:
    """Average the known pixels around each pixel: (h, w, 3) float32, 0..255."""
    total = cv2.GaussianBlur(rgb * known[..., None], (0, 0), sigma_px)
    weight = cv2.GaussianBlur(known, (0, 0), sigma_px)
    mean: Float32Array = np.clip(total / np.maximum(weight, 1e-4)[..., None], 0, 255)
    return mean
