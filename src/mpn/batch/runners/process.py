"""Start the worker processes of the runners, and exchange lines with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import mpn.errors
from mpn._common.files import json_text
from mpn._common.text import one_line
from mpn.errors import EngineError, MpnError

_TAIL_BYTES = 4096


class WorkerProcess:
    """A child process that runs :mod:`mpn.batch.runners.worker`.

    Args:
        environment: Its environment variables.

    Attributes:
        stdout: Its output, one event per line.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._errors: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
        self._process = subprocess.Popen(
            # -P: modules of the current folder, which may be that of a video, are not imported.
            [sys.executable, "-P", "-m", "mpn.batch.runners.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the batch, which stops it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout

    def send(self, value: dict[str, Any]) -> None:
        """Write one line; a worker that has ended is noticed by the end of its output."""
        with suppress(OSError, ValueError):
            self._stdin.write(json_text(value).encode() + b"\n")
            self._stdin.flush()

    def close_input(self) -> None:
        """Stop the worker: see :mod:`mpn.batch.runners.worker`."""
        with suppress(OSError):
            self._stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def end(self) -> str:
        """Kill it if it runs, and return how it ended."""
        if self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):  # its output may end just before it
                self._process.wait(1.0)
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        self.close_input()
        with self._errors:
            text = _tail(self._errors)
        if code >= 0:
            return f"exit code {code}" + (f" ({text})" if text else "")
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        if name == "SIGKILL":
            return "SIGKILL, as the system does when memory runs out: use fewer --workers"
        return f"{name}" + (f" ({text})" if text else "")


def _tail(file: BinaryIO) -> str:
    """Return the last line of a file."""
    with suppress(OSError, ValueError):
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()
        filled = [line for line in lines if line.strip()]
        return one_line(filled[-1]) if filled else ""
    return ""


def error_of_event(event: Mapping[str, Any]) -> MpnError:
    """Return the error of an event ``"fatal"``, with its class."""
    kind = getattr(mpn.errors, event["class"], None)
    if isinstance(kind, type) and issubclass(kind, MpnError):
        return kind(event["message"])
    return EngineError(event["message"])
