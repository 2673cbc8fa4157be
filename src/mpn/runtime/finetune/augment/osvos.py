"""Sample crops of the first frame to fine-tune OSVOS on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mpn.runtime.finetune.augment.motion import Light
from mpn.runtime.finetune.augment.scene import check_area
from mpn.runtime.host.preprocess import osvos_input, resize_rgb
from mpn.types import BoolArray, Float32Array, UInt8Array, check_labels, check_rgb


@dataclass(frozen=True)
class CropRange:
    """Ranges of the random scale, aspect ratio, rotation, position and colours.

    Attributes:
        zoom: Range of the short side of the frame, in sides of the crop; drawn log-uniformly.
        aspect: Largest factor between the scales of width and height.
        rotation_deg: Largest rotation in either direction.
        on_object_share: Share of crops with a centre near the object.
        light_share: Share of recoloured crops. 0 by default: the network has to recognise the
            object by its colours too.
    """

    zoom: tuple[float, float] = (0.9, 2.2)
    aspect: float = 1.15
    rotation_deg: float = 10.0
    on_object_share: float = 0.7
    light_share: float = 0.0


class OsvosSampler:
    """Sample batches of scaled, rotated and flipped crops of the first frame.

    Other objects of the frame are background for this one.

    Args:
        rgb: (h, w, 3) uint8 RGB, the first frame at working size.
        labels: (h, w) uint8, ids of all objects.
        object_id: The object to fine-tune on.
        channel_order: See :func:`mpn.runtime.host.preprocess.osvos_input`.
        mean: See :func:`mpn.runtime.host.preprocess.osvos_input`.
        size_px: Side of the crops.
        batch: Crops per batch.
        seed: Entropy; the same seed gives the same crops.
        crop_range: See :class:`CropRange`.

    Raises:
        InputError: If the arrays do not fit each other.
        MaskError: If the object is too small to fine-tune on.
    """

    def __init__(
        self,
        rgb: UInt8Array,
        labels: UInt8Array,
        object_id: int,
        *,
        channel_order: str,
        mean: Sequence[float],
        size_px: int,
        batch: int,
        seed: Sequence[int],
        crop_range: CropRange | None = None,
    ) -> None:
        check_rgb(rgb)
        check_labels(labels, (rgb.shape[0], rgb.shape[1]))
        self._range = CropRange() if crop_range is None else crop_range
        self._mask: BoolArray = labels == object_id
        check_area(self._mask, object_id)
        self._rgb = rgb
        self._channel_order, self._mean = channel_order, tuple(mean)
        self._size_px, self._batch = size_px, batch
        self._rng = np.random.default_rng([*seed])
        self._object_yx = np.argwhere(self._mask)
        # Sampling a large frame on a coarse grid would alias: use half sizes of it instead.
        self._pyramid = [(self._rgb, self._mask.astype(np.uint8) * np.uint8(255))]
        while min(self._pyramid[-1][1].shape) >= 2 * self._range.zoom[0] * size_px:
            self._pyramid.append(_halved(*self._pyramid[-1]))

    def batch(self) -> tuple[Float32Array, Float32Array]:
        """Return the next crops.

        Returns:
            (N, 3, S, S) float32, the network's input, and (N, 1, S, S) float32, 1 on the object.
        """
        crops = [self._crop() for _ in range(self._batch)]
        size_hw = (self._size_px, self._size_px)
        images = [
            osvos_input(rgb, size_hw, channel_order=self._channel_order, mean=self._mean)
            for rgb, _ in crops
        ]
        targets = np.stack([(share > 127)[None] for _, share in crops])
        return np.concatenate(images), targets.astype(np.float32)

    def _crop(self) -> tuple[UInt8Array, UInt8Array]:
        rng, ranges, size = self._rng, self._range, self._size_px
        height, width = self._mask.shape
        zoom = math.exp(rng.uniform(math.log(ranges.zoom[0]), math.log(ranges.zoom[1])))
        scale = zoom * size / min(height, width)
        stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(ranges.aspect))
        mirror = float(rng.choice([-1, 1]))
        angle = math.radians(rng.uniform(-ranges.rotation_deg, ranges.rotation_deg))
        centre_xy = self._centre_xy(size / scale)
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array(
            [[mirror * cos * stretch, -sin * stretch], [mirror * sin / stretch, cos / stretch]]
        )
        level = max(min(math.floor(-math.log2(scale)), len(self._pyramid) - 1), 0)
        rgb, alpha = self._pyramid[level]
        # Pixel x of a level has its centre at 2^level (x + 1/2) - 1/2 of the frame.
        grow = np.array([width / alpha.shape[1], height / alpha.shape[0]])
        offset = (size - 1) / 2 + linear @ (grow / 2 - 0.5 - centre_xy)
        matrix = np.hstack([linear * grow, offset[:, None]])
        image, share = (
            cv2.warpAffine(
                plane, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
            )
            for plane in (rgb, alpha)
        )
        if rng.random() < ranges.light_share:
            image = Light(rng)(image)
        return image, share

    def _centre_xy(self, window_px: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Draw the centre of a crop; the crop stays inside the frame if it fits."""
        rng = self._rng
        extent = np.array(self._mask.shape[::-1], np.float64)
        centre = rng.uniform(0, 1, 2) * extent
        if rng.random() < self._range.on_object_share:
            row, column = self._object_yx[rng.integers(len(self._object_yx))]
            centre = np.array([column, row]) + rng.uniform(-0.25, 0.25, 2) * window_px
        half = window_px / 2
        low, high = np.minimum(half, extent / 2), np.maximum(extent - half, extent / 2)
        clipped: np.ndarray[tuple[int], np.dtype[np.float64]] = np.clip(centre, low, high)
        return clipped


def _halved(rgb: UInt8Array, alpha: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    height, width = alpha.shape
    size_hw = (-(-height // 2), -(-width // 2))
    small: UInt8Array = cv2.resize(alpha, size_hw[::-1], interpolation=cv2.INTER_AREA)
    return resize_rgb(rgb, size_hw), small
