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

from mpn._common.closeable import Closeable
from mpn.errors import InputError
from mpn.runtime.flow import FlowEstimator, FlowFrame
from mpn.types import Float32Array, UInt8Array

_Answer = TypeVar("_Answer")

_WAKE_S = 0.5
"""A wait without a timeout cannot be interrupted by Ctrl-C on Windows; waits are this short."""

_PAIRS_KEPT = 2
"""The pair that will be asked for next, and the one behind it."""


Flows = tuple[Float32Array, Float32Array | None]
"""From the later frame to the earlier one, and back if that is wanted."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two frames in a row that the thread works on, or has worked on.

    Attributes:
        earlier: The earlier frame, prepared.
        later: The later frame, prepared.
        flows: Between them.
    """

    earlier: Future[FlowFrame]
    later: Future[FlowFrame]
    flows: Future[Flows]

    def is_to_prev(self, frame0: FlowFrame, frame1: FlowFrame) -> bool:
        """Whether the flow from ``frame0`` to ``frame1`` is the one to the earlier frame."""
        return _gave(self.later, frame0) and _gave(self.earlier, frame1)


class FlowAhead(Closeable):
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
        flows = self._thread.submit(lambda: self._flows(later.result(), earlier.result()))
        self._pairs.append(_Pair(earlier, later, flows))
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
        pair, is_to_prev = self._expected(frame0, frame1)
        if pair is not None and (is_to_prev or self._both_ways):
            to_prev, from_prev = self._answered(pair)
            flow = to_prev if is_to_prev else from_prev
            if flow is not None:
                return flow
        with self._working:
            return self._estimator.between(frame0, frame1)

    def both_ways(self, frame0: FlowFrame, frame1: FlowFrame) -> tuple[Float32Array, Float32Array]:
        """See :meth:`mpn.runtime.flow.FlowEstimator.both_ways`.

        Raises:
            InputError: If this is closed.
        """
        self._check_open()
        pair, is_to_prev = self._expected(frame0, frame1)
        if pair is not None and self._both_ways:
            to_prev, from_prev = self._answered(pair)
            if from_prev is not None:
                return (to_prev, from_prev) if is_to_prev else (from_prev, to_prev)
        with self._working:
            return self._estimator.both_ways(frame0, frame1)

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

    def _expected(self, frame0: FlowFrame, frame1: FlowFrame) -> tuple[_Pair | None, bool]:
        """The pair of these two frames, if there is one, and whether the first is the later one."""
        for pair in self._pairs:
            is_to_prev = pair.is_to_prev(frame0, frame1)
            if is_to_prev or pair.is_to_prev(frame1, frame0):
                return pair, is_to_prev
        return None, False

    def _answered(self, pair: _Pair) -> Flows:
        while self._pairs[0] is not pair:  # they are asked for in order, so it was skipped
            self._drop(self._pairs[0])
        try:
            return _answer(pair.flows)
        except BaseException:
            self._drop(pair)
            raise

    def _drop(self, pair: _Pair) -> None:
        self._pairs.remove(pair)
        pair.flows.cancel()

    def _prepare(self, rgb: UInt8Array) -> FlowFrame:
        with self._working:
            return self._estimator.prepare(rgb)

    def _flows(self, later: FlowFrame, earlier: FlowFrame) -> Flows:
        with self._working:
            if self._both_ways:
                return self._estimator.both_ways(later, earlier)
            return self._estimator.between(later, earlier), None

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
