"""Clips with exactly known masks and flow, and an estimator of that flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpn.runtime.host.flow import FlowFrame
from mpn.types import BoolArray, Float32Array, UInt8Array


@dataclass(frozen=True)
class Clip:
    """A clip with the truth.

    Attributes:
        frames: (H, W, 3) uint8 RGB each.
        labels: (H, W) uint8 each; an object that is behind another one is not visible.
        flows_to_prev_px: (2, H, W) float32 each, on the frame's own grid; of frame 0: zero. Where
            the background appears from behind an object, it points at that object, as it must.
    """

    frames: tuple[UInt8Array, ...]
    labels: tuple[UInt8Array, ...]
    flows_to_prev_px: tuple[Float32Array, ...]


@dataclass(frozen=True)
class Square:
    """A textured square that moves by a constant step; later squares lie in front.

    Attributes:
        object_id: Its value in the labels.
        corner_xy: Its upper left corner in frame 0.
        side: Of the square, in pixels.
        step_xy: Pixels it moves a frame; may be fractions, and so may the corner.
        channel: RGB channel that is bright in it and dark elsewhere: 0, 1 or 2.
    """

    object_id: int
    corner_xy: tuple[float, float]
    side: int
    step_xy: tuple[float, float]
    channel: int = 0


def texture(x: Float32Array, y: Float32Array, seed: int) -> Float32Array:
    """Draw (H, W, 3) in 0..1 from pixel coordinates.

    Waves of 5 to 40 px, so that any sub-pixel shift can be drawn exactly and optical flow has
    texture to match.
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
    """Textured squares over a textured background.

    Args:
        squares: Back to front.
        size_hw: (H, W).
        frames: How many.
        pan_xy: Pixels that the background moves a frame. With the step of every square, the whole
            picture moves, and its flow is constant and without occlusion.
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

    A propagation network for any :class:`Square`. The crop must have been normalised with mean 0
    and deviation 1.
    """
    probs = []
    for rgb, prob in zip(inputs["rgb_prob"][:, :3], inputs["rgb_prob"][:, 3], strict=True):
        channel = int(np.argmax([(plane * prob).sum() for plane in rgb]))
        probs.append(np.clip((rgb[channel] - 0.7) / 0.1, 0, 1)[None])
    return {"prob": np.stack(probs)}


class KnownFlow:
    """Flow estimator that returns a given flow.

    Frames are counted in order of preparation: the first of a video is 0. It only accepts the flow
    from frame t to frame t - 1, which backward warping uses.

    Args:
        flows_to_prev_px: For each frame (2, H, W), on its grid.
    """

    def __init__(self, flows_to_prev_px: Sequence[Float32Array]) -> None:
        self._flows = flows_to_prev_px
        self._prepared = 0

    def prepare(self, rgb: UInt8Array) -> FlowFrame:
        frame = FlowFrame(np.array(self._prepared), (rgb.shape[0], rgb.shape[1]))
        self._prepared += 1
        return frame

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Float32Array:
        assert int(frame0.data) == int(frame1.data) + 1, "the flow wanted is current -> previous"
        return self._flows[int(frame0.data)]


def iou(a: BoolArray, b: BoolArray) -> float:
    """Compute the intersection over union of two masks; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def _inside(x: Float32Array, y: Float32Array, x0: float, y0: float, side: int) -> BoolArray:
    """Select pixels with centres in the square, including its lower edge."""
    inside: BoolArray = (x >= x0) & (x < x0 + side) & (y >= y0) & (y < y0 + side)
    return inside
