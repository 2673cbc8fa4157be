"""Frames and planes at the sizes of networks, on device arrays: see mpn.runtime.preprocess.

Each function starts its work on the device's stream and does not wait for it. Frames and labels
come out as on the CPU bit for bit, planes of float32 within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.errors import InputError
from mpn.runtime.ops.cuda import Dtype, check_rgb_array

_UNCHANGED = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def resize_rgb(
    device: KernelDevice,
    rgb: DeviceArray,
    size_hw: tuple[int, int],
    *,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """:func:`mpn.runtime.preprocess.resize_rgb`: (H, W, 3) uint8 at another size.

    Like the functions below it gives the array itself, and leaves ``out`` alone, where the size
    is the same.
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
    """:func:`mpn.runtime.preprocess.resize_prob`: (K, H, W) float32 at another size."""
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
    """A flow network's answer, (2, h, w) float32 pixels, on the grid and in pixels of the frame."""
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
    """:func:`mpn.runtime.preprocess.flow_input`: (1, 3, height, width), RGB, 0..255."""
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
    """:func:`mpn.runtime.preprocess.osvos_input`: (1, 3, height, width) less the means."""
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
    """``out``, which must fit, or a new array."""
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
