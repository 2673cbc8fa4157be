"""The operations of :class:`mpn.runtime.ops.base.Ops` on device arrays.

Each takes and gives what its counterpart of :mod:`mpn.runtime.ops.cpu` does, as
:class:`mpn.cuda.array.DeviceArray`, and starts its work without waiting for it. Boxes
are given by the host here; :mod:`mpn.runtime.ops.cuda_frame` keeps them on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mpn.cuda.array import DeviceArray, KernelDevice
from mpn.errors import InputError
from mpn.types import Roi

Dtype = Literal["float32", "float16"]


class CudaOps:
    """Warp, check, crop and paste on a device. Nothing given is changed.

    Args:
        device: Where the arrays are and the kernels run.
        dtype: Of what :meth:`crop_resize_pack` makes, the propagation network's input.
    """

    def __init__(self, device: KernelDevice, *, dtype: Dtype = "float32") -> None:
        self._device = device
        self._dtype: Dtype = dtype

    def warp_bilinear(
        self,
        prob: DeviceArray,
        flow_to_prev_px: DeviceArray,
        *,
        boxes: Sequence[Roi | None] | None = None,
    ) -> DeviceArray:
        """See :meth:`mpn.runtime.ops.base.Ops.warp_bilinear`.

        Raises:
            InputError: If the shapes do not fit.
        """
        if len(prob.shape) != 3 or flow_to_prev_px.shape != (2, *prob.shape[1:]):
            raise InputError(
                f"prob must be (K, H, W) and flow_to_prev_px (2, H, W) of the same size, "
                f"got {prob.shape} and {flow_to_prev_px.shape}"
            )
        if boxes is not None:
            _check_count("boxes", boxes, prob.shape[0])
        warped = self._device.empty(prob.shape, np.float32)
        self._device.launch(
            "warp_bilinear",
            prob=prob,
            flow_to_prev_px=flow_to_prev_px,
            boxes=None if boxes is None else self._device.upload(box_rows(boxes)),
            objects=prob.shape[0],
            height=prob.shape[1],
            width=prob.shape[2],
            warped=warped,
        )
        return warped

    def flow_confidence(
        self,
        flow_to_prev_px: DeviceArray,
        flow_from_prev_px: DeviceArray,
        *,
        box: Roi,
        sigma_px: float,
        sigma_frac: float,
    ) -> DeviceArray:
        """See :meth:`mpn.runtime.ops.base.Ops.flow_confidence`.

        Raises:
            InputError: If the flows differ in shape.
        """
        if flow_to_prev_px.shape != flow_from_prev_px.shape or flow_to_prev_px.shape[0] != 2:
            raise InputError(
                f"both flows must be (2, H, W) of one size, got {flow_to_prev_px.shape} and "
                f"{flow_from_prev_px.shape}"
            )
        confidence = self._device.empty(box.size_hw, np.float32)
        self._device.launch(
            "flow_confidence",
            flow_to_prev_px=flow_to_prev_px,
            flow_from_prev_px=flow_from_prev_px,
            x0=box.x0,
            y0=box.y0,
            box_height=box.size_hw[0],
            box_width=box.size_hw[1],
            height=flow_to_prev_px.shape[1],
            width=flow_to_prev_px.shape[2],
            sigma_px=sigma_px,
            sigma_frac=sigma_frac,
            confidence=confidence,
        )
        return confidence

    def crop_resize_pack(
        self,
        rgb: DeviceArray,
        prob: DeviceArray,
        rois: Sequence[Roi | None],
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> DeviceArray:
        """See :meth:`mpn.runtime.ops.base.Ops.crop_resize_pack`.

        Raises:
            InputError: If the shapes do not fit.
        """
        check_rgb_array(rgb)
        if len(prob.shape) != 3 or prob.shape[1:] != rgb.shape[:2]:
            raise InputError(
                f"prob must be (K, H, W) of the frame {rgb.shape[:2]}, got {prob.shape}"
            )
        _check_count("rois", rois, prob.shape[0])
        present = [k for k, roi in enumerate(rois) if roi is not None]
        packed = self._device.empty((len(present), 4, size, size), self._dtype)
        self._device.launch(
            "crop_pack_f16" if self._dtype == "float16" else "crop_pack_f32",
            rgb=rgb,
            prob=prob,
            rois=self._device.upload(box_rows(rois)),
            objects=self._device.upload(np.array(present, np.int32)),
            slots=len(present),
            height=prob.shape[1],
            width=prob.shape[2],
            size=size,
            packed=packed,
            **normalisation(mean, std),
        )
        return packed

    def paste(
        self, crops: DeviceArray, rois: Sequence[Roi | None], size_hw: tuple[int, int]
    ) -> DeviceArray:
        """See :meth:`mpn.runtime.ops.base.Ops.paste`.

        Raises:
            InputError: If the shapes do not fit.
        """
        present = [roi for roi in rois if roi is not None]
        if len(crops.shape) != 4 or crops.shape[1] != 1 or crops.shape[2] != crops.shape[3]:
            raise InputError(f"crops must be (N, 1, S, S), got {crops.shape}")
        _check_count("rois that are not None", present, crops.shape[0])
        slots = np.full(len(rois), -1, np.int32)
        slots[[roi is not None for roi in rois]] = np.arange(len(present))
        prob = self._device.empty((len(rois), *size_hw), np.float32)
        self._device.launch(
            "paste",
            crops=crops,
            rois=self._device.upload(box_rows(rois)),
            slots=self._device.upload(slots),
            objects=len(rois),
            height=size_hw[0],
            width=size_hw[1],
            size=crops.shape[2],
            prob=prob,
        )
        return prob


def box_rows(boxes: Sequence[Roi | None]) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Boxes as kernels read them: (K, 4) int32 of x0, y0, x1, y1; None is all 0."""
    return np.array(
        [(0, 0, 0, 0) if box is None else box.box_xyxy for box in boxes], np.int32
    ).reshape(-1, 4)


def boxes_from_rows(
    rows: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
) -> tuple[Roi | None, ...]:
    """The inverse of :func:`box_rows`; every empty row is None."""
    return tuple(
        Roi(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None for x0, y0, x1, y1 in rows.tolist()
    )


def normalisation(mean: Sequence[float], std: Sequence[float]) -> dict[str, float]:
    """(v / 255 - mean) / std as kernel arguments: a gain and an offset for each channel."""
    arguments: dict[str, float] = {}
    for channel, (m, deviation) in enumerate(zip(mean, std, strict=True)):
        arguments[f"gain{channel}"] = 1 / (255 * deviation)
        arguments[f"offset{channel}"] = -m / deviation
    return arguments


def check_rgb_array(rgb: DeviceArray) -> None:
    """Raise InputError unless ``rgb`` is (H, W, 3) uint8."""
    if len(rgb.shape) != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"a frame must be (H, W, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")


def _check_count(what: str, given: Sequence[object], expected: int) -> None:
    if len(given) != expected:
        raise InputError(f"expected {expected} {what}, got {len(given)}")
