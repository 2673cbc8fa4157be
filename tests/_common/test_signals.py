from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from mpn._common.signals import Stopped, deferred_stops, stop_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_stop_signal_raises_once(name: str) -> None:
    number = getattr(signal, name)
    done = []
    with pytest.raises(Stopped, match=name) as caught, stop_signals():  # noqa: PT012
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # the same stop: it must not end this block
            done.append(True)
    assert caught.value.signum == number
    assert done == [True]


def test_ignored_and_own_handlers_are_not_changed() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    before_term = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with stop_signals():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            with deferred_stops():
                signal.raise_signal(signal.SIGTERM)
                assert seen == [signal.SIGTERM]
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, before_term)


def test_deferred_stop_comes_after_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_stops():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        with deferred_stops():
            signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done == [True]


def test_error_in_a_deferred_block_wins_over_the_stop() -> None:
    with pytest.raises(ValueError, match="a bug"), deferred_stops():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError("a bug")


def test_other_threads_have_no_handlers() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_signals(), deferred_stops():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
