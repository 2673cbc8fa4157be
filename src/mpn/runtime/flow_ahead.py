"""Flow that is estimated before it is asked for, in a thread beside the rest of the frame.

Flow needs images, never masks: while one frame is still being segmented, the flow of the next one
can be on its way. onnxruntime and OpenCV let other Python threads run while they work.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

from mpn.closing import Closing
from mpn.errors import InputError
from mpn.runtime.flow import FlowEstimator, FlowFrame
from mpn.types import Float32Array, UInt8Array

_Answer = TypeVar("_Answer")

_WAKE_S = 0.5
"""A wait without a timeout cannot be interrupted by Ctrl-C on Windows; waits are this short."""

_PAIRS_KEPT = 2
"""The pair that will be asked for next, and the one behind it."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two frames in a row that the thread works on, or has worked on.

    Attributes:
        earlier: The earlier frame, prepared.
        later: The later frame, prepared.
        to_prev: The flow from the later frame to the earlier one.
        from_prev: The flow back; None if it is not wanted.
    """

    earlier: Future[FlowFrame]
    later: Future[FlowFrame]
    to_prev: Future[Float32Array]
    from_prev: Future[Float32Array] | None

    def flow_between(self, frame0: FlowFrame, frame1: FlowFrame) -> Future[Float32Array] | None:
        """The flow from one of the two frames to the other, if that is what these are."""
        if _gave(self.later, frame0) and _gave(self.earlier, frame1):
            return self.to_prev
        if _gave(self.earlier, frame0) and _gave(self.later, frame1):
            return self.from_prev
        return None


class FlowAhead(Closing):
    """A :class:`mpn.runtime.flow.FlowEstimator` that can be told what it will be asked for.

    ``expect(previous, next)`` returns at once. When ``prepare(next)`` and then ``between`` are
    called for these two frames, they wait for what is not ready yet; for any other frames they work
    there and then, when the thread has finished what it is at. The flows are those of the estimator
    itself, bit for bit.

    Frames are known again by being the same array: one that was expected must not be changed, nor
    used for another frame, until it was asked for. An error of the estimator is raised where the
    answer is asked for, once, and nowhere if nobody asks.

    Whether this is faster depends on the cores that the rest of a frame leaves idle.

    Args:
        estimator: Does the work, for one thread at a time. It is the caller's to close, after this.
        both_ways: Estimate the flow back, too, as the flow check needs it.
    """

    def __init__(self, estimator: FlowEstimator, *, both_ways: bool = False) -> None:
        self._estimator = estimator
        self._both_ways = both_ways
        self._working = Lock()
        self._frames: deque[tuple[UInt8Array, Future[FlowFrame]]] = deque(maxlen=_PAIRS_KEPT + 1)
        self._pairs: deque[_Pair] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mpn-flow")
        self._is_closed = False

    def expect(self, rgb_prev: UInt8Array, rgb_next: UInt8Array) -> None:
        """Begin with the flow of a pair of frames.

        Pairs are asked for in the order they are expected; of those nobody asks for, the oldest are
        dropped.

        Args:
            rgb_prev: (H, W, 3) uint8 RGB, the earlier frame.
            rgb_next: The later one, of the same size.

        Raises:
            InputError: If this is closed.
        """
        self._check_open()
        earlier, later = self._prepared(rgb_prev), self._prepared(rgb_next)
        submit = self._thread.submit
        to_prev = submit(lambda: self._between(later.result(), earlier.result()))
        from_prev = None
        if self._both_ways:
            from_prev = submit(lambda: self._between(earlier.result(), later.result()))
        self._pairs.append(_Pair(earlier, later, to_prev, from_prev))
        while len(self._pairs) > _PAIRS_KEPT:
            self._drop(self._pairs[0])

    def prepare(self, rgb: UInt8Array) -> FlowFrame:
        """See :meth:`mpn.runtime.flow.FlowEstimator.prepare`.

        Raises:
            InputError: If this is closed.
        """
        self._check_open()
        known = self._known(rgb)
        if known is None:
            frame = self._prepare(rgb)
            known = Future()
            known.set_result(frame)
            self._frames.append((rgb, known))
            return frame
        try:
            return _answer(known)
        except BaseException:
            kept = [item for item in self._frames if item[1] is not known]
            self._frames = deque(kept, maxlen=self._frames.maxlen)
            raise

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Float32Array:
        """See :meth:`mpn.runtime.flow.FlowEstimator.between`.

        Raises:
            InputError: If this is closed.
        """
        self._check_open()
        for pair in self._pairs:
            flow = pair.flow_between(frame0, frame1)
            if flow is None:
                continue
            while self._pairs[0] is not pair:  # they are asked for in order, so it was skipped
                self._drop(self._pairs[0])
            try:
                return _answer(flow)
            except BaseException:
                self._drop(pair)
                raise
        return self._between(frame0, frame1)

    def close(self) -> None:
        """Drop what is not begun, wait for what is, and end the thread."""
        self._is_closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pairs.clear()
        self._frames.clear()

    def _prepared(self, rgb: UInt8Array) -> Future[FlowFrame]:
        known = self._known(rgb)
        if known is None:
            known = self._thread.submit(self._prepare, rgb)
            self._frames.append((rgb, known))
        return known

    def _known(self, rgb: UInt8Array) -> Future[FlowFrame] | None:
        return next((frame for known, frame in self._frames if known is rgb), None)

    def _drop(self, pair: _Pair) -> None:
        self._pairs.remove(pair)
        for flow in (pair.to_prev, pair.from_prev):
            if flow is not None:
                flow.cancel()

    def _prepare(self, rgb: UInt8Array) -> FlowFrame:
        with self._working:
            return self._estimator.prepare(rgb)

    def _between(self, frame0: FlowFrame, frame1: FlowFrame) -> Float32Array:
        with self._working:
            return self._estimator.between(frame0, frame1)

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("the look-ahead of the flow is closed: make a new one")


def _gave(future: Future[FlowFrame], frame: FlowFrame) -> bool:
    """Whether ``frame`` is what the thread made there."""
    is_made = future.done() and not future.cancelled() and future.exception() is None
    return is_made and future.result() is frame


def _answer(future: Future[_Answer]) -> _Answer:
    while not future.done():
        wait([future], timeout=_WAKE_S)
    return future.result()
