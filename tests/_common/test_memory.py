from __future__ import annotations

import errno
from contextlib import suppress

import cv2
import numpy as np
import pytest

from mpn._common import memory
from mpn._common.memory import check_memory, is_out_of_memory, memory_errors
from mpn.errors import EngineError, OutOfMemoryError


def caused_by(error: BaseException) -> EngineError:
    with suppress(EngineError):
        raise EngineError("export it again") from error
    raised = EngineError("export it again")
    raised.__cause__ = error
    return raised


def numpy_error() -> BaseException:
    with pytest.raises(MemoryError) as raised:
        np.empty(1 << 60, np.uint8)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        numpy_error(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libxcb.so.0: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        cv2.error("OpenCV(5.0) error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
        caused_by(MemoryError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'torch'"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("cannot allocate"),
        caused_by(RuntimeError("out of device memory")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), memory_errors("this run"):
        raise error


def test_out_of_memory_names_need_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "address_space_limit_mb", lambda: 800)
    with (
        pytest.raises(OutOfMemoryError, match=r"is 800 MB, and this run needs about 1100 MB$"),
        memory_errors("this run", 1100),
    ):
        raise MemoryError
    check_memory(800, "this run")
    with pytest.raises(OutOfMemoryError, match=r"needs at least 801 MB, but .* is 800 MB"):
        check_memory(801, "this run")
