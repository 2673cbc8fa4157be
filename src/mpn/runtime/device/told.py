"""What the host is told of a frame on a device: labels, and figures in one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from mpn.runtime.ops.cuda import boxes_from_rows
from mpn.runtime.tracks import Measured
from mpn.types import Roi, UInt8Array

_FIXED_ONE = 2.0**24
_LARGEST_RATIO = 2.0


@dataclass(frozen=True)
class Told:
    """What the host is told of a frame.

    Attributes:
        labels: (H, W) uint8 at input size.
        figures: See :class:`mpn.runtime.ops.cuda_frame.CudaFrame`.
    """

    labels: UInt8Array
    figures: dict[str, npt.NDArray[Any]]

    @property
    def rois(self) -> tuple[Roi | None, ...]:
        """What the propagation network looked at."""
        return boxes_from_rows(self.figures["rois"])

    @property
    def reach(self) -> tuple[Roi | None, ...]:
        """Where the warp can have put the objects."""
        return boxes_from_rows(self.figures["reach"])

    def measured(self) -> tuple[Measured, ...]:
        """Area, box and confidence of each object."""
        figures = self.figures
        boxes = boxes_from_rows(figures["track_boxes"])
        return tuple(
            Measured(int(area), box.box_xyxy, int(total) / _FIXED_ONE / int(area))
            if area and box is not None
            else Measured(0, None, 0.0)
            for area, box, total in zip(
                figures["track_areas"], boxes, figures["track_sums"], strict=True
            )
        )

    def agreement(self) -> tuple[tuple[float, float] | None, ...]:
        """For each object the mean of OSVOS and of the colours' ratio where it is expected.

        None where it is expected nowhere.
        """
        return tuple(
            (
                int(plane) / _FIXED_ONE / int(count),
                int(ratio) / _FIXED_ONE / int(count) - _LARGEST_RATIO,
            )
            if count
            else None
            for count, plane, ratio in self.figures["agreement"]
        )
