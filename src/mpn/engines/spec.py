"""Inputs and outputs of each engine, declared once for all their users.

The tensors are the contract of an engine directory: float32 inputs and outputs for any precision of
the layers, with fixed names and axes per role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpn.errors import EngineError

Role = Literal["flow", "propagation", "osvos", "features"]
Precision = Literal["fp32", "fp16", "int8"]

ROLES: tuple[Role, ...] = ("flow", "propagation", "osvos", "features")
OPSET = 18
"""Opset of all graphs: TensorRT's parser reads GridSample of opset 20 as NEAREST
(NVIDIA/TensorRT#4646)."""

FLOW_SIZE_MULTIPLE = 64
"""Divisor of the sides: FlowNet 2.0 halves six times."""
OSVOS_SIZE_MULTIPLE = 1
"""Divisor of the sides: any size works, since pooling rounds up and maps are cropped."""
ROI_SIZE_STEP = 16
"""Step of the crop's side, 16 n + 1, so that align_corners=True interpolation is exact."""

FEATURES_SIZE_STEP = 32
"""Step of the sides of a features engine, 32 n + 1."""
FEATURES_STRIDE = 8
"""Distance of two grid points of the features, in pixels of the engine's input."""

OBJECTS_AXIS = "objects"

PROPAGATION_INPUTS: Mapping[int, str] = {4: "rgb_prob", 5: "rgb_prob_score"}
"""Channels of the propagation input -> its name."""


@dataclass(frozen=True)
class TensorSpec:
    """Input or output of an engine.

    Attributes:
        name: Name in the graph.
        dtype: Always ``"float32"`` at an engine's edge.
        shape: Fixed sizes as ints, dynamic axes as names (``"objects"``).
    """

    name: str
    dtype: str = field(default="float32", kw_only=True)
    shape: tuple[int | str, ...]

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axis number -> axis name, for the axes without a fixed size."""
        return {i: size for i, size in enumerate(self.shape) if isinstance(size, str)}

    def check(self, array: npt.NDArray[Any]) -> None:
        """Raise EngineError unless ``array`` has this dtype and shape."""
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(self.dtype):
            raise EngineError(
                f"tensor '{self.name}' must be {self.dtype} {self.shape}, "
                f"got {array.dtype} {array.shape}"
            )

    def describe(self) -> str:
        """Format for display, for example ``prob float32[objects,1,513,513]``."""
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class EngineSpec:
    """Interface of one engine.

    Attributes:
        role: Role of the network.
        inputs: In the order of the graph.
        outputs: In the order of the graph.
        max_objects: Largest size of the ``objects`` axis, for plans; None without such an axis.
    """

    role: Role
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_objects: int | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the graph."""
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of the graph."""
        return tuple(tensor.name for tensor in self.outputs)

    def check_inputs(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise EngineError if a name or shape does not fit, or an input is empty."""
        if set(inputs) != set(self.input_names):
            raise EngineError(
                f"the {self.role} engine takes {sorted(self.input_names)}, got {sorted(inputs)}"
            )
        for tensor in self.inputs:
            array = inputs[tensor.name]
            tensor.check(array)
            if array.size == 0:
                raise EngineError(
                    f"tensor '{tensor.name}' is empty {array.shape}: give at least one object"
                )


def padded_size_hw(size_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Round (height, width) up to multiples of a number."""
    height, width = size_hw
    return (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def flow_spec(frame_size_hw: tuple[int, int]) -> EngineSpec:
    """Build the flow spec: two frames, and the flow between them.

    Frames are RGB in 0..255 at network size; the flow frame0 -> frame1 is in pixels, (x, y).

    Args:
        frame_size_hw: (height, width) of the video. The network size is the next multiple of 64
            (854x480 -> 896x512): frames are resized up and the flow scaled back, as by the authors
            of the weights.
    """
    height, width = padded_size_hw(frame_size_hw, FLOW_SIZE_MULTIPLE)
    image = (1, 3, height, width)
    return EngineSpec(
        role="flow",
        inputs=(TensorSpec("frame0", image), TensorSpec("frame1", image)),
        outputs=(TensorSpec("flow_px", (1, 2, height, width)),),
    )


def propagation_spec(roi_size: int, max_objects: int, channels: int = 4) -> EngineSpec:
    """Build the propagation spec: K crops to foreground probability.

    The input is normalised RGB and the warped probability, and with five channels the score of a
    target model, 0..1.

    Args:
        roi_size: Side S of the square crop; 16 n + 1.
        max_objects: Largest K.
        channels: Channels of the input, one of :data:`PROPAGATION_INPUTS`.

    Raises:
        EngineError: If ``roi_size`` is not 16 n + 1 or below 65, ``max_objects`` is below 1, or the
            number of channels is unknown.
    """
    if roi_size < 65 or (roi_size - 1) % ROI_SIZE_STEP:
        raise EngineError(
            "the ROI size must be 16 n + 1 and at least 65 (513, 449, 385, 321, 193), "
            f"got {roi_size}"
        )
    if max_objects < 1:
        raise EngineError(f"max_objects must be at least 1, got {max_objects}")
    if channels not in PROPAGATION_INPUTS:
        raise EngineError(f"the propagation input must have 4 or 5 channels, got {channels}")
    shape = (OBJECTS_AXIS, channels, roi_size, roi_size)
    return EngineSpec(
        role="propagation",
        inputs=(TensorSpec(PROPAGATION_INPUTS[channels], shape),),
        outputs=(TensorSpec("prob", (OBJECTS_AXIS, 1, roi_size, roi_size)),),
        max_objects=max_objects,
    )


def osvos_spec(frame_size_hw: tuple[int, int]) -> EngineSpec:
    """Build the OSVOS spec: one whole frame to foreground probability.

    Channel order and mean are in the manifest.
    """
    height, width = frame_size_hw
    return EngineSpec(
        role="osvos",
        inputs=(TensorSpec("image", (1, 3, height, width)),),
        outputs=(TensorSpec("prob", (1, 1, height, width)),),
    )


def features_spec(size_hw: tuple[int, int], channels: int) -> EngineSpec:
    """Build the features spec: one whole frame to the maps of a frozen trunk.

    The frame is RGB in 0..255, resized to the engine's size. The maps are joined on one grid: the
    point (i, j) is at pixel (8 i, 8 j).

    Args:
        size_hw: (height, width) of the input; each is 32 n + 1, so that the maps of all strides
            have a point at each corner.
        channels: Channels of all maps together.

    Raises:
        EngineError: If a side is not 32 n + 1.
    """
    height, width = size_hw
    step = FEATURES_SIZE_STEP
    if (height - 1) % step or (width - 1) % step or min(size_hw) <= step:
        raise EngineError(
            f"the size of a features engine must be 32 n + 1, such as 673x385, got {width}x{height}"
        )
    grid = ((height - 1) // FEATURES_STRIDE + 1, (width - 1) // FEATURES_STRIDE + 1)
    return EngineSpec(
        role="features",
        inputs=(TensorSpec("image", (1, 3, height, width)),),
        outputs=(TensorSpec("features", (1, channels, *grid)),),
    )


def engine_spec(
    role: str,
    *,
    frame_size_hw: tuple[int, int],
    roi_size: int,
    max_objects: int,
    propagation_channels: int = 4,
) -> EngineSpec:
    """Build the spec of a role; see the function of each role for the sizes.

    Raises:
        EngineError: If the role is unknown or a size does not fit it.
    """
    if role == "flow":
        return flow_spec(frame_size_hw)
    if role == "propagation":
        return propagation_spec(roi_size, max_objects, propagation_channels)
    if role == "osvos":
        return osvos_spec(frame_size_hw)
    raise EngineError(f"unknown role '{role}': the roles are {', '.join(ROLES)}")
