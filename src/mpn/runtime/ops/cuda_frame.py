"""The array work of one frame on the device, from flow to labels, without waiting for the host.

What an object's ROI is, whether it is lost, and where it may be next, is decided by kernels and
stays in device memory. Every buffer is allocated once and every launch has a fixed size, so a frame
can be captured as a CUDA graph. The number of objects is fixed: a lost one keeps its slot, with
zeros in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpn.errors import InputError
from mpn.runtime.evidence import FLOW_CHECK_FRAC
from mpn.runtime.ops.cuda import Dtype, normalisation
from mpn.runtime.ops.cuda_array import Arguments, DeviceArray, KernelDevice
from mpn.runtime.ops.cuda_colour import blur_taps, cube_root_table, gamma_table
from mpn.runtime.options import PipelineOptions
from mpn.types import Float32Array

_EXTENTS = 128
"""Blocks that the extremes of the flow are gathered by."""


class CudaFrame:
    """The state of all objects, and the stages that carry it to the next frame.

    Args:
        device: Where to work.
        object_ids: The K ids, ascending.
        size_hw: (height, width) that frames are worked on at.
        roi_size: Side S of the propagation network's input.
        mean: Three means of RGB in 0..1.
        std: Three standard deviations of RGB in 0..1.
        options: The pipeline's; default: the defaults.
        dtype: Of the propagation network's input and output.

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
        options: PipelineOptions | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        if not object_ids:
            raise InputError("a frame on the device needs at least one object")
        self._device = device
        self._options = options or PipelineOptions()
        self._suffix = "f16" if dtype == "float16" else "f32"
        self._normalisation = normalisation(mean, std)
        self._roi_size = roi_size
        height, width = size_hw
        objects = len(object_ids)
        self._sizes: dict[str, int] = {"objects": objects, "height": height, "width": width}
        self._object_ids = device.upload(np.array(object_ids, np.uint8))
        self._gamma = device.upload(gamma_table())
        self._cube_root = device.upload(cube_root_table())
        self._blur = device.upload(blur_taps())
        self._bins = device.empty(size_hw, np.uint16)
        self._reach = device.empty((objects, 4), np.int32)
        self._extents = device.empty((_EXTENTS, 4), np.float32)
        self._areas = device.empty((objects,), np.int32)
        self._boxes = device.empty((objects, 4), np.int32)
        self._track_areas = device.empty((objects,), np.int32)
        self._track_boxes = device.empty((objects, 4), np.int32)
        self._track_sums = device.empty((objects,), np.uint64)
        self._first_areas_px = device.empty((objects,), np.float64)
        self._colour_tables: DeviceArray | None = None
        self.prob = device.zeros((objects, height, width), np.float32)
        """(K, H, W) float32, merged: what is propagated further."""
        self.supports = device.zeros((objects, 4), np.int32)
        """(K, 4) int32: boxes outside which ``prob`` is exactly 0."""
        self.candidates = device.empty((objects, height, width), np.float32)
        """(K, H, W) float32: ``prob`` carried into the current frame."""
        self.rois = device.empty((objects, 4), np.int32)
        """(K, 4) int32: what the propagation network looks at; empty if the object is lost."""
        self.packed = device.empty((objects, 4, roi_size, roi_size), dtype)
        """(K, 4, S, S): the propagation network's input."""
        self.labels = device.zeros(size_hw, np.uint8)
        """(H, W) uint8: the objects' ids."""

    def start(
        self,
        prob: Float32Array,
        supports: npt.NDArray[np.int32],
        first_areas_px: Sequence[float],
        colour_tables: Float32Array | None = None,
    ) -> None:
        """Begin with what the host knows: the user's labels, or what it took over.

        Args:
            prob: (K, H, W) float32, merged.
            supports: (K, 4) int32 boxes outside which it is 0.
            first_areas_px: Area of each object when it was given.
            colour_tables: (K, 8192) float32; needed with a colour weight.

        Raises:
            InputError: If the colours are asked for and not there.
        """
        if self._options.colour_weight and colour_tables is None:
            raise InputError("option colour_weight needs the objects' colour tables")
        self._device.upload(prob, self.prob)
        self._device.upload(supports, self.supports)
        self._device.upload(np.array(first_areas_px, np.float64), self._first_areas_px)
        if colour_tables is not None:
            self._colour_tables = self._device.upload(colour_tables)
        self._device.launch(
            "labels_from_merged",
            merged=self.prob,
            object_ids=self._object_ids,
            objects=self._sizes["objects"],
            pixels=self._pixels,
            labels=self.labels,
        )

    def warp(
        self,
        rgb: DeviceArray,
        flow_to_prev_px: DeviceArray,
        flow_from_prev_px: DeviceArray | None = None,
    ) -> None:
        """Carry the objects into the current frame and find their ROIs.

        Writes :attr:`candidates` and :attr:`rois`; the state stays as it is until :meth:`merge`.

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
            supports=self.supports,
            extents=self._extents,
            partials=_EXTENTS,
            reach=self._reach,
            **found,
            **self._sizes,
        )
        warp: Arguments = {
            "prob": self.prob,
            "flow_to_prev_px": flow_to_prev_px,
            "flow_from_prev_px": flow_from_prev_px if options.flow_check_px else None,
            "reach": self._reach,
            "sigma_px": options.flow_check_px,
            "sigma_frac": FLOW_CHECK_FRAC,
            "threshold": options.threshold,
            "warped": self.candidates,
            **found,
            **self._sizes,
        }
        if options.colour_weight:
            launch(
                "colour_bins",
                rgb=rgb,
                pixels=self._pixels,
                gamma=self._gamma,
                cube_root=self._cube_root,
                bins=self._bins,
            )
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
            reach=self._reach,
            margin_frac=options.roi_margin_frac,
            margin_px_min=options.roi_margin_px_min,
            lost_area_frac=options.lost_area_frac,
            rois=self.rois,
            supports=self._reach,
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

    def crop(self, rgb: DeviceArray) -> None:
        """Write :attr:`packed`, the propagation network's input, from the candidates.

        Args:
            rgb: (H, W, 3) uint8 RGB, the current frame.
        """
        self._device.launch(
            f"crop_pack_{self._suffix}",
            rgb=rgb,
            prob=self.candidates,
            rois=self.rois,
            objects=None,
            slots=self._sizes["objects"],
            height=self._sizes["height"],
            width=self._sizes["width"],
            size=self._roi_size,
            packed=self.packed,
            **self._normalisation,
        )

    def merge(self, crops: DeviceArray | None, foreground: DeviceArray | None = None) -> None:
        """Write :attr:`prob` and :attr:`labels`, and the supports of the next frame.

        Args:
            crops: (K, 1, S, S), what the propagation network answered; None to take the
                candidates.
            foreground: (H, W) float32 of OSVOS, blended with it inside the ROIs; None without.
        """
        options = self._options
        self._device.launch(
            f"paste_merge_{self._suffix}",
            crops=crops,
            rois=self.rois,
            candidates=self.candidates,
            foreground=foreground,
            object_ids=self._object_ids,
            size=self._roi_size,
            warped_weight=1 - options.propagation_weight,
            foreground_weight=options.ensemble_weight,
            prob=self.prob,
            labels=self.labels,
            **self._sizes,
        )
        is_in_rois = crops is not None or foreground is not None
        self._device.copy(self.rois if is_in_rois else self._reach, self.supports)

    def tracks(self) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """What became of each object.

        Returns:
            Areas in the labels, (K,) int32; boxes, (K, 4) int32, empty where the area is 0; sums of
            the objects' probability over them, (K,) uint64 in units of 2^-24. Overwritten by the
            next call.
        """
        counted: Arguments = {
            "boxes": self._track_boxes,
            "areas": self._track_areas,
            "prob_sums": self._track_sums,
            **self._sizes,
        }
        self._device.launch("reset_boxes", **counted)
        self._device.launch(
            "track_stats",
            labels=self.labels,
            prob=self.prob,
            object_ids=self._object_ids,
            **counted,
        )
        return self._track_areas, self._track_boxes, self._track_sums

    @property
    def _pixels(self) -> int:
        return self._sizes["height"] * self._sizes["width"]
