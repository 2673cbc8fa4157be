"""What the host is told of a frame on a device: labels, and figures in one block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import DeviceArray, KernelDevice
from mpn.runtime.device.images import boxes_from_rows
from mpn.runtime.tracks import Measured
from mpn.types import Float32Array, Roi, StepResult, UInt8Array

_FIXED_ONE = 2.0**24
_LARGEST_RATIO = 2.0


@dataclass(frozen=True)
class Told:
    """What the host is told of a frame.

    Attributes:
        labels: (H, W) uint8 at input size.
        figures: See :class:`mpn.runtime.device.state.CudaFrame`.
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


class DeviceStepResult(StepResult):
    """A :class:`mpn.types.StepResult`; ``probs`` are copied to the host when first read.

    That must happen before the next frame: then they are overwritten, and reading them is an
    error. The other attributes stay valid. Make one with ``probs`` an array, or a function without
    arguments that copies it.
    """

    @property
    def probs(self) -> Float32Array:
        """(K, H, W) float32; see the class.

        Raises:
            InputError: If the next frame was begun meanwhile.
        """
        held: Float32Array | Callable[[], Float32Array] = self.__dict__["_probs"]
        if callable(held):
            held = held()
            held.setflags(write=False)
            self.__dict__["_probs"] = held
        return held

    @probs.setter
    def probs(self, value: Float32Array | Callable[[], Float32Array]) -> None:
        self.__dict__["_probs"] = value

    def __repr__(self) -> str:
        shape = (len(self.object_ids), *self.labels.shape)
        return (
            f"DeviceStepResult(index={self.index}, labels={self.labels.shape}, "
            f"probs={shape}, object_ids={self.object_ids})"
        )


_ALIGNMENT = 16
"""Of each array in the block, in bytes."""


class ReadbackBlock:
    """Arrays on the device by name, and the same arrays in a copy of the block.

    Args:
        device: Where to allocate; all bytes are 0 at first.
        fields: Name -> shape and dtype.
    """

    def __init__(
        self, device: KernelDevice, fields: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]
    ) -> None:
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        offset = 0
        for name, (shape, dtype) in fields.items():
            self._places[name] = (offset, shape, np.dtype(dtype))
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self.buffer = device.zeros((offset,), np.uint8)
        """All of them, (bytes,) uint8."""
        self._zeros = device.zeros((offset,), np.uint8)
        self._device = device

    def __getitem__(self, name: str) -> DeviceArray:
        """One of them, on the device."""
        offset, shape, dtype = self._places[name]
        return DeviceArray(self.buffer.address + offset, shape, dtype, self.buffer.owner)

    def clear(self, *names: str) -> None:
        """Set some of them to 0."""
        for name in names:
            array = self[name]
            raw = DeviceArray(array.address, (array.nbytes,), np.uint8, self.buffer.owner)
            self._device.copy(self._zeros.part(0, array.nbytes), raw)

    def read(self, buffer: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """All of them in a copy of the block on the host, as views."""
        return {
            name: buffer[offset : offset + int(np.prod(shape)) * dtype.itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (offset, shape, dtype) in self._places.items()
        }
