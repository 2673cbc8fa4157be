"""Values shared by all modules; numpy only, without behaviour except checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpn.errors import InputError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

ArrayLike = Any
"""A frame or labels of a caller; see :mod:`mpn._common.array_likes`."""

MAX_OBJECT_ID = 254
"""Largest object id in a palette PNG: 0 is background and 255 is void in DAVIS."""

TrackState = Literal["given", "tracked", "lost"]
"""``given``: labels of the user; ``tracked``: found; ``lost``: no pixel above the threshold."""

TrackBranch = Literal["given", "propagation", "blended", "osvos", "none"]
"""Source of a mask: the user's labels, propagation, both blended, OSVOS, or none."""

TrackEvent = Literal["lost", "redetected", "blended"]
"""Events of an object in a frame, in this order.

``lost``: it had pixels in the previous frame and has none now, or OSVOS rejected the followed
region; ``redetected``: OSVOS found it, and propagation continues there; ``blended``: its
probability is the weighted mean of propagation and OSVOS.
"""


@dataclass(frozen=True)
class Frame:
    """Decoded frame.

    Attributes:
        index: Index of the frame in its source, from 0.
        rgb: (H, W, 3) uint8, RGB, upright (rotation already applied), C-contiguous.
        pts_s: Presentation time in seconds as an exact fraction.
        name: File stem for image sequences (``"00000"``), else the zero-padded index.
    """

    index: int
    rgb: UInt8Array
    pts_s: Fraction
    name: str

    def __post_init__(self) -> None:
        check_rgb(self.rgb)

    def __repr__(self) -> str:
        return f"Frame(index={self.index}, rgb={self.rgb.shape}, pts_s={float(self.pts_s):.3f})"


@dataclass(frozen=True)
class Roi:
    """Half-open box in pixels of the frame: columns x0..x1-1, rows y0..y1-1."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"empty Roi: {self.box_xyxy}")

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Corners (x0, y0, x1, y1), half-open."""
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size (height, width) in pixels."""
        return (self.y1 - self.y0, self.x1 - self.x0)


@dataclass(frozen=True)
class Track:
    """Result of one object in one frame.

    Attributes:
        object_id: The value in the labels (1..254).
        state: See :data:`TrackState`.
        branch: See :data:`TrackBranch`.
        area_px: Pixels of the object in the labels, at input size.
        box_xyxy: Half-open bounding box in the labels, at input size; None if the area is 0.
        confidence: Mean probability of the object over its pixels, before CRF, 0..1; 0 if the area
            is 0.
        events: See :data:`TrackEvent`.
        reliability: Confidence to the power of 4, times the agreement of the mask with the target
            model, 0..1; see :mod:`mpn.runtime.agreement`. 1 if the user gave the mask,
            0.5 if it is empty, ``confidence`` without a target model. None in results before 0.3.
    """

    object_id: int
    state: TrackState
    branch: TrackBranch
    area_px: int
    box_xyxy: tuple[int, int, int, int] | None
    confidence: float
    events: tuple[TrackEvent, ...] = ()
    reliability: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, one object's entry in ``tracks.jsonl``."""
        return {
            "object_id": self.object_id,
            "state": self.state,
            "branch": self.branch,
            "area_px": self.area_px,
            "box_xyxy": None if self.box_xyxy is None else list(self.box_xyxy),
            "confidence": round(self.confidence, 4),
            "reliability": None if self.reliability is None else round(self.reliability, 4),
            "events": list(self.events),
        }


@dataclass(frozen=True)
class StepResult:
    """Masks of one frame.

    Attributes:
        index: Index of the frame, counted from the frame given to ``start``.
        labels: (H, W) uint8 object ids, 0 background, at input size.
        probs: (K, H, W) float32 probability of each object at input size, merged (they and the
            background sum to 1), in the order of ``object_ids``. The labels are computed from it,
            so it is after CRF if CRF is on. The next frame starts from the probability before CRF.
        object_ids: The K ids, ascending.
        tracks: One entry per object, in the order of ``object_ids``.
        timings: Seconds by stage name.
        labels_before: (H, W) uint8 labels that the labels of the user replaced; None if the user
            gave none, and in the first frame.
    """

    index: int
    labels: UInt8Array
    probs: Float32Array
    object_ids: tuple[int, ...]
    tracks: tuple[Track, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    labels_before: UInt8Array | None = None

    def __repr__(self) -> str:
        return (
            f"StepResult(index={self.index}, labels={self.labels.shape}, "
            f"probs={self.probs.shape}, object_ids={self.object_ids})"
        )


def check_rgb(rgb: npt.NDArray[Any]) -> None:
    """Raise InputError unless ``rgb`` is (H, W, 3) uint8."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"a frame must be (H, W, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")


def check_labels(labels: npt.NDArray[Any], size_hw: tuple[int, int]) -> None:
    """Raise InputError unless ``labels`` is (H, W) uint8 of the frame's size."""
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise InputError(
            f"labels must be (H, W) uint8 object ids, got {labels.shape} {labels.dtype}"
        )
    if labels.shape != size_hw:
        raise InputError(
            f"the mask is {labels.shape[1]}x{labels.shape[0]} but the frame is "
            f"{size_hw[1]}x{size_hw[0]} (width x height): give a mask of the video's size"
        )
