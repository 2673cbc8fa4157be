"""Worker processes that end with whoever asked for them, Ctrl-C included."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def process_pool(
    workers: int, *, opencv_threads: int | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Processes to submit work to; what has not begun when the block ends is dropped.

    Args:
        workers: How many, at least 1.
        opencv_threads: Threads of OpenCV in each; None leaves its default.

    Yields:
        The pool. A worker that dies makes its futures raise
        :class:`concurrent.futures.process.BrokenProcessPool`.
    """
    others = set(active_children())
    # Spawned, not forked: a fork of a process whose OpenCV threads run can hang in the child, and
    # begins with all the memory of this process.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(opencv_threads,),
    )
    try:
        yield pool
    except KeyboardInterrupt:
        # A worker that was interrupted while it waited for work may never hear that there is none:
        # shutdown would wait for it for ever.
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(opencv_threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if opencv_threads is not None:
        import cv2

        cv2.setNumThreads(opencv_threads)
