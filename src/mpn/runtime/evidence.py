"""What speaks for or against a warped probability: the flow back, and the object's colours."""

from __future__ import annotations

from mpn.runtime.colour import weigh_by_colour
from mpn.runtime.ops import cpu
from mpn.runtime.ops.base import Ops
from mpn.types import Float32Array, Roi, UInt8Array

FLOW_CHECK_FRAC = 0.5
"""Share of the flow's length that the flow check forgives: long flows are less exact."""


def weigh_in_box(
    plane: Float32Array,
    box: Roi,
    *,
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array | None,
    flow_check_px: float,
    rgb: UInt8Array,
    colour_table: Float32Array | None,
    colour_weight: float,
    ops: Ops = cpu,
) -> None:
    """Weigh one object's warped probability, in place.

    The runtime and the rollouts of training call this one function, so that a network is trained on
    what it will be given.

    Args:
        plane: (H, W) float32, 0..1; changed inside ``box`` only.
        box: A box outside which ``plane`` is 0.
        flow_to_prev_px: (2, H, W) float32 on the current frame's grid.
        flow_from_prev_px: (2, H, W) float32 on the previous frame's grid; None: no flow check.
        flow_check_px: See :class:`mpn.runtime.options.PipelineOptions`.
        rgb: (H, W, 3) uint8 RGB, the current frame.
        colour_table: From :func:`mpn.runtime.colour.colour_table`; None: no colours.
        colour_weight: See :class:`mpn.runtime.options.PipelineOptions`.
        ops: Array operations.
    """
    view = plane[box.y0 : box.y1, box.x0 : box.x1]
    if flow_from_prev_px is not None:
        view *= ops.flow_confidence(
            flow_to_prev_px,
            flow_from_prev_px,
            box=box,
            sigma_px=flow_check_px,
            sigma_frac=FLOW_CHECK_FRAC,
        )
    if colour_table is not None:
        view[:] = weigh_by_colour(view, rgb, colour_table, box=box, weight=colour_weight)
