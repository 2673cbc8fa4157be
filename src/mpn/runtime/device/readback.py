"""Decode the readback of a frame: sums that kernels count in integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from mpn.runtime.ops.cuda import boxes_from_rows
from mpn.runtime.tracks import Measured

_FIXED_ONE = 2.0**24
_LARGEST_RATIO = 2.0


def measured_from_fields(fields: Mapping[str, npt.NDArray[Any]]) -> tuple[Measured, ...]:
    """Compute area, box and confidence of each object.

    Args:
        fields: Of :class:`mpn.runtime.ops.cuda_figures.ReadbackBlock`.
    """
    return tuple(
        Measured(int(area), box.box_xyxy, int(total) / _FIXED_ONE / int(area))
        if area and box is not None
        else Measured(0, None, 0.0)
        for area, box, total in zip(
            fields["track_areas"],
            boxes_from_rows(fields["track_boxes"]),
            fields["track_sums"],
            strict=True,
        )
    )


def agreement_from_fields(
    fields: Mapping[str, npt.NDArray[Any]],
) -> tuple[tuple[float, float] | None, ...]:
    """Compute per object the means of OSVOS and colour log ratio.

    Both are means over the pixels of its candidate.

    None for an object whose candidate has no pixel.

    Args:
        fields: See :func:`measured_from_fields`.
    """
    return tuple(
        (
            int(plane) / _FIXED_ONE / int(count),
            int(ratio) / _FIXED_ONE / int(count) - _LARGEST_RATIO,
        )
        if count
        else None
        for count, plane, ratio in fields["agreement"]
    )
