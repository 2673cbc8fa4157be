from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import cv2
import pytest

from mpn._common.concurrency import (
    BackgroundWorker,
    OpenCvThreads,
    Prefetch,
    usable_threads,
)
from mpn.errors import InputError, MpnWarning

HANG_S = 10.0
"""Far above anything these tests wait for: reaching it means a thread hangs."""


def within(seconds: float, action: Callable[[], object]) -> None:
    """Run ``action`` in a thread, fail if it does not end, raise what it raised."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "hangs"
    if raised:
        raise raised[0]


def count_threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


class BoomError(Exception):
    pass


def test_usable_threads_lowers_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpn._common.concurrency.usable_cores", lambda: 3)
    assert [usable_threads(threads) for threads in (None, 1, 3)] == [None, 1, 3]
    with pytest.warns(MpnWarning, match=r"option threads is 1000, but .* 3 cores: 3 is used"):
        assert usable_threads(1000) == 3
    with pytest.raises(InputError, match="got 0"):
        usable_threads(0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_opencv_threads_are_restored_in_any_order(order: tuple[int, int]) -> None:
    before = cv2.getNumThreads()
    with suppress(BoomError), OpenCvThreads(before + 3):
        raise BoomError
    assert cv2.getNumThreads() == before
    opened = [OpenCvThreads(before + 1), OpenCvThreads(before + 2)]
    assert cv2.getNumThreads() == before + 2
    opened[order[0]].close()
    assert cv2.getNumThreads() == before + 1 + order[1]  # the number of the open one
    opened[order[1]].close()
    assert cv2.getNumThreads() == before


def test_prefetch_delivers_everything_in_order() -> None:
    with Prefetch(range(100), depth=3) as items:
        assert list(items) == list(range(100))


def test_prefetch_stays_bounded() -> None:
    produced = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            produced.append(number)
            yield number

    with Prefetch(numbers(), depth=2) as items:
        assert next(items) == 0
        time.sleep(0.2)
        # One taken, two queued, one in the hand of the reader.
        assert len(produced) <= 4


def test_reader_error_arrives_after_the_items_before_it() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise BoomError("reader")

    def consume() -> None:
        seen = []
        with Prefetch(numbers(), depth=8) as items:
            time.sleep(0.05)  # the error is already there while items wait
            for item in items:
                seen.append(item)
                assert seen in ([1], [1, 2])

    with pytest.raises(BoomError, match="reader"):
        within(HANG_S, consume)


def test_queue_consumer_error_ends_blocked_reader() -> None:
    def consume() -> None:
        with Prefetch(range(10**9), depth=1, name="mpn-test-full") as items:
            next(items)
            time.sleep(0.1)  # the reader now waits for room
            raise BoomError("consumer")

    with pytest.raises(BoomError, match="consumer"):
        within(HANG_S, consume)
    assert count_threads("mpn-test-full") == 0


def test_leaving_early_closes_the_generator_in_the_reader_thread() -> None:
    closed_in: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed_in.append(threading.current_thread().name)

    with Prefetch(numbers(), depth=1, name="mpn-test-early") as items:
        next(items)
    assert closed_in == ["mpn-test-early"]


def test_a_generator_over_prefetch_closed_early_leaves_no_thread() -> None:
    def doubled() -> Iterator[int]:
        with Prefetch(range(10**9), depth=1, name="mpn-test-gen") as items:
            for item in items:
                yield 2 * item

    generator = doubled()
    assert [next(generator), next(generator)] == [0, 2]
    within(HANG_S, generator.close)
    assert count_threads("mpn-test-gen") == 0


@pytest.mark.parametrize("kind", [Prefetch, BackgroundWorker])
def test_depth_must_be_positive(kind: type) -> None:
    with pytest.raises(ValueError, match="depth"):
        kind([], depth=0)


def test_worker_close_finishes_all_items_in_order() -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.001)
        done.append(item)

    with BackgroundWorker(slow, depth=2) as worker:
        for item in range(50):
            worker.submit(item)
    assert done == list(range(50))


@pytest.mark.skipif(sys.platform != "linux", reason="no priority per thread")
def test_worker_lets_other_threads_run_first() -> None:
    found: list[int] = []
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with BackgroundWorker[None](
        lambda _: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    ) as worker:
        worker.submit(None)
    assert found == [min(before + 10, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_worker_error_is_raised_by_submit_on_full_queue() -> None:
    release = threading.Event()

    def fail(item: int) -> None:
        release.wait(HANG_S)
        raise BoomError(f"item {item}")

    worker = BackgroundWorker(fail, depth=1)
    worker.submit(0)
    threading.Timer(0.1, release.set).start()

    def submit_many() -> None:
        for item in range(1, 10):
            worker.submit(item)

    with pytest.raises(BoomError, match="item 0"):
        within(HANG_S, submit_many)
    with pytest.raises(BoomError, match="item 0"):
        within(HANG_S, worker.close)


def test_worker_error_on_the_last_item_surfaces_in_close() -> None:
    def fail(item: int) -> None:
        raise BoomError

    worker = BackgroundWorker(fail)
    worker.submit(1)
    with pytest.raises(BoomError):
        within(HANG_S, worker.close)


def test_consumer_error_wins_over_the_workers_and_nothing_hangs() -> None:
    entered = threading.Event()

    def fail(item: int) -> None:
        entered.set()
        raise BoomError("worker")

    def run() -> None:
        with BackgroundWorker(fail, depth=1, name="mpn-test-worker") as worker:
            worker.submit(1)
            entered.wait(HANG_S)
            raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        within(HANG_S, run)
    assert count_threads("mpn-test-worker") == 0


def test_abort_drops_the_queue() -> None:
    entered, release, done = threading.Event(), threading.Event(), []

    def slow(item: int) -> None:
        entered.set()
        release.wait(HANG_S)
        done.append(item)

    worker = BackgroundWorker(slow, depth=4)
    for item in range(4):
        worker.submit(item)
    entered.wait(HANG_S)
    threading.Timer(0.05, release.set).start()
    within(HANG_S, worker.abort)
    assert done == [0]
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(5)
