"""Rendered images with the statistics of photographs, for parity checks.

White noise would hide differences: it is not smooth, its pixels are independent, and the output of
a network is nearly constant. Natural images have amplitude spectra that fall as 1/f (D. J. Field,
"Relations between the statistics of natural images and the response properties of cortical cells",
JOSA A 1987) up to the resolution of a lens, edges where objects occlude, and colours that vary less
than brightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
