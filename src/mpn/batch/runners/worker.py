"""Run units in a child process of the local runner.

The first line of standard input has the settings, each further line an attempt, as JSON. When
standard input ends, the run stops as by Ctrl-C: the runner closes it to cancel, and the system
closes it if the runner is killed. Standard output has one event per line, as JSON.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from mpn._common.files import json_text
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings
from mpn.batch.remote import run_any_unit
from mpn.batch.unit import ReusedEngines
from mpn.errors import MpnError
from mpn.runtime.session.request import Progress

_EVENT_EVERY_S = 0.3
_LONGEST_STOP_S = 60.0
"""A stopped run finishes its files first."""


def main() -> int:
    """Run the attempts of standard input; return the exit code."""
    # A batch that a shell started in the background has SIGINT ignored, and this child too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("ignore")  # those for users are in run.json
    # Lines of libraries go to standard error; they are no events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    first = json.loads(sys.stdin.buffer.readline() or b"null")
    if first is None:
        return 0
    settings, worker = Settings.from_json(first["settings"]), str(first["worker"])
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    try:
        with ReusedEngines() as engines:
            while line := lines.get():
                attempt = json.loads(line)
                outcome = run_any_unit(
                    Unit.from_json(attempt["unit"]),
                    settings,
                    engines,
                    attempt=attempt["number"],
                    worker=worker,
                    on_progress=_Reporter(events),
                )
                _emit(events, {"type": "outcome", "outcome": outcome.as_json()})
    except KeyboardInterrupt:
        _emit(events, {"type": "stopped"})
    except MpnError as error:
        _emit(events, {"type": "fatal", "class": type(error).__name__, "message": str(error)})
    return 0


class _Reporter:
    """Write the progress of one attempt, at most some times a second."""

    def __init__(self, events: TextIO) -> None:
        self._events = events
        self._written_s = float("-inf")

    def __call__(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if now_s - self._written_s < _EVENT_EVERY_S:
            return
        self._written_s = now_s
        event = {"type": "progress", "done": progress.done, "expected": progress.expected}
        _emit(self._events, event)


def _emit(events: TextIO, event: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the runner was killed; the end of the input stops the run
        events.write(json_text(event) + "\n")


def _read_lines(lines: queue.SimpleQueue[bytes]) -> None:
    with suppress(OSError):
        for line in sys.stdin.buffer:
            lines.put(line)
    # To the process, not to this thread: the main thread may wait in a lock.
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_LONGEST_STOP_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
