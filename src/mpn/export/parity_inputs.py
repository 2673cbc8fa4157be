"""Inputs of the parity check: images with the runtime's preprocessing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from mpn._common.files import visible_files
from mpn.engines.directory.manifest import Preprocessing
from mpn.engines.spec import EngineSpec
from mpn.errors import InputError
from mpn.types import Float32Array, UInt8Array

BACKGROUND_MOTION_PX = (2, 1)
OBJECT_MOTION_PX = (-6, 4)
"""(x, y) from the first to the second image of a scene."""

_CONTRAST = 40.0
_CHROMA_CONTRAST = 12.0
_EDGE_PX = 4.0
_LENS_BLUR_PX = 1.4
"""Blur of a lens: no lens resolves single pixels, and no video codec keeps them. Without it
adjacent pixels differ by a third of the range, and a flow network of random weights amplifies
float32 rounding ten times as much as on frames of DAVIS."""


@dataclass(frozen=True)
class Picture:
    """Rendered image.

    Attributes:
        rgb: (H, W, 3) uint8.
        coverage: (H, W) float32 0..1, covered share of each pixel; soft at the object's edge.
    """

    rgb: UInt8Array
    coverage: Float32Array


def rendered_picture(size_hw: tuple[int, int], seed: int, *, step: int = 0) -> Picture:
    """Render a textured object in front of a textured background.

    Args:
        size_hw: (height, width) in pixels.
        seed: Seed of the scene; the same arguments give the same image.
        step: Number of moves, of the background by :data:`BACKGROUND_MOTION_PX` and of the object
            by :data:`OBJECT_MOTION_PX`; textures move along.
    """
    height, width = size_hw
    rng = np.random.default_rng(seed)
    textures = [_texture(rng, size_hw) for _ in range(2)]
    offset_x, offset_y = (axis * step for axis in OBJECT_MOTION_PX)
    shifted = [
        np.roll(texture, (dy * step, dx * step), axis=(0, 1))
        for texture, (dx, dy) in zip(
            textures, (BACKGROUND_MOTION_PX, OBJECT_MOTION_PX), strict=True
        )
    ]
    coverage = _blob(
        size_hw,
        centre_xy=(
            width * rng.uniform(0.4, 0.6) + offset_x,
            height * rng.uniform(0.4, 0.6) + offset_y,
        ),
        radius_px=min(height, width) * rng.uniform(0.2, 0.3),
        lobes=int(rng.integers(3, 6)),
    )
    rgb = shifted[0] * (1.0 - coverage[..., None]) + shifted[1] * coverage[..., None]
    return Picture(np.clip(np.rint(rgb), 0, 255).astype(np.uint8), coverage)


def centred_coverage(size_hw: tuple[int, int]) -> Float32Array:
    """Render the coverage (H, W), float32 0..1, of an object in the centre.

    For images without annotated objects.
    """
    height, width = size_hw
    return _blob(
        size_hw, centre_xy=(width / 2, height / 2), radius_px=min(height, width) / 4, lobes=3
    )


def _texture(rng: np.random.Generator, size_hw: tuple[int, int]) -> Float32Array:
    """Render (H, W, 3) of a random mean colour with 1/f brightness and colour.

    Colour varies less than brightness. The texture tiles.
    """
    height, width = size_hw
    frequency_y = np.fft.fftfreq(height)[:, None]
    frequency_x = np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(frequency_y, frequency_x)
    amplitude = np.zeros_like(frequency)
    np.divide(1.0, frequency, out=amplitude, where=frequency > 0)
    amplitude *= np.exp(-2.0 * (np.pi * _LENS_BLUR_PX * frequency) ** 2)

    def noise() -> npt.NDArray[np.float64]:
        spectrum = np.fft.rfft2(rng.standard_normal(size_hw)) * amplitude
        values: npt.NDArray[np.float64] = np.fft.irfft2(spectrum, s=size_hw)
        return np.asarray(values / values.std(), np.float64)

    brightness = noise() * _CONTRAST
    channels = [rng.uniform(70, 180) + brightness + noise() * _CHROMA_CONTRAST for _ in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _blob(
    size_hw: tuple[int, int], *, centre_xy: tuple[float, float], radius_px: float, lobes: int
) -> Float32Array:
    """Render a rounded star with a soft edge."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    x -= centre_xy[0]
    y -= centre_xy[1]
    limit = radius_px * (1.0 + 0.25 * np.cos(lobes * np.arctan2(y, x)))
    inside = (limit - np.hypot(x, y)) / _EDGE_PX + 0.5
    return np.asarray(np.clip(inside, 0.0, 1.0), np.float32)


OBJECT_COUNTS = (1, 3)
"""Sizes of the objects axis to compare: one, and more than the two of the traced example."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_IMAGES = 8
_FIRST_SEED = 20
_SCORE_CELL_PX = 17
"""Blur of the score, about two cells of a map of stride 8."""


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
        if spec.role == "features":
            return (ParityCase("one frame", {name: _nchw(self._frame(size_hw, 0))}),)
        if spec.role == "osvos":
            rgb = self._frame(size_hw, 0).astype(np.float32)
            osvos = preprocessing.osvos
            image = rgb[..., ::-1] if osvos.channel_order == "bgr" else rgb
            return (
                ParityCase("one frame", {name: _nchw(image - np.asarray(osvos.mean, np.float32))}),
            )
        crops = np.concatenate(
            [
                self._crop(size_hw, k, preprocessing, with_score=spec.inputs[0].shape[1] == 5)
                for k in range(max(OBJECT_COUNTS))
            ]
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
        self,
        size_hw: tuple[int, int],
        index: int,
        preprocessing: Preprocessing,
        *,
        with_score: bool,
    ) -> Float32Array:
        """Make a crop (1, 4 or 5, S, S): normalised RGB and the probability of an object.

        The score is the object's true place at the resolution of a target model.
        """
        if self._images:
            rgb = _resized(self._images[index % len(self._images)], size_hw)
            prob = coverage = centred_coverage(size_hw)
        else:
            picture = rendered_picture(size_hw, _FIRST_SEED + index, step=1)
            rgb, coverage = picture.rgb, picture.coverage
            # Coverage of the previous frame: the network has to correct the motion.
            prob = rendered_picture(size_hw, _FIRST_SEED + index).coverage
        values = preprocessing.propagation
        mean, std = (np.asarray(v, np.float32) for v in (values.mean_rgb, values.std_rgb))
        normalised = (rgb.astype(np.float32) / np.float32(255.0) - mean) / std
        channels = [normalised, prob[..., None]]
        if with_score:
            channels.append(cv2.blur(coverage, (_SCORE_CELL_PX, _SCORE_CELL_PX))[..., None])
        return _nchw(np.concatenate(channels, axis=-1))


def _load_images(folder: Path) -> list[UInt8Array]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --parity-images takes a folder of images")
    files = [
        path
        for path in visible_files(folder, "*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
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
