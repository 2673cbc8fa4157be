"""Send a folder as a zip file, without a copy on the disk."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mpn._common.files import PARTIAL_SUFFIX

_PIECE_BYTES = 1 << 18


class _Sink(io.RawIOBase):
    """Unseekable file that keeps the written bytes until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: object, /) -> int:
        """Keep bytes."""
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        """Return the bytes since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def zip_of_folder(folder: Path) -> Iterator[bytes]:
    """Yield the bytes of a zip file with the finished files of a folder.

    The files are stored: masks and videos are compressed already.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.is_symlink() or path.name.endswith(PARTIAL_SUFFIX):
                continue
            info = zipfile.ZipInfo.from_file(path, path.relative_to(folder).as_posix())
            with path.open("rb") as source, archive.open(info, "w") as target:
                while piece := source.read(_PIECE_BYTES):
                    target.write(piece)
                    if data := sink.take():
                        yield data
            yield sink.take()
    yield sink.take()
