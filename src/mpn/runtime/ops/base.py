"""The array operations of one frame that are not networks, as a protocol.

A module with these functions is an implementation: ``mpn.runtime.ops.cpu`` is one, and a device's
module has the same signatures, so that the two are compared function by function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mpn.types import Float32Array, Roi, UInt8Array


class Ops(Protocol):
    """Warp, check, crop and paste. Every function is pure: nothing given is changed."""

    def warp_bilinear(
        self,
        prob: Float32Array,
        flow_to_prev_px: Float32Array,
        *,
        boxes: Sequence[Roi | None] | None = None,
    ) -> Float32Array:
        """Carry probabilities of the previous frame onto the current one.

        Args:
            prob: (K, H, W) float32 of the previous frame.
            flow_to_prev_px: (2, H, W) float32 on the current frame's grid: axis 0 is (x, y), in
                pixels, from a pixel of the current frame to its place in the previous one.
            boxes: For each k, the part of the output to compute; the rest is 0. None for a box:
                the whole plane is 0. None for all: whole planes.

        Returns:
            (K, H, W) float32, ``prob`` sampled bilinearly at (x + flow_x, y + flow_y). Pixel
            centres are at integers; taps outside the image count as 0; a pixel with a non-finite
            coordinate is 0.

        Raises:
            InputError: If the shapes do not fit.
        """

    def flow_confidence(
        self,
        flow_to_prev_px: Float32Array,
        flow_from_prev_px: Float32Array,
        *,
        box: Roi,
        sigma_px: float,
        sigma_frac: float,
    ) -> Float32Array:
        """How far the flow of a pixel comes back to where it started.

        A pixel that the previous frame did not show has no true flow; what it is given leads to
        another pixel, whose own flow leads elsewhere. Source: the forward-backward check, e.g.
        N. Sundaram et al., "Dense Point Trajectories by GPU-accelerated Large Displacement Optical
        Flow", ECCV 2010; VS-ReID uses it on warped masks.

        Args:
            flow_to_prev_px: (2, H, W) float32 on the current frame's grid, f.
            flow_from_prev_px: (2, H, W) float32 on the previous frame's grid, b.
            box: The part to compute.
            sigma_px: Round trip that is forgiven, in pixels.
            sigma_frac: The same as a share of the flow's length.

        Returns:
            (h, w) float32 of the box: exp(-|f(x) + b(x + f(x))|^2 / (2 (sigma_px + sigma_frac
            |f(x)|)^2)), 0..1; 0 where a flow is not finite.
        """

    def crop_resize_pack(
        self,
        rgb: UInt8Array,
        prob: Float32Array,
        rois: Sequence[Roi | None],
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> Float32Array:
        """Make the propagation network's input.

        Each crop is resized to a square, bilinearly and without regard to its aspect ratio, with
        half-pixel centres and no smoothing when it shrinks (``cv2.INTER_LINEAR`` on float32).
        Training crops in the same way: a change here needs new weights.

        Args:
            rgb: (H, W, 3) uint8 RGB, the current frame.
            prob: (K, H, W) float32, the probabilities warped onto it.
            rois: For each k its ROI, or None to leave the object out.
            size: Side S of the network's input.
            mean: Three means of RGB in 0..1.
            std: Three standard deviations of RGB in 0..1.

        Returns:
            (N, 4, S, S) float32, N the number of ROIs given: (rgb / 255 - mean) / std, then the
            probability as it is.

        Raises:
            InputError: If the shapes do not fit.
        """

    def paste(
        self, crops: Float32Array, rois: Sequence[Roi | None], size_hw: tuple[int, int]
    ) -> Float32Array:
        """Put the network's output back into the frame.

        Args:
            crops: (N, 1, S, S) float32, one for each ROI that is not None, in their order.
            rois: For each k the ROI that its crop was taken from, or None.
            size_hw: (H, W) of the frame.

        Returns:
            (K, H, W) float32: each crop resized to its ROI (bilinear, half-pixel centres), 0
            outside it.

        Raises:
            InputError: If the shapes do not fit.
        """
