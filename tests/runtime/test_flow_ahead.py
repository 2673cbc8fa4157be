from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from mpn.engines.manifest import FlowSource
from mpn.errors import EngineError, InputError
from mpn.runtime.flow import DisFlow, FlowFrame
from mpn.runtime.flow_ahead import FlowAhead
from mpn.runtime.options import PipelineOptions
from mpn.runtime.pipeline import Pipeline
from mpn.types import Float32Array, StepResult, UInt8Array
from tests.emulation.engines import fake_engine_set
from tests.synthetic import Square, squares_clip

PAN_XY = (2.5, -1.25)
CLIP = squares_clip([Square(1, (50, 30), 40, PAN_XY)], size_hw=(120, 160), pan_xy=PAN_XY, frames=6)
PATIENCE_S = 10.0
"""For what must happen; a test that fails waits this long, one that passes does not."""


class FakeFlow:
    """Frames are their first value; the flow is 10 * frame0 + frame1 everywhere.

    Attributes:
        calls: ``(frame0, frame1)`` of every ``between``, and ``(frame,)`` of every ``prepare``.
        threads: Names of the threads that called.
        fails_on: Calls that raise.
        may_go_on: Cleared, ``between`` waits.
        is_working: Set while ``between`` is on.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.threads: set[str] = set()
        self.fails_on: set[tuple[int, ...]] = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_working = threading.Event()

    def prepare(self, rgb: UInt8Array) -> FlowFrame:
        number = int(rgb[0, 0, 0])
        self._note((number,))
        return FlowFrame(np.array([number]), (rgb.shape[0], rgb.shape[1]))

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Float32Array:
        pair = (int(frame0.data[0]), int(frame1.data[0]))
        self.is_working.set()
        assert self.may_go_on.wait(PATIENCE_S)
        self._note(pair)
        return np.full((2, *frame0.size_hw), 10 * pair[0] + pair[1], np.float32)

    def both_ways(self, frame0: FlowFrame, frame1: FlowFrame) -> tuple[Float32Array, Float32Array]:
        return self.between(frame0, frame1), self.between(frame1, frame0)

    def _note(self, call: tuple[int, ...]) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)
        if call in self.fails_on:
            raise EngineError(f"failed on {call}")


def numbered(number: int) -> UInt8Array:
    return np.full((4, 6, 3), number, np.uint8)


@pytest.fixture
def frames() -> list[UInt8Array]:
    return [numbered(number) for number in range(8)]


@pytest.fixture
def fake() -> FakeFlow:
    return FakeFlow()


@pytest.fixture
def ahead(fake: FakeFlow) -> Iterator[FlowAhead]:
    with FlowAhead(fake) as opened:
        yield opened


def asked(ahead: FlowAhead, rgb0: UInt8Array, rgb1: UInt8Array) -> float:
    return float(ahead.between(ahead.prepare(rgb0), ahead.prepare(rgb1))[0, 0, 0])


@pytest.mark.parametrize("both_ways", [False, True])
def test_flows_are_those_of_the_estimator_bit_for_bit(both_ways: bool) -> None:
    source = FlowSource("opencv-dis", "fast")
    plain = DisFlow(source)
    plain_frames = [plain.prepare(rgb) for rgb in CLIP.frames]
    with FlowAhead(DisFlow(source), both_ways=both_ways) as ahead:
        before = ahead.prepare(CLIP.frames[0])
        ahead.expect(CLIP.frames[0], CLIP.frames[1])
        for t in range(1, len(CLIP.frames)):
            if t + 1 < len(CLIP.frames):
                ahead.expect(CLIP.frames[t], CLIP.frames[t + 1])
            now = ahead.prepare(CLIP.frames[t])
            there = plain.between(plain_frames[t], plain_frames[t - 1])
            back = plain.between(plain_frames[t - 1], plain_frames[t])
            assert not np.array_equal(there, back)
            for found in (
                ahead.both_ways(now, before),
                ahead.both_ways(before, now)[::-1],
                (ahead.between(now, before), ahead.between(before, now)),
            ):
                assert np.array_equal(found[0], there)
                assert np.array_equal(found[1], back)
            before = now


def test_work_goes_on_in_another_thread_while_the_caller_does_something_else(
    ahead: FlowAhead, fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    fake.may_go_on.clear()
    ahead.expect(frames[0], frames[1])
    assert fake.is_working.wait(PATIENCE_S)  # and we are here
    fake.may_go_on.set()
    assert asked(ahead, frames[1], frames[0]) == 10
    assert fake.calls == [(0,), (1,), (1, 0)]
    assert all(name.startswith("mpn-flow") for name in fake.threads)


def test_what_is_asked_for_twice_is_worked_on_once(
    ahead: FlowAhead, fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    ahead.expect(frames[0], frames[1])
    assert asked(ahead, frames[1], frames[0]) == asked(ahead, frames[1], frames[0]) == 10
    assert fake.calls == [(0,), (1,), (1, 0)]


def test_both_ways_are_worked_on_ahead_if_that_is_wanted(
    fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    for both_ways, names in ((True, {"mpn-flow_0"}), (False, {"mpn-flow_0", "MainThread"})):
        fake.calls, fake.threads = [], set()
        with FlowAhead(fake, both_ways=both_ways) as ahead:
            ahead.expect(frames[0], frames[1])
            later, earlier = ahead.prepare(frames[1]), ahead.prepare(frames[0])
            there, back = ahead.both_ways(later, earlier)
        assert (there[0, 0, 0], back[0, 0, 0]) == (10, 1)
        assert fake.threads == names


def test_other_frames_than_the_expected_are_worked_on_there_and_then(
    ahead: FlowAhead, frames: list[UInt8Array]
) -> None:
    ahead.expect(frames[0], frames[1])
    assert asked(ahead, frames[2], frames[0]) == 20
    assert asked(ahead, frames[0], frames[1]) == 1  # the other way was not expected
    assert asked(ahead, numbered(1), numbered(0)) == 10  # other arrays of the same values
    assert asked(ahead, frames[1], frames[0]) == 10


def test_skipped_pairs_are_dropped(
    ahead: FlowAhead, fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    ahead.expect(frames[0], frames[1])
    ahead.expect(frames[1], frames[2])
    assert asked(ahead, frames[2], frames[1]) == 21
    ahead.expect(frames[2], frames[3])
    assert asked(ahead, frames[3], frames[2]) == 32


def test_pairs_that_nobody_asks_for_do_not_pile_up(
    fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    fake.may_go_on.clear()
    with FlowAhead(fake) as ahead:
        for earlier, later in pairwise(frames):
            ahead.expect(earlier, later)
        fake.may_go_on.set()
        assert asked(ahead, frames[7], frames[6]) == 76
    pairs = [call for call in fake.calls if len(call) == 2]
    assert pairs[-1] == (7, 6)
    assert len(pairs) <= 3  # the first was begun, the last two are kept


@pytest.mark.parametrize("call", [(2,), (2, 1)])
def test_an_error_is_raised_where_the_answer_is_asked_for_and_once(
    call: tuple[int, ...], ahead: FlowAhead, fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    fake.fails_on = {call}
    ahead.expect(frames[0], frames[1])
    ahead.expect(frames[1], frames[2])
    assert asked(ahead, frames[1], frames[0]) == 10
    with pytest.raises(EngineError, match="failed on"):
        asked(ahead, frames[2], frames[1])
    fake.fails_on = set()
    assert asked(ahead, frames[2], frames[1]) == 21
    ahead.expect(frames[2], frames[3])
    assert asked(ahead, frames[3], frames[2]) == 32


def test_an_error_that_nobody_asks_for_is_not_raised(
    fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    fake.fails_on = {(1, 0)}
    with FlowAhead(fake) as ahead:
        ahead.expect(frames[0], frames[1])


def test_closing_waits_for_the_thread_and_drops_what_is_not_begun(
    fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    fake.may_go_on.clear()
    ahead = FlowAhead(fake)
    ahead.expect(frames[0], frames[1])
    assert fake.is_working.wait(PATIENCE_S)
    ahead.expect(frames[1], frames[2])
    closing = threading.Thread(target=ahead.close)
    closing.start()
    assert closing.is_alive()
    fake.may_go_on.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert fake.calls == [(0,), (1,), (1, 0)]
    assert not any(name in {t.name for t in threading.enumerate()} for name in fake.threads)
    ahead.close()


def test_closing_ends_the_thread_while_an_exception_travels(
    fake: FakeFlow, frames: list[UInt8Array]
) -> None:
    with pytest.raises(KeyboardInterrupt), FlowAhead(fake) as ahead:  # noqa: PT012
        ahead.expect(frames[0], frames[1])
        raise KeyboardInterrupt
    assert not any(t.name.startswith("mpn-flow") for t in threading.enumerate())


def test_closed_it_says_so(fake: FakeFlow, frames: list[UInt8Array]) -> None:
    ahead = FlowAhead(fake)
    frame = ahead.prepare(frames[0])
    ahead.close()
    for use in (
        lambda: ahead.expect(frames[0], frames[1]),
        lambda: ahead.prepare(frames[0]),
        lambda: ahead.between(frame, frame),
    ):
        with pytest.raises(InputError, match="is closed: make a new one"):
            use()


def test_a_pipeline_with_flow_ahead_finds_the_same_masks() -> None:
    def run(ahead: FlowAhead | None) -> list[StepResult]:
        source = FlowSource("opencv-dis", "fast")
        flow = DisFlow(source) if ahead is None else ahead
        options = PipelineOptions(flow_check_px=10)
        results = []
        with Pipeline(fake_engine_set(frame_size_hw=(120, 160)), options=options, flow=flow) as p:
            p.start(CLIP.frames[0], CLIP.labels[0])
            for t in range(1, len(CLIP.frames)):
                if ahead is not None and t + 1 < len(CLIP.frames):
                    ahead.expect(CLIP.frames[t], CLIP.frames[t + 1])
                results.append(p.step(CLIP.frames[t]))
        return results

    with FlowAhead(DisFlow(FlowSource("opencv-dis", "fast")), both_ways=True) as ahead:
        for ours, plain in zip(run(ahead), run(None), strict=True):
            assert np.array_equal(ours.probs, plain.probs)
            assert np.array_equal(ours.labels, plain.labels)
            assert (plain.labels > 0).any()
