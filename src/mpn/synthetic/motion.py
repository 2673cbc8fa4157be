"""Smooth, periodic motion of the objects of the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

KOI_HALF_LENGTH_PX = 190.0

LEAF_HALF_LENGTH_PX = 142.0

BALL_RADIUS_PX = 86.0


@dataclass(frozen=True)
class Pose:
    """Place and shape of an object at one time.

    Attributes:
        x_px: Distance from the frame's centre to the right.
        y_px: Distance from the frame's centre downward.
        angle: Direction of its u axis in radians, from x toward y.
        size_px: Half-length or radius.
        bend: Phase of its deformation in radians.
    """

    x_px: float
    y_px: float
    angle: float
    size_px: float
    bend: float


def koi_pose(t: float) -> Pose:
    """Move along an ellipse, nose first, with a body wave of 23 frames."""
    turn = -_turns(t, 240, 0.053)
    x_px, y_px = 168 * math.cos(turn), 104 * math.sin(turn)
    heading = math.atan2(-104 * math.cos(turn), 168 * math.sin(turn))
    return Pose(
        x_px=58 + x_px,
        y_px=y_px,
        angle=heading + 0.025 * math.sin(_turns(t, 23, 0.3)),
        size_px=KOI_HALF_LENGTH_PX * (1 + 0.05 * math.sin(_turns(t, 95, 0.1))),
        bend=_turns(t, 23, 0.0),
    )


def leaf_pose(t: float) -> Pose:
    """Drift across the pond with a slow rotation and a curling blade."""
    return Pose(
        x_px=74 + 214 * math.cos(_turns(t, 176, 0.632)),
        y_px=-9 + 112 * math.sin(_turns(t, 162, 0.758)),
        angle=-0.75 + 0.5 * math.sin(_turns(t, 140, 0.05)),
        size_px=LEAF_HALF_LENGTH_PX * (1 + 0.05 * math.sin(_turns(t, 70, 0.4))),
        bend=_turns(t, 52, 0.2),
    )


def ball_pose(t: float) -> Pose:
    """Float on the water and roll along the path."""
    return Pose(
        x_px=-163 + 158 * math.sin(_turns(t, 124, 0.602)),
        y_px=44 + 56 * math.sin(_turns(t, 134, 0.341)),
        angle=0.35 * math.sin(_turns(t, 150, 0.0)),
        size_px=BALL_RADIUS_PX * (1 + 0.07 * math.sin(_turns(t, 62, 0.0))),
        bend=_turns(t, 31, 0.0),
    )


def _turns(t: float, period: float, offset: float) -> float:
    return 2 * math.pi * (t / period + offset)
