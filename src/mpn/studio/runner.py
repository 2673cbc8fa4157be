"""Start, follow and cancel runs in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mpn._common.closeable import Closeable
from mpn._common.files import json_text
from mpn.errors import InputError
from mpn.studio.events import Event
from mpn.studio.project import track_entries
from mpn.studio.worker import provisional_path

RunState = Literal["idle", "running", "stopping", "complete", "stopped", "failed"]

_POLL_S = 0.1
"""Interval at which the journal of the tracks is read while a run computes."""

_NO_PROGRESS: Mapping[str, Any] = {"done": 0, "expected": None, "backward": None, "message": ""}
_CRASHED = "the run ended without a report: its messages are in the terminal of mpn studio"


class JournalReader(Closeable):
    """Read the lines that a run appends to the journal of tracks.jsonl.

    A line is written before the mask of its frame, so an entry is returned when the next one is
    there. A journal that is replaced by another one is read from its start, and one that gets its
    final name to its end.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._cut = b""
        self._held: dict[str, Any] | None = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, *, is_last: bool = False) -> list[dict[str, Any]]:
        """Return the entries of frames whose mask is complete since the last call.

        Args:
            is_last: Whether the run has ended; then all remaining entries are complete.
        """
        with suppress(OSError):
            self._open_current()
        data = self._cut + (b"" if self._file is None else self._file.read())
        complete, newline, self._cut = data.rpartition(b"\n")
        entries = list(track_entries((complete + newline).decode("utf-8", "replace")))
        if self._held is not None:
            entries.insert(0, self._held)
        self._held = None
        if entries and not is_last:
            self._held = entries.pop()
        return entries

    def _open_current(self) -> None:
        stat = self._path.stat()
        if self._file is not None and os.path.samestat(stat, os.fstat(self._file.fileno())):
            return
        file = self._path.open("rb")
        self.close()
        self._file, self._cut, self._held = file, b"", None


class Runner(Closeable):
    """At most one run at a time, in a child process.

    Args:
        journal: Journal of tracks.jsonl of the runs.
        tracks: Returns the lines of the last run.
        result_count: Returns the number of frames that have a result.
        provisional: Existing folder for the masks of backward passes.
        publish: Called from threads with each event for the pages.
    """

    def __init__(
        self,
        journal: Path,
        tracks: Callable[[], list[dict[str, Any]]],
        result_count: Callable[[], int],
        provisional: Path,
        publish: Callable[[Event], None],
    ) -> None:
        self._journal, self._tracks, self._result_count = journal, tracks, result_count
        self._provisional, self._publish = provisional, publish
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {"state": "idle", **_NO_PROGRESS}
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> dict[str, Any]:
        """State of the latest run, as JSON types.

        ``state``, ``message``, and of :class:`mpn.runtime.session.request.Progress`: ``done``,
        ``expected``, ``backward``. After a run ``kept``: the number of frames that have a result,
        those of earlier runs included.
        """
        with self._lock:
            return dict(self._state)

    @property
    def is_running(self) -> bool:
        """Whether a child process has not ended."""
        return self.status["state"] in ("running", "stopping")

    def start(self, request: Mapping[str, Any]) -> None:
        """Start a run.

        Args:
            request: See :func:`mpn.studio.worker.request_as_json`.

        Raises:
            InputError: If a run is in progress.
        """
        before = {entry["frame"]: entry for entry in self._tracks()}
        with self._lock:
            if self._state["state"] in ("running", "stopping"):
                raise InputError("a run is in progress: wait for its end, or cancel it")
            process = subprocess.Popen(
                # -P: modules of the current folder, which may be that of a video, are not imported.
                [sys.executable, "-P", "-m", "mpn.studio.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the server, which stops it
            )
            assert process.stdin is not None
            process.stdin.write(json_text(request).encode() + b"\n")
            process.stdin.flush()
            self._process = process
            self._state = {"state": "running", **_NO_PROGRESS}
            self._thread = threading.Thread(
                target=self._follow, args=(process, before), daemon=True
            )
            self._thread.start()
        self._publish({"type": "run", **self.status})

    def cancel(self) -> None:
        """Stop the run as Ctrl-C does; its finished frames are kept."""
        with self._lock:
            if self._process is None or self._state["state"] != "running":
                return
            self._state["state"] = "stopping"
            assert self._process.stdin is not None
            self._process.stdin.close()  # the child then stops as by Ctrl-C, see worker
        self._publish({"type": "run", **self.status})

    def wait(self) -> None:
        """Wait for the end of the run."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Cancel the run and wait for its end."""
        self.cancel()
        self.wait()

    def _follow(
        self, process: subprocess.Popen[bytes], before: Mapping[int, Mapping[str, Any]]
    ) -> None:
        ended = threading.Event()
        tail = threading.Thread(target=self._read_journal, args=(ended, before), daemon=True)
        tail.start()
        final: dict[str, Any] = {"state": "failed", "message": _CRASHED}
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            kind = event.pop("type")
            if kind == "progress":
                self._update(event)
            elif kind == "provisional":
                self._publish({"type": "frames", "frames": [event]})
            else:
                final = {"state": kind, "message": event.get("message", "")}
        process.wait()
        with self._lock:
            assert process.stdin is not None
            process.stdin.close()
        process.stdout.close()
        ended.set()
        tail.join()
        for path in self._provisional.iterdir():
            path.unlink()
        self._update({**final, "kept": self._result_count()})

    def _read_journal(
        self, ended: threading.Event, before: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Publish the frames of a run, without those that a resumed run keeps."""
        with JournalReader(self._journal) as reader:
            is_last = False
            while not is_last:
                is_last = ended.wait(_POLL_S)
                entries = reader.read(is_last=is_last)
                entries = [entry for entry in entries if before.get(entry["frame"]) != entry]
                if entries:
                    for entry in entries:
                        path = provisional_path(self._provisional, entry["frame"])
                        path.unlink(missing_ok=True)
                    self._publish({"type": "frames", "frames": entries})

    def _update(self, values: Mapping[str, Any]) -> None:
        with self._lock:
            self._state |= values
        self._publish({"type": "run", **self.status})
