"""Engines on device memory: checks and buffers."""

from __future__ import annotations

import numpy as np

from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine, DeviceTensor, Engine
from mpn.errors import EngineError
from mpn.runtime.ops.cuda import Dtype


def device_engine(engine: Engine, *, object_id: int | None = None) -> DeviceEngine:
    """Check that an engine takes device memory, and return it.

    Args:
        engine: Any.
        object_id: The object of the engine, for the message.

    Raises:
        EngineError: If it takes host memory only.
    """
    if isinstance(engine, DeviceEngine):
        return engine
    whose = "" if object_id is None else f" of object {object_id}"
    raise EngineError(
        f"the {engine.spec.role} engine{whose} runs on {engine.backend} and takes arrays of the "
        "host only, but the frame is on a device: use backend 'cpu' for all, or leave that network "
        "out"
    )


def array_from_tensor(tensor: DeviceTensor) -> DeviceArray:
    """Wrap an engine's buffer for the kernels; the engine owns it."""
    return DeviceArray(tensor.address, tensor.shape, tensor.dtype, getattr(tensor, "owner", tensor))


def dtype_name(buffer: DeviceArray) -> Dtype:
    """Return the dtype of an engine's input."""
    return "float16" if buffer.dtype == np.float16 else "float32"


def network_hw(engine: Engine) -> tuple[int, int]:
    """Return (height, width) of the frames that a flow or OSVOS engine takes.

    Raises:
        EngineError: If they are not fixed.
    """
    height, width = engine.spec.inputs[0].shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise EngineError(
            f"the {engine.spec.role} engine must have a fixed size, this one takes {height}x{width}"
        )
    return height, width
