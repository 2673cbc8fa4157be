"""Take frames on the host: copy, resize, flow, features of the target model.

All of this needs images only, never masks. It can thus run for the next frame, in a thread, while
the current frame is segmented.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mpn._common.closeable import Closeable
from mpn.runtime.host.flow import FlowEstimator, PreparedFrame
from mpn.runtime.host.preprocess import resize_rgb
from mpn.runtime.host.target import TargetStage
from mpn.runtime.timing import StageTimer
from mpn.types import Float32Array, UInt8Array


@dataclass(frozen=True)
class HostFrame:
    """One frame on the host.

    Attributes:
        frame: (h, w, 3) uint8 RGB at working size.
        flow_frame: The frame, prepared for flow.
        flow_to_prev_px: (2, h, w) float32, from this frame to the one before.
        flow_from_prev_px: The same back, on the grid of the one before; None without flow check.
    """

    frame: UInt8Array
    flow_frame: PreparedFrame
    flow_to_prev_px: Float32Array
    flow_from_prev_px: Float32Array | None


@dataclass(frozen=True)
class _Taken:
    """A frame that was given to the thread.

    Attributes:
        rgb: The caller's array.
        before: The frame before it, to which its flow leads.
        frame: The frame with its flow.
        features: (C, gh, gw) float32; None: they were not requested.
    """

    rgb: UInt8Array
    before: PreparedFrame
    frame: Future[HostFrame]
    features: Future[Float32Array] | None


class HostIngest(Closeable):
    """Take the frames of a video one after another, in a thread.

    Flow estimator and features engine run in this thread only.

    Args:
        flow: Estimates the flow.
        target: The target model; None if it is not in use.
        timer: Takes the times that the caller waits.
        checks_flow: Whether the flow back is needed, too.
    """

    def __init__(
        self,
        flow: FlowEstimator,
        target: TargetStage | None,
        timer: StageTimer,
        *,
        checks_flow: bool,
    ) -> None:
        self._flow, self._target, self._timer = flow, target, timer
        self._checks_flow = checks_flow
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mpn-ingest")
        self._next: _Taken | None = None
        self._features: Future[Float32Array] | None = None  # of the current frame
        self._copies: list[UInt8Array] = []

    def take(self, rgb: UInt8Array, before: UInt8Array, flow_before: PreparedFrame) -> HostFrame:
        """Return the next frame: prefetched, or computed now.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            before: (h, w, 3) uint8 RGB, the frame before it at working size.
            flow_before: The same, prepared for flow.

        Raises:
            EngineError: If the flow fails.
        """
        taken, self._next = self._next, None
        if taken is None or taken.rgb is not rgb or taken.before is not flow_before:
            taken = self._submit(rgb, (before,), flow_before, runs_features=False)
        self._features = taken.features
        with self._timer.stage("flow"):
            return taken.frame.result()

    def prefetch(
        self, rgb: UInt8Array, current: HostFrame, before: UInt8Array, *, runs_features: bool
    ) -> None:
        """Start :meth:`take` for the frame after the current one, and return.

        Args:
            rgb: (H, W, 3) uint8 RGB, of the size of the current frame.
            current: The current frame.
            before: (h, w, 3) uint8 RGB, the frame before the current one.
            runs_features: Whether to compute the features, too.
        """
        in_use = (before, current.frame)
        self._next = self._submit(rgb, in_use, current.flow_frame, runs_features=runs_features)

    def features(self, frame: HostFrame) -> Float32Array:
        """Return the features of the current frame: prefetched, or computed now.

        Raises:
            EngineError: See :meth:`mpn.runtime.host.target.TargetStage.features`.
        """
        assert self._target is not None
        with self._timer.stage("features"):
            if self._features is None:
                return self._thread.submit(self._target.features, frame.frame).result()
            return self._features.result()

    def wait(self) -> None:
        """Wait for the thread; a prefetched frame stays."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        self._next = self._features = None
        self._copies = []

    def _submit(
        self,
        rgb: UInt8Array,
        in_use: tuple[UInt8Array, ...],
        before: PreparedFrame,
        *,
        runs_features: bool,
    ) -> _Taken:
        frame = self._thread.submit(self._computed, rgb, in_use, before)
        features = None
        if runs_features and self._target is not None:
            target = self._target
            features = self._thread.submit(lambda: target.features(frame.result().frame))
        return _Taken(rgb, before, frame, features)

    def _computed(
        self, rgb: UInt8Array, in_use: tuple[UInt8Array, ...], before: PreparedFrame
    ) -> HostFrame:
        small = self._own(resize_rgb(rgb, before.size_hw), rgb, in_use)
        prepared = self._flow.prepare(small)
        to_prev_px = self._flow.estimate(prepared, before)
        from_prev_px = self._flow.estimate(before, prepared) if self._checks_flow else None
        return HostFrame(small, prepared, to_prev_px, from_prev_px)

    def _own(
        self, small: UInt8Array, given: UInt8Array, in_use: tuple[UInt8Array, ...]
    ) -> UInt8Array:
        """Copy a frame that is the caller's array, which the caller may change.

        The copies are those of three frames. A new array per frame made the flow of 480p up to 2 ms
        slower, because the allocator returns the memory to the system.
        """
        if small is not given:
            return small
        self._copies = [copy for copy in self._copies if copy.shape == given.shape]
        free = next((c for c in self._copies if all(c is not used for used in in_use)), None)
        if free is None:
            free = np.empty(given.shape, np.uint8)
            self._copies.append(free)
        np.copyto(free, given)
        return free
