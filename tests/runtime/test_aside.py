from __future__ import annotations

import threading

import pytest

from mpn.runtime.aside import Aside

PATIENCE_S = 10.0
"""For what must happen; a test that fails waits this long, one that passes does not."""


def test_the_call_runs_beside_the_caller_and_gives_its_result() -> None:
    go_on, began = threading.Event(), threading.Event()

    def work() -> str:
        began.set()
        assert go_on.wait(PATIENCE_S)
        return threading.current_thread().name

    aside = Aside(work, name="beside")
    assert began.wait(PATIENCE_S)  # and we are here
    go_on.set()
    assert aside.result() == aside.result() == "beside"
    assert not any(thread.name == "beside" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_what_the_call_raises_is_raised_by_result_and_not_by_wait(error: BaseException) -> None:
    def fail() -> None:
        raise error

    aside = Aside(fail, name="failing")
    aside.wait()
    with pytest.raises(type(error)) as raised:
        aside.result()
    assert raised.value is error
