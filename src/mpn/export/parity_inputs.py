"""Inputs of the parity check: images with the runtime's preprocessing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mpn.engines.manifest import Preprocessing
from mpn.engines.spec import EngineSpec
from mpn.errors import InputError
from mpn.export.scenes import (
    BACKGROUND_MOTION_PX,
    OBJECT_MOTION_PX,
    centred_coverage,
    rendered_picture,
)
from mpn.types import Float32Array, UInt8Array

OBJECT_COUNTS = (1, 3)
"""Sizes of the objects axis to compare: one, and more than the two of the traced example."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_IMAGES = 8
_FIRST_SEED = 20


@dataclass(frozen=True)
class ParityCase:
    """Set of inputs.

    Attributes:
        name: Name in the report, for example ``"3 objects"``.
        inputs: Float32 arrays by the input names of the spec.
    """

    name: str
    inputs: Mapping[str, Float32Array]


class ParityPictures:
    """Images of a comparison: rendered ones, or those of a folder.

    Args:
        folder: Photographs or video frames, in which consecutive names are consecutive frames. None
            renders images.

    Raises:
        InputError: If the folder cannot be read or holds no image.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._images: list[UInt8Array] = [] if folder is None else _load_images(folder)

    @property
    def digest(self) -> str:
        """Digest of the images and their description."""
        digest = hashlib.sha256(self.description.encode())
        for image in self._images:
            digest.update(repr(image.shape).encode())
            digest.update(image.tobytes())
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """Description for parity.json, without paths."""
        if self._images:
            return (
                f"{len(self._images)} pictures of the user, resized; the object's probability is a "
                "soft blob in the middle"
            )
        return (
            "rendered: 1/f textures, a soft-edged object, background moving by "
            f"{BACKGROUND_MOTION_PX} px and object by {OBJECT_MOTION_PX} px (x, y) between frames"
        )

    def cases(self, spec: EngineSpec, preprocessing: Preprocessing) -> tuple[ParityCase, ...]:
        """Make inputs for the engine of ``spec``, preprocessed as in the manifest."""
        height, width = (int(size) for size in spec.inputs[0].shape[2:])
        size_hw = (height, width)
        if spec.role == "flow":
            frames = [_nchw(self._frame(size_hw, step)) for step in range(2)]
            inputs = dict(zip(spec.input_names, frames, strict=True))
            return (ParityCase("a pair of frames", inputs),)
        name = spec.input_names[0]
        if spec.role == "osvos":
            rgb = self._frame(size_hw, 0).astype(np.float32)
            osvos = preprocessing.osvos
            image = rgb[..., ::-1] if osvos.channel_order == "bgr" else rgb
            return (
                ParityCase("one frame", {name: _nchw(image - np.asarray(osvos.mean, np.float32))}),
            )
        crops = np.concatenate(
            [self._crop(size_hw, k, preprocessing) for k in range(max(OBJECT_COUNTS))]
        )
        return tuple(
            ParityCase(f"{count} object{'s' * (count > 1)}", {name: crops[:count]})
            for count in OBJECT_COUNTS
        )

    def _frame(self, size_hw: tuple[int, int], step: int) -> UInt8Array:
        if not self._images:
            return rendered_picture(size_hw, _FIRST_SEED, step=step).rgb
        if step < len(self._images):
            return _resized(self._images[step], size_hw)
        # Of a single image, the next frame is a shifted copy.
        moved = np.roll(_resized(self._images[0], size_hw), OBJECT_MOTION_PX[::-1], axis=(0, 1))
        return np.ascontiguousarray(moved)

    def _crop(
        self, size_hw: tuple[int, int], index: int, preprocessing: Preprocessing
    ) -> Float32Array:
        """Make a crop (1, 4, S, S): normalised RGB and the probability of an object."""
        if self._images:
            rgb = _resized(self._images[index % len(self._images)], size_hw)
            prob = centred_coverage(size_hw)
        else:
            rgb = rendered_picture(size_hw, _FIRST_SEED + index, step=1).rgb
            # Coverage of the previous frame: the network has to correct the motion.
            prob = rendered_picture(size_hw, _FIRST_SEED + index).coverage
        values = preprocessing.propagation
        mean, std = (np.asarray(v, np.float32) for v in (values.mean_rgb, values.std_rgb))
        normalised = (rgb.astype(np.float32) / np.float32(255.0) - mean) / std
        return _nchw(np.concatenate((normalised, prob[..., None]), axis=-1))


def _load_images(folder: Path) -> list[UInt8Array]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --parity-images takes a folder of images")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = []
    for file in files[:MAX_IMAGES]:
        bgr = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            raise InputError(f"{file} is not an image that OpenCV can read: remove or replace it")
        images.append(np.ascontiguousarray(bgr[..., ::-1], np.uint8))
    return images


def _resized(rgb: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    resized = cv2.resize(rgb, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _nchw(image: Float32Array | UInt8Array) -> Float32Array:
    """Convert (H, W, C) to (1, C, H, W) float32."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
