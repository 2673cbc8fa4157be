"""Build clips with exact masks and flow, and an estimator that returns the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpn.runtime.host.flow import PreparedFrame
from mpn.types import BoolArray, Float32Array, UInt8Array


@dataclass(frozen=True)
class Clip:
    """Clip with its ground truth.

    Attributes:
        frames: (H, W, 3) uint8 RGB each.
        labels: (H, W) uint8 each; an occluded object is not visible.
        flows_to_prev_px: (2, H, W) float32 each, on the grid of the frame; zero for frame 0. If an
            object uncovers background, the flow there points into the object.
    """

    frames: tuple[UInt8Array, ...]
    labels: tuple[UInt8Array, ...]
    flows_to_prev_px: tuple[Float32Array, ...]


@dataclass(frozen=True)
class Square:
    """Textured square with constant motion; later squares occlude earlier ones.

    Attributes:
        object_id: Value in the labels.
        corner_xy: Upper left corner in frame 0; may be fractional.
        side: Side in pixels.
        step_xy: Motion in pixels per frame; may be fractional.
        channel: RGB channel that is bright inside and dark outside: 0, 1 or 2.
    """

    object_id: int
    corner_xy: tuple[float, float]
    side: int
    step_xy: tuple[float, float]
    channel: int = 0


def texture(x: Float32Array, y: Float32Array, seed: int) -> Float32Array:
    """Draw (H, W, 3) in 0..1 from pixel coordinates.

    Waves of 5 to 40 px allow exact sub-pixel shifts and are texture for optical flow.
    """
    rng = np.random.default_rng(seed)
    colours = []
    for _ in range(3):
        value = np.zeros(np.broadcast(x, y).shape)
        for _ in range(12):
            angle, wavelength = rng.uniform(0, 2 * np.pi), rng.uniform(5, 40)
            phase, k = rng.uniform(0, 2 * np.pi), 2 * np.pi / wavelength
            value += np.sin(k * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        colours.append(value)
    stacked = np.stack(colours, axis=-1)
    return ((stacked / np.abs(stacked).max() + 1) / 2).astype(np.float32)


def squares_clip(
    squares: Sequence[Square],
    *,
    size_hw: tuple[int, int] = (60, 90),
    frames: int = 5,
    pan_xy: tuple[float, float] = (0, 0),
) -> Clip:
    """Render textured squares over a textured background.

    Args:
        squares: Squares from back to front.
        size_hw: (H, W).
        frames: Number of frames.
        pan_xy: Motion of the background in pixels per frame. If it is the step of all squares, the
            flow is constant and there is no occlusion.
    """
    height, width = size_hw
    x, y = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    pictures, labels, flows = [], [], []
    for t in range(frames):
        picture = 20 + 120 * texture(x - t * pan_xy[0], y - t * pan_xy[1], seed=0)
        label = np.zeros(size_hw, np.uint8)
        flow = np.empty((2, *size_hw), np.float32)
        flow[0], flow[1] = -pan_xy[0], -pan_xy[1]
        for square in squares:
            x0 = square.corner_xy[0] + t * square.step_xy[0]
            y0 = square.corner_xy[1] + t * square.step_xy[1]
            inside = _inside(x, y, x0, y0, square.side)
            own = 20 + 120 * texture(x - x0, y - y0, seed=square.object_id)
            own[..., square.channel] = 220 + 30 * (own[..., square.channel] - 20) / 120
            picture[inside], label[inside] = own[inside], square.object_id
            flow[0][inside], flow[1][inside] = -square.step_xy[0], -square.step_xy[1]
        pictures.append(np.round(picture).astype(np.uint8))
        labels.append(label)
        flows.append(flow if t else np.zeros_like(flow))
    return Clip(tuple(pictures), tuple(labels), tuple(flows))


def by_colour(inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Segment the channel that is brightest inside the input mask.

    This is a propagation network for any :class:`Square`. The crop must be normalised with mean 0
    and standard deviation 1.
    """
    probs = []
    for rgb, prob in zip(inputs["rgb_prob"][:, :3], inputs["rgb_prob"][:, 3], strict=True):
        channel = int(np.argmax([(plane * prob).sum() for plane in rgb]))
        probs.append(np.clip((rgb[channel] - 0.7) / 0.1, 0, 1)[None])
    return {"prob": np.stack(probs)}


class KnownFlow:
    """Flow estimator that returns a given flow.

    Frames are counted from 0 in order of preparation. Only the flow from frame t to frame t - 1 is
    accepted, which backward warping uses.

    Args:
        flows_to_prev_px: (2, H, W) per frame, on its grid.
    """

    def __init__(self, flows_to_prev_px: Sequence[Float32Array]) -> None:
        self._flows = flows_to_prev_px
        self._prepared = 0

    def prepare(self, rgb: UInt8Array) -> PreparedFrame:
        frame = PreparedFrame(np.array(self._prepared), (rgb.shape[0], rgb.shape[1]))
        self._prepared += 1
        return frame

    def estimate(self, frame0: PreparedFrame, frame1: PreparedFrame) -> Float32Array:
        assert int(frame0.data) == int(frame1.data) + 1, "only the flow to the previous frame"
        return self._flows[int(frame0.data)]


def iou(a: BoolArray, b: BoolArray) -> float:
    """Compute the intersection over union of two masks; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def _inside(x: Float32Array, y: Float32Array, x0: float, y0: float, side: int) -> BoolArray:
    """Select pixels with centres in the square, including its lower edge."""
    inside: BoolArray = (x >= x0) & (x < x0 + side) & (y >= y0) & (y < y0 + side)
    return inside
