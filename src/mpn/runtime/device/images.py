"""Resize frames and planes on the device, and make the inputs of networks.

The reference is :mod:`mpn.runtime.host.preprocess`. Each function enqueues its work and does not
wait for it. Frames and labels are equal to those of the CPU bit for bit, planes of float32 within
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.errors import InputError
from mpn.types import Float32Array, Roi

Dtype = Literal["float32", "float16"]


def box_rows(boxes: Sequence[Roi | None]) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Convert boxes to (K, 4) int32 of x0, y0, x1, y1 for kernels; None is all 0."""
    return np.array(
        [(0, 0, 0, 0) if box is None else box.box_xyxy for box in boxes], np.int32
    ).reshape(-1, 4)


def boxes_from_rows(
    rows: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
) -> tuple[Roi | None, ...]:
    """Convert rows of :func:`box_rows` to boxes; an empty row is None."""
    return tuple(
        Roi(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None for x0, y0, x1, y1 in rows.tolist()
    )


def normalisation(mean: Sequence[float], std: Sequence[float]) -> dict[str, float]:
    """Return (v / 255 - mean) / std as kernel arguments: gain and offset per channel."""
    arguments: dict[str, float] = {}
    for channel, (m, deviation) in enumerate(zip(mean, std, strict=True)):
        arguments[f"gain{channel}"] = 1 / (255 * deviation)
        arguments[f"offset{channel}"] = -m / deviation
    return arguments


def check_rgb_array(rgb: DeviceArray) -> None:
    """Raise InputError unless ``rgb`` is (H, W, 3) uint8."""
    if len(rgb.shape) != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"a frame must be (H, W, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")


_UNCHANGED = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def resize_rgb(
    device: KernelDevice,
    rgb: DeviceArray,
    size_hw: tuple[int, int],
    *,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Resize a frame, see :func:`mpn.runtime.host.preprocess.resize_rgb`.

    Like the functions below, it returns the array itself and does not write ``out`` if the size is
    the same.
    """
    check_rgb_array(rgb)
    if rgb.shape[:2] == size_hw:
        return rgb
    resized = _out(device, out, (*size_hw, 3), np.uint8)
    device.launch("resize_rgb", rgb=rgb, **_sizes(rgb.shape[:2], size_hw), resized=resized)
    return resized


def resize_prob(
    device: KernelDevice,
    prob: DeviceArray,
    size_hw: tuple[int, int],
    *,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Resize planes, see :func:`mpn.runtime.host.preprocess.resize_prob`."""
    if prob.shape[1:] == size_hw:
        return prob
    resized = _out(device, out, (prob.shape[0], *size_hw), np.float32)
    device.launch(
        "resize_planes",
        planes=prob,
        count=prob.shape[0],
        **_sizes(prob.shape[1:], size_hw),
        resized=resized,
    )
    return resized


def resize_flow(
    device: KernelDevice,
    flow_px: DeviceArray,
    size_hw: tuple[int, int],
    *,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Resize a flow, (2, h, w) float32, to a frame, and scale its vectors with it."""
    height, width = flow_px.shape[1:]
    if (height, width) == size_hw:
        return flow_px
    resized = _out(device, out, (2, *size_hw), np.float32)
    device.launch(
        "resize_flow",
        flow_px=flow_px,
        **_sizes((height, width), size_hw),
        gain_x=size_hw[1] / width,
        gain_y=size_hw[0] / height,
        resized_px=resized,
    )
    return resized


def flow_input(
    device: KernelDevice,
    rgb: DeviceArray,
    size_hw: tuple[int, int],
    *,
    dtype: Dtype = "float32",
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Make the flow input, see :func:`mpn.runtime.host.preprocess.flow_input`."""
    return _packed(device, rgb, size_hw, *_UNCHANGED, is_bgr=False, dtype=dtype, out=out)


def osvos_input(
    device: KernelDevice,
    rgb: DeviceArray,
    size_hw: tuple[int, int],
    *,
    channel_order: str,
    mean: Sequence[float],
    dtype: Dtype = "float32",
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Make the OSVOS input, see :func:`mpn.runtime.host.preprocess.osvos_input`."""
    offsets = [-value for value in mean]
    is_bgr = channel_order.lower() == "bgr"
    return _packed(
        device, rgb, size_hw, _UNCHANGED[0], offsets, is_bgr=is_bgr, dtype=dtype, out=out
    )


def _packed(
    device: KernelDevice,
    rgb: DeviceArray,
    size_hw: tuple[int, int],
    gains: Sequence[float],
    offsets: Sequence[float],
    *,
    is_bgr: bool,
    dtype: Dtype,
    out: DeviceArray | None,
) -> DeviceArray:
    check_rgb_array(rgb)
    shape = (1, 3, *size_hw)
    planes = _out(device, out, shape, dtype)
    suffix = "f16" if dtype == "float16" else "f32"
    how: Arguments = {"rgb": rgb, "is_bgr": int(is_bgr), "planes": planes}
    how |= {f"gain{c}": gain for c, gain in enumerate(gains)}
    how |= {f"offset{c}": offset for c, offset in enumerate(offsets)}
    if rgb.shape[:2] == size_hw:
        device.launch(f"pack_rgb_same_{suffix}", pixels=size_hw[0] * size_hw[1], **how)
    else:
        device.launch(f"pack_rgb_{suffix}", **_sizes(rgb.shape[:2], size_hw), **how)
    return planes


def _out(
    device: KernelDevice, out: DeviceArray | None, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> DeviceArray:
    """Return ``out``, which must have this shape and dtype, or a new array."""
    if out is None:
        return device.empty(shape, dtype)
    if out.shape != shape or out.dtype != np.dtype(dtype):
        raise InputError(f"out must be {shape} {np.dtype(dtype)}, got {out.shape} {out.dtype}")
    return out


def _sizes(from_hw: tuple[int, ...], to_hw: tuple[int, int]) -> dict[str, int]:
    return {
        "height": from_hw[0],
        "width": from_hw[1],
        "to_height": to_hw[0],
        "to_width": to_hw[1],
    }


GAMMA_LEVELS: Final = 256
CUBE_ROOTS: Final = 3072
"""1.5 times 255 << 3, an upper bound of XYZ over the white point."""

_GAMMA_SCALE = 255 * 8
_ROOT_SCALE = 1 << 15
_BLUR_SIGMA_PX = 2.0
"""As in mpn.runtime.host.reliability."""
_BLUR_TAPS = 17
"""Size of cv2.GaussianBlur for this sigma on float32: round(8 sigma + 1), made odd."""


def gamma_table() -> npt.NDArray[np.uint16]:
    """Compute the linear light of sRGB levels: (256,) uint16 in 1/8 of a level.

    Source: IEC 61966-2-1.
    """
    level = np.arange(GAMMA_LEVELS) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    table: npt.NDArray[np.uint16] = np.rint(_GAMMA_SCALE * linear).astype(np.uint16)
    return table


def cube_root_table() -> npt.NDArray[np.uint16]:
    """Compute f(t) of CIE Lab: (3072,) uint16 in 2^-15, for t in 1/2040.

    The cube root is rounded to float32 first, as in OpenCV: with exact arithmetic three entries
    differ by one.
    """
    t = np.arange(CUBE_ROOTS) / _GAMMA_SCALE
    root = np.cbrt(t).astype(np.float32)
    value = np.where(t < 0.008856, t * 7.787 + 16 / 116, root)
    table: npt.NDArray[np.uint16] = np.rint(_ROOT_SCALE * value).astype(np.uint16)
    return table


def blur_taps() -> Float32Array:
    """Compute the (17,) float32 Gaussian that blurs the colour log ratio.

    See :func:`mpn.runtime.host.reliability.weigh_by_colour`.
    """
    taps: Float32Array = cv2.getGaussianKernel(_BLUR_TAPS, _BLUR_SIGMA_PX, cv2.CV_32F).ravel()
    return taps
