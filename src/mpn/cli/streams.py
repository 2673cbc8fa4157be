"""Write to stdout and stderr that are full, closed or ASCII."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_ESCAPES = "mpn.escapes"
_STDOUT, _STDERR = 1, 2


class _KeptError(io.RawIOBase):
    """A raw stream that keeps its first error, and drops the data after it.

    A run of an hour must not end because a terminal was closed. Its files are complete.

    Args:
        raw: The stream to write to.

    Attributes:
        error: The first error.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write ``data``, or drop it after an error."""
        if self.error is None:
            try:
                written: int | None = self._raw.write(data)
            except OSError as error:
                self.error = error
            else:
                return len(data) if written is None else written
        return len(data)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        """Return the file descriptor."""
        return int(self._raw.fileno())


class Streams:
    """The streams of the process; the result of :func:`guarded_streams`."""

    def __init__(self) -> None:
        self._fill_closed()
        sys.stdout, self._stdout = _guarded(sys.stdout, _STDOUT)
        sys.stderr, self._stderr = _guarded(sys.stderr, _STDERR)

    @staticmethod
    def _fill_closed() -> None:
        """Open the closed ones of the first three file descriptors.

        Otherwise a file of the results gets the number, and what a library prints is in it.
        Writing to one that is open for reading is an error, as if it were still closed.
        """
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= _STDERR:
            pass
        os.close(descriptor)

    def stdout_error(self) -> OSError | None:
        """Flush both, and return the error of stdout if a part of the text was lost."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return self._stdout.error


def _guarded(stream: TextIO | None, descriptor: int) -> tuple[TextIO, _KeptError]:
    if stream is None:
        kept = _KeptError(io.FileIO(descriptor, "w", closefd=False))
        encoding, errors = "utf-8", "strict"
    else:
        stream.flush()
        buffer: Any = stream.buffer
        kept = _KeptError(getattr(buffer, "raw", buffer))
        encoding, errors = stream.encoding, stream.errors or "strict"
    # surrogateescape, of the C locale, raises for what ASCII does not have as strict does.
    is_raising = errors in ("strict", "surrogateescape")
    return io.TextIOWrapper(
        io.BufferedWriter(kept),
        encoding=encoding,
        errors=_ESCAPES if is_raising else errors,
        line_buffering=True,
    ), kept


@contextmanager
def guarded_streams() -> Iterator[Streams]:
    r"""Replace stdout and stderr for the block by streams that do not raise.

    A character that the encoding lacks is written as an escape such as ``\u00e9``, also in JSON. An
    error of the operating system is kept: see :meth:`Streams.stdout_error`.
    """
    codecs.register_error(_ESCAPES, _escaped)
    before = sys.stdout, sys.stderr
    streams = Streams()
    try:
        yield streams
    finally:
        streams.stdout_error()
        sys.stdout, sys.stderr = before


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return the escape of JSON for what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    utf16 = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (utf16[at : at + 2].hex() for at in range(0, len(utf16), 2))
    return "".join(f"\\u{unit}" for unit in units), error.end


def is_closed_pipe(error: OSError) -> bool:
    """Return whether the reader of a pipe has ended, as ``head`` does."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)
