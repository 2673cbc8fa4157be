from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import pytest

from mpn._common.concurrency import process_pool

HANG_S = 60.0
"""Far above what two idle processes need to start and to end, also on a busy machine."""


def _die() -> None:
    os._exit(3)


def test_process_pool_sets_opencv_threads() -> None:
    with process_pool(1, opencv_threads=1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(cv2.getNumThreads).result() == 1


def test_dead_worker_raises() -> None:
    with process_pool(1) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(_die).result()


@pytest.mark.parametrize("busy", [2, 1])
def test_ctrl_c_ends_the_workers_busy_or_waiting(tmp_path: Path, busy: int) -> None:
    """Interrupt two workers: the terminal sends Ctrl-C to all processes."""
    script, started = tmp_path / "script.py", tmp_path / "started"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from mpn._common.concurrency import process_pool\n"
        "def work(path):\n"
        "    Path(f'{path}-{os.getpid()}').touch()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    with process_pool(2) as pool:\n"
        "        pool.submit(os.getpid).result()\n"
        f"        futures = [pool.submit(work, sys.argv[1]) for _ in range({busy})]\n"
        "        [future.result() for future in futures]\n"
    )
    process = subprocess.Popen(
        [sys.executable, script, started],
        start_new_session=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + HANG_S
    while len(list(tmp_path.glob("started-*"))) < busy and time.monotonic() < end:
        time.sleep(0.05)
    workers = [int(path.name.removeprefix("started-")) for path in tmp_path.glob("started-*")]
    assert len(workers) == busy
    try:
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=HANG_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert b"KeyboardInterrupt" in stderr
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
