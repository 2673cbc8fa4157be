"""Write batch.jsonl, the log of a batch for programs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpn._common.closeable import Closeable
from mpn._common.files import json_text, output_error, output_errors


class BatchLog(Closeable):
    """Append one JSON object per line; a file of earlier batches continues.

    Each line is one write, so lines of batches that write to one file at once do not mix. A log
    that cannot be written any more does not stop a batch: done.json and error.json have its state.

    Args:
        path: The file. Its folder is created.

    Attributes:
        problem: Why a line is missing; empty if none is.

    Raises:
        OutputError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""
        self._batch = secrets.token_hex(4)
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._needs_line_end = not _ends_with_line(path)

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Append an event.

        Args:
            event: ``"begin"``, ``"video"`` or ``"end"``.
            facts: Further fields.
        """
        head = {
            "event": event,
            "batch": self._batch,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        line = (json_text({**head, **facts}) + "\n").encode()
        if self._needs_line_end:  # of a batch that was killed, or whose disk was full
            line = b"\n" + line
        try:
            written = self._file.write(line)
            self._needs_line_end = written != len(line)
        except OSError as error:
            self._needs_line_end = True
            self.problem = self.problem or str(output_error(self.path, error))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"
