"""Draw an object of one sequence over the frames of another, with its true mask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.accuracy.sequences import MAX_IDS, load_rgb
from mpn._common.files import visible_files
from mpn.errors import InputError
from mpn.masks import load_labels, save_labels
from mpn.types import UInt8Array

_ALPHA_SIGMA_PX = 0.8
"""Blur of the outline: a hard edge would be too easy to detect."""

BoxXyxy = tuple[int, int, int, int]
Place = npt.NDArray[np.float32]
"""Affine matrix (2, 3) from an image of the object into a frame."""


class SourceSequence:
    """Read images and masks of a sequence in DAVIS layout.

    A sequence that is shorter than a clip is played forwards and backwards.

    Args:
        davis_root: Folder in DAVIS layout.
        name: Name of the sequence.
        resolution: Folder of the data set.

    Raises:
        InputError: If there are no images.
    """

    def __init__(self, davis_root: Path, name: str, resolution: str) -> None:
        self._images = _files(davis_root / "JPEGImages" / resolution / name, "jpg")
        self._annotations = davis_root / "Annotations" / resolution / name

    def image(self, t: int) -> UInt8Array:
        """Return frame t as (H, W, 3) uint8 RGB."""
        return load_rgb(self._images[_reflected_index(t, len(self._images))])

    def mask(self, t: int) -> UInt8Array:
        """Return the mask of object 1 in frame t as (H, W) uint8 of 0 and 1."""
        masks = _files(self._annotations, "png")
        path = masks[_reflected_index(t, len(masks))]
        labels = load_labels(path, max_objects=MAX_IDS, allow_empty=True)
        return (labels == 1).astype(np.uint8)


def box_of(mask: UInt8Array) -> BoxXyxy:
    """Return the bounding box of a mask; all zeros if it is empty."""
    x, y, width, height = cv2.boundingRect(mask)
    return (x, y, x + width, y + height)


def scale_to_fit(box_xyxy: BoxXyxy, size_hw: tuple[int, ...], share: float) -> float:
    """Return the scale, at most 1, that limits a box to a share of width and height."""
    left, top, right, bottom = box_xyxy
    height, width = size_hw[:2]
    return min(share * width / (right - left), share * height / (bottom - top), 1.0)


def placed(image: UInt8Array, place: Place, size_hw: tuple[int, ...]) -> UInt8Array:
    """Warp an image or a mask of the object into a frame."""
    is_mask = image.ndim == 2
    moved = cv2.warpAffine(
        image,
        place,
        (size_hw[1], size_hw[0]),
        flags=cv2.INTER_NEAREST if is_mask else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if is_mask else cv2.BORDER_REPLICATE,
    )
    return np.asarray(moved, np.uint8)


def composed(background: UInt8Array, rgb: UInt8Array, mask: UInt8Array) -> UInt8Array:
    """Draw the pixels of a mask over a frame, with a blurred outline."""
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), _ALPHA_SIGMA_PX)[..., None]
    return np.asarray(np.round(rgb * alpha + background * (1 - alpha)), np.uint8)


def write_clip(
    name: str, resolution: str, frames: Iterable[tuple[UInt8Array, UInt8Array]], root: Path
) -> None:
    """Write a clip as a sequence in DAVIS layout and add it to the set ``val``."""
    images = root / "JPEGImages" / resolution / name
    annotations = root / "Annotations" / resolution / name
    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for t, (rgb, labels) in enumerate(frames):
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(images / f"{t:05d}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
        save_labels(annotations / f"{t:05d}.png", labels)
    sets = root / "ImageSets" / "2017"
    sets.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in annotations.parent.iterdir()}
    (sets / "val.txt").write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")


def _files(folder: Path, suffix: str) -> list[Path]:
    paths = visible_files(folder, f"*.{suffix}")
    if not paths:
        raise InputError(f"{folder} has no *.{suffix}")
    return paths


def _reflected_index(t: int, length: int) -> int:
    period = max(2 * (length - 1), 1)
    return min(t % period, period - t % period)
