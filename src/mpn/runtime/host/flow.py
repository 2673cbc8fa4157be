"""Estimate the flow between two frames, by the flow engine or by OpenCV DIS.

A frame is prepared once (:meth:`FlowEstimator.prepare`) and used for two flows. Flow needs images
only, never masks: the next frame's flow can be estimated while the current frame is segmented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from mpn.engines.base import Engine
from mpn.engines.directory.manifest import DIS_SOURCE, FlowSource
from mpn.engines.open import EngineSet
from mpn.errors import EngineError
from mpn.runtime.host.preprocess import flow_input
from mpn.types import Float32Array, UInt8Array

_DIS_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

_DIS_MIN_SIDE_PX = 32
"""DIS ends its pyramid at 1/4 with patches of 8 px; below this side it raises, returns NaN or kills
the process, depending on the other side (opencv/opencv#14554; 5.0.0 still does)."""


@dataclass(frozen=True)
class PreparedFrame:
    """One frame, prepared by an estimator.

    Attributes:
        data: The frame in the estimator's format.
        size_hw: (height, width) of the frame, and of the flow on its grid.
    """

    data: npt.NDArray[Any]
    size_hw: tuple[int, int]


class FlowEstimator(Protocol):
    """Estimate flow between two frames of one size; for one thread at a time."""

    def prepare(self, rgb: UInt8Array) -> PreparedFrame:
        """Prepare a frame, (H, W, 3) uint8 RGB, for :meth:`estimate`."""

    def estimate(self, frame0: PreparedFrame, frame1: PreparedFrame) -> Float32Array:
        """Estimate the flow from ``frame0`` to ``frame1``.

        Returns:
            (2, H, W) float32 on the grid of ``frame0``: axis 0 is (x, y), in pixels of the frame,
            so that frame0(x) is close to frame1(x + flow(x)).
        """


def flow_px(estimator: FlowEstimator, rgb0: UInt8Array, rgb1: UInt8Array) -> Float32Array:
    """Estimate the flow between two images; see :meth:`FlowEstimator.estimate`."""
    return estimator.estimate(estimator.prepare(rgb0), estimator.prepare(rgb1))


def flow_estimator_from(engines: EngineSet) -> FlowEstimator:
    """Make the estimator that the manifest of an engine directory names.

    Raises:
        EngineError: If it names the flow engine and that is not open.
    """
    source = engines.manifest.flow
    if source.source == DIS_SOURCE:
        return DisFlow(source)
    if engines.flow is None:
        raise EngineError(
            "the manifest takes the flow from the flow engine, but that was not opened"
        )
    return EngineFlow(engines.flow)


class DisFlow:
    """OpenCV's dense inverse search on grey values.

    Args:
        source: Preset, and scale of the image it runs on.
    """

    def __init__(self, source: FlowSource) -> None:
        self._scale = source.scale
        # OpenCV's object keeps its buffers: not for two threads at once.
        self._dis = cv2.DISOpticalFlow.create(_DIS_PRESETS[source.preset])
        self._finest_scale = self._dis.getFinestScale()
        self._patch_px = (self._dis.getPatchSize(), self._dis.getPatchStride())

    def prepare(self, rgb: UInt8Array) -> PreparedFrame:
        """Compute grey values at the scale of the source."""
        size_hw = (rgb.shape[0], rgb.shape[1])
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        height, width = (max(round(side * self._scale), 1) for side in size_hw)
        if (height, width) != size_hw:
            grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
        return PreparedFrame(grey, size_hw)

    def estimate(self, frame0: PreparedFrame, frame1: PreparedFrame) -> Float32Array:
        """See :meth:`FlowEstimator.estimate`."""
        # For an image under 91 px OpenCV replaces these values in the object, and keeps them for
        # later images of any size (DISOpticalFlowImpl::autoSelectPatchSizeAndScales).
        self._dis.setFinestScale(self._finest_scale)
        self._dis.setPatchSize(self._patch_px[0])
        self._dis.setPatchStride(self._patch_px[1])
        return _dis_flow(self._dis, frame0, frame1)


class EngineFlow:
    """A flow engine, on frames of any size.

    Frames are resized to the size of the network; the flow is resized back and scaled with it.

    Args:
        engine: An open engine of role flow.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        height, width = engine.spec.inputs[0].shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            raise EngineError(f"a flow engine has a fixed size, this one takes {height}x{width}")
        self._network_hw = (height, width)

    def prepare(self, rgb: UInt8Array) -> PreparedFrame:
        """Resize the frame to the network, RGB 0..255."""
        return PreparedFrame(flow_input(rgb, self._network_hw), (rgb.shape[0], rgb.shape[1]))

    def estimate(self, frame0: PreparedFrame, frame1: PreparedFrame) -> Float32Array:
        """See :meth:`FlowEstimator.estimate`."""
        outputs = self._engine.run({"frame0": frame0.data, "frame1": frame1.data})
        return _at_size(outputs["flow_px"][0], frame0.size_hw)


def _dis_flow(dis: Any, frame0: PreparedFrame, frame1: PreparedFrame) -> Float32Array:
    grey_hw = frame0.data.shape
    flow = dis.calc(_at_least(frame0.data), _at_least(frame1.data), None)
    planes = np.stack(cv2.split(flow[: grey_hw[0], : grey_hw[1]]))
    return _at_size(planes, frame0.size_hw)


def _at_least(grey: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pad ``grey`` with its last row and column up to the smallest side of DIS."""
    below = max(_DIS_MIN_SIDE_PX - grey.shape[0], 0)
    right = max(_DIS_MIN_SIDE_PX - grey.shape[1], 0)
    if not below and not right:
        return grey
    padded: npt.NDArray[Any] = cv2.copyMakeBorder(
        grey, 0, below, 0, right, borderType=cv2.BORDER_REPLICATE
    )
    return padded


def _at_size(planes_px: Float32Array, size_hw: tuple[int, int]) -> Float32Array:
    """Resize a flow, and scale its vectors with it."""
    height, width = size_hw
    found_h, found_w = planes_px.shape[1:]
    if (found_h, found_w) == size_hw:
        return planes_px
    resized = np.empty((2, height, width), np.float32)
    for plane, out, gain in zip(
        planes_px, resized, (width / found_w, height / found_h), strict=True
    ):
        cv2.resize(plane, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        out *= np.float32(gain)
    return resized
