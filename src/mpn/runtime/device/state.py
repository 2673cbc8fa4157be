"""Launch the kernels of one frame, from flow to labels.

No launch waits for the host. Kernels compute each object's ROI, its bounds and whether it is lost;
all three stay in device memory. Each buffer is allocated once and each launch has a fixed size, so
that a frame can be captured as a CUDA graph. The number of objects is fixed: a lost one keeps its
planes, filled with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.errors import InputError
from mpn.runtime.device.images import blur_taps, cube_root_table, gamma_table, normalisation
from mpn.runtime.device.readback import ReadbackBlock
from mpn.runtime.host.reliability import FLOW_CHECK_FRAC
from mpn.runtime.options import ResolvedOptions
from mpn.types import Float32Array

_EXTENTS = 128
"""Blocks that reduce the flow to its extremes."""


class DeviceState:
    """State of all objects, and the stages that compute it for the next frame.

    Args:
        device: Runs the kernels.
        object_ids: The K ids, ascending.
        size_hw: (height, width) of the working size.
        roi_size: Side S of the propagation network's input.
        mean: Three means of RGB in 0..1.
        std: Three standard deviations of RGB in 0..1.
        options: The pipeline's, in force. [default: the documented ones]
        flags: Number of flags for :meth:`flag_not_finite`, one per network.

    Raises:
        InputError: If there is no object.
    """

    def __init__(
        self,
        device: KernelDevice,
        *,
        object_ids: Sequence[int],
        size_hw: tuple[int, int],
        roi_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        options: ResolvedOptions | None = None,
        flags: int = 1,
    ) -> None:
        if not object_ids:
            raise InputError("a frame on the device needs at least one object")
        self._device = device
        self._options = options or ResolvedOptions()
        self._normalisation = normalisation(mean, std)
        self._roi_size = roi_size
        height, width = size_hw
        objects = len(object_ids)
        self._sizes: dict[str, int] = {"objects": objects, "height": height, "width": width}
        self.object_ids = device.upload(np.array(object_ids, np.uint8))
        """(K,) uint8."""
        self._gamma = device.upload(gamma_table())
        self._cube_root = device.upload(cube_root_table())
        self._blur = device.upload(blur_taps())
        self._bins = device.empty(size_hw, np.uint16)
        self._extents = device.empty((_EXTENTS, 4), np.float32)
        self._areas = device.empty((objects,), np.int32)
        self._boxes = device.empty((objects, 4), np.int32)
        self._first_areas_px = device.empty((objects,), np.float64)
        self._colour_tables: DeviceArray | None = None
        self.readback = ReadbackBlock(
            device,
            {
                "track_sums": ((objects,), np.uint64),
                "agreement": ((objects, 3), np.uint64),
                "track_areas": ((objects,), np.int32),
                "track_boxes": ((objects, 4), np.int32),
                "rois": ((objects, 4), np.int32),
                "warp_bounds": ((objects, 4), np.int32),
                "merged_bounds": ((objects, 4), np.int32),
                "refined_bounds": ((objects, 4), np.int32),
                "flags": ((flags,), np.int32),
            },
        )
        """Arrays that the host reads at the end of a frame, in one copy."""
        self.prob = device.zeros((objects, height, width), np.float32)
        """(K, H, W) float32, merged: input of the next warp."""
        self.bounds = device.zeros((objects, 4), np.int32)
        """(K, 4) int32: boxes outside which ``prob`` is exactly 0."""
        self.candidates = device.empty((objects, height, width), np.float32)
        """(K, H, W) float32: ``prob`` warped into the current frame."""
        self.warp_bounds = self.readback["warp_bounds"]
        """(K, 4) int32: boxes outside which ``candidates`` is exactly 0."""
        self.rois = self.readback["rois"]
        """(K, 4) int32: input regions of the propagation network; empty if an object is lost."""
        self.merged = device.zeros((objects, height, width), np.float32)
        """(K, H, W) float32: probabilities of the current frame before :meth:`commit`."""
        self.merged_bounds = self.readback["merged_bounds"]
        """(K, 4) int32: boxes outside which ``merged`` is exactly 0."""
        self.labels = device.zeros(size_hw, np.uint8)
        """(H, W) uint8: ids of the objects."""

    def start(
        self,
        prob: Float32Array,
        bounds: npt.NDArray[np.int32],
        first_areas_px: Sequence[float],
        colour_tables: Float32Array | None = None,
    ) -> None:
        """Upload the state of a frame from the host.

        Args:
            prob: (K, H, W) float32, merged.
            bounds: (K, 4) int32 boxes outside which it is 0.
            first_areas_px: Area of each object when it was given.
            colour_tables: (K, 8192) float32; required with a colour weight.

        Raises:
            InputError: If there is a colour weight and no colour tables.
        """
        if self._options.colour_weight and colour_tables is None:
            raise InputError("option colour_weight needs the objects' colour tables")
        self._device.upload(prob, self.prob)
        self._device.upload(bounds, self.bounds)
        self._device.upload(np.array(first_areas_px, np.float64), self._first_areas_px)
        if colour_tables is not None:
            self._colour_tables = self._device.upload(colour_tables, self._colour_tables)

    def warp(
        self,
        rgb: DeviceArray,
        flow_to_prev_px: DeviceArray,
        flow_from_prev_px: DeviceArray | None = None,
    ) -> None:
        """Warp the objects into the current frame and compute their ROIs.

        Writes :attr:`candidates`, :attr:`warp_bounds` and :attr:`rois`. The state changes only in
        :meth:`commit`.

        Args:
            rgb: (H, W, 3) uint8 RGB, the current frame.
            flow_to_prev_px: (2, H, W) float32 on its grid.
            flow_from_prev_px: (2, H, W) float32 on the previous frame's grid, for the flow check.
        """
        options, launch = self._options, self._device.launch
        launch(
            "flow_extent",
            flow_to_prev_px=flow_to_prev_px,
            pixels=self._pixels,
            partials=_EXTENTS,
            extents=self._extents,
        )
        found: Arguments = {"boxes": self._boxes, "areas": self._areas}
        launch(
            "reach_boxes",
            supports=self.bounds,
            extents=self._extents,
            partials=_EXTENTS,
            reach=self.warp_bounds,
            **found,
            **self._sizes,
        )
        warp: Arguments = {
            "prob": self.prob,
            "flow_to_prev_px": flow_to_prev_px,
            "flow_from_prev_px": flow_from_prev_px if options.flow_check_px else None,
            "reach": self.warp_bounds,
            "sigma_px": options.flow_check_px,
            "sigma_frac": FLOW_CHECK_FRAC,
            "threshold": options.threshold,
            "warped": self.candidates,
            **found,
            **self._sizes,
        }
        if options.colour_weight:
            self._bin_colours(rgb)
            launch(
                "warp_colour_box",
                bins=self._bins,
                tables=self._colour_tables,
                blur=self._blur,
                weight=options.colour_weight,
                **warp,
            )
        else:
            launch("warp_box", **warp)
        launch(
            "rois_from_boxes",
            first_areas_px=self._first_areas_px,
            reach=self.warp_bounds,
            margin_frac=options.roi_margin_frac,
            margin_px_min=options.roi_margin_px_min,
            lost_area_frac=options.lost_area_frac,
            rois=self.rois,
            supports=self.warp_bounds,
            **found,
            **self._sizes,
        )
        launch(
            "clear_lost",
            rois=self.rois,
            objects=self._sizes["objects"],
            pixels=self._pixels,
            prob=self.candidates,
        )

    def crop(
        self, rgb: DeviceArray, packed: DeviceArray, objects: DeviceArray | None = None
    ) -> None:
        """Write the input of the propagation network.

        Args:
            rgb: (H, W, 3) uint8 RGB, the current frame.
            packed: (N, 4 or 5, S, S) float32 or float16: the input; the first four channels are
                written.
            objects: (N,) int32, the index of each crop's object; None: all, in their order.
        """
        self._device.launch(
            f"crop_pack_{_suffix(packed)}",
            rgb=rgb,
            prob=self.candidates,
            rois=self.rois,
            objects=objects,
            slots=packed.shape[0],
            channels=packed.shape[1],
            height=self._sizes["height"],
            width=self._sizes["width"],
            size=self._roi_size,
            packed=packed,
            **self._normalisation,
        )

    def flip(self, packed: DeviceArray, flipped: DeviceArray) -> None:
        """Write the crops flipped horizontally.

        Args:
            packed: (N, C, S, S) float32 or float16.
            flipped: The same shape and dtype, written.
        """
        width = packed.shape[-1]
        self._device.launch(
            f"flip_rows_{_suffix(packed)}",
            values=packed,
            rows=packed.size // width,
            width=width,
            flipped=flipped,
        )

    def average_flipped(self, output: DeviceArray, flipped: DeviceArray) -> None:
        """Average the output of a network with its output for the flipped crops.

        Args:
            output: (N, 1, S, S) float32 or float16, written.
            flipped: Output for the flipped crops, of the same shape and dtype, still flipped.
        """
        width = output.shape[-1]
        self._device.launch(
            f"average_flipped_{_suffix(output)}",
            flipped=flipped,
            rows=output.size // width,
            width=width,
            values=output,
        )

    def merge(
        self,
        crops: DeviceArray | None,
        foregrounds: DeviceArray | None = None,
        foreground_of: DeviceArray | None = None,
        *,
        foreground_weight: float = 0.0,
    ) -> None:
        """Write :attr:`merged`, its bounds and :attr:`labels`.

        Args:
            crops: (K, 1, S, S), output of the propagation network; None merges the candidates.
            foregrounds: (P, H, W) float32 of OSVOS or the target model, blended inside the ROIs;
                None without blend.
            foreground_of: (K,) int32, plane of each object, or -1.
            foreground_weight: Weight of the foregrounds in the average.
        """
        self._device.launch(
            f"paste_merge_{'f32' if crops is None else _suffix(crops)}",
            crops=crops,
            rois=self.rois,
            candidates=self.candidates,
            foregrounds=foregrounds,
            foreground_of=foreground_of,
            object_ids=self.object_ids,
            size=self._roi_size,
            warped_weight=1 - self._options.propagation_weight,
            foreground_weight=foreground_weight,
            prob=self.merged,
            labels=self.labels,
            **self._sizes,
        )
        is_in_rois = crops is not None or foregrounds is not None
        self._device.copy(self.rois if is_in_rois else self.warp_bounds, self.merged_bounds)

    def commit(self, prob: DeviceArray | None = None, bounds: DeviceArray | None = None) -> None:
        """Make the current frame the state.

        Args:
            prob: (K, H, W) float32 to use instead of :attr:`merged`.
            bounds: (K, 4) int32, its bounds.
        """
        self._device.copy(self.merged if prob is None else prob, self.prob)
        self._device.copy(self.merged_bounds if bounds is None else bounds, self.bounds)

    def agreement(self, rgb: DeviceArray, planes: DeviceArray, plane_of: DeviceArray) -> None:
        """Sum OSVOS and the colour log ratio over the pixels of each candidate.

        Writes the readback array ``agreement``: per object its pixels, the sum of OSVOS, and the
        sum of the log ratio + 2, the latter two in 2^-24.

        Args:
            rgb: (H, W, 3) uint8 RGB, the current frame.
            planes: (P, H, W) float32 of OSVOS.
            plane_of: (K,) int32, plane of each object, or -1.

        Raises:
            InputError: If :meth:`start` got no colour tables.
        """
        if self._colour_tables is None:
            raise InputError("option redetect.agreement_min needs the objects' colour tables")
        if not self._options.colour_weight:
            self._bin_colours(rgb)
        self._device.launch(
            "osvos_agreement",
            candidates=self.candidates,
            planes=planes,
            plane_of=plane_of,
            bins=self._bins,
            tables=self._colour_tables,
            objects=self._sizes["objects"],
            pixels=self._pixels,
            threshold=self._options.threshold,
            sums=self.readback["agreement"],
        )

    def flag_not_finite(self, values: DeviceArray, flag: int) -> None:
        """Set an entry of the readback array ``flags`` if a value is not finite."""
        self._device.launch(
            f"flag_not_finite_{_suffix(values)}",
            values=values,
            count=values.size,
            flag=self.readback["flags"].part(flag, flag + 1),
        )

    def tracks(self, labels: DeviceArray, prob: DeviceArray) -> None:
        """Measure each object: write ``track_areas``, ``track_boxes``, ``track_sums``.

        Args:
            labels: (H, W) uint8 ids, of any size.
            prob: (K, H, W) float32; its sum over the pixels of each object is written in 2^-24.
        """
        counted: Arguments = {
            "boxes": self.readback["track_boxes"],
            "areas": self.readback["track_areas"],
            "prob_sums": self.readback["track_sums"],
            "objects": self._sizes["objects"],
            "height": labels.shape[0],
            "width": labels.shape[1],
        }
        self._device.launch("reset_boxes", **counted)
        self._device.launch(
            "track_stats", labels=labels, prob=prob, object_ids=self.object_ids, **counted
        )

    def _bin_colours(self, rgb: DeviceArray) -> None:
        self._device.launch(
            "colour_bins",
            rgb=rgb,
            pixels=self._pixels,
            gamma=self._gamma,
            cube_root=self._cube_root,
            bins=self._bins,
        )

    @property
    def _pixels(self) -> int:
        return self._sizes["height"] * self._sizes["width"]


def _suffix(array: DeviceArray) -> str:
    return "f16" if array.dtype == np.float16 else "f32"
